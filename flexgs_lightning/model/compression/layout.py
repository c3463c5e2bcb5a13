"""Layout: which numbers a Gaussian of the elastic file has, and their columns."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from flexgs_lightning.model.compression.coordinates import PLACES, WIDTH

Path = Literal["none", "polynomial", "bases", "free_bases"]
"""How Gaussians move, see ``model.moving.MotionOptions``."""
DISTANCE = WIDTH
"""Column of a row that holds the distance; columns of motion stand behind it."""
TIME_SCALES = DISTANCE + 1
"""Column of the logarithms of widths in time, where opacity varies."""
MOVES, TURNS = 1, 2
"""Flags of a Gaussian: whether its path is coded, and whether its rotation's change is."""
WIDEST = 3.0
"""Logarithm of a width in time beyond which opacity is as good as constant: nothing larger is written."""


class Field(NamedTuple):
    """An attribute in a row.

    Attributes:
        name: the attribute's.
        place: its columns in a row of integers.
        moved: whether it changes from level to level.
        flag: who has it; 0 for everybody.
    """

    name: str
    place: slice
    moved: bool = True
    flag: int = 0

    @property
    def columns(self) -> list[int]:
        """Numbers of its columns."""
        return list(range(self.place.start, self.place.stop))

    @property
    def values(self) -> slice:
        """Its columns in a level's values, which have no distance."""
        less = int(self.place.start > DISTANCE)
        return slice(self.place.start - less, self.place.stop - less)


@dataclass(frozen=True)
class Layout:
    """Attributes of a row, in the order in which they are coded, and their columns.

    Columns 0 to 12 are those of ``model.compression.coordinates``, 13 is the distance, and behind it stands
    what a scene that moves has beside.
    """

    path: Path = "none"
    order: int = 0
    varying: bool = False

    @functools.cached_property
    def motion(self) -> tuple[Field, ...]:
        """Attributes behind the distance, by column."""
        widths: list[tuple[str, int, bool, int]] = []
        if self.varying:
            widths += [("time_scales", 1, True, 0), ("time_centers", 1, True, 0)]
        if self.path == "free_bases":
            widths += [("real_parts", 1, True, 0)]
        if self.path == "polynomial":
            widths += [("motion", 3 * self.order, False, MOVES), ("omega", 4, False, TURNS)]
        if self.path in ("bases", "free_bases"):
            widths += [("coefficients", self.order, False, MOVES)]
        stops = itertools.accumulate((width for _, width, _, _ in widths), initial=DISTANCE + 1)
        return tuple(
            Field(name, slice(start, start + width), moved, flag)
            for (name, width, moved, flag), start in zip(widths, stops, strict=False)
        )

    @functools.cached_property
    def fields(self) -> tuple[Field, ...]:
        """All attributes that are coded in columns, in the order of coding."""
        still = [Field(name, place) for name, place in PLACES.items()]
        moved = [field for field in self.motion if field.moved]
        return (still[0], *moved, *still[1:], *(field for field in self.motion if not field.moved))

    @functools.cached_property
    def moved(self) -> tuple[Field, ...]:
        """Those that change from level to level; the first ones of ``fields``."""
        return tuple(field for field in self.fields if field.moved)

    @property
    def motion_columns(self) -> int:
        """M, columns behind the distance."""
        return sum(len(field.columns) for field in self.motion)

    @property
    def width(self) -> int:
        """Columns of a row of integers."""
        return DISTANCE + 1 + self.motion_columns

    @property
    def value_columns(self) -> Int64[np.ndarray, " V"]:
        """Columns of a row that are a level's values."""
        return np.delete(np.arange(self.width), DISTANCE)

    @property
    def features(self) -> int:
        """What a step depends on, besides its chunk."""
        return 8 if self.varying else 7

    @functools.cached_property
    def attributes(self) -> tuple[str, ...]:
        """What has an offset of its own in each chunk."""
        return (*(field.name for field in self.fields), "sh_rest")

    @functools.cached_property
    def row_streams(self) -> tuple[str, ...]:
        """Streams of a chunk's rows, in this order."""
        flags = () if self.path == "none" else ("moves",)
        later = (field.name for field in self.fields if not field.moved)
        return ("cells", *self.update_streams, *flags, *later, "sh_rest")

    @functools.cached_property
    def update_streams(self) -> tuple[str, ...]:
        """Streams of what brings the rows before a chunk to the next level."""
        return tuple(field.name for field in self.moved)

    def rule_rows(self, name: str) -> list[int]:
        """Rows of the rule that say an attribute's steps."""
        if name == "sh_rest":
            return [DISTANCE]
        return next(field.columns for field in self.fields if field.name == name)


STILL = Layout()
"""Rows of scenes that stand still."""
