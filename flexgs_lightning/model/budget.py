"""Budgets: how many Gaussians a ratio, a count, a number of megabytes or of milliseconds buys."""

from __future__ import annotations

import logging
import math

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import ATTRIBUTES
from flexgs_lightning.model.profile import Profile

MEGABYTE = 1_000_000
"""Bytes in a megabyte (SI), everywhere in this package."""
_ROUNDING = 1e-12
"""Relative slack: 0.29 * 100 is 28.999999999999996 in floating point, and (k / n) * n may lie below k."""

NORMAL = 3
"""Numbers of the normal, which readers of 3DGS PLY files expect and nothing uses."""
PLY_HEADER_BYTES = 2048
"""Most that the header of an exported PLY file takes."""

logger = logging.getLogger(__name__)


def ply_bytes_per_gaussian(sh_degree: int) -> int:
    """Bytes of a Gaussian in a 3DGS PLY: what is drawn of it and a normal, in float32."""
    drawn = [attribute.shape_at(sh_degree) for attribute in ATTRIBUTES.values() if attribute.drawn]
    return 4 * (sum(math.prod(shape) for shape in drawn) + NORMAL)


def count_at(ratio: float, total: int) -> int:
    """floor(ratio * total), in 1..total: the number of Gaussians drawn at a ratio. The one place for it.

    The product may fall short of an integer by rounding; that integer is meant then, so
    ``count_at(k / n, n) == k`` for every k.

    Raises:
        InputError: the ratio lies outside (0, 1], or buys less than one Gaussian.
    """
    if not 0.0 < ratio <= 1.0:  # also refuses NaN
        raise InputError(f"ratio: expected a number in (0, 1], found {ratio}.")
    count = min(math.floor(ratio * total * (1.0 + _ROUNDING)), total)
    if count < 1:
        raise InputError(f"ratio: {ratio} of {total} Gaussians is less than one; expected at least one.")
    return count


def ratio_for(
    total: int,
    *,
    ratio: float | None = None,
    max_gaussians: int | None = None,
    max_megabytes: float | None = None,
    max_milliseconds: float | None = None,
    bytes_per_gaussian: float | None = None,
    overhead_bytes: int = 0,
    profile: Profile | None = None,
) -> float:
    """The largest ratio that keeps within a budget; ``count_at`` of it is the exact number of Gaussians.

    A budget larger than the model gives the full model (1.0), with a note in the log: what was asked for,
    that it fits, is met.

    Args:
        total: Gaussians in the full model.
        ratio: the budget as a ratio in (0, 1]. Give exactly one of these four.
        max_gaussians: the budget as a number of Gaussians.
        max_megabytes: the budget in megabytes of 1,000,000 bytes.
        max_milliseconds: the budget as the time of a frame on the device of ``profile``.
        bytes_per_gaussian: what one Gaussian takes; needed with ``max_megabytes``.
        overhead_bytes: what the file takes beside its Gaussians (a header).
        profile: what a frame costs; needed with ``max_milliseconds``.

    Raises:
        InputError: none or several budgets given, one out of range, or one that holds no Gaussian.
        ValueError: ``max_megabytes`` without a positive ``bytes_per_gaussian``.
    """
    budgets = {
        "ratio": ratio,
        "max_gaussians": max_gaussians,
        "max_megabytes": max_megabytes,
        "max_milliseconds": max_milliseconds,
    }
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise InputError(
            f"budget: expected exactly one of {', '.join(budgets)}, found {' and '.join(given) or 'none'}."
        )
    if ratio is not None:
        return count_at(ratio, total) / total
    if max_gaussians is not None:
        return _ratio_of_count(max_gaussians, total, f"max_gaussians: {max_gaussians}")
    if max_milliseconds is not None:
        return _ratio_of_milliseconds(max_milliseconds, profile, total)
    assert max_megabytes is not None
    if bytes_per_gaussian is None or bytes_per_gaussian <= 0:
        raise ValueError("ratio_for: max_megabytes needs a positive bytes_per_gaussian.")
    if not (math.isfinite(max_megabytes) and max_megabytes > 0):
        raise InputError(f"max_megabytes: expected a positive number, found {max_megabytes}.")
    room = max_megabytes * MEGABYTE * (1.0 + _ROUNDING) - overhead_bytes
    count = math.floor(room / bytes_per_gaussian)
    smallest = (overhead_bytes + bytes_per_gaussian) / MEGABYTE
    return _ratio_of_count(
        count, total, f"max_megabytes: {max_megabytes} (one Gaussian takes {smallest:.6f} MB)"
    )


def _ratio_of_milliseconds(milliseconds: float, profile: Profile | None, total: int) -> float:
    if profile is None:
        raise InputError("max_milliseconds: expected a profile of the device; flexgs profile makes one.")
    if not (math.isfinite(milliseconds) and milliseconds > 0):
        raise InputError(f"max_milliseconds: expected a positive number, found {milliseconds}.")
    cost = profile.cost
    count = math.floor(min(cost.count(milliseconds), total))
    one = f"one Gaussian takes {cost.milliseconds(1):.3g} ms on {profile.device}"
    return _ratio_of_count(count, total, f"max_milliseconds: {milliseconds:g} ({one})")


def _ratio_of_count(count: int, total: int, budget: str) -> float:
    if total < 1:
        raise InputError(f"{budget}: the model holds no Gaussians.")
    if count < 1:
        raise InputError(f"{budget} holds no Gaussian; expected room for at least one of {total}.")
    if count > total:
        logger.info("%s is more than the model's %d Gaussians; the full model fits.", budget, total)
    return min(count, total) / total
