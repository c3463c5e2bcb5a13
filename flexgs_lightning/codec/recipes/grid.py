"""Sorting Gaussians into a grid whose neighbours are alike, so that attributes become smooth images.

The task and the idea of the second step are those of Morgenstern et al. 2024 ("Compact 3D Scene
Representation via Self-Organizing Gaussian Grids"): cells are handed new contents in small groups, each the
best for a blurred image of the grid, while the blur shrinks. Their starts at random, this from a curve.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import uniform_filter

from flexgs_lightning.codec.recipes.columns import morton_order

Sorting = Literal["grid", "morton"]
"""By likeness in both directions; or along a Z-order curve in space, row after row."""
SHRINKING = 0.7
"""A radius of the blur relative to the one before."""
PASSES = 10
"""Groupings of all cells a radius."""
GROUP = 4
"""Cells whose contents are exchanged at a time: all 24 ways are tried."""
_WAYS = np.array(list(itertools.permutations(range(GROUP))))


def grid_shape(count: int) -> tuple[int, int]:
    """Height and width of the grid, nearly a square; the last row may not be full."""
    width = math.isqrt(count - 1) + 1
    return -(-count // width), width


def grid_order(
    means: Float[np.ndarray, "N 3"], features: Float[np.ndarray, "N C"], sorting: Sorting, seed: int = 0
) -> Int[np.ndarray, " N"]:
    """[N] the Gaussian of each cell, row after row.

    Args:
        means: places.
        features: what should change little from cell to cell, in comparable units.
        sorting: how.
        seed: of the groups.
    """
    order = morton_order(means)
    if sorting == "morton" or len(order) < GROUP:
        return order
    height, width = grid_shape(len(order))
    start = np.empty(len(order), np.int64)
    start[_curve(len(order), width)] = order
    return _exchanged(start, features.astype(np.float32), (height, width), seed)


def _curve(count: int, width: int) -> Int[np.ndarray, " N"]:
    """The first ``count`` cells, row after row, along a Z-order curve in the plane."""
    y, x = np.divmod(np.arange(count), width)
    codes = np.zeros(count, np.int64)
    for bit in range(width.bit_length()):
        codes |= ((y >> bit & 1) << (2 * bit + 1)) | ((x >> bit & 1) << (2 * bit))
    return np.argsort(codes, kind="stable")


def _exchanged(
    order: Int[np.ndarray, " N"], features: Float[np.ndarray, "N C"], shape: tuple[int, int], seed: int
) -> Int[np.ndarray, " N"]:
    count, cells = len(order), shape[0] * shape[1]
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.divmod(np.arange(count), shape[1])
    radius = max(shape) // 2
    while radius >= 1:
        held = features[order]
        image = np.concatenate([held, np.repeat(held[-1:], cells - count, axis=0)]).reshape(*shape, -1)
        target = uniform_filter(image, (2 * radius + 1, 2 * radius + 1, 1), mode="nearest")
        target = target.reshape(cells, -1)[:count]
        for _ in range(PASSES):
            groups = _groups(y, x, 2 * radius, generator)
            order[groups] = np.take_along_axis(
                order[groups], _best(features[order[groups]], target[groups]), 1
            )
        radius = int(radius * SHRINKING)
    return order


def _groups(
    y: Int[np.ndarray, " N"], x: Int[np.ndarray, " N"], side: int, generator: np.random.Generator
) -> Int[np.ndarray, "n 4"]:
    """Groups of cells that lie in one square of this side, the squares and groups at random."""
    shift_y, shift_x = generator.integers(0, side, 2)
    squares = (y + shift_y) // side * (len(x) + side) + (x + shift_x) // side
    mixed = generator.permutation(len(x))
    mixed = mixed[np.argsort(squares[mixed], kind="stable")]
    return mixed[: len(mixed) // GROUP * GROUP].reshape(-1, GROUP)


def _best(held: Float[np.ndarray, "n 4 C"], wanted: Float[np.ndarray, "n 4 C"]) -> Int[np.ndarray, "n 4"]:
    """For each cell of each group the content to take, with the least sum of squared differences."""
    alike = np.matmul(wanted, held.transpose(0, 2, 1))  # what is squared alone is the same in every way
    sums = sum(alike[:, i, _WAYS[:, i]] for i in range(GROUP))
    return _WAYS[np.argmax(sums, axis=1)]
