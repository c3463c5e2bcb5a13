"""A toy attribute and the part that uses it: each Gaussian learns a glow that adds to its opacity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from flexgs_lightning.model.attributes import Attribute
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.part import PARTS, Conditions, Part
from flexgs_lightning.processes import Shards
from flexgs_lightning.training.module import FlexGSModule

GLOW = Attribute("glow", (2,), rate=0.02, residual=1, initial=0.25)


def use_glow(rank: int = 0) -> None:
    """Let new scenes have the part, which brings the attribute."""

    class Glow(Part):
        kind = "glow"

        def forward(
            self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
        ) -> dict[str, Tensor]:
            glow = parameters["glow"]
            return {**parameters, "opacities": parameters["opacities"] + glow[:, 0] * glow[:, 1]}

        def attributes(self) -> tuple[Attribute, ...]:
            return (GLOW,)

        def as_plain(self) -> dict[str, Any]:
            return {}

        @classmethod
        def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> Glow:
            return cls()

    FlexGSModule.first_parts = lambda self: {"glow": Glow()}  # type: ignore[method-assign]


@contextmanager
def glowing() -> Iterator[None]:
    """``use_glow`` for a while."""
    first_parts = FlexGSModule.first_parts
    use_glow()
    try:
        yield
    finally:
        del PARTS["glow"]
        FlexGSModule.first_parts = first_parts  # type: ignore[method-assign]
