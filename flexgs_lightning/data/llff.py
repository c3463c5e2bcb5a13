"""``poses_bounds.npy`` with a video or folder of frames for each camera: the layout of Neural 3D Video.

The array (Mildenhall et al. 2019, LLFF) has one row of 17 numbers for each camera, in the order of the
cameras' names: by rows, a 3x5 matrix whose columns are the camera's axes in the world, down, right and
backwards, its centre, and height, width and focal length in pixels; then the nearest and farthest depth. The
principal point is the image's centre.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.colmap_files import LARGEST_SIDE
from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.film import FilmCamera, film_capture
from flexgs_lightning.data.film_points import read_film_points
from flexgs_lightning.data.photos import ReadOptions
from flexgs_lightning.data.sequences import camera_names, find_frames
from flexgs_lightning.errors import InputError
from flexgs_lightning.records import read_array

FILE = "poses_bounds.npy"


def read_llff(root: Path, options: ReadOptions) -> Capture:
    """Read a filmed scene of this layout; the first camera by name is held out, as the benchmark has it.

    Args:
        root: the folder.
        options: frames are reduced by an area filter; ``test_every`` 0 trains on the first camera, too;
            folders of images and masks are not used.

    Raises:
        InputError: the array has another shape or another number of rows than there are cameras, holds what
            is no camera, or a camera has no usable frames.
    """
    path = root / FILE
    rows = _rows(path)
    names = camera_names(root)
    if len(names) != len(rows):
        raise InputError(
            f"{path}: found {len(rows)} poses, expected one for each of the {len(names)} cameras "
            f"({', '.join(names[:3])}, …)."
        )
    cameras = []
    for i, (camera, row) in enumerate(zip(names, rows, strict=True)):
        matrix = row[:15].reshape(3, 5)
        height, width, focal = matrix[:, 4]
        if not (min(height, width) >= 1 and max(height, width) <= LARGEST_SIDE and focal > 0):
            raise InputError(
                f"{path}: camera {camera} has size {width:g}x{height:g}, focal length {focal:g}; "
                f"expected 1 to {LARGEST_SIDE:,} pixels a side, and a positive focal length."
            )
        calibrated = pycolmap.Camera(
            model="PINHOLE",
            width=round(width),
            height=round(height),
            params=[focal, focal, width / 2, height / 2],
        )
        cameras.append(
            FilmCamera.fit(
                camera,
                find_frames(root, camera),
                _world_to_camera(path, camera, matrix[:, :4]),
                calibrated,
                downscale=options.downscale,
                held_out=i == 0 and options.test_every != 0,
            )
        )
    count = min(len(camera.frames) for camera in cameras)
    return film_capture(cameras, root=root, name=options.name_of(root), points=read_film_points(root, count))


def _rows(path: Path) -> Float[np.ndarray, "C 17"]:
    rows = read_array(path)
    if rows.ndim != 2 or rows.shape[1] != 17:
        raise InputError(f"{path}: expected numbers [cameras, 17], found {rows.dtype} {rows.shape}.")
    if not np.isfinite(rows[:, :15]).all():
        raise InputError(f"{path}: some poses are not finite, expected none.")
    return rows.astype(np.float64)


def _world_to_camera(path: Path, camera: str, pose: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "3 4"]:
    """From axes (down, right, backwards) in the world to x right, y down, z forward of the world."""
    down, right, backwards, centre = pose.T
    rotation = np.stack([right, down, -backwards])
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise InputError(f"{path}: the axes of camera {camera} are no rotation.")
    return np.concatenate([rotation, -(rotation @ centre)[:, None]], axis=1)
