"""Subject: a scene that is pruned, trained on and measured, whether it stands still or moves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.formats.ply import ply_bytes
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.scores import LOWEST_RATIO, Score, pruning_order
from flexgs_lightning.model.attributes import floats_per_gaussian
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selector import rank
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.ranking import Importance, rank_gaussians

IMPORTANCE: dict[Score, Importance] = {"removal": "removal", "blending": "blending", "importance": "global"}
"""Scores that are known of moving scenes, over views and times, as ``training.ranking`` names them."""


@dataclass(frozen=True)
class Seen:
    """How a scene is looked at to rank its Gaussians.

    Attributes:
        cameras: those of the training views.
        times: when each view was taken; None where nothing moves.
        background: [3] colour behind the scene, on the device that draws.
        antialiased: as the scene is rendered.
        seed: of the score "random".
    """

    cameras: Sequence[Cameras]
    times: Sequence[float | None]
    background: Float[Tensor, " 3"]
    antialiased: bool
    seed: int


class Subject(ABC):
    """A scene with some number of Gaussians."""

    @abstractmethod
    def __len__(self) -> int:
        """Gaussians, also those that are not to be seen at a time."""

    @abstractmethod
    def at(self, time: float | None) -> Splats:
        """What there is to draw at a time, which a scene that stands still does not ask for."""

    @abstractmethod
    def chosen(self, places: Int[Tensor, " M"]) -> Subject:
        """Some of the Gaussians."""

    @abstractmethod
    def to(self, device: torch.device) -> Subject:
        """The same on another device."""

    @property
    @abstractmethod
    def start(self) -> Model:
        """What a training starts from."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What it takes uncoded: as a PLY file, or of one that moves as float32 numbers."""

    @abstractmethod
    def order(self, score: Score, seen: Seen) -> Int[Tensor, " N"]:
        """[N] places of the Gaussians, the first to keep first."""


@dataclass(frozen=True)
class Still(Subject):
    """A scene that stands still.

    Attributes:
        splats: all of it, on the device that draws.
    """

    splats: Splats

    def __len__(self) -> int:
        return len(self.splats)

    def at(self, time: float | None) -> Splats:
        """All of it."""
        return self.splats

    def chosen(self, places: Int[Tensor, " M"]) -> Still:
        """Some of the Gaussians."""
        return Still(self.splats[places])

    def to(self, device: torch.device) -> Still:
        """The same on another device."""
        return Still(self.splats.to(device))

    @property
    def start(self) -> Model:
        """On the CPU."""
        return Model.of_splats(self.splats.detach().to("cpu"), "start")

    @property
    def nbytes(self) -> int:
        """Of a PLY file."""
        return ply_bytes(len(self.splats), self.splats.sh_degree)

    def order(self, score: Score, seen: Seen) -> Int[Tensor, " N"]:
        """By any score."""
        return pruning_order(
            self.splats,
            seen.cameras,
            score,
            background=seen.background,
            antialiased=seen.antialiased,
            seed=seen.seed,
        )


@dataclass(frozen=True)
class Moving(Subject):
    """A scene that moves.

    Attributes:
        model: it, on the device that draws.
        ratio: share of its Gaussians; below 1 of an elastic model only.
    """

    model: Model
    ratio: float = 1.0

    def __len__(self) -> int:
        return count_at(self.ratio, len(self.model))

    def at(self, time: float | None) -> Splats:
        """Those that live then."""
        return self.model.at(self.ratio, time)

    def chosen(self, places: Int[Tensor, " M"]) -> Moving:
        """Some of the Gaussians of a scene of the first stage."""
        whole = self.start.scene
        rows = {name: values.detach()[places] for name, values in whole.gaussians.own().items()}
        parts = dict(zip(whole.parts.keys(), whole.each_part(), strict=True))
        return Moving(replace(self.model, scene=Scene(whole.gaussians.like(rows), parts=parts).eval()))

    def to(self, device: torch.device) -> Moving:
        """The same on another device."""
        return replace(self, model=self.model.to(device))

    @property
    def start(self) -> Model:
        """The model itself.

        Raises:
            InputError: it is elastic, so that its Gaussians are not all there is to it.
        """
        if self.model.elastic:
            raise InputError(
                f"{self.model.name}: expected a moving scene of the first stage, found an elastic one."
            )
        return self.model

    @property
    def nbytes(self) -> int:
        """Four a number."""
        table = self.model.gaussians.attributes
        return 4 * len(self) * floats_per_gaussian(self.model.gaussians.sh_degree, table)

    def order(self, score: Score, seen: Seen) -> Int[Tensor, " N"]:
        """By what is known of scenes that move.

        Raises:
            InputError: another score.
        """
        scene, device = self.start.scene, seen.background.device
        if score == "random":
            return torch.randperm(len(self), generator=torch.Generator().manual_seed(seen.seed)).to(device)
        if score == "opacity":
            return rank(scene.peak_opacities().double())
        if score not in IMPORTANCE:
            known = ", ".join((*IMPORTANCE, "opacity", "random"))
            raise InputError(f"--methods: expected a score of scenes that move ({known}), found {score}.")
        return rank_gaussians(
            scene,
            seen.cameras,
            IMPORTANCE[score],
            lowest_ratio=LOWEST_RATIO,
            background=seen.background,
            antialiased=seen.antialiased,
            times=[0.0 if time is None else time for time in seen.times],
        ).order


def subject_of(model: Model, ratio: float = 1.0) -> Subject:
    """A model, or of an elastic one a share of its Gaussians."""
    if model.moves:
        return Moving(model, ratio)
    return Still(model.splats() if ratio == 1.0 else model.at(ratio))
