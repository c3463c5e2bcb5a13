"""ElasticModelArrays: an elastic model as the elastic file sees it, plain arrays in rank order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from flexgs_lightning.codec.drawing import STANDING, activated, alive
from flexgs_lightning.codec.movement import Movement
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import PLY_HEADER_BYTES, count_at, ply_bytes_per_gaussian, ratio_for
from flexgs_lightning.splats import Splats


@dataclass(frozen=True)
class Level:
    """The Gaussians of a prefix as they are drawn at its ratio.

    Attributes:
        ratio: in (0, 1].
        values: [M, 13] float32, see ``model.compression.coordinates``; columns of motion stand behind, see
            ``movement.Layout``.
    """

    ratio: float
    values: Float32[np.ndarray, "M V"]


@dataclass(frozen=True)
class ElasticModelArrays:
    """N Gaussians in rank order, of which the first M may be at hand.

    Between the ratios of two levels a row moves linearly in log e from one to the other; rows beyond the
    smaller level's prefix are the larger one's. That is what ``model.residuals`` does.

    Attributes:
        total: N.
        levels: by ascending ratio, the last one at ratio 1. Where Gaussians are missing (M < N), up to the
            first level whose prefix is not complete.
        sh_rest: [M, K - 1, 3] float32 the other spherical-harmonics coefficients.
        background: colour behind the scene.
        antialiased: see ``rendering.rasterize``.
        movement: how the Gaussians move; by default they do not.
        flags: [M] uint8 who moves, see ``movement``; nobody by default.
    """

    total: int
    levels: tuple[Level, ...]
    sh_rest: Float32[np.ndarray, "M K 3"]
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    antialiased: bool = False
    movement: Movement = STANDING
    flags: UInt8[np.ndarray, " M"] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self) -> None:
        if len(self.flags) != len(self):
            object.__setattr__(self, "flags", np.zeros(len(self), np.uint8))

    def __len__(self) -> int:
        """M, the Gaussians that are at hand."""
        return len(self.sh_rest)

    @property
    def elastic(self) -> bool:
        """Whether there are levels below the full model, or Gaussians are missing."""
        return len(self.levels) > 1 or self.levels[-1].ratio < 1 or len(self) < self.total

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics."""
        return math.isqrt(self.sh_rest.shape[1] + 1) - 1

    @property
    def largest_ratio(self) -> float:
        """Ratio of all that is at hand."""
        return len(self) / self.total

    def values_at(self, ratio: float) -> Float32[np.ndarray, "R V"]:
        """[floor(e N), V] values drawn at a ratio, columns as in ``Level``.

        Raises:
            InputError: the ratio lies outside (0, 1], holds no Gaussian or more than are at hand.
        """
        count = count_at(ratio, self.total)
        if count > len(self):
            raise InputError(
                f"ratio: {ratio:.6g} is {count:,} Gaussians, of which {len(self):,} are at hand; expected at "
                f"most {self.largest_ratio:.6g}."
            )
        above = next((i for i, level in enumerate(self.levels) if level.ratio >= ratio), len(self.levels) - 1)
        upper = self.levels[above]
        values = upper.values[:count].copy()
        if above > 0 and upper.ratio > ratio:
            lower = self.levels[above - 1]
            weight = np.float32(math.log(upper.ratio / ratio) / math.log(upper.ratio / lower.ratio))
            rows = min(count, len(lower.values))
            values[:rows] += weight * (lower.values[:rows] - values[:rows])
        return values

    def at(
        self,
        ratio: float | None = None,
        time: float | None = None,
        *,
        max_gaussians: int | None = None,
        max_megabytes: float | None = None,
    ) -> Splats:
        """The model within a budget, as ``checkpoint.Model.at`` has it; megabytes are an exported PLY's.

        Of a scene that moves, those that are to be seen at a time in [0, 1].

        Raises:
            InputError: no or several budgets, or one that is out of range or holds no Gaussian; it moves, and
                there is no time or one outside [0, 1].
        """
        ratio = ratio_for(
            self.total,
            ratio=ratio,
            max_gaussians=max_gaussians,
            max_megabytes=max_megabytes,
            bytes_per_gaussian=ply_bytes_per_gaussian(self.sh_degree),
            overhead_bytes=PLY_HEADER_BYTES,
        )
        values = torch.from_numpy(self.values_at(ratio))
        sh_rest = torch.from_numpy(self.sh_rest[: len(values)].copy())
        flags = torch.from_numpy(self.flags[: len(values)].copy())
        living = alive(values, self.movement, time)
        if living is not None:
            values, sh_rest, flags = values[living], sh_rest[living], flags[living]
        return activated(values, sh_rest, self.movement, flags, time)

    def splats(self, time: float | None = None) -> Splats:
        """All that is at hand, ready to draw."""
        return self.at(self.largest_ratio, time)

    def moving_only(self, flags: UInt8[np.ndarray, " M"]) -> ElasticModelArrays:
        """The same, of which only those move, or turn, that have a flag for it."""
        levels = []
        for level in self.levels:
            values = level.values.copy()
            for part in self.movement.layout.motion:
                if part.flag and self.movement.path != "bases":  # of which flags alone decide
                    values[flags[: len(values)] & part.flag == 0, part.values] = 0.0
            levels.append(Level(level.ratio, values))
        return replace(self, levels=tuple(levels), flags=flags)

    def only(self, ratios: Sequence[float]) -> ElasticModelArrays:
        """The same without the levels at other ratios below 1."""
        kept = tuple(level for level in self.levels if level.ratio == 1.0 or level.ratio in ratios)
        return replace(self, levels=kept)
