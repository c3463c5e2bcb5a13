"""The pixels of one tile: the state that blending keeps of them, and which of them a Gaussian covers.

Loops over pixels must vectorise, or they are five times slower; what they need: all state in one float32
array with planes at constant offsets (so that no aliasing has to be excluded), one flat loop over the pairs
of rows that a Gaussian covers (16 pixels, the widest register), unsigned indices (signed ones wrap around),
float32 constants (literals are float64), and selections instead of branches. A pixel is finished from the
Gaussian whose place in the tile's list is ``stop`` on; outside the image that is the first.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import numpy as np

from flexgs_lightning.jit import inlined, prefetch
from flexgs_lightning.rendering.cpu.tiles import TILE_HEIGHT, TILE_WIDTH

CHANNELS = 3
"""Blended with all else in one loop over the pixels; further channels in loops of their own (``rest``)."""
FEATURES = 5 + CHANNELS
PIXELS = TILE_WIDTH * TILE_HEIGHT

AHEAD = 8
"""Gaussians, and rows of the images, that are prefetched before their turn.

A tile's Gaussians lie anywhere in memory: waiting for them took 40 % of the time of the way back.
"""

# Planes of the state. T is the transmittance.
X, Y, TRANSMITTANCE, STOP, RED, GREEN, BLUE, DEPTH, ALPHA, BEHIND, SCRATCH, _REST = (
    np.uint64(plane * PIXELS) for plane in range(12)
)
_PLANES = 10
"""With further channels, one for scratch and one for each of them come behind these."""

ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
ALPHA_MIN, ALPHA_MAX = np.float32(1.0 / 255.0), np.float32(0.999)
NEVER = np.float32(3e38)
_MARGIN = np.float32(0.01)
_NONE, _LAST_ROW = np.float32(-1.0), np.float32(TILE_HEIGHT - 1)
_BLOCK = 2 * TILE_WIDTH


@inlined
def covered(my, extent):
    """Range of the tile's pixels, in whole blocks of two rows, that a Gaussian can reach.

    Truncation is as good as rounding on values moved above zero, and needs no call to the C library.
    """
    above = my - extent - HALF - _MARGIN
    below = my + extent - HALF + _MARGIN
    first = np.int64(min(max(above, _NONE), _LAST_ROW) + ONE)
    last = np.int64(min(max(below, _NONE), _LAST_ROW) + ONE)
    first, last = first // 2 * _BLOCK, (last + 1) // 2 * _BLOCK
    return np.uint64(first), np.uint64(last)


@inlined
def fallen(value, falloff):
    """What a viewer with another falloff draws where the Gaussian has ``value``."""
    return (value - falloff.floor) * falloff.gain if value >= falloff.least else ZERO


@inlined
def prefetch_splat(means2d, features, extents, i):
    """Have what blending reads of a Gaussian brought near; see ``AHEAD``."""
    prefetch(means2d, i)
    prefetch(features, i)
    prefetch(extents, i)


@inlined
def new_state(rest):
    """State of one tile's pixels; their centres, relative to the tile, stay."""
    planes = _PLANES
    if rest is not None:
        planes += 1 + rest
    state = np.zeros(planes * PIXELS, np.float32)
    for i in range(PIXELS):
        state[X + np.uint64(i)] = np.float32(i % TILE_WIDTH) + HALF
        state[Y + np.uint64(i)] = np.float32(i // TILE_WIDTH) + HALF
    return state


@inlined
def reset(state, columns, rows):
    """Nothing drawn yet; pixels outside the image are finished before the first Gaussian."""
    state[TRANSMITTANCE:STOP] = ONE
    state[STOP:RED] = NEVER
    state[RED:] = ZERO
    if columns < TILE_WIDTH or rows < TILE_HEIGHT:
        for i in range(PIXELS):
            if i % TILE_WIDTH >= columns or i // TILE_WIDTH >= rows:
                state[STOP + np.uint64(i)] = ZERO


@inlined
def further_plane(r):
    """Where the plane of the r-th further channel begins."""
    return _REST + np.uint64(r) * np.uint64(PIXELS)
