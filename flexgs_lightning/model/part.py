"""Parts: what changes a scene's raw parameters under conditions, before activation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import Attribute
from flexgs_lightning.model.gaussians import Chosen, Gaussians
from flexgs_lightning.processes import Shards
from flexgs_lightning.records import shown


@dataclass(frozen=True)
class Conditions:
    """What a scene is asked for.

    Attributes:
        ratio: share of the Gaussians, in (0, 1].
        time: moment of a moving scene, in [0, 1] over its group of frames; None for a scene that stands
            still, which looks alike at all times.
    """

    ratio: float = 1.0
    time: float | None = None

    @property
    def moment(self) -> float:
        """The time.

        Raises:
            InputError: there is none, or it lies outside [0, 1].
        """
        if self.time is None:
            raise InputError("time: this scene moves, expected a time in [0, 1], found none.")
        if not 0.0 <= self.time <= 1.0:
            raise InputError(f"time: expected a number in [0, 1], found {self.time}.")
        return self.time


FULL = Conditions()
"""All Gaussians of a scene that stands still."""


class Sightings(NamedTuple):
    """When and how fast P things were seen that a scene did not have yet.

    Attributes:
        times: [P] moments in [0, 1].
        velocities: [P, 3] world units per unit of time.
        span: how long a Gaussian should be there for each, before and after.
    """

    times: Float[Tensor, " P"]
    velocities: Float[Tensor, "P 3"]
    span: float


Kind = Literal["rows", "planes", "layers"]
"""What parameters are, which decides their learning rates: a row for each Gaussian, grids, or networks."""


class ParameterGroup(NamedTuple):
    """Parameters of a part that learn alike.

    Attributes:
        name: for logs.
        parameters: those.
        kind: what they are.
        rate: Adam's learning rate; None for that of their kind.
        times_extent: whether ``rate`` is multiplied by the scene's extent.
    """

    name: str
    parameters: list[nn.Parameter]
    kind: Kind
    rate: float | None = None
    times_extent: bool = False


class Part(nn.Module, ABC):
    """Changes the raw parameters of the Gaussians that are drawn; ``scene.Scene`` applies its parts in order.

    A subclass names its ``kind``, by which checkpoints find it again.
    """

    kind: ClassVar[str]
    moves: bool = False
    """Whether what it does depends on the time."""

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

    def begin(self, gaussians: Gaussians, times: Float[Tensor, " N"] | None) -> None:
        """Set what a new scene's Gaussians start with, beyond what the table of attributes says.

        Args:
            gaussians: all of the scene, with this part's attributes.
            times: when each was seen, in [0, 1]; None where that is not known.
        """

    def place(self, gaussians: Gaussians, sightings: Sightings) -> None:
        """Set what Gaussians start with that join a scene because something was seen at a moment.

        Args:
            gaussians: P new ones, where they were seen, with this part's attributes.
            sightings: what is known of them beside.
        """

    def alive(self, parameters: Mapping[str, Tensor], conditions: Conditions) -> Bool[Tensor, " M"] | None:
        """Which of M Gaussians with these raw parameters have to be drawn; None for all."""
        return None

    def peaks(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, " M"] | None:
        """The highest opacity of each Gaussian at any time; None where this part does not change it."""
        return None

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
        InputError: unknown kind, or options that it does not have.
    """
    if kind not in PARTS:
        raise InputError(f"part of a scene: expected one of {', '.join(PARTS)}, found '{kind}'.")
    options = {key: value for key, value in values.items() if key != "kind"}
    try:
        return PARTS[kind].from_plain(options, gaussians, shards)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        found = shown(options, 200)
        raise InputError(
            f"part '{kind}': expected the options that it is written with, found {found}."
        ) from error
