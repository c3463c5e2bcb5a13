"""Camera paths as JSON files.

This package's format::

    {
      "width": 1280, "height": 720,
      "frames": [
        {"viewmat": [[...4 numbers], x 4], "K": [[...3 numbers], x 3]},
        {"camera_to_world": [[...4 numbers], x 4], "fov": 50.0}
      ]
    }

Beside them a frame may have ``time``: the moment of a scene that moves, from 0 to 1; either all frames have
one or none (nerfstudio: ``render_time``).

Each frame has a pose, ``viewmat`` (world-to-camera) or ``camera_to_world``, in the convention of
``cameras`` (OpenCV: x right, y down, z forward) and in the capture's own world frame; and ``K`` in pixels
or ``fov``, the vertical field of view in degrees of a camera that looks through the image's centre.

nerfstudio's ``camera_path.json`` is read as well: ``render_width``, ``render_height`` and under
``camera_path`` frames with ``camera_to_world`` (OpenGL: y up, z backward; 16 numbers by rows) and ``fov``.
Its poses are taken as they stand: nerfstudio re-centres and scales captures by default, so a path fits only
if it was made in the capture's own frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import read_json, shown

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
LARGEST_SIDE = 1 << 14
"""Pixels; a frame of more a side is taken for a mistake, before memory is asked for."""
LARGEST_NUMBER = 1e15
"""Of a matrix: products of such are finite in float32."""
ORTHONORMAL_WITHIN = 1e-3
"""Largest error of R R^T against the identity: files round to a few digits."""


def write_path(cameras: Cameras, path: str | Path, times: Sequence[float] | None = None) -> None:
    """Write ``cameras`` as a camera path; ``read_path`` gives the same float32 numbers back.

    Args:
        cameras: of the frames.
        path: the file.
        times: of each frame, in [0, 1], for a scene that moves.

    Raises:
        InputError: the file cannot be written.
    """
    viewmats, Ks = cameras.viewmats.tolist(), cameras.Ks.tolist()
    frames = [{"viewmat": viewmat, "K": K} for viewmat, K in zip(viewmats, Ks, strict=True)]
    for frame, time in zip(frames, times or (), strict=times is not None):
        frame["time"] = time
    content = {"width": cameras.width, "height": cameras.height, "frames": frames}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_path(path: str | Path) -> Cameras:
    """Read the cameras of a path; see ``read_timed_path``."""
    return read_timed_path(path)[0]


def read_timed_path(path: str | Path) -> tuple[Cameras, list[float] | None]:
    """Read a camera path in either format of this module's description, on the CPU.

    Returns:
        cameras, and the time of each frame, or None if frames have none.

    Raises:
        InputError: no such file, not JSON, or a field is missing or wrong (the frame and field are named).
    """
    path = Path(path)
    content = read_json(path, dict[str, Any])
    is_nerfstudio = "camera_path" in content
    prefix = "render_" if is_nerfstudio else ""
    if is_nerfstudio and content.get("camera_type", "perspective") != "perspective":
        raise InputError(f"{path}: camera_type is {shown(content['camera_type'])}; expected 'perspective'.")
    width, height = (_size(path, content, prefix + name) for name in ("width", "height"))
    frames = content.get("camera_path" if is_nerfstudio else "frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path}: expected a list 'frames' with at least one frame.")
    viewmats, Ks = np.empty((len(frames), 4, 4)), np.empty((len(frames), 3, 3))
    for i, frame in enumerate(frames):
        where = f"{path}: frame {i}"
        if not isinstance(frame, dict):
            raise InputError(f"{where}: expected a JSON object, found {shown(frame)}.")
        viewmats[i] = _viewmat(where, frame, is_nerfstudio)
        Ks[i] = _intrinsics(where, frame, width, height)
    cameras = Cameras(torch.from_numpy(viewmats).float(), torch.from_numpy(Ks).float(), width, height)
    return cameras, _times(path, frames, "render_time" if is_nerfstudio else "time")


def _times(path: Path, frames: list[dict[str, Any]], name: str) -> list[float] | None:
    if all(frame.get(name) is None for frame in frames):
        return None
    times = []
    for i, frame in enumerate(frames):
        time = frame.get(name)
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time <= 1:
            raise InputError(f"{path}: frame {i}: '{name}' must be a number from 0 to 1, found {time!r}.")
        times.append(float(time))
    return times


def _size(path: Path, content: dict[str, Any], name: str) -> int:
    value = content.get(name)
    if isinstance(value, float) and value.is_integer():  # some tools write 1920.0
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIDE:
        raise InputError(
            f"{path}: '{name}' must be a positive whole number of pixels up to {LARGEST_SIDE:,}, "
            f"found {shown(value)}."
        )
    return value


def _viewmat(where: str, frame: dict[str, Any], is_opengl: bool) -> Float[np.ndarray, "4 4"]:
    """World-to-camera matrix of a frame."""
    name = "viewmat" if "viewmat" in frame and not is_opengl else "camera_to_world"
    matrix = _matrix(where, frame, name, 4)
    rotation = matrix[:3, :3]
    is_rotation = np.abs(rotation @ rotation.T - np.eye(3)).max() < ORTHONORMAL_WITHIN
    if not is_rotation or np.linalg.det(rotation) < 0 or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise InputError(f"{where}: '{name}' must be a rotation and a translation above a row 0 0 0 1.")
    if name == "viewmat":
        return matrix
    return np.linalg.inv(matrix @ _OPENGL_TO_OPENCV if is_opengl else matrix)


def _intrinsics(where: str, frame: dict[str, Any], width: int, height: int) -> Float[np.ndarray, "3 3"]:
    if "K" in frame:
        K = _matrix(where, frame, "K", 3)
        if not (K[0, 0] > 0 and K[1, 1] > 0) or not np.allclose(K[2], [0, 0, 1]):
            raise InputError(f"{where}: 'K' must have positive focal lengths above a row 0 0 1.")
        return K
    fov = frame.get("fov")
    if not isinstance(fov, int | float) or not 0 < fov < 180:
        raise InputError(
            f"{where}: expected 'K' or a 'fov' between 0 and 180 degrees, found fov {shown(fov)}."
        )
    focal = 0.5 * height / math.tan(math.radians(fov) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def _matrix(where: str, frame: dict[str, Any], name: str, size: int) -> Float[np.ndarray, "size size"]:
    """A square matrix given as rows or as one flat list of rows."""
    if name not in frame:
        raise InputError(f"{where}: '{name}' is missing (found: {', '.join(frame) or 'nothing'}).")
    try:
        matrix = np.asarray(frame[name], dtype=np.float64)
    except (TypeError, ValueError, RecursionError):
        matrix = np.empty(0)
    if matrix.shape not in ((size, size), (size * size,)) or not (np.abs(matrix) < LARGEST_NUMBER).all():
        raise InputError(f"{where}: '{name}' must be a {size}x{size} matrix of finite numbers.")
    return matrix.reshape(size, size)
