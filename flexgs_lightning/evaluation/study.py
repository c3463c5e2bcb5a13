"""Study: what all methods of a comparison share - the scene, its capture, and the protocol."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.deploy.opening import choose_device
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.options import check_counts, check_seed, image_metrics
from flexgs_lightning.evaluation.scores import Score
from flexgs_lightning.evaluation.subject import Seen, Subject, subject_of
from flexgs_lightning.evaluation.training import Settings, check_settings, merged
from flexgs_lightning.metrics.protocol import ImageMetrics
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import Model, load
from flexgs_lightning.settings import read_config
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)

SHARED_MODEL = (
    *("background", "antialiased", "ssim_weight", "learning_rates", "sh_degree_interval"),
    *("appearance", "camera_colors"),
)
"""Settings of the model that are the scene's and not a method's; the rest of a run's config is left aside."""


@dataclass(frozen=True)
class Schedule:
    """How long methods train.

    Args:
        steps: iterations of an elastic method's stage, for all ratios together.
        finetune_steps: iterations of a method that trains for each ratio, for each of them.
        iterative_scale: of iterative pruning's published 1,000 iterations after each pruning and 5,000 at the
            end; None shares ``finetune_steps`` out in that proportion.
        scratch_steps: iterations of a training from scratch, for each ratio; None for as many as the
            checkpoint was trained for and ``finetune_steps`` together.
    """

    steps: int
    finetune_steps: int
    iterative_scale: float | None = None
    scratch_steps: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, {"steps": 1, "finetune_steps": 1, "scratch_steps": 1})
        if self.iterative_scale is not None and not 0 < self.iterative_scale < 1e6:
            raise InputError(f"--iterative_scale: expected a positive number, found {self.iterative_scale}.")


@dataclass(frozen=True, eq=False)
class Study:
    """A trained first stage, and how everything made from it is trained, drawn and measured.

    Attributes:
        checkpoint: file of the first stage.
        model: what it holds.
        data: the capture; ``setup`` is done.
        settings: what every training has in common: a config of ``flexgs fit``.
        schedule: lengths of trainings.
        device: where renders are measured.
        metrics: PSNR, SSIM and LPIPS.
        seed: of every training, and of random pruning.
    """

    checkpoint: Path
    model: Model
    data: CaptureDataModule
    settings: Settings
    schedule: Schedule
    device: torch.device
    metrics: ImageMetrics
    seed: int

    def __len__(self) -> int:
        """Gaussians of the first stage."""
        return len(self.model)

    @property
    def scratch_steps(self) -> int:
        """Iterations of a training from scratch."""
        return self.schedule.scratch_steps or self.model.iteration + self.schedule.finetune_steps

    @property
    def capture(self) -> Capture:
        """The capture."""
        return self.data.capture

    @property
    def picture_view(self) -> View:
        """The held-out view of which pictures are made: the middle one."""
        views = self.capture.test_views
        return views[len(views) // 2]

    @property
    def seconds(self) -> float | None:
        """How long a scene that moves lasts; None if it stands still, or that is unknown."""
        return (self.model.seconds or self.capture.seconds) if self.model.moves else None

    @property
    def background(self) -> Tensor:
        """[3] colour behind the scene in evaluation."""
        return self.model.background.to(self.device)

    @property
    def antialiased(self) -> bool:
        """How everything is drawn."""
        return self.model.antialiased

    @functools.cached_property
    def subject(self) -> Subject:
        """The first stage, on the device."""
        return subject_of(self.model.to(self.device))

    @property
    def splats(self) -> Splats:
        """The first stage, which stands still, on the device."""
        return self.subject.at(None)

    @functools.cache  # noqa: B019 (a study lives as long as the program)
    def order(self, score: Score) -> Int[Tensor, " N"]:
        """[N] ranking of the first stage by a pruning score over the training views."""
        views = self.capture.train_views
        cameras, times = [view.camera for view in views], [view.time for view in views]
        seen = Seen(cameras, times, self.background, self.antialiased, self.seed)
        return self.subject.order(score, seen)

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What a result depends on, whatever its method: results of other facts do not belong beside it."""
        return {
            "checkpoint": file_digest(self.checkpoint),
            "capture": self.capture.name,
            "images": self.capture.protocol,
            "test_every": self.capture.test_every,
            "background": self.model.background.tolist(),
            "antialiased": self.antialiased,
            "lpips": self.metrics.protocol()["lpips"],
            "seed": self.seed,
        }

    def check_ratios(self, ratios: Sequence[float], source: str) -> None:
        """Refuse ratios that cannot be measured side by side, before anything is done.

        Args:
            ratios: those asked for.
            source: where they come from, for the message.

        Raises:
            InputError: no ratio or one of them twice, one outside (0, 1], or one that holds no Gaussian.
        """
        if not ratios or len(set(ratios)) < len(ratios):
            found = " ".join(map(str, ratios)) or "none"
            raise InputError(f"{source}: expected different numbers, found {found}.")
        for ratio in ratios:
            try:
                count_at(ratio, len(self))
            except InputError as error:
                raise InputError(f"{source}: {error}") from error

    def protocol(self) -> dict[str, Any]:
        """What was measured and how, for reports."""
        return {
            "name": self.data.protocol,
            "images": self.capture.protocol,
            "split": self.capture.split,
            "background": self.model.background.tolist(),
            "antialiased": self.antialiased,
            **self.metrics.protocol(),
        }


def open_study(
    checkpoint: Path,
    configs: Sequence[str | Path],
    *,
    schedule: Schedule,
    device: str,
    seed: int,
) -> Study:
    """Open a first stage and its capture, and refuse what does not fit together.

    Args:
        checkpoint: of a first stage (or of an elastic one, whose full model is taken).
        configs: files or names of configs with settings of data and metrics, later ones over earlier ones;
            the config of the checkpoint's own run if there are none.
        schedule: lengths of trainings.
        device: "auto", "cpu" or "cuda".
        seed: of every training.

    Raises:
        InputError: an unreadable file, or a checkpoint of another capture or another split.
    """
    check_seed(seed)
    model = load(checkpoint)
    own = checkpoint.resolve().parents[1] / "config.yaml"
    files: list[str | Path] = list(configs) or ([own] if own.is_file() else [])
    config = merged({}, *(read_config(path) for path in files))
    check_settings(config, model.data, ", ".join(map(str, files)))
    options = {name: value for name, value in config.get("data", {}).items() if name != "seed"}
    data = _capture(checkpoint, model, options)
    chosen = choose_device(device)
    settings = {
        "seed_everything": seed,
        "data": {**options, **data.options()},
        "model": {
            **{name: value for name, value in config.get("model", {}).items() if name in SHARED_MODEL},
            "sh_degree": model.gaussians.sh_degree,
        },
        "trainer": {"accelerator": chosen.type},
    }
    metrics = image_metrics(config).to(chosen)
    return Study(checkpoint, model, data, settings, schedule, chosen, metrics, seed)


def _capture(checkpoint: Path, model: Model, options: Settings) -> CaptureDataModule:
    """The capture that the config names, checked against what the checkpoint was trained on."""
    if "protocol" not in options:
        options = {**model.data, **options}
    try:
        data = CaptureDataModule(**{"root": model.data["root"], **options})
    except TypeError as error:
        raise InputError(f"--config: data: {error}.") from error
    trained, found = model.data, data.options()
    if Path(trained["root"]).name != Path(found["root"]).name:
        raise InputError(
            f"{checkpoint}: trained on {trained['root']}, but the config names {found['root']}: "
            "expected a checkpoint of the same scene."
        )
    if trained["test_every"] != found["test_every"]:
        raise InputError(
            f"{checkpoint}: trained with data.test_every {trained['test_every']}, but the config says "
            f"{found['test_every']}: views that it has seen would be measured as unseen ones."
        )
    if trained["downscale"] != found["downscale"]:
        log.warning(
            "data.downscale: the checkpoint was trained with %s, but is compared with %s.",
            trained["downscale"],
            found["downscale"],
        )
    data.setup("test")
    if not data.capture.test_views:
        raise InputError("data.test_every: expected held-out views to measure, found 0 (none held out).")
    return data


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
