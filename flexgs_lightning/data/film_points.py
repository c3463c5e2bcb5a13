"""Points of a filmed scene: of all frames together, or of each frame by itself.

Read are, of what lies in the capture's folder, the first of
  points/NNNN.npy               of frame NNNN: [P, 3] positions, or [P, 6] with colours from 0 to 255
  colmap_N/sparse/0             a COLMAP model of frame N, as scripts for Spacetime Gaussians leave them
  points.npy, points_rgb.npy    of no frame in particular: [P, 3] positions and [P, 3] colours (optional)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flexgs_lightning.data.calibration import float32
from flexgs_lightning.data.capture import Points
from flexgs_lightning.data.colmap import read_points
from flexgs_lightning.data.colmap_files import find_model, read_model
from flexgs_lightning.data.film import no_points
from flexgs_lightning.errors import InputError
from flexgs_lightning.records import read_array

_GREY = 128
"""Colour of points that have none."""


def read_film_points(root: Path, frames: int) -> Points:
    """See this module's description.

    Args:
        root: the capture's folder.
        frames: number of its frames; points of later ones are left out.

    Raises:
        InputError: a file is no array of that shape, or holds what is not finite.
    """
    by_frame = {_number(path): path for path in (root / "points").glob("*.npy")}
    models = {_number(path): path for path in root.glob("colmap_*") if path.is_dir()}
    if by_frame:
        return _joined({n: _array_points(path, None) for n, path in by_frame.items() if n < frames}, frames)
    if models:
        folders = {n: find_model(path) for n, path in models.items() if n < frames}
        return _joined({n: read_points(read_model(path), path) for n, path in folders.items()}, frames)
    if (root / "points.npy").is_file():
        return _array_points(root / "points.npy", root / "points_rgb.npy")
    return no_points()


def _joined(points: dict[int, Points], frames: int) -> Points:
    """Points of several frames, with their moments."""
    if not points:
        return no_points()
    ordered = sorted(points.items())
    return Points(
        torch.cat([some.positions for _, some in ordered]),
        torch.cat([some.colors for _, some in ordered]),
        torch.cat([torch.full((len(some),), number / frames) for number, some in ordered]),
    )


def _number(path: Path) -> int:
    found = re.search(r"(\d+)$", path.stem)
    if found is None:
        raise InputError(f"{path}: expected a name that ends with the frame's number.")
    return int(found[1])


def _array_points(path: Path, colors: Path | None) -> Points:
    values = _array(path, (3, 6) if colors is None else (3,))
    positions = float32(values[:, :3])
    if not positions.isfinite().all():
        raise InputError(f"{path}: some positions are not finite, expected none.")
    if values.shape[1] == 6:
        shades = values[:, 3:]
    elif colors is not None and colors.is_file():
        shades = _array(colors, (3,))
        if len(shades) != len(values):
            raise InputError(f"{colors}: found {len(shades)} colours, expected {len(values)} as {path.name}.")
    else:
        shades = np.full((len(values), 3), _GREY)
    return Points(positions, torch.from_numpy(np.clip(np.round(shades), 0, 255).astype(np.uint8)))


def _array(path: Path, columns: Sequence[int]) -> np.ndarray:
    values = read_array(path)
    if values.ndim != 2 or values.shape[1] not in columns:
        widths = " or ".join(map(str, columns))
        raise InputError(f"{path}: expected numbers [P, {widths}], found {values.dtype} {values.shape}.")
    return values
