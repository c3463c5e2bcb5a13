"""Movement: how the Gaussians of a file move."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from flexgs_lightning.model.compression.layout import Layout, Path

PATHS: tuple[Path, ...] = ("none", "polynomial", "bases", "free_bases")
"""In the order of their numbers in the file."""
MOST_BASES = 32
MOST_DEGREE = 6
MOST_KNOTS = 1024


def _no_knots() -> np.ndarray:
    return np.zeros((0, 0, 7), dtype=np.float32)


@dataclass(frozen=True)
class Movement:
    """How all Gaussians of a group of frames move.

    Attributes:
        path: of their places and rotations, see ``model.moving.MotionOptions``.
        order: degree of polynomials, or number of bases; 0 without a path.
        varying: whether opacity comes and goes.
        least_opacity: below this a Gaussian is not drawn, where opacity varies; else 0.
        knots: [K, J, 7] float32 control points of the bases: translations, and rotations (w, x, y, z).
    """

    path: Path = "none"
    order: int = 0
    varying: bool = False
    least_opacity: float = 0.0
    knots: Float32[np.ndarray, "K J 7"] = field(default_factory=_no_knots)

    @property
    def moves(self) -> bool:
        """Whether anything depends on the time."""
        return self.varying or self.path != "none"

    @functools.cached_property
    def layout(self) -> Layout:
        """Which columns that takes."""
        return Layout(self.path, self.order, self.varying)
