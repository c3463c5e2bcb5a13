"""The viewer's numbers, without a browser: sizes of the model, splats at hand, the next resolution."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from flexgs_lightning.deploy.formats.ply import ply_bytes
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import MEGABYTE, count_at
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.splats import Splats

SMALLEST_RATIO = 1e-3
"""Left end of the slider, where that is at least one Gaussian."""


@dataclass(frozen=True)
class RatioScale:
    """The slider: positions 0 to 1 are ratios on a log scale, from the smallest to all Gaussians.

    Attributes:
        total: Gaussians in the full model.
    """

    total: int

    def __post_init__(self) -> None:
        if self.total < 1:
            raise InputError("viewer: the scene holds no Gaussians; there is nothing to see.")

    @property
    def smallest(self) -> float:
        """Ratio at position 0."""
        return max(SMALLEST_RATIO, 1.0 / self.total)

    def ratio(self, position: float) -> float:
        """Ratio at a position; positions beyond the ends are the ends."""
        return float(self.smallest ** (1.0 - min(max(position, 0.0), 1.0)))

    def position(self, ratio: float) -> float:
        """The inverse of ``ratio``."""
        if self.total == 1:
            return 1.0
        return min(1.0 - math.log(max(ratio, self.smallest)) / math.log(self.smallest), 1.0)

    def count(self, ratio: float) -> int:
        """floor(ratio x total) for a ratio as typed; ratios beyond the ends are the ends."""
        return count_at(min(max(ratio, self.smallest), 1.0), self.total)


class SplatsCache:
    """The splats of the last few sizes and times, on the device that draws. Safe for several threads.

    It holds at most ``entries`` sizes and twice as many Gaussians as the model, but always the last one.
    """

    def __init__(self, model: Model, device: torch.device | str, entries: int = 8) -> None:
        self._model, self._entries = model.to(device), entries
        self._held: OrderedDict[tuple[int, float | None], Splats] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, count: int, time: float | None = None) -> Splats:
        """The model at exactly ``count`` Gaussians; of one that moves, those to be seen at a time."""
        key = count, time
        with self._lock:
            if key not in self._held:
                self._held[key] = self._model.at(count / len(self._model), time)
                self._evict()
            self._held.move_to_end(key)
            return self._held[key]

    def _evict(self) -> None:
        room = 2 * len(self._model)
        while len(self._held) > 1 and (
            len(self._held) > self._entries or sum(count for count, _ in self._held) > room
        ):
            self._held.popitem(last=False)


def megabytes(splats: Splats) -> float:
    """Size of the PLY file that ``export`` writes of them, in megabytes of 1,000,000 bytes."""
    return ply_bytes(len(splats), splats.sh_degree) / MEGABYTE


DIVISORS = (1, 2, 4, 8)
"""Reductions of the image's width and height, from full to coarsest; each is half the next."""


class Detail:
    """Resolution of the next frame: coarse enough to be quick while things change, then finer and finer.

    A frame's time is taken to grow with its pixels. That overestimates what a finer frame costs (some of
    the work is per Gaussian), so the estimate errs on the side of a quick answer.

    Args:
        target: seconds that a frame may take while the camera or the slider moves.
    """

    def __init__(self, target: float = 1 / 15) -> None:
        self._target = target
        self._moving = DIVISORS[-1]

    @property
    def moving(self) -> int:
        """Divisor for a frame while things change."""
        return self._moving

    def drawn(self, divisor: int, seconds: float) -> None:
        """Learn from the time of a frame."""
        affordable = (d for d in DIVISORS if seconds * (divisor / d) ** 2 <= self._target)
        self._moving = next(affordable, DIVISORS[-1])


SLOW, FAST = 1.15, 0.85
"""Frames beyond this part of the goal are too slow; below this part, more may be drawn."""
MARGIN = 0.9
"""Of a count that was too slow, what may be tried again."""


class AutomaticCount:
    """Chooses how many Gaussians to draw so that a full frame keeps within a time.

    Args:
        goal: seconds a frame.
        total: Gaussians in the full model.
    """

    def __init__(self, goal: float, total: int) -> None:
        self._goal, self._total = goal, total
        self._ceiling = math.inf

    def next(self, count: int, seconds: float) -> int:
        """What to draw after a frame of ``count`` Gaussians took ``seconds``; the same if that is right."""
        if seconds > SLOW * self._goal:
            self._ceiling = min(self._ceiling, count)
            return max(1, math.floor(count * min(MARGIN, max(0.25, self._goal / seconds))))
        if seconds < FAST * self._goal:
            most = min(self._total, MARGIN * self._ceiling)
            return max(count, math.floor(min(most, count * min(2.0, MARGIN * self._goal / seconds) + 1)))
        return count
