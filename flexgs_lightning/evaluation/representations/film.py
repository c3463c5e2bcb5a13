"""Film: what all representations of a report share - the capture, its frames, and how long they train."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.deploy.opening import choose_device
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.options import check_counts, check_seed
from flexgs_lightning.evaluation.representations.representation import Representation
from flexgs_lightning.evaluation.training import Settings, check_settings, merged

Group = tuple[int, int]
"""The first frame of a training, and the one after its last."""


@dataclass(frozen=True)
class Plan:
    """How long everything trains, and in which forms it is measured.

    Args:
        steps: iterations of each representation's first stage, of all its trainings together.
        elastic_steps: iterations of the elastic stage after it; 0 leaves the elastic form out.
        ratios: shares of the Gaussians at which the elastic form is measured.
        psnr_loss: dB that the coded form may lose on training views; None leaves it out.
        refine_steps: of the coded form, see ``flexgs compress``.
        frame_stride: of the models of single frames, those of every n-th frame and the next are trained.

    Raises:
        InputError: an option is out of range.
    """

    steps: int
    elastic_steps: int
    ratios: tuple[float, ...]
    psnr_loss: float | None
    refine_steps: int
    frame_stride: int

    def __post_init__(self) -> None:
        check_counts(self, {"steps": 1, "elastic_steps": 0, "refine_steps": 0, "frame_stride": 1})
        different = len(set(self.ratios)) == len(self.ratios)
        if not different or not all(0 < ratio < 1 for ratio in self.ratios):
            found = " ".join(map(str, self.ratios))
            raise InputError(f"--ratios: expected different numbers between 0 and 1, found {found}.")
        if self.psnr_loss is not None and not 0 < self.psnr_loss < 100:
            raise InputError(f"--psnr_loss: expected a number between 0 and 100, found {self.psnr_loss}.")


@dataclass(frozen=True, eq=False)
class Film:
    """A capture that moves, and the protocol.

    Attributes:
        data: the capture; ``setup`` is done.
        settings: what every training has in common beside its representation: data, seed and device.
        device: where things are measured.
        plan: lengths and forms.
    """

    data: CaptureDataModule
    settings: Settings
    device: torch.device
    plan: Plan

    @property
    def capture(self) -> Capture:
        """All frames."""
        return self.data.capture

    @functools.cached_property
    def frames(self) -> int:
        """How many moments it has."""
        return len({view.time for view in self.capture.views if view.time is not None})

    @property
    def first(self) -> int:
        """Number of the first frame in the whole capture."""
        return self.data.frames[0] if self.data.frames else 0

    @property
    def seconds(self) -> float | None:
        """How long it lasts."""
        return self.capture.seconds

    def groups(self, representation: Representation) -> list[Group | None]:
        """Frames of each training that is made; None stands for all."""
        if not representation.each_frame:
            return [None]
        count, stride = self.frames, self.plan.frame_stride
        chosen = {k for first in range(0, count, stride) for k in (first, first + 1) if k < count}
        return [self._numbered(k) for k in sorted(chosen)]

    def steps(self, representation: Representation) -> int:
        """Iterations of each of its trainings.

        Raises:
            InputError: fewer than one for each frame.
        """
        if not representation.each_frame:
            return self.plan.steps
        if self.plan.steps < self.frames:
            raise InputError(
                f"--steps: expected at least one for each of {self.frames} frames, found {self.plan.steps}."
            )
        return self.plan.steps // self.frames

    def training_settings(self, representation: Representation, group: Group | None) -> Settings:
        """A config of ``flexgs fit`` for a training of its first stage."""
        own = {} if group is None else {"data": {"frames": list(group)}}
        return merged(representation.settings_for(self.steps(representation)), self.settings, own)

    def data_of(self, group: Group | None) -> CaptureDataModule:
        """The capture of a training."""
        if group is None:
            return self.data
        data = CaptureDataModule(**{**self.settings["data"], "frames": list(group)})
        data.setup("test")
        return data

    def facts(self, representation: Representation) -> dict[str, Any]:
        """What every result of a representation depends on."""
        settings = merged(representation.settings, self.settings)
        places = ("root", "cache_megabytes", "num_workers", "device_megabytes")
        data = {name: value for name, value in settings["data"].items() if name not in places}
        return {
            "capture": self.capture.name,
            "images": self.capture.protocol,
            "seed": settings["seed_everything"],
            "steps": self.plan.steps,
            "frame_stride": self.plan.frame_stride if representation.each_frame else None,
            "data": data,
            "model": settings.get("model", {}),
        }

    def _numbered(self, frame: int) -> Group:
        """The frame's number in the whole capture, of which this may be a part."""
        return self.first + frame, self.first + frame + 1


def open_film(
    data: Mapping[str, Any], representations: Sequence[Representation], plan: Plan, device: str, seed: int
) -> Film:
    """Open a capture that moves, and refuse what no training would take, before any begins.

    Args:
        data: options of the capture that go before those of the configs.
        representations: all of a report; they have one config's data.
        plan: lengths and forms.
        device: "auto", "cpu" or "cuda".
        seed: of every training.

    Raises:
        InputError: an unreadable capture, one that stands still or holds out nothing, or settings that make
            no training.
    """
    check_seed(seed)
    chosen = choose_device(device)
    for representation in representations:
        own = merged(representation.settings_for(plan.steps), {"data": data})
        check_settings(own, {}, representation.name)
    options = merged(representations[0].settings, {"data": data})["data"]
    options = {name: value for name, value in options.items() if name != "seed"}
    module = CaptureDataModule(**options)
    module.setup("test")
    if not module.capture.moves:
        raise InputError(
            f"--root {data['root']}: expected a capture that moves, found one that stands still."
        )
    if not module.capture.test_views:
        raise InputError("data.test_every: expected held-out views to measure, found 0 (none held out).")
    settings = {
        "seed_everything": seed,
        "data": options,
        "trainer": {"accelerator": chosen.type, "enable_progress_bar": False},
    }
    film = Film(module, settings, chosen, plan)
    for representation in representations:
        film.steps(representation)
    return film
