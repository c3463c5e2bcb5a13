"""SceneSequence: scenes of groups of frames, one after the other in time, as one scene."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import nn

from flexgs_lightning.model.part import FULL, Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import Splats

_ROUNDING = 1e-6
"""A moment this little before a group begins is its first: their times are rounded apart."""


def place_in(bounds: Sequence[float], time: float) -> tuple[int, float]:
    """The group that shows a moment of a film, and the moment in that group; both from 0 to 1."""
    group = min(bisect.bisect_right(bounds, time + _ROUNDING) - 1, len(bounds) - 2)
    begin, end = bounds[group], bounds[group + 1]
    return group, max(0.0, (time - begin) / (end - begin))


class SceneSequence(Scene):
    """Scenes of groups of frames, each trained by itself; times run from 0 to 1 over all of them.

    A ratio is a share of each group's Gaussians, of which at least one is drawn. Gaussians, parts and their
    number are those of the largest group.

    Attributes:
        groups: the scenes.
        bounds: [G + 1] where groups begin and end, from 0 to 1.
    """

    def __init__(self, groups: Sequence[Scene], bounds: Sequence[float]) -> None:
        """Put scenes one after the other.

        Args:
            groups: in the order of time; on one device.
            bounds: see the class.
        """
        largest = max(groups, key=len)
        parts = dict(zip(largest.parts.keys(), largest.each_part(), strict=True))
        super().__init__(largest.gaussians, selection=largest.selection, parts=parts, elastic=largest.elastic)
        self.groups = nn.ModuleList(groups)
        self.bounds = tuple(bounds)

    @property
    def moves(self) -> bool:
        """Groups follow each other, so it does."""
        return True

    def each_group(self) -> list[Scene]:
        """The groups in the order of time."""
        return cast(list[Scene], list(self.groups))

    def group_at(self, time: float) -> int:
        """Number of the group that shows a moment."""
        return place_in(self.bounds, time)[0]

    def showing(self, time: float | None) -> tuple[Scene, float | None]:
        """See ``Scene``."""
        group, moment = place_in(self.bounds, Conditions(time=time).moment)
        scene = self.each_group()[group]
        return scene, moment if scene.moves else None

    def at(self, ratio: float | Conditions = FULL) -> Splats:
        """As ``Scene``, of the group that shows the moment."""
        conditions = ratio if isinstance(ratio, Conditions) else Conditions(ratio)
        scene, moment = self.showing(conditions.time)
        least = max(conditions.ratio, 1 / len(scene))
        return scene.at(replace(conditions, ratio=least, time=moment))
