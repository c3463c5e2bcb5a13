"""The table of what a Gaussian consists of. Everything that lists attributes follows from it.

Parameters, activation, optimizers, residuals' columns, surgery, sharding and byte counts of a scene read its
own table (``Gaussians.attributes``): ``ATTRIBUTES``, which every scene has, and what its parts bring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flexgs_lightning.splats import MAX_SH_DEGREE

SH_BASES = -1
"""In a shape: as many as the degree of the spherical harmonics has basis functions."""

Map = Callable[[Tensor], Tensor]


def _same(values: Tensor) -> Tensor:
    return values


def _log(scales: Tensor) -> Tensor:
    return scales.clamp_min(torch.finfo(torch.float32).tiny).log()


def _logit(opacities: Tensor) -> Tensor:
    eps = torch.finfo(torch.float32).eps
    return opacities.clamp(eps, 1 - eps).logit()


def _unit(quats: Tensor) -> Tensor:
    """Raw quaternions have any length, which would weigh a displacement at random."""
    return functional.normalize(quats, dim=-1)


@dataclass(frozen=True)
class Attribute:
    """One learned attribute.

    Attributes:
        name: the field's standard term; key of ``Gaussians.params`` and, if it is drawn, field of ``Splats``.
        shape: of one Gaussian's raw values; ``SH_BASES`` stands for (degree + 1)^2.
        rate: Adam's learning rate by default.
        activation: raw values to those of ``Splats``; differentiable.
        inverse: of ``activation``, up to rounding.
        final_rate: rate at a stage's end, exponential in between; None for the stage's own rule.
        rest_rate: rate of all but the first row of ``shape``; None where one rate serves all.
        times_extent: whether rates are multiplied by the scene's extent.
        residual: how many numbers of a Gaussian, its first ones, small prefixes may displace; 0 for none.
        displaced_from: what a displacement is added to, as a function of the raw values.
        drawn: whether ``Splats`` has it; others serve the parts of a scene.
        per_gaussian: whether each Gaussian has its own; otherwise the scene has one.
        of_motion: whether only those need it that move.
        initial: raw value of each number where a new scene has no better one.

    Raises:
        ValueError: the rate is not positive.
    """

    name: str
    shape: tuple[int, ...]
    rate: float
    activation: Map = _same
    inverse: Map = _same
    final_rate: float | None = None
    rest_rate: float | None = None
    times_extent: bool = False
    residual: int = 0
    displaced_from: Map = _same
    drawn: bool = False
    per_gaussian: bool = True
    of_motion: bool = False
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"attributes: expected a positive rate of '{self.name}', found {self.rate}.")

    def shape_at(self, sh_degree: int) -> tuple[int, ...]:
        """``shape`` in a scene of this degree."""
        return tuple((sh_degree + 1) ** 2 if size == SH_BASES else size for size in self.shape)

    def fresh(self, count: int, sh_degree: int) -> Tensor:
        """Initial raw values, [count, *shape] or, where the scene has one, [*shape]."""
        rows = (count,) if self.per_gaussian else ()
        return torch.full((*rows, *self.shape_at(sh_degree)), self.initial)


ATTRIBUTES: dict[str, Attribute] = {
    attribute.name: attribute
    for attribute in (
        Attribute(
            "means", (3,), 1.6e-4, final_rate=1.6e-6, times_extent=True, residual=3, drawn=True,
        ),
        Attribute("quats", (4,), 1e-3, residual=4, displaced_from=_unit, drawn=True),
        Attribute("scales", (3,), 5e-3, torch.exp, _log, residual=3, drawn=True),
        Attribute("opacities", (), 5e-2, torch.sigmoid, _logit, residual=1, drawn=True),
        Attribute("sh", (SH_BASES, 3), 2.5e-3, rest_rate=2.5e-3 / 20, residual=3, drawn=True),
    )
}  # fmt: skip
"""What every Gaussian has, by name, with the published rates of 3DGS."""


def table_with(added: Iterable[Attribute]) -> dict[str, Attribute]:
    """A scene's table: ``ATTRIBUTES`` and what its parts bring, in this order.

    Raises:
        ValueError: two attributes of one name; one that is given twice counts once.
    """
    table = dict(ATTRIBUTES)
    for attribute in added:
        if table.setdefault(attribute.name, attribute) != attribute:
            raise ValueError(f"attributes: there is a '{attribute.name}' already.")
    return table


def residual_columns(table: Mapping[str, Attribute] = ATTRIBUTES) -> dict[str, int]:
    """How many numbers of each attribute can be displaced, by name."""
    return {name: attribute.residual for name, attribute in table.items() if attribute.residual}


def floats_per_gaussian(sh_degree: int = MAX_SH_DEGREE, table: Mapping[str, Attribute] = ATTRIBUTES) -> int:
    """Numbers of one Gaussian."""
    own = (attribute for attribute in table.values() if attribute.per_gaussian)
    return sum(math.prod(attribute.shape_at(sh_degree)) for attribute in own)


def displaced(parameters: dict[str, Tensor], changes: dict[str, Float[Tensor, "M C"]]) -> dict[str, Tensor]:
    """Raw parameters with changes [M, C] added to the first C numbers of each row; the rest passes.

    Args:
        parameters: named and shaped as in ``Gaussians.params``, of M Gaussians.
        changes: by the attribute's name; log-scales, logits and what parts bring are displaced as such.
    """
    result = dict(parameters)
    for name, change in changes.items():
        base = ATTRIBUTES[name].displaced_from(parameters[name]) if name in ATTRIBUTES else parameters[name]
        flat, width = base.flatten(1) if base.ndim > 1 else base.unsqueeze(1), change.shape[1]
        moved = flat + change if width == flat.shape[1] else _LeadingSum.apply(flat, change)
        result[name] = moved.view(base.shape)
    return result


class _LeadingSum(torch.autograd.Function):
    """[M, W] plus [M, C] in the first C columns. Slices would copy the gradient thrice on its way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, change: Tensor) -> Tensor:
        ctx.width = change.shape[1]
        total = rows.clone()
        total[:, : ctx.width] += change
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient[:, : ctx.width]
