"""Times to draw a moving scene at: what ``--time`` asks for, and how a player goes through time.

Inside, time runs from 0 to 1 over a scene; outside, in seconds where it is known how long the scene lasts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flexgs_lightning.errors import InputError


@dataclass(frozen=True)
class Span:
    """A moment, or a stretch of time to play.

    Attributes:
        start: in [0, 1].
        stop: in [0, 1]; before ``start`` to play backwards, and equal to it to stand still.
    """

    start: float
    stop: float

    @property
    def stands_still(self) -> bool:
        """Whether it is a moment."""
        return self.start == self.stop

    def moments(self, frames: int) -> list[float]:
        """Times of ``frames`` frames, evenly spread; the last ends one step before ``stop``, as films do."""
        return [self.start + (self.stop - self.start) * i / frames for i in range(frames)]

    def holds(self, time: float) -> bool:
        """Whether a view's time lies within."""
        return min(self.start, self.stop) - 1e-6 <= time <= max(self.start, self.stop) + 1e-6


WHOLE = Span(0.0, 1.0)


def parse_time(text: str, seconds: float | None) -> Span:
    """What ``--time`` says: ``1.5`` is a moment, ``0:2`` a stretch; ``:2``, ``1:`` and ``:`` leave ends out.

    Args:
        text: as written.
        seconds: how long the scene lasts; None to count in [0, 1].

    Raises:
        InputError: no numbers, or moments outside the scene.
    """
    length = 1.0 if seconds is None else seconds
    unit = "[0, 1]" if seconds is None else f"the {seconds:g} s that the scene lasts"
    parts = text.split(":")
    defaults = [0.0, length]
    try:
        numbers = [float(part) if part.strip() else defaults[i] for i, part in enumerate(parts)]
    except (ValueError, IndexError):
        numbers = []
    if len(numbers) not in (1, 2) or (len(parts) == 1 and not text.strip()):
        raise InputError(
            f"--time: expected a moment such as 0.5, or a stretch such as 0:{length:g}; found {text!r}."
        )
    if not all(math.isfinite(number) and 0 <= number <= length * (1 + 1e-9) for number in numbers):
        raise InputError(f"--time {text}: expected moments within {unit}.")
    start, stop = numbers[0] / length, numbers[-1] / length
    return Span(min(start, 1.0), min(stop, 1.0))


@dataclass
class Playhead:
    """Where a player is in time, and how it goes on.

    Attributes:
        seconds: how long the scene lasts.
        frames: frames of the scene, for steps.
        time: in [0, 1].
        playing: whether time goes on.
        loop: begin again at the end, instead of stopping there.
        speed: seconds of the scene in one second; negative goes backwards.
    """

    seconds: float = 1.0
    frames: int = 30
    time: float = 0.0
    playing: bool = False
    loop: bool = True
    speed: float = 1.0

    def advance(self, elapsed: float) -> None:
        """Go on for so many seconds of the player's clock, if it is playing."""
        if not self.playing:
            return
        time = self.time + elapsed * self.speed / self.seconds
        if 0.0 <= time <= 1.0:
            self.time = time
        elif self.loop:
            self.time = time % 1.0
        else:
            self.time, self.playing = min(max(time, 0.0), 1.0), False

    def toggle(self) -> None:
        """Play, or stand still; from the end, begin again."""
        self.playing = not self.playing
        if self.playing and not self.loop and self.time >= 1.0 and self.speed > 0:
            self.time = 0.0

    def step(self, frames: int) -> None:
        """Stop, and go to the frame that is so many later; around the ends where it loops."""
        self.playing = False
        number = round(self.time * self.frames) + frames
        last = self.frames - 1
        number = number % self.frames if self.loop else min(max(number, 0), last)
        self.time = number / self.frames
