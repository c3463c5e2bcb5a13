"""HashGridGaussian: where a Gaussian lies says what its numbers are like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flexgs_lightning.model.compression.entropy import EntropyModel
from flexgs_lightning.model.normalization import SceneFrame

RESOLUTIONS_3D = (18, 24, 33, 44, 59, 80, 108, 148, 201, 275, 376, 514)
RESOLUTIONS_2D = (130, 258, 514, 1026)
_PRIMES = (1, 2654435761, 805459861)
"""Of the spatial hash (Müller et al. 2022, "Instant Neural Graphics Primitives", Eq. 4)."""
_PLANES = ((0, 1), (0, 2), (1, 2))


class HashGrid(nn.Module):
    """Features of a place from tables that a spatial hash looks up, with one bit a number.

    Cells' corners are blended linearly. Features are -1 or 1 (straight-through), so that the tables
    themselves would take one bit a number (HAC, Chen et al. 2024, section 3.2).
    """

    def __init__(
        self,
        resolutions_3d: Sequence[int] = RESOLUTIONS_3D,
        resolutions_2d: Sequence[int] = RESOLUTIONS_2D,
        rows_3d: int = 1 << 13,
        rows_2d: int = 1 << 15,
        features: int = 2,
    ) -> None:
        """Draw initial features from torch's global generator.

        Args:
            resolutions_3d: cells an axis of each level over space.
            resolutions_2d: of each level over the planes xy, xz and yz.
            rows_3d: largest table of a level over space.
            rows_2d: of a level over a plane.
            features: numbers of a row.
        """
        super().__init__()
        axes = [((0, 1, 2), size, rows_3d) for size in resolutions_3d]
        axes += [(plane, size, rows_2d) for plane in _PLANES for size in resolutions_2d]
        self._levels = [(a, size, min(rows, (size + 1) ** len(a))) for a, size, rows in axes]
        self.tables = nn.ParameterList(
            (torch.rand(rows, features) * 2 - 1) * 0.01 for _, _, rows in self._levels
        )
        self.width = features * len(self._levels)

    def forward(self, places: Float[Tensor, "M 3"]) -> Float[Tensor, "M W"]:
        """Features of places in [-1, 1]; no gradient to the places."""
        unit = (places.detach().clamp(-1, 1) + 1) / 2
        found = [
            _blended(unit[:, list(axes)] * size, table, size)
            for (axes, size, _), table in zip(self._levels, self.tables, strict=True)
        ]
        return torch.cat(found, dim=1)


def _tail(deviations: Tensor) -> Tensor:
    """Twice the normal cumulative distribution; ``torch.special.ndtr`` is 0 from -9 deviations on."""
    return torch.special.erfc(deviations * -math.sqrt(0.5))


def _blended(points: Float[Tensor, "M D"], table: Float[Tensor, "R F"], size: int) -> Float[Tensor, "M F"]:
    """Features between a cell's corners."""
    binary = table + (torch.where(table >= 0, 1.0, -1.0) - table).detach()
    low = points.floor().clamp(0, size - 1)
    share = points - low
    total = table.new_zeros(())
    for corner in itertools.product((0, 1), repeat=points.shape[1]):
        side = torch.tensor(corner, device=points.device)
        weight = torch.where(side.bool(), share, 1 - share).prod(dim=1, keepdim=True)
        total = total + weight * binary[_place(low.long() + side, size, len(table))]
    return total


def _place(corners: Int[Tensor, "M D"], size: int, rows: int) -> Int[Tensor, " M"]:
    """Row of a corner: its own where there are enough, else a hash."""
    if rows == (size + 1) ** corners.shape[1]:
        place = corners[:, 0]
        for axis in range(1, corners.shape[1]):
            place = place * (size + 1) + corners[:, axis]
        return place
    place = torch.zeros_like(corners[:, 0])
    for axis, prime in enumerate(_PRIMES[: corners.shape[1]]):
        place = place ^ (corners[:, axis] * prime)
    return place % rows


class HashGridGaussian(EntropyModel):
    """A normal density for each number, whose mean and deviation a network reads off a hash grid.

    As GSCodec Studio (Li et al. 2025) takes it from HAC; positions are contracted (``SceneFrame``), so the
    grid's cells lie where the scene does.
    """

    spanned = 1.0

    def __init__(self, channels: int, frame: SceneFrame, hidden: int = 64, **grid: Any) -> None:
        """Draw initial weights from torch's global generator.

        Args:
            channels: C.
            frame: where the scene lies.
            hidden: width of the network's hidden layer.
            **grid: see ``HashGrid``.
        """
        super().__init__(channels)
        self.hidden, self.sizes = hidden, grid
        self.frame = frame
        self.grid = HashGrid(**grid)
        self.layers = nn.Sequential(
            nn.Linear(self.grid.width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * channels)
        )

    def parameters_at(self, means: Float[Tensor, "M 3"]) -> tuple[Float[Tensor, "M C"], Float[Tensor, "M C"]]:
        """Mean and standard deviation of each channel at places."""
        found = self.layers(self.grid(self.frame.plane_coordinates(means)))
        shift, log_scale = found.split(self.channels, dim=1)
        return self.center + shift * self.width, self.width * log_scale.clamp(-12, 6).exp()

    def probability(
        self,
        values: Float[Tensor, "M C"],
        steps: Tensor | float,
        means: Float[Tensor, "M 3"],
    ) -> Float[Tensor, "M C"]:
        """See ``EntropyModel``."""
        expected, deviation = self.parameters_at(means)
        away, half = (values - expected).abs(), 0.5 * steps
        # Both in the lower tail, where differences are exact.
        upper, lower = (half - away) / deviation, (-half - away) / deviation
        return (_tail(upper) - _tail(lower)) / 2

    def as_plain(self) -> dict[str, Any]:
        """Arguments of the constructor but for the frame, which comes with the state."""
        return {"channels": self.channels, "hidden": self.hidden, **self.sizes}
