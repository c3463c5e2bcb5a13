"""antimatter15's ``.splat``: 32 bytes a Gaussian, no header, no view-dependent colour.

Position and linear scale as six float32, colour and opacity as four bytes, rotation (w, x, y, z) as four
bytes (component times 128, plus 128). A browser may draw as much as has arrived; Gaussians stay in their
order, so that the rank order of an elastic model serves it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flexgs_lightning.deploy.formats.bits import to_bytes
from flexgs_lightning.deploy.formats.splat_file import (
    SplatFile,
    assemble,
    blocks,
    require_drawable,
)
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import read_bytes
from flexgs_lightning.splats import SH_C0

_RECORD = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def write_splat(file: SplatFile, path: Path) -> None:
    """Write positions and scales exactly, colours and opacities to 1/510, rotations to 1/256 a component.

    Spherical harmonics beyond degree 0 are lost, colours are clamped to [0, 1], and the format cannot say
    that a scene is antialiased.

    Raises:
        InputError: see ``require_drawable``; the file cannot be written.
    """
    splats = file.splats.detach()
    require_drawable(path, splats)
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        for _, values in blocks(splats):
            records = np.empty(len(values), _RECORD)
            records["means"], records["scales"] = values.means, values.scales
            records["rgba"][:, :3] = to_bytes(255 * (0.5 + SH_C0 * values.sh[:, 0]))
            records["rgba"][:, 3] = to_bytes(255 * values.opacities)
            records["quats"] = to_bytes(128 * _largest_negative(values.quats) + 128)
            out.write(records.tobytes())


def splat_bytes(count: int, sh_degree: int = 0, antialiased: bool = False) -> int:
    """Exact size of the file."""
    return count * _RECORD.itemsize


def read_splat(path: Path) -> SplatFile:
    """Read a file of such records.

    Raises:
        InputError: empty, or no whole number of records; values that are NaN, infinite or negative.
    """
    data = read_bytes(path)
    if not data or len(data) % _RECORD.itemsize:
        raise InputError(
            f"{path}: {len(data):,} bytes; expected a multiple of {_RECORD.itemsize}, one record a Gaussian."
        )
    records = np.frombuffer(data, _RECORD)
    rgba = records["rgba"].astype(np.float32) / 255
    splats = assemble(
        path,
        means=records["means"],
        quats=(records["quats"].astype(np.float32) - 128) / 128,
        scales=records["scales"],
        opacities=rgba[:, 3],
        sh=(rgba[:, None, :3] - 0.5) / SH_C0,
    )
    return SplatFile(splats)


def _largest_negative(quats: np.ndarray) -> np.ndarray:
    """The same rotations, their largest component negative: a byte holds -1 exactly, but not 1."""
    largest = np.take_along_axis(quats, np.abs(quats).argmax(axis=1)[:, None], axis=1)
    return np.where(largest > 0, -quats, quats)
