"""Profile: what a frame costs on a device, by the number of Gaussians; a small JSON file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import read_json

VERSION = 1
_MOST_BYTES = 1 << 20
_EXPONENTS = (1.0, *np.round(np.arange(0.3, 1.25, 0.05), 2).tolist())
"""Of the fit. The Gaussians that matter most come first and are large, so that costs often grow less than
linearly. The first of equally good ones is taken."""


@dataclass(frozen=True)
class FrameCost:
    """Milliseconds = fixed + each * count ** exponent.

    Attributes:
        fixed: milliseconds without Gaussians.
        each: milliseconds a Gaussian to the exponent.
        exponent: see above.
    """

    fixed: float
    each: float
    exponent: float

    def milliseconds(self, count: int) -> float:
        """Of a frame."""
        return self.fixed + self.each * count**self.exponent

    def count(self, milliseconds: float) -> float:
        """Gaussians that a frame of so many milliseconds holds; below 1 if it holds none."""
        if self.each == 0.0:
            return math.inf if milliseconds >= self.fixed else 0.0
        return float(max(milliseconds - self.fixed, 0.0) / self.each) ** (1.0 / self.exponent)


@dataclass(frozen=True)
class Profile:
    """Milliseconds that frames take, measured; ``flexgs profile`` and the player's page write it.

    Attributes:
        device: what drew, for people.
        points: (Gaussians, median of milliseconds) at two counts or more.
        p95: (Gaussians, milliseconds that 95 % of the frames keep within); may be empty.
        facts: whatever else the file says, such as the size of the pictures.
    """

    device: str
    points: tuple[tuple[int, float], ...]
    p95: tuple[tuple[int, float], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def cost(self) -> FrameCost:
        """What fits the medians, in the sense of least squares of relative errors."""
        counts, medians = np.array(self.points, dtype=np.float64).T
        fits = []
        for exponent in _EXPONENTS if len(counts) > 2 else (1.0,):
            design = np.stack([np.ones_like(counts), counts**exponent], axis=1) / medians[:, None]
            scale = design.max(axis=0)
            (fixed, each), error = nnls(design / scale, np.ones_like(counts))
            fits.append((round(error, 9), FrameCost(fixed / scale[0], each / scale[1], exponent)))
        return min(fits, key=lambda fit: fit[0])[1]

    def write(self, path: str | Path) -> None:
        """Write the file."""
        content = {"version": VERSION, "device": self.device, "points": self.points, "p95": self.p95}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content | self.facts, indent=1) + "\n")


def read_profile(path: str | Path) -> Profile:
    """Read a profile of any device.

    Raises:
        InputError: no such file, or it is no profile; with what is wrong.
    """
    path = Path(path)
    content = read_json(path, dict[str, Any], _MOST_BYTES)
    if content.get("version") != VERSION:
        raise InputError(f"{path}: expected a profile of version {VERSION}, as flexgs profile writes it.")
    points = _points(path, content, "points")
    if len({count for count, _ in points}) < 2:
        raise InputError(f"{path}: points: expected two counts or more, found {len(points)}.")
    p95 = _points(path, content, "p95") if "p95" in content else ()
    known = ("version", "device", "points", "p95")
    facts = {name: value for name, value in content.items() if name not in known}
    return Profile(str(content.get("device", "unknown")), points, p95, facts)


def _points(path: Path, content: dict[str, Any], name: str) -> tuple[tuple[int, float], ...]:
    found = content.get(name)
    if not isinstance(found, list) or not all(map(_is_point, found)):
        raise InputError(f"{path}: {name}: expected pairs of a number of Gaussians and milliseconds.")
    return tuple((int(count), float(milliseconds)) for count, milliseconds in found)


def _is_point(found: Any) -> bool:
    pair = isinstance(found, list) and len(found) == 2
    numbers = pair and all(type(number) in (int, float) for number in found)
    return bool(numbers and 1 <= found[0] < 1e12 and 0 < found[1] < 1e12)
