"""Scratch memory in which a few Gaussians lie side by side, so that one instruction serves eight of them.

Arrays of Gaussians hold a row for each; loops over rows do not vectorise. Kernels therefore copy BATCH rows
to planes, one for each number, compute in a loop over the planes, and copy back. The planes are one float64
array with constant offsets and unsigned indices; what else such loops need stands in ``tile_pixels.py``.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import numpy as np

from flexgs_lightning.jit import inlined

BATCH = 32
"""Gaussians side by side; their planes fit the fastest cache."""
_LANES = 8


@inlined
def new_planes(count):
    """Planes, filled with zeros."""
    return np.zeros(count * BATCH, np.float64)


@inlined
def whole_lanes(count):
    """Range over ``count`` Gaussians, and as many more as fill the last instruction: nobody reads those."""
    return range(np.uint64((count + _LANES - 1) // _LANES * _LANES))


@inlined
def get(planes, plane, j):
    """A number of Gaussian j (unsigned)."""
    return planes[np.uint64(plane * BATCH) + j]


@inlined
def put(planes, plane, j, value):
    """Set a number of Gaussian j (unsigned)."""
    planes[np.uint64(plane * BATCH) + j] = value


@inlined
def get3(planes, plane, j):
    """Three numbers from adjoining planes."""
    return get(planes, plane, j), get(planes, plane + 1, j), get(planes, plane + 2, j)


@inlined
def put3(planes, plane, j, values):
    """Set three numbers in adjoining planes."""
    put(planes, plane, j, values[0])
    put(planes, plane + 1, j, values[1])
    put(planes, plane + 2, j, values[2])


@inlined
def get4(planes, plane, j):
    """Four numbers from adjoining planes."""
    return (*get3(planes, plane, j), get(planes, plane + 3, j))


@inlined
def put4(planes, plane, j, values):
    """Set four numbers in adjoining planes."""
    put3(planes, plane, j, values)
    put(planes, plane + 3, j, values[3])
