"""Bjontegaard's delta rate: how many bytes more a curve takes than another at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

Point = tuple[float, float]
"""Bytes, and dB."""
LEAST_OVERLAP = 0.1
"""Curves that share fewer dB are not integrated over them."""


def bd_rate(curve: Sequence[Point], reference: Sequence[Point]) -> float | None:
    """Mean difference of log bytes over the dB that both curves reach, as a share: -0.2 is 20 % fewer bytes.

    Curves are interpolated by monotone cubics in log bytes (Bjontegaard 2001, with Fritsch and Carlson's
    interpolant); only points that no other beats in both count. A reference of one point, or of hardly any
    dB, is compared where its points are, which is what the mean tends to. None where there is nothing to
    compare: a curve of one point, hardly any dB in common, or a narrow reference that leaves the curve.
    """
    ours, theirs = frontier(curve), frontier(reference)
    if len(ours) < 2 or not theirs:
        return None
    if theirs[-1][1] - theirs[0][1] < LEAST_OVERLAP:
        return _at_points(ours, theirs)
    low, high = max(ours[0][1], theirs[0][1]), min(ours[-1][1], theirs[-1][1])
    if high - low < LEAST_OVERLAP:
        return None
    areas = [_logs(points).integrate(low, high) for points in (ours, theirs)]
    return math.expm1(float(areas[0] - areas[1]) / (high - low))


def _at_points(ours: Sequence[Point], theirs: Sequence[Point]) -> float | None:
    sizes, qualities = np.array(theirs, dtype=np.float64).T
    if qualities[0] < ours[0][1] or qualities[-1] > ours[-1][1]:
        return None
    return math.expm1(float((_logs(ours)(qualities) - np.log(sizes)).mean()))


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points by ascending bytes and quality; those that take as many bytes for less quality are left out."""
    kept: list[Point] = []
    for size, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((size, quality))
    return kept


def _logs(points: Sequence[Point]) -> PchipInterpolator:
    sizes, qualities = np.array(points, dtype=np.float64).T
    return PchipInterpolator(qualities, np.log(sizes))
