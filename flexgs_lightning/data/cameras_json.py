"""``cameras.json``: a filmed scene with a table of its cameras.

    {"fps": 30, "frames": 60, "near_plane": 0.5, "cameras": [
       {"name": "cam00", "width": 640, "height": 360, "fx": …, "fy": …, "cx": …, "cy": …,
        "distortion": [k1, k2, p1, p2], "w2c": [[…], […], […]], "split": "test"}, …]}

``w2c`` [3, 4] is world-to-camera in the convention of ``cameras`` (OpenCV); ``cx``, ``cy`` are measured from
the image's corner, so that the first pixel's centre is (0.5, 0.5). ``distortion`` may be empty or left out;
otherwise it holds OpenCV's first four or, with k3 to k6, eight coefficients. ``split`` is "train" (the
default) or "test"; ``fps``, ``frames`` and ``near_plane`` (world units in front of each camera in which it
sees nothing) are optional.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.colmap_files import LARGEST_SIDE
from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.film import FilmCamera, film_capture
from flexgs_lightning.data.film_points import read_film_points
from flexgs_lightning.data.photos import ReadOptions
from flexgs_lightning.data.sequences import find_frames
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import is_plain_name
from flexgs_lightning.records import read_json, shown

FILE = "cameras.json"
_MODELS = {0: "PINHOLE", 4: "OPENCV", 8: "FULL_OPENCV"}
"""COLMAP's camera model by the number of distortion coefficients."""
_ORTHONORMAL_WITHIN = 1e-3
"""Largest error of R R^T against the identity: files round to a few digits."""


def read_cameras_json(root: Path, options: ReadOptions) -> Capture:
    """Read a folder with ``cameras.json`` and, for each camera, its frames (``sequences.find_frames``).

    Args:
        root: the folder.
        options: frames are reduced by an area filter; ``test_every`` 0 trains on the test cameras, too,
            otherwise the table's split counts; folders of images and masks are not used.

    Raises:
        InputError: a field is missing or wrong (the camera is named), or a camera has no usable frames.
    """
    path = root / FILE
    table = _table(path)
    cameras = [_camera(root, path, entry, options) for entry in table["cameras"]]
    stated = _optional(path, table, "frames")
    count = min(len(camera.frames) for camera in cameras) if stated is None else int(stated)
    near_plane = _optional(path, table, "near_plane")
    capture = film_capture(
        cameras,
        root=root,
        name=options.name_of(root),
        points=read_film_points(root, count),
        fps=_optional(path, table, "fps"),
        frames=None if stated is None else int(stated),
    )
    return capture if near_plane is None else capture.with_near_plane(near_plane)


def _table(path: Path) -> dict[str, Any]:
    table = read_json(path, dict[str, Any])
    cameras = table.get("cameras")
    if not isinstance(cameras, list) or not cameras or not all(isinstance(entry, dict) for entry in cameras):
        raise InputError(f"{path}: expected a list 'cameras' with at least one entry.")
    return table


def _camera(root: Path, path: Path, entry: dict[str, Any], options: ReadOptions) -> FilmCamera:
    name = entry.get("name")
    if not isinstance(name, str) or not is_plain_name(name):
        raise InputError(f"{path}: expected a 'name' for each camera, found {shown(name)}.")
    where = f"{path}: camera {name}"
    split = entry.get("split", "train")
    if split not in ("train", "test"):
        raise InputError(f"{where}: 'split' must be train or test, found {shown(split)}.")
    return FilmCamera.fit(
        name,
        find_frames(root, name),
        _pose(where, entry.get("w2c")),
        _intrinsics(where, entry),
        downscale=options.downscale,
        held_out=split == "test" and options.test_every != 0,
    )


def _pose(where: str, value: Any) -> Float[np.ndarray, "3 4"]:
    pose = _numbers(where, "w2c", value)
    if pose.shape == (4, 4):
        pose = pose[:3]
    if pose.shape != (3, 4):
        raise InputError(f"{where}: 'w2c' must be a 3x4 matrix, found shape {pose.shape}.")
    rotation = pose[:, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _ORTHONORMAL_WITHIN or np.linalg.det(rotation) < 0:
        raise InputError(f"{where}: the first three columns of 'w2c' must be a rotation.")
    return pose


def _intrinsics(where: str, entry: dict[str, Any]) -> pycolmap.Camera:
    numbers = {key: float(_numbers(where, key, entry.get(key), 0)) for key in ("fx", "fy", "cx", "cy")}
    sides = {key: int(_numbers(where, key, entry.get(key), 0)) for key in ("width", "height")}
    distortion = _numbers(where, "distortion", entry.get("distortion") or [], 1)
    if len(distortion) not in _MODELS:
        raise InputError(f"{where}: 'distortion' must have 0, 4 or 8 numbers, found {len(distortion)}.")
    if min(numbers["fx"], numbers["fy"], *sides.values()) <= 0:
        raise InputError(f"{where}: focal lengths and size must be positive.")
    params = [*numbers.values(), *distortion.tolist()]
    if max(sides.values()) > LARGEST_SIDE:
        found = f"{sides['width']:g}x{sides['height']:g}"
        raise InputError(f"{where}: found {found} pixels, expected at most {LARGEST_SIDE:,} a side.")
    return pycolmap.Camera(model=_MODELS[len(distortion)], params=params, **sides)


def _numbers(where: str, key: str, value: Any, dimensions: int = 2) -> np.ndarray:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if value is None or numbers.ndim != dimensions or not np.isfinite(numbers).all():
        raise InputError(f"{where}: '{key}' is missing or not made of finite numbers, found {shown(value)}.")
    return numbers


def _optional(path: Path, table: dict[str, Any], key: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{path}: '{key}' must be a positive number, found {shown(value)}.")
    return float(value)
