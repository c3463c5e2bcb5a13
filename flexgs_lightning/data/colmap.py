"""A COLMAP folder as a Capture: ``images/``, optional ``images_N/`` and ``masks/``, ``sparse/0``."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pycolmap
import torch
from jaxtyping import Int, UInt64
from numpy.typing import ArrayLike
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import TEST_EVERY, Capture, Points, View
from flexgs_lightning.data.colmap_files import find_model, read_model
from flexgs_lightning.data.images import ImageFile, Lens, Pinhole, Size, read_header
from flexgs_lightning.errors import InputError

logger = logging.getLogger(__name__)

MIN_VIEWS = 3
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
_EXACT_WITHOUT_DISTORTION = {"SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"}
"""Models that are a pinhole when all their distortion parameters are 0 (fisheye ones never are)."""
_LEAST_KEPT = 0.5
_TOLERATED_OUTSIDE = 0.001


def read_colmap(
    root: str | Path,
    *,
    downscale: int = 1,
    test_every: int = TEST_EVERY,
    images: str = "images",
    masks: str = "masks",
    name: str | None = None,
) -> Capture:
    """Read a COLMAP folder: cameras and points now, pixels when a view's ``source`` is read.

    Photos of distorting cameras are resampled to a pinhole of the same focal length. The world frame is
    COLMAP's own. Every photo's header is checked here, so that a missing or wrong file is reported
    before any training.

    Args:
        root: folder that holds ``images/`` and ``sparse/0`` (or ``sparse``), binary or text.
        downscale: use photos reduced by this factor: ``images_N/`` if there is such a folder (any image
            extension), otherwise ``images/`` reduced by an area filter.
        test_every: every n-th photo by sorted name is held out, starting with the first; 0 holds out none.
        images: name of the photo folder; ``f"{images}_{downscale}"`` is its reduced copy.
        masks: name of the folder of grey images used as alpha (black is transparent): ``a/b.jpg.png`` or
            ``a/b.png`` belongs to photo ``a/b.jpg``. Without such a file a photo keeps its own alpha.
        name: short name for reports; None takes the folder's.

    Raises:
        InputError: anything of it is missing, unreadable, contradictory or not finite.
    """
    root = Path(root)
    _check_options(downscale, test_every)
    model_folder = find_model(root)
    model = read_model(model_folder)
    registered = sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name)
    if len(registered) < MIN_VIEWS:
        raise InputError(
            f"{model_folder}: found {len(registered)} registered images, expected at least {MIN_VIEWS}."
        )
    twice = [name for name, count in Counter(image.name for image in registered).items() if count > 1]
    if twice:
        raise InputError(f"{model_folder}: {twice[0]} is registered twice, expected each image once.")
    photos = _PhotoFolder.find(root, images, masks, downscale)
    ids = np.array(sorted(model.points3D), dtype=np.uint64)
    views = tuple(
        replace(_read_view(image, model.cameras[image.camera_id], photos), observed=_observed(image, ids))
        for image in registered
    )
    capture = Capture(
        name=name or root.resolve().name,
        views=views,
        points=_read_points(model, ids, model_folder),
        protocol=_protocol(photos, views),
        test_every=test_every,
    )
    _report(capture, photos)
    return capture


def _check_options(downscale: int, test_every: int) -> None:
    if downscale < 1:
        raise InputError(f"downscale: found {downscale}, expected 1 or more.")
    if test_every < 0 or test_every == 1:
        raise InputError(f"test_every: found {test_every}, expected 2 or more, or 0 to hold out none.")


@dataclass(frozen=True)
class _PhotoFolder:
    """Where the photos in use lie, and what must still be done to them.

    Attributes:
        folder: the photos.
        masks: their alpha; may not exist.
        reduction: factor by which the photos are still to be reduced.
    """

    folder: Path
    masks: Path
    reduction: int

    @staticmethod
    def find(root: Path, images: str, masks: str, downscale: int) -> _PhotoFolder:
        """Prefer the reduced copy that the capture ships."""
        shipped = root / f"{images}_{downscale}"
        if downscale > 1 and shipped.is_dir():
            return _PhotoFolder(shipped, root / masks, 1)
        if not (root / images).is_dir():
            raise InputError(f"{root / images}: no such folder, expected the capture's photos.")
        return _PhotoFolder(root / images, root / masks, downscale)

    def photo(self, name: str) -> Path:
        """The file of a photo, whatever its extension."""
        path = self.folder / name
        if path.is_file():
            return path
        others = self._files_by_stem.get(Path(name).with_suffix(""), [])
        if len(others) == 1:
            return others[0]
        found = ", ".join(sorted(other.name for other in others)) or "no such file"
        raise InputError(f"{path}: named in the sparse model; found {found}, expected this photo.")

    def mask(self, name: str) -> Path | None:
        """The mask of a photo, if it has one."""
        candidates = (self.masks / f"{name}.png", (self.masks / name).with_suffix(".png"))
        return next((path for path in candidates if path.is_file()), None)

    @cached_property
    def _files_by_stem(self) -> dict[Path, list[Path]]:
        files: dict[Path, list[Path]] = {}
        for path in self.images_on_disk():
            files.setdefault(path.relative_to(self.folder).with_suffix(""), []).append(path)
        return files

    def images_on_disk(self) -> list[Path]:
        """Every image file of the folder, in the model or not."""
        return [path for path in self.folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES]


def _read_view(image: pycolmap.Image, camera: pycolmap.Camera, photos: _PhotoFolder) -> View:
    path = photos.photo(image.name)
    header = read_header(path)
    _check_shape(path, header.size, camera)
    mask = photos.mask(image.name)
    if mask is not None:
        _check_shape(mask, read_header(mask).size, camera)
    source = ImageFile(path, header.size, header.has_alpha or mask is not None, photos.reduction, mask)
    size = source.reduced_size
    if min(size) < 1:
        found = f"{header.size[0]}x{header.size[1]}"
        raise InputError(f"{path}: found {found} pixels, too few to reduce by {photos.reduction}.")
    # Each axis scales by itself: the sides of images_N are rounded.
    scale_x = header.size[0] / camera.width / photos.reduction
    scale_y = header.size[1] / camera.height / photos.reduction
    if not _is_pinhole(camera):
        lens, camera = _lens(camera, size, scale_x, scale_y, path)
        source, size = replace(source, lens=lens), lens.size
    return View(image.name, _camera(image, _pinhole(camera, scale_x, scale_y), size, path), source)


def _check_shape(path: Path, size: Size, camera: pycolmap.Camera) -> None:
    """A photo must be its camera's image at some scale, with each side rounded by less than a pixel."""
    (width, height), full = size, (camera.width, camera.height)
    low = max((width - 1) / full[0], (height - 1) / full[1])
    high = min((width + 1) / full[0], (height + 1) / full[1])
    if low >= high:
        raise InputError(
            f"{path}: found {width}x{height} pixels, expected the shape of its camera's {full[0]}x{full[1]}."
        )


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


def _camera(image: pycolmap.Image, pinhole: Pinhole, size: Size, path: Path) -> Cameras:
    fx, fy, cx, cy = pinhole
    pose = np.eye(4)
    pose[:3] = image.cam_from_world().matrix()
    viewmat = _float32(pose)
    intrinsics = _float32([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    if not (viewmat.isfinite().all() and intrinsics.isfinite().all() and min(fx, fy) > 0):
        raise InputError(
            f"{path}: its camera in the sparse model has focal length {fx:g}, {fy:g} and pose "
            f"{viewmat[:3].tolist()}; expected finite numbers and a positive focal length."
        )
    return Cameras(viewmat[None], intrinsics[None], *size)


def _float32(values: ArrayLike) -> Tensor:
    """Convert; what overflows becomes infinite, which the caller refuses."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.asarray(values, dtype=np.float64).astype(np.float32))


def _observed(image: pycolmap.Image, ids: UInt64[np.ndarray, " P"]) -> Int[Tensor, " n"]:
    """Rows of the points, in the order of their ids, that an image's keypoints were matched to."""
    seen = np.array([keypoint.point3D_id for keypoint in image.get_observation_points2D()], dtype=np.uint64)
    return torch.from_numpy(np.searchsorted(ids, seen).astype(np.int32))


def _read_points(model: pycolmap.Reconstruction, ids: UInt64[np.ndarray, " P"], folder: Path) -> Points:
    """Points in the order of their ids, so that the order does not hang on COLMAP's hash table."""
    points = [model.points3D[i] for i in ids]
    positions = _float32([point.xyz for point in points]).reshape(-1, 3)
    colors = np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)
    broken = int((~positions.isfinite().all(dim=1)).sum())
    if broken:
        raise InputError(
            f"{folder / 'points3D'}: {broken} of {len(points)} points are not finite, expected none."
        )
    if not points:
        logger.warning("%s: the sparse model has no points; Gaussians must start at random.", folder)
    return Points(positions, torch.from_numpy(colors))


def _protocol(photos: _PhotoFolder, views: tuple[View, ...]) -> str:
    """One line for logs and reports: which pixels these are."""
    if photos.reduction > 1:
        text = f"{photos.folder.name}/ reduced by {photos.reduction} (area filter)"
    else:
        text = f"{photos.folder.name}/ as shipped"
    sources = [view.source for view in views if isinstance(view.source, ImageFile)]
    models = sorted({source.lens.model for source in sources if source.lens is not None})
    if models:
        text += f", undistorted from {' and '.join(models)}"
    if any(source.mask is not None for source in sources):
        text += f", alpha from {photos.masks.name}/"
    return text


def _warn_of_wide_lenses(capture: Capture) -> None:
    """COLMAP's undistorter keeps the focal length, so what it keeps of a very wide photo can be little."""
    sources = {view.source for view in capture.views if isinstance(view.source, ImageFile)}
    undistorted = {(source.lens, source.reduced_size) for source in sources if source.lens is not None}
    for lens, (width, height) in undistorted:
        if lens.size[0] < _LEAST_KEPT * width or lens.size[1] < _LEAST_KEPT * height:
            kept = f"only {lens.size[0]}x{lens.size[1]} of {width}x{height} pixels are kept"
        elif (outside := lens.outside()) > _TOLERATED_OUTSIDE:
            kept = f"{100 * outside:.1f} % of the image lie beyond the photo, whose edge is repeated there"
        else:
            continue
        logger.warning("%s: undistorting %s: %s.", capture.name, lens.model, kept)
        return  # the photos of one capture are alike


def _report(capture: Capture, photos: _PhotoFolder) -> None:
    _warn_of_wide_lenses(capture)
    sizes = Counter(f"{view.camera.width}x{view.camera.height}" for view in capture.views)
    logger.info(
        "%s: %s; %d images (%s), %d to train and %d to test; %d points; %d files not in the model ignored",
        capture.name,
        capture.protocol,
        len(capture.views),
        ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3)),
        len(capture.train_views),
        len(capture.test_views),
        len(capture.points),
        max(0, len(photos.images_on_disk()) - len(capture.views)),
    )
