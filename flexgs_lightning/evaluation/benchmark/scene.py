"""One scene of a benchmark run: where its trainings lie, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from flexgs_lightning.evaluation.records import read_metrics
from flexgs_lightning.evaluation.scheduling import SIGNALS
from flexgs_lightning.records import Natural, parsed, read_yaml

HEADER = "==== flexgs fit "
"""Begins each training in a scene's log."""
ERROR = "flexgs: error: "
INTERRUPTED = {128 + number for number in SIGNALS} | {-number for number in SIGNALS}
"""Exit status of a training that a signal has ended, after a checkpoint or at once."""


@dataclass(frozen=True)
class SceneRun:
    """Trainings of one scene, as ``flexgs fit`` numbers them: ``runs/name/version_N``.

    Attributes:
        name: the scene's name.
        root: folder of its capture.
        runs: folder of all scenes' runs.
    """

    name: str
    root: Path
    runs: Path

    @property
    def folder(self) -> Path:
        """All trainings of this scene."""
        return self.runs / self.name

    @property
    def log(self) -> Path:
        """What the trainings print."""
        return self.folder / "log.txt"

    @property
    def elastic_file(self) -> Path:
        """The scene as an elastic file, where ``--codec`` asked for it."""
        return self.folder / f"{self.name}.egs"

    def finished(self) -> dict[str, Any] | None:
        """``metrics.json`` of the newest complete training, or None.

        Metrics of a checkpoint on the way, by ``flexgs test``, do not count.
        """
        for version in self._versions():
            path = version / "metrics.json"
            if path.is_file():
                metrics = read_metrics(path)
                if metrics["iteration"] >= _steps(version):
                    return metrics
        return None

    def checkpoint(self) -> Path | None:
        """Where an interrupted training goes on, or None."""
        checkpoints = (version / "checkpoints" / "last.ckpt" for version in self._versions())
        return next((path for path in checkpoints if path.is_file()), None)

    def arguments(self, checkpoint: Path | None) -> list[str]:
        """Options of ``flexgs fit`` for this scene."""
        resume = [] if checkpoint is None else [f"--ckpt_path={checkpoint}"]
        return [f"--data.root={self.root}", f"--runs={self.runs}", f"--name={self.name}", *resume]

    def failure(self, status: int) -> str | None:
        """Why a training with this exit status has not finished, from its log; None if it has."""
        if status == 0 and self.finished() is not None:
            return None
        if status in INTERRUPTED:
            return "interrupted"
        lines = self.log.read_text(errors="replace").rpartition(HEADER)[2].split("\n")
        errors = [line for line in lines if line.startswith(ERROR)]
        if errors:
            return errors[-1].removeprefix(ERROR)
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"exit status {status}, {last}"

    def _versions(self) -> list[Path]:
        """Folders of the trainings, newest first."""
        numbered = {
            int(path.name.removeprefix("version_")): path
            for path in self.folder.glob("version_*")
            if path.name.removeprefix("version_").isdigit()
        }
        return [numbered[number] for number in sorted(numbered, reverse=True)]


class _Elastic(Struct):
    steps: Natural


class _Model(Struct):
    reconstruction_steps: Natural
    elastic_training: _Elastic


class _Config(Struct):
    """Of a run's recorded configuration, what tells how long it is."""

    model: _Model


def _steps(version: Path) -> int:
    """Length of a training, from its recorded configuration."""
    path = version / "config.yaml"
    model = parsed(path, read_yaml(path), _Config).model
    return model.reconstruction_steps + model.elastic_training.steps
