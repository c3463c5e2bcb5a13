"""Quantities in few bits: what several formats share."""

from __future__ import annotations

import numpy as np


def to_bytes(values: np.ndarray) -> np.ndarray:
    """The nearest of 0 to 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A unit quaternion without its largest component, which the others and a sign convention tell.

    Args:
        quats: [n, 4] of length 1, in any order of components.

    Returns:
        index [n] of the largest component; [n, 3] the others in order, within 1 / sqrt 2 of zero, of the
        quaternion whose largest component is positive.
    """
    largest = np.abs(quats).argmax(axis=1)
    rows = np.arange(len(quats))
    signs = np.where(quats[rows, largest] < 0, -1.0, 1.0).astype(np.float32)
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    return largest, np.take_along_axis(quats, others, axis=1) * signs[:, None]


def from_smallest_three(largest: np.ndarray, three: np.ndarray) -> np.ndarray:
    """[n, 4]: the inverse of ``smallest_three``, of length 1 whatever is given."""
    rest = np.sqrt(np.maximum(0.0, 1.0 - np.square(three).sum(axis=1)))
    quats = np.empty((len(three), 4), np.float32)
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    np.put_along_axis(quats, others, three.astype(np.float32), axis=1)
    quats[np.arange(len(three)), largest] = rest
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def morton_order(means: np.ndarray) -> np.ndarray:
    """[N] indices that sort points along a Z-order curve: 21 bits an axis over the cube around them."""
    means = means.astype(np.float64)
    low = means.min(axis=0)
    extent = max(float((means.max(axis=0) - low).max()), 1e-30)
    cells = ((means - low) * ((2**21 - 1) / extent)).astype(np.uint64)
    codes = (
        _spread(cells[:, 0]) | (_spread(cells[:, 1]) << np.uint64(1)) | (_spread(cells[:, 2]) << np.uint64(2))
    )
    return np.argsort(codes, kind="stable")


def _spread(values: np.ndarray) -> np.ndarray:
    """Two zero bits after each of 21 bits."""
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        values = (values | (values << np.uint64(shift))) & np.uint64(mask)
    return values
