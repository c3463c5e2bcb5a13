"""From a calibrated camera and the size of a stored image to the pinhole camera that training sees."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.images import Lens, Pinhole, Size
from flexgs_lightning.errors import InputError

LARGEST_NUMBER = 1e15
"""Of a pose or camera: products of such are finite in float32."""
_ORTHONORMAL_WITHIN = 1e-3
_EXACT_WITHOUT_DISTORTION = {"SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"}
"""Models that are a pinhole when all their distortion parameters are 0 (fisheye ones never are)."""


class FittedCamera(NamedTuple):
    """A camera of one stored size of its images.

    Attributes:
        camera: a pinhole (C = 1) of the reduced and undistorted image.
        lens: how to undistort the reduced image; None for a pinhole camera.
    """

    camera: Cameras
    lens: Lens | None


def fit_camera(
    pose: Float[np.ndarray, "3 4"], calibrated: pycolmap.Camera, stored: Size, reduction: int, path: Path
) -> FittedCamera:
    """The camera of images stored at ``stored`` pixels that are then reduced by whole squares.

    Args:
        pose: world-to-camera, in the convention of ``cameras``.
        calibrated: intrinsics, in the pixels of the size that it states.
        stored: width and height on disk.
        reduction: see ``images.ImageFile``.
        path: of the image or video, for messages.

    Raises:
        InputError: the shapes do not fit, nothing is left, or the numbers are not those of a camera.
    """
    check_shape(path, stored, calibrated)
    size = stored[0] // reduction, stored[1] // reduction
    if min(size) < 1:
        raise InputError(f"{path}: found {stored[0]}x{stored[1]} pixels, too few to reduce by {reduction}.")
    # Each axis scales by itself: the sides of images_N are rounded.
    scale_x = stored[0] / calibrated.width / reduction
    scale_y = stored[1] / calibrated.height / reduction
    if _is_pinhole(calibrated):
        return FittedCamera(_camera(pose, _pinhole(calibrated, scale_x, scale_y), size, path), None)
    lens, undistorted = _lens(calibrated, size, scale_x, scale_y, path)
    return FittedCamera(_camera(pose, _pinhole(undistorted, scale_x, scale_y), lens.size, path), lens)


def check_shape(path: Path, size: Size, camera: pycolmap.Camera) -> None:
    """A photo must be its camera's image at some scale, with each side rounded by less than a pixel.

    Raises:
        InputError: it is not.
    """
    (width, height), full = size, (camera.width, camera.height)
    low = max((width - 1) / full[0], (height - 1) / full[1])
    high = min((width + 1) / full[0], (height + 1) / full[1])
    if low >= high:
        raise InputError(
            f"{path}: found {width}x{height} pixels, expected the shape of its camera's {full[0]}x{full[1]}."
        )


def float32(values: ArrayLike) -> Tensor:
    """Convert; what overflows becomes infinite, which the caller refuses."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.asarray(values, dtype=np.float64).astype(np.float32))


def _is_pinhole(camera: pycolmap.Camera) -> bool:
    if camera.model_name in ("PINHOLE", "SIMPLE_PINHOLE"):
        return True
    if camera.model_name not in _EXACT_WITHOUT_DISTORTION:
        return False
    return not np.any(np.asarray(camera.params)[camera.extra_params_idxs()])


def _pinhole(camera: pycolmap.Camera, scale_x: float, scale_y: float) -> Pinhole:
    """fx, fy, cx, cy in pixels of an image scaled from the calibrated one."""
    return (
        camera.focal_length_x * scale_x,
        camera.focal_length_y * scale_y,
        camera.principal_point_x * scale_x,
        camera.principal_point_y * scale_y,
    )


def _lens(
    camera: pycolmap.Camera, size: Size, scale_x: float, scale_y: float, path: Path
) -> tuple[Lens, pycolmap.Camera]:
    """How to undistort photos of ``size``, and the pinhole camera that COLMAP's undistorter chooses."""
    if camera.model_name == "EQUIRECTANGULAR":
        raise InputError(
            f"{path}: its camera model is EQUIRECTANGULAR, which no pinhole can show; expected a "
            "perspective or fisheye model (cut panoramas into perspective images first)."
        )
    undistorted = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    lens = Lens(
        model=camera.model_name,
        parameters=tuple(float(value) for value in camera.params),
        extent=(size[0] / scale_x, size[1] / scale_y),
        pinhole=_pinhole(undistorted, scale_x, scale_y),
        size=(max(1, round(undistorted.width * scale_x)), max(1, round(undistorted.height * scale_y))),
    )
    return lens, undistorted


def _camera(pose: Float[np.ndarray, "3 4"], pinhole: Pinhole, size: Size, path: Path) -> Cameras:
    fx, fy, cx, cy = pinhole
    viewmat = float32(np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]]))
    intrinsics = float32([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    rotation = viewmat[:3, :3].double()
    rigid = (rotation @ rotation.T - torch.eye(3)).abs().max() < _ORTHONORMAL_WITHIN
    usable = rigid and (viewmat.abs() < LARGEST_NUMBER).all() and (intrinsics.abs() < LARGEST_NUMBER).all()
    if not (usable and min(fx, fy) > 0):
        raise InputError(
            f"{path}: its camera has focal length {fx:g}, {fy:g}, centre {cx:g}, {cy:g} and pose "
            f"{viewmat[:3].tolist()}; expected finite numbers, a positive focal length and a rotation."
        )
    return Cameras(viewmat[None], intrinsics[None], *size)
