"""Values to integers and back: units, and everything that a file says once about its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int, Int8, Int32, UInt8

from flexgs_lightning.codec.rows import LIMIT, SH_GROUPS
from flexgs_lightning.model.compression.coordinates import PLACES, WIDTH
from flexgs_lightning.model.compression.layout import DISTANCE, STILL, WIDEST, Layout

MEANS_BITS = 24
"""Bits of a coordinate of a mean over the scene's longest side."""
UNITS = {"opacities": 2.0**-12, "scales": 2.0**-10, "rotations": 2.0**-14, "sh0": 2.0**-10}
"""Values of 1 of the integers; that of the means is the file's own."""
MOTION_UNITS = {
    "time_scales": 2.0**-10,
    "time_centers": 2.0**-14,
    "real_parts": 2.0**-14,
    "omega": 2.0**-14,
    "coefficients": 2.0**-10,
}
"""The same of columns of motion, as we write them; that of the motion follows the means."""
BOUNDS = {
    "opacities": (8, 40),
    "scales": (8, 40),
    "means": (8, 80),
    "rotations": (16, 52),
    "sh0": (8, 44),
    "sh_rest": (8, 60),
    "time_scales": (8, 44),
    "time_centers": (8, 56),
    "real_parts": (16, 52),
    "motion": (8, 80),
    "omega": (16, 60),
    "coefficients": (8, 56),
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
        weights: [W, F] int32 of the rule for steps: rows are the 13 columns, the other spherical harmonics
            and the columns of motion; columns the constant, t, t^2, three scales, the distance and, where
            opacity varies, the width in time.
        bounds: [W, 2] int32 smallest and largest step class.
        mixing: [13, 14] int32 weights of the prediction.
        basis: [C, D] int8 transform of the other spherical harmonics, D = 3 (K - 1).
        basis_scales: [D] float32 units of its columns.
        layout: the columns, W of a row with the distance.
        motion_units: [M] float32 unit of each column of motion.
        motion_mixing: [M, M + 1] int32 weights of the prediction of these.
    """

    origin: Float32[np.ndarray, " 3"]
    means_unit: np.float32
    centre: Int32[np.ndarray, " 3"]
    cell_bits: int
    weights: Int32[np.ndarray, "W F"]
    bounds: Int32[np.ndarray, "W 2"]
    mixing: Int32[np.ndarray, "13 14"]
    basis: Int8[np.ndarray, "C D"]
    basis_scales: Float32[np.ndarray, " D"]
    layout: Layout = STILL
    motion_units: Float32[np.ndarray, " M"] = field(default_factory=lambda: np.zeros(0, np.float32))
    motion_mixing: Int32[np.ndarray, "M N"] = field(default_factory=lambda: np.zeros((0, 1), np.int32))

    @property
    def units(self) -> Float32[np.ndarray, " V"]:
        """Unit of each column of a level's values."""
        units = np.empty(WIDTH, dtype=np.float32)
        for name, place in PLACES.items():
            units[place] = self.means_unit if name == "means" else UNITS[name]
        return np.concatenate([units, self.motion_units])

    @property
    def unit_of(self) -> dict[str, float]:
        """Unit of each attribute."""
        units = self.units
        found = {field.name: float(units[field.values.start]) for field in self.layout.fields}
        return found | {"sh_rest": SH_UNIT}

    @property
    def groups(self) -> Int32[np.ndarray, " C"]:
        """Group of tables of each transformed coefficient."""
        return sh_groups(len(self.basis))

    def integers(self, values: Float32[np.ndarray, "M V"]) -> Int32[np.ndarray, "M W"]:
        """Values of a level in units, rounded and limited to what the file can hold."""
        scaled = values.astype(np.float64)
        scaled[:, PLACES["means"]] -= self.origin.astype(np.float64)
        for attribute in self.layout.motion:
            if attribute.name == "time_scales":
                scaled[:, attribute.values] = np.minimum(scaled[:, attribute.values], WIDEST)
        scaled /= self.units.astype(np.float64)
        scaled[:, PLACES["opacities"]] = np.clip(scaled[:, PLACES["opacities"]], 0, 1 / UNITS["opacities"])
        rows = np.zeros((len(values), self.layout.width), dtype=np.int32)
        rows[:, self.layout.value_columns] = np.clip(np.rint(scaled), -(LIMIT - 1) / 2, LIMIT - 1)
        return rows

    def values(self, rows: Int32[np.ndarray, "M W"]) -> Float32[np.ndarray, "M V"]:
        """The file's meaning: float32(integer) * unit, and for means + origin, each rounded to float32."""
        values = np.delete(rows, DISTANCE, axis=1).astype(np.float32)
        values *= self.units
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


def bounds_table(layout: Layout = STILL) -> Int32[np.ndarray, "W 2"]:
    """``BOUNDS`` by row of the rule."""
    table = np.zeros((layout.width, 2), dtype=np.int32)
    for name in layout.attributes:
        table[layout.rule_rows(name)] = BOUNDS[name]
    return table


def motion_units(
    layout: Layout, values: Float[np.ndarray, "N V"], means_unit: np.float32
) -> Float32[np.ndarray, " M"]:
    """Units of the columns of motion: fine, and such that the largest number is held."""
    units = np.empty(layout.motion_columns, dtype=np.float32)
    for attribute in layout.motion:
        largest = float(np.abs(values[:, attribute.values]).max(initial=0.0))
        least = MOTION_UNITS.get(attribute.name, 16.0 * float(means_unit))
        start = attribute.place.start - DISTANCE - 1
        units[start : start + len(attribute.columns)] = max(least, largest / (LIMIT / 4))
    return units


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


def fit_mixing(rows: Int[np.ndarray, "N W"], sample: int = 200_000) -> Int32[np.ndarray, "13 14"]:
    """Least-squares weights of the prediction of each column from those before it, in 2^-12."""
    rows = rows[:: max(1, len(rows) // sample), :WIDTH].astype(np.float64)
    mixing = np.zeros((WIDTH, WIDTH + 1))
    for column in range(1, WIDTH):
        if PLACES["means"].start <= column < PLACES["rotations"].stop:
            continue  # means are predicted by their cells; rotations by nothing
        used = [d for d in range(column) if not PLACES["means"].start <= d < PLACES["rotations"].stop]
        mixing[column, used] = _fitted(rows, used, column)
    return np.clip(np.rint(mixing * 4096), -32768, 32767).astype(np.int32)


def fit_motion_mixing(
    layout: Layout, rows: Int[np.ndarray, "N W"], flags: UInt8[np.ndarray, " N"], sample: int = 200_000
) -> Int32[np.ndarray, "M N"]:
    """The same for columns of motion, each from the earlier ones of its attribute."""
    mixing = np.zeros((layout.motion_columns, layout.motion_columns + 1))
    for attribute in layout.motion:
        there = rows[(flags & attribute.flag) != 0] if attribute.flag else rows
        there = there[:: max(1, len(there) // sample)].astype(np.float64)
        start, first = attribute.place.start, DISTANCE + 1
        for column in attribute.columns[1:] if len(there) > 8 * len(attribute.columns) else []:
            used = list(range(start, column))
            mixing[column - first, start - first : column - first] = _fitted(there, used, column)
    return np.clip(np.rint(mixing * 4096), -32768, 32767).astype(np.int32)


def _fitted(rows: Float[np.ndarray, "N W"], used: list[int], column: int) -> Float[np.ndarray, " U"]:
    centred = rows[:, [*used, column]] - rows[:, [*used, column]].mean(axis=0)
    square = centred[:, :-1].T @ centred[:, :-1]
    square += np.diag(np.full(len(used), 1e-3 * np.trace(square) / len(used) + 1e-9))
    return np.asarray(np.linalg.solve(square, centred[:, :-1].T @ centred[:, -1]))
