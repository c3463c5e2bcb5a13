"""Parts: what changes a scene's raw parameters under conditions, before activation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Int
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import Attribute
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.processes import Shards


@dataclass(frozen=True)
class Conditions:
    """What a scene is asked for.

    Attributes:
        ratio: share of the Gaussians, in (0, 1].
        time: moment of a moving scene, in [0, 1); None for a scene that stands still.
    """

    ratio: float = 1.0
    time: float | None = None


FULL = Conditions()
"""All Gaussians of a scene that stands still."""

Kind = Literal["rows", "planes", "layers"]
"""What parameters are, which decides their learning rates: a row for each Gaussian, grids, or networks."""


class ParameterGroup(NamedTuple):
    """Parameters of a part that learn alike."""

    name: str
    parameters: list[nn.Parameter]
    kind: Kind


class Part(nn.Module, ABC):
    """Changes the raw parameters of the Gaussians that are drawn; ``scene.Scene`` applies its parts in order.

    A subclass names its ``kind``, by which checkpoints find it again.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            if cls.kind in PARTS:
                raise ValueError(f"Part: there is a kind '{cls.kind}' already.")
            PARTS[cls.kind] = cls

    @abstractmethod
    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters of some Gaussians, changed; differentiable.

        Args:
            parameters: named and shaped as in ``Gaussians.params``, of M Gaussians.
            chosen: which Gaussians these are.
            conditions: under which they are drawn.
        """

    @abstractmethod
    def as_plain(self) -> dict[str, Any]:
        """Plain values from which ``from_plain`` makes an empty part of the same kind."""

    @classmethod
    @abstractmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> Part:
        """A part to load a state into; it takes over the state's shapes."""

    def attributes(self) -> tuple[Attribute, ...]:
        """What each Gaussian of a scene with this part has beside ``ATTRIBUTES``, from the first stage on."""
        return ()

    def groups(self) -> list[ParameterGroup]:
        """All parameters, by how they learn."""
        return [ParameterGroup(self.kind, list(self.parameters()), "layers")]

    def rows(self) -> list[nn.Parameter]:
        """Parameters with a row for each Gaussian, or for each of a prefix of the ranking."""
        return [p for group in self.groups() if group.kind == "rows" for p in group.parameters]

    def sources_for(self, row: nn.Parameter, sources: Int[Tensor, " N"]) -> Int[Tensor, " n"]:
        """Which of the new places ``row`` (one of ``rows``) has rows for; all, unless a prefix."""
        return sources


PARTS: dict[str, type[Part]] = {}
"""Every kind of part, by name."""


def part_from_plain(kind: str, values: Mapping[str, Any], gaussians: int, shards: Shards) -> Part:
    """An empty part of a kind, for a checkpoint's state.

    Raises:
        InputError: unknown kind.
    """
    if kind not in PARTS:
        raise InputError(f"part of a scene: expected one of {', '.join(PARTS)}, found '{kind}'.")
    return PARTS[kind].from_plain(values, gaussians, shards)
