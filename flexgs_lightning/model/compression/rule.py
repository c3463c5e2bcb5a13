"""Rule: sizes of steps that follow what an error in each number costs, as the elastic file has them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.model.compression.coordinates import PLACES
from flexgs_lightning.model.compression.layout import DISTANCE, STILL, TIME_SCALES, Layout

_STEPS = torch.tensor([max(1, ([16, 19, 23, 27][c & 3] << (c >> 2)) >> 4) for c in range(96)]).float()
"""Size of the step of each class, in units of a column."""
_LARGEST = 32767
"""Of a feature."""


@dataclass(frozen=True)
class Rule:
    """Step classes as a function of opacity, scales, place, width in time, rank and level; four an octave.

    With W the columns of a row of the elastic file, of which M are of motion: 14 in a scene that stands
    still, and the 14th is that of the other harmonics.

    Attributes:
        weights: [W, F] of each column, over 1, t, t^2, three scales, the logarithm of the distance from
            ``centre`` and, where opacity varies, that of the width in time, in the units of the elastic
            file's integers.
        curves: [L, A, 2] constant and slope over ln(rank) of each level and attribute.
        bounds: [W, 2] smallest and largest class.
        units: [W] value of 1 of each column's integers.
        origin: [3] place of integer 0.
        centre: [3] where distances are measured from, in world units.
        basis: [C, D] transform of the other spherical harmonics.
        mixing: [13, 13] weights of the prediction of each column from those before it, of coordinates.
        motion_mixing: [M, M] the same of columns of motion.
        layout: the columns.
    """

    weights: Float[Tensor, "W F"]
    curves: Float[Tensor, "L A 2"]
    bounds: Float[Tensor, "W 2"]
    units: Float[Tensor, " W"]
    origin: Float[Tensor, " 3"]
    centre: Float[Tensor, " 3"]
    basis: Float[Tensor, "C D"]
    mixing: Float[Tensor, "13 13"]
    motion_mixing: Float[Tensor, "M M"]
    layout: Layout = STILL

    @staticmethod
    def tensors(layout: Layout) -> list[str]:
        """Names of the numbers that a rule of a layout consists of."""
        names = [field.name for field in fields(Rule) if field.name != "layout"]
        return names if layout.motion else [name for name in names if name != "motion_mixing"]

    @staticmethod
    def empty(layout: Layout, levels: int, basis: tuple[int, int]) -> Rule:
        """One of these sizes, of zeros."""
        width, motion = layout.width, layout.motion_columns
        shapes: dict[str, tuple[int, ...]] = {
            "weights": (width, layout.features), "curves": (levels, len(layout.attributes), 2),
            "bounds": (width, 2), "units": (width,), "origin": (3,), "centre": (3,), "basis": basis,
            "mixing": (DISTANCE, DISTANCE), "motion_mixing": (motion, motion),
        }  # fmt: skip
        return Rule(**{name: torch.zeros(shape) for name, shape in shapes.items()}, layout=layout)

    def classes(
        self, values: Float[Tensor, "M V"], ranks: Int[Tensor, " M"], level: int
    ) -> Float[Tensor, "M W"]:
        """Step class of each number, as its Gaussian's values, rank and level say."""
        features = self._features(values)
        logs = (ranks.to(values) + 1).log()[:, None]
        curves = self.curves[level]
        found = (curves[:, 0] + logs * curves[:, 1])[:, _attribute_of(self.layout)]
        found = (found + features @ self.weights.T).round()
        return found.clamp(self.bounds[:, 0], self.bounds[:, 1])

    def steps(
        self, values: Float[Tensor, "M V"], ranks: Int[Tensor, " M"], level: int
    ) -> Float[Tensor, "M W"]:
        """Size of the step of each number; that of the other harmonics stands at ``DISTANCE``."""
        classes = self.classes(values, ranks, level).long()
        return _STEPS.to(values)[classes.clamp(0, len(_STEPS) - 1)] * self.units

    def _features(self, values: Float[Tensor, "M V"]) -> Float[Tensor, "M F"]:
        t = (values[:, :1] / self.units[0]).clamp(0, 4096)
        scales = values[:, PLACES["scales"]] / self.units[1]
        away = ((values[:, PLACES["means"]] - self.centre) / self.units[4]).abs().amax(dim=1, keepdim=True)
        mantissa, exponent = torch.frexp(away.clamp_min(1.0))
        distance = 1024 * (exponent - 1 + 2 * mantissa - 1)  # linear within each octave
        found = [torch.ones_like(t), t, t * t / 4096, scales, distance]
        if self.layout.varying:
            widths = values[:, TIME_SCALES - 1, None] / self.units[TIME_SCALES]
            found.append(widths.clamp(-_LARGEST - 1, _LARGEST))
        return torch.cat(found, dim=1)


@functools.cache
def _attribute_of(layout: Layout) -> list[int]:
    """Of each row of a rule the place of its attribute among ``layout.attributes``."""
    found = [0] * layout.width
    for place, name in enumerate(layout.attributes):
        for row in layout.rule_rows(name):
            found[row] = place
    return found
