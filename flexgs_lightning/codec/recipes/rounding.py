"""Rounding that training can pass through: what a file will hold, with the gradient of what it was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 255
"""Steps of eight bits."""


class Scale(NamedTuple):
    """Where whole numbers from 0 on lie: at low + step * number."""

    low: float
    step: float


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` with the gradient of ``values``."""
    return values + (rounded - values).detach()


def eight_bits(values: Tensor) -> Scale:
    """The scale of 256 numbers from the least of all values to the largest; of none and of one value too."""
    if not values.numel():
        return Scale(0.0, 1.0)
    low, high = (float(bound) for bound in values.detach().aminmax())
    return Scale(low, (high - low) / LEVELS or 1.0)


def numbered(values: Tensor, scale: Scale, levels: int = LEVELS) -> Tensor:
    """Nearest numbers of a scale, from 0 to ``levels``; float."""
    return ((values - scale.low) / scale.step).round().clamp(0, levels)


def halved(values: Tensor) -> Tensor:
    """Values at half precision; those beyond its range at its ends."""
    most = torch.finfo(torch.float16).max
    return straight_through(values, values.clamp(-most, most).half().float())


def in_eight_bits(values: Tensor) -> Tensor:
    """Values on the scale of 256 numbers between their ends."""
    scale = eight_bits(values)
    return straight_through(values, scale.low + scale.step * numbered(values, scale))
