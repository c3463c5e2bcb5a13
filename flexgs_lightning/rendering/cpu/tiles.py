"""Which Gaussians touch which tile of the image, front to back.

Gaussians are sorted by depth once per camera, then dealt out to tiles in that order (a counting sort),
so every tile's list is sorted too. Work is cut into a fixed number of parts, so that the order, ties
included (by index), does not depend on the number of threads.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from flexgs_lightning.jit import inlined, kernel, next_item, prefetch, run
from flexgs_lightning.rendering.types import DEPTH

TILE_WIDTH = 8
TILE_HEIGHT = 32
"""Narrow and tall: Gaussians are drawn in whole rows of a tile, of which a square one wastes more."""
_PARTS = 8
"""Pieces of one camera's depth-sorted list that are dealt out in parallel."""
_CHUNK = 4096
_AHEAD = 16
"""Gaussians whose boxes are prefetched before their turn: in order of depth they lie anywhere in memory."""
_MARGIN = 0.01
"""Pixels added around each Gaussian's box against rounding; what lies there blends to nothing."""


class TileLists(NamedTuple):
    """Intersections of Gaussians and tiles, stored tile by tile; Gaussian i of camera c is c N + i.

    Attributes:
        offsets: [C T + 1] where each tile's intersections start; T tiles in rows of ``columns``.
        splats: [M] the Gaussian of each intersection, front to back within a tile.
        entries: [M] a slot of its own for each intersection such that one Gaussian's slots adjoin.
        entry_offsets: [C N + 1] where each Gaussian's slots start.
        columns: tiles per row.
        tiles: T, tiles per camera.
    """

    offsets: Int[ndarray, " CT+1"]
    splats: Int[ndarray, " M"]
    entries: Int[ndarray, " M"]
    entry_offsets: Int[ndarray, " CN+1"]
    columns: int
    tiles: int


def build_tile_lists(
    means2d: Float[ndarray, "C N 2"],
    extents: Float[ndarray, "C N 2"],
    features: Float[ndarray, "C N 8"],
    width: int,
    height: int,
) -> TileLists:
    """Find and sort all intersections; culled Gaussians (extent 0) have none."""
    cameras, n = means2d.shape[:2]
    columns, rows = -(-width // TILE_WIDTH), -(-height // TILE_HEIGHT)
    tiles = columns * rows
    boxes = np.empty((cameras * n, 4), np.int32)
    entry_offsets = np.zeros(cameras * n + 1, np.int64)
    centres, extents = means2d.reshape(-1, 2), extents.reshape(-1, 2)
    run(_find_boxes, -(-cameras * n // _CHUNK), centres, extents, columns, rows, boxes, entry_offsets[1:])
    np.cumsum(entry_offsets, out=entry_offsets)

    order, visible = np.empty((cameras, n), np.int32), np.zeros(cameras, np.int64)
    run(_sort_by_depth, cameras, features.view(np.int32), entry_offsets, order, visible)
    cursors = np.zeros((cameras, _PARTS, tiles), np.int64)
    run(_count_per_tile, cameras * _PARTS, boxes, order, visible, columns, cursors)
    offsets = _exclusive_sums(cursors)
    splats, entries = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
    run(_deal_out, cameras * _PARTS, boxes, order, visible, columns, cursors, entry_offsets, splats, entries)
    return TileLists(offsets, splats, entries, entry_offsets, columns, tiles)


def _exclusive_sums(cursors: Int[ndarray, "C P T"]) -> Int[ndarray, " CT+1"]:
    """Turn counts per (camera, part, tile) into where each writes, in place; return where tiles start."""
    offsets = np.zeros(cursors.shape[0] * cursors.shape[2] + 1, np.int64)
    np.cumsum(cursors.sum(axis=1).ravel(), out=offsets[1:])
    before = np.cumsum(cursors, axis=1) - cursors
    cursors[:] = before + offsets[:-1].reshape(cursors.shape[0], 1, cursors.shape[2])
    return offsets


@inlined
def _first_and_last(centre, extent, size, limit):
    """Range [first, last) of tiles whose pixel centres come within ``extent`` of ``centre``.

    Truncation is as good as rounding on values moved above zero, and needs no call to the C library.
    """
    pixels = np.float64(limit * size)
    low = min(max(centre - extent - 0.5 - _MARGIN, -1.0), pixels - 1.0) + 1.0
    high = min(max(centre + extent - 0.5 + _MARGIN, -1.0), pixels - 1.0) + 1.0
    first, last = np.int64(low), np.int64(high)  # pixels [first, last)
    if last <= first:
        return 0, 0
    return first // size, (last - 1) // size + 1


@kernel
def _find_boxes(counter, count, means2d, extents, columns, rows, boxes, counts):
    """Tile box (x0, y0, x1, y1) and number of tiles of every Gaussian; one item is a chunk of them."""
    item = next_item(counter)
    while item < count:
        for i in range(item * _CHUNK, min((item + 1) * _CHUNK, len(counts))):
            x0, y0, x1, y1 = 0, 0, 0, 0
            if extents[i, 0] > 0.0:
                x0, x1 = _first_and_last(means2d[i, 0], extents[i, 0], TILE_WIDTH, columns)
                y0, y1 = _first_and_last(means2d[i, 1], extents[i, 1], TILE_HEIGHT, rows)
            boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = x0, y0, x1, y1
            counts[i] = (x1 - x0) * (y1 - y0)
        item = next_item(counter)


@kernel
def _sort_by_depth(counter, count, bits, entry_offsets, order, visible):
    """Stable radix sort of the Gaussians that touch a tile; one item is a camera.

    Depths are positive floats, so their bits, read as integers, sort alike.
    """
    n = order.shape[1]
    keys, other_keys, other = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    c = next_item(counter)
    while c < count:
        found, ours = 0, order[c]
        for i in range(n):
            if entry_offsets[c * n + i + 1] > entry_offsets[c * n + i]:
                keys[found], other[found] = bits[c, i, DEPTH], i
                found += 1
        visible[c] = found
        _radix_pass(keys, other, other_keys, ours, found, 0)
        _radix_pass(other_keys, ours, keys, other, found, 11)
        _radix_pass(keys, other, other_keys, ours, found, 22)
        c = next_item(counter)


@kernel
def _radix_pass(keys, values, out_keys, out_values, n, shift):
    """Distribute by 11 bits of the key, keeping the order of equal ones."""
    starts = np.zeros(2049, np.int64)
    for i in range(n):
        starts[((keys[i] >> shift) & 2047) + 1] += 1
    for digit in range(1, 2049):
        starts[digit] += starts[digit - 1]
    for i in range(n):
        digit = (keys[i] >> shift) & 2047
        out_keys[starts[digit]], out_values[starts[digit]] = keys[i], values[i]
        starts[digit] += 1


@inlined
def _part(item, visible):
    """Camera, part and range of ranks of a work item."""
    c, part = item // _PARTS, item % _PARTS
    return c, part, visible[c] * part // _PARTS, visible[c] * (part + 1) // _PARTS


@kernel
def _count_per_tile(counter, count, boxes, order, visible, columns, counts):
    """Count intersections per (camera, part, tile)."""
    item = next_item(counter)
    while item < count:
        c, part, first, last = _part(item, visible)
        for rank in range(first, last):
            prefetch(boxes, c * order.shape[1] + order[c, min(rank + _AHEAD, last - 1)])
            i = c * order.shape[1] + order[c, rank]
            for row in range(boxes[i, 1], boxes[i, 3]):
                for column in range(boxes[i, 0], boxes[i, 2]):
                    counts[c, part, row * columns + column] += 1
        item = next_item(counter)


@kernel
def _deal_out(
    counter, count, boxes, order, visible, columns, cursors, entry_offsets, splats, entries
):  # fmt: skip
    """Write the tiles' lists; ``cursors`` say where each (camera, part, tile) writes next."""
    n = order.shape[1]
    item = next_item(counter)
    while item < count:
        c, part, first, last = _part(item, visible)
        for rank in range(first, last):
            ahead = c * n + order[c, min(rank + _AHEAD, last - 1)]
            prefetch(boxes, ahead)
            prefetch(entry_offsets, ahead)
            i = c * n + order[c, rank]
            entry = entry_offsets[i]
            for row in range(boxes[i, 1], boxes[i, 3]):
                for column in range(boxes[i, 0], boxes[i, 2]):
                    place = cursors[c, part, row * columns + column]
                    cursors[c, part, row * columns + column] = place + 1
                    splats[place], entries[place] = i, entry
                    entry += 1
        item = next_item(counter)
