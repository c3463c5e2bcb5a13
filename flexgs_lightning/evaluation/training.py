"""Trainings of a comparison: elastic stages from a common start, resumed where they were."""

from __future__ import annotations

import contextlib
import gc
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from flexgs_lightning.deploy.opening import open_start
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.iterative_pruning import IterativePruning
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.checkpoint import Model, read_checkpoint
from flexgs_lightning.records import shown
from flexgs_lightning.training.callbacks.checkpointing import FOLDER, LAST
from flexgs_lightning.training.callbacks.clock import seconds_of
from flexgs_lightning.training.run import TrainingRun

TRAINING, METRICS = "training", "metrics.json"
BAD_USAGE = 2
"""Exit status of a config that the parser refuses."""
CHECKPOINTS = 10
"""Checkpoints over a training, if that is more often than every 1,000 steps: what a crash costs at most."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        checkpoint: what it ended with.
        steps: iterations.
        seconds: what they took.
    """

    checkpoint: Path
    steps: int
    seconds: float

    @property
    def metrics(self) -> Path:
        """What was measured of held-out views, if it was."""
        return _metrics_beside(self.checkpoint)


class MethodRun(TrainingRun):
    """A training with iterative pruning where it is asked for."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callback that only comparisons need."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(IterativePruning, "iterative_pruning")


def train(
    folder: Path, start: Path | Model | None, settings: Settings, steps: int, *, tested: bool = False
) -> Training:
    """Train one stage of ``steps`` iterations below ``folder``, or finish what was begun there.

    Args:
        folder: of the method or cell; the run lies in its ``training/``.
        start: model, or checkpoint or splat file, that an elastic stage starts from; None for a first
            stage, from SfM points.
        settings: a config of ``flexgs fit`` without the stage's length.
        steps: iterations.
        tested: whether held-out views are measured at the end, as ``flexgs fit`` does (``Training.metrics``).

    Raises:
        InputError: the settings do not make a training.
        Stopped: after a signal; calling again goes on.
    """
    last = _last_checkpoint(folder)
    measured = not tested or (last is not None and _metrics_beside(last).is_file())
    if last is None or not measured or read_checkpoint(last)["global_step"] < steps:
        config = folder / "training.yaml"
        with atomic_path(config) as temporary:
            temporary.write_text(
                yaml.safe_dump(merged(settings, _stage(steps, start is not None, tested)), sort_keys=False)
            )
        resume = [] if last is None else ["--ckpt_path", str(last)]
        _run(config, ["--runs", str(folder), "--name", TRAINING, *resume], start)
        gc.collect()  # a trainer and its module refer to each other, and hold the scene and its moments
        last = _last_checkpoint(folder)
    assert last is not None
    checkpoint = read_checkpoint(last)
    seconds = seconds_of(checkpoint)
    assert seconds is not None
    return Training(last, checkpoint["global_step"], seconds)


def _run(config: Path, options: list[str], start: Path | Model | None) -> None:
    """Train, from ``start`` if there is one."""
    run = _prepared(["--config", str(config), *options], str(config))
    run.model.start = open_start(start) if isinstance(start, Path) else start
    run.train()


def check_settings(config: Mapping[str, Any], capture: Mapping[str, Any], source: str) -> None:
    """Refuse settings of data and model that ``flexgs fit`` would refuse, before anything is trained by them.

    Args:
        config: merged configs.
        capture: what the checkpoint was trained on, where the config does not say it.
        source: the configs, for messages.

    Raises:
        InputError: they are not the settings of a training.
    """
    for name in ("data", "model"):
        if not isinstance(config.get(name, {}), Mapping):
            raise InputError(f"{source}: {name}: expected settings by name, found {shown(config[name])}.")
    data = {"root": capture.get("root") or ".", **config.get("data", {})}
    settings = {"data": data, "model": config.get("model", {})}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(settings))
        _prepared(["--config", str(path), "--trainer.accelerator=cpu"], source)


def _prepared(arguments: list[str], source: str) -> MethodRun:
    """A training that is ready to begin; the parser's usage, a page long, helps nobody who edits a config.

    Raises:
        InputError: the settings do not make a training.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return MethodRun(arguments)
    except SystemExit as exit_:
        if exit_.code != BAD_USAGE:
            raise
        raise InputError(f"{source}: {said.getvalue().rpartition('error: ')[2].strip()}") from exit_


def merged(first: Mapping[str, Any], *others: Mapping[str, Any]) -> Settings:
    """Nested settings laid over one another; later ones win, lists are replaced whole."""
    result = dict(first)
    for other in others:
        for name, value in other.items():
            mine = result.get(name)
            both = isinstance(mine, Mapping) and isinstance(value, Mapping)
            result[name] = merged(mine, value) if both else value  # type: ignore[arg-type]
    return result


def _stage(steps: int, elastic: bool, tested: bool) -> Settings:
    """The first stage or the elastic one alone, not validated on its way."""
    lengths = {
        "reconstruction_steps": 0 if elastic else steps,
        "elastic_training": {"steps": steps if elastic else 0},
    }
    return {
        "model": lengths if tested else {"lpips": "none", **lengths},
        "trainer": {"limit_val_batches": 0},
        "checkpoint": {"every_n_steps": max(1, min(1_000, steps // CHECKPOINTS))},
        "test_after_fit": tested,
    }


def _metrics_beside(checkpoint: Path) -> Path:
    return checkpoint.parents[1] / METRICS


def _last_checkpoint(folder: Path) -> Path | None:
    """The run's checkpoint; a run that broke before its first one left none and is started afresh."""
    found = (folder / TRAINING).glob(f"version_*/{FOLDER}/{LAST}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
