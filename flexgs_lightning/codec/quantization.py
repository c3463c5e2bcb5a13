"""Values to integers and back: units, and everything that a file says once about its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int8, Int32

from flexgs_lightning.codec.rows import LIMIT, SH_GROUPS, SH_RULE
from flexgs_lightning.model.compression.coordinates import PLACES, WIDTH

MEANS_BITS = 24
"""Bits of a coordinate of a mean over the scene's longest side."""
UNITS = {"opacities": 2.0**-12, "scales": 2.0**-10, "rotations": 2.0**-14, "sh0": 2.0**-10}
"""Values of 1 of the integers; that of the means is the file's own."""
BOUNDS = {
    "opacities": (8, 40),
    "scales": (8, 40),
    "means": (8, 80),
    "rotations": (16, 52),
    "sh0": (8, 44),
    "sh_rest": (8, 60),
}
"""Smallest and largest step class of each attribute. Where steps are large their effect is no longer
quadratic, and what predicts it no longer holds."""
SH_UNIT = 2.0**-10
"""Value of 1 of a transformed spherical-harmonics coefficient before its transform is scaled."""


@dataclass(frozen=True)
class Numbers:
    """What a file says about its numbers, the same for all chunks.

    Attributes:
        origin: [3] float32 mean at integer 0.
        means_unit: float32 value of 1 of the means' integers.
        centre: [3] int32 place that distances are measured from, in the means' integers.
        cell_bits: bits of an axis of the cells that places are coded in.
        weights: [14, 7] int32 of the rule for steps: rows are the 13 columns and the other spherical
            harmonics; columns the constant, t, t^2, three scales and the distance.
        bounds: [14, 2] int32 smallest and largest step class.
        mixing: [13, 14] int32 weights of the prediction.
        basis: [C, D] int8 transform of the other spherical harmonics, D = 3 (K - 1).
        basis_scales: [D] float32 units of its columns.
    """

    origin: Float32[np.ndarray, " 3"]
    means_unit: np.float32
    centre: Int32[np.ndarray, " 3"]
    cell_bits: int
    weights: Int32[np.ndarray, "14 7"]
    bounds: Int32[np.ndarray, "14 2"]
    mixing: Int32[np.ndarray, "13 14"]
    basis: Int8[np.ndarray, "C D"]
    basis_scales: Float32[np.ndarray, " D"]

    @property
    def units(self) -> Float32[np.ndarray, " 13"]:
        """Unit of each column."""
        units = np.empty(WIDTH, dtype=np.float32)
        for name, place in PLACES.items():
            units[place] = self.means_unit if name == "means" else UNITS[name]
        return units

    @property
    def groups(self) -> Int32[np.ndarray, " C"]:
        """Group of tables of each transformed coefficient."""
        return sh_groups(len(self.basis))

    def integers(self, values: Float32[np.ndarray, "M 13"]) -> Int32[np.ndarray, "M 14"]:
        """Values of a level in units, rounded and limited to what the file can hold."""
        scaled = values.astype(np.float64)
        scaled[:, PLACES["means"]] -= self.origin.astype(np.float64)
        scaled /= self.units.astype(np.float64)
        scaled[:, PLACES["opacities"]] = np.clip(scaled[:, PLACES["opacities"]], 0, 1 / UNITS["opacities"])
        rows = np.zeros((len(values), WIDTH + 1), dtype=np.int32)
        rows[:, :WIDTH] = np.clip(np.rint(scaled), -(LIMIT - 1) / 2, LIMIT - 1)
        return rows

    def values(self, rows: Int32[np.ndarray, "M 14"]) -> Float32[np.ndarray, "M 13"]:
        """The file's meaning: float32(integer) * unit, and for means + origin, each rounded to float32."""
        values = rows[:, :WIDTH].astype(np.float32) * self.units
        values[:, PLACES["means"]] += self.origin
        return values

    def transformed(self, sh_rest: Float32[np.ndarray, "M K 3"]) -> Float32[np.ndarray, "M C"]:
        """Coefficients whose ``sh_values`` come nearest to given ones, in units of a step of 1."""
        if len(self.basis) == 0:
            return np.zeros((len(sh_rest), 0), dtype=np.float32)
        matrix = self.basis.astype(np.float64) * self.basis_scales
        inverse = np.linalg.pinv(matrix)
        flat = sh_rest.reshape(len(sh_rest), -1)
        return np.asarray(flat @ inverse.astype(np.float32), dtype=np.float32)


def sh_groups(count: int) -> Int32[np.ndarray, " C"]:
    """Group of each transformed coefficient: 0, 1, 2, 3 apart, then in octaves halved."""
    edges = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24])
    assert len(edges) + 1 == SH_GROUPS
    return np.searchsorted(edges, np.arange(count), side="right").astype(np.int32)


def bounds_table() -> Int32[np.ndarray, "14 2"]:
    """``BOUNDS`` by row of the rule."""
    table = np.zeros((SH_RULE + 1, 2), dtype=np.int32)
    for name, place in PLACES.items():
        table[place] = BOUNDS[name]
    table[SH_RULE] = BOUNDS["sh_rest"]
    return table


def fit_box(means: Float[np.ndarray, "N 3"]) -> tuple[Float32[np.ndarray, " 3"], np.float32]:
    """Origin and unit of the means' integers: the smallest cube at their lowest corner that holds them."""
    low = means.min(axis=0).astype(np.float64)
    side = float((means.max(axis=0).astype(np.float64) - low).max())
    unit = np.float32(max(side, 1e-6) / ((1 << MEANS_BITS) - 64))
    return low.astype(np.float32), unit


def fit_basis(
    sh_rest: Float[np.ndarray, "N D"], weights: Float[np.ndarray, " N"], importance: Float[np.ndarray, " D"]
) -> tuple[Int8[np.ndarray, "C D"], Float32[np.ndarray, " D"]]:
    """Principal components of spherical harmonics in units of equal harm, and their scales.

    Args:
        sh_rest: [N, D] coefficients.
        weights: [N] how much the images lose by errors in a Gaussian.
        importance: [D] how much they lose by errors in a coefficient.
    """
    if sh_rest.shape[1] == 0:
        return np.zeros((0, 0), dtype=np.int8), np.zeros(0, dtype=np.float32)
    every = max(1, len(sh_rest) // 200_000)
    sh_rest, weights = sh_rest[::every], weights[::every]
    unit = 1.0 / np.sqrt(importance / importance.mean())
    scaled = sh_rest / unit * np.sqrt(weights / weights.mean())[:, None]
    variances, vectors = np.linalg.eigh(scaled.T @ scaled)
    matrix = vectors[:, np.argsort(-variances)].T * unit  # [C, D]: coefficients @ matrix are harmonics
    scales = np.abs(matrix).max(axis=0) / 127.0
    basis = np.rint(matrix / scales).astype(np.int8)
    return basis, (scales * SH_UNIT).astype(np.float32)


def fit_mixing(rows: Int[np.ndarray, "N 14"], sample: int = 200_000) -> Int32[np.ndarray, "13 14"]:
    """Least-squares weights of the prediction of each column from those before it, in 2^-12."""
    rows = rows[:: max(1, len(rows) // sample), :WIDTH].astype(np.float64)
    mixing = np.zeros((WIDTH, WIDTH + 1))
    centred = rows - rows.mean(axis=0)
    for column in range(1, WIDTH):
        if PLACES["means"].start <= column < PLACES["rotations"].stop:
            continue  # means are predicted by their cells; rotations by nothing
        used = [d for d in range(column) if not PLACES["means"].start <= d < PLACES["rotations"].stop]
        square = centred[:, used].T @ centred[:, used]
        square += np.diag(np.full(len(used), 1e-3 * np.trace(square) / len(used) + 1e-9))
        mixing[column, used] = np.linalg.solve(square, centred[:, used].T @ centred[:, column])
    return np.clip(np.rint(mixing * 4096), -32768, 32767).astype(np.int32)
