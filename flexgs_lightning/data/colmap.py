"""A COLMAP folder as a Capture: ``images/``, optional ``images_N/`` and ``masks/``, ``sparse/0``."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt64
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.calibration import fit_camera, float32
from flexgs_lightning.data.capture import TEST_EVERY, Capture, Points, View
from flexgs_lightning.data.colmap_files import find_model, read_model, registered_images
from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.photos import (
    IMAGE_SUFFIXES,
    MIN_VIEWS,
    ReadOptions,
    log_capture,
    photo_view,
    processing,
)
from flexgs_lightning.errors import InputError

logger = logging.getLogger(__name__)


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
    options = ReadOptions(downscale, test_every, images, masks, name)
    model_folder = find_model(root)
    model = read_model(model_folder)
    registered = registered_images(model)
    if len(registered) < MIN_VIEWS:
        raise InputError(
            f"{model_folder}: found {len(registered)} registered images, expected at least {MIN_VIEWS}."
        )
    twice = [name for name, count in Counter(image.name for image in registered).items() if count > 1]
    if twice:
        raise InputError(f"{model_folder}: {twice[0]} is registered twice, expected each image once.")
    photos = _PhotoFolder.find(root, options)
    ids = np.array(sorted(model.points3D), dtype=np.uint64)
    views = tuple(
        _read_view(image, model.cameras[image.camera_id], photos, _observed(image, ids))
        for image in registered
    )
    capture = Capture(
        name=options.name_of(root),
        views=views,
        points=read_points(model, model_folder),
        protocol=_protocol(photos, views),
        test_every=test_every,
    )
    log_capture(capture, max(0, len(photos.images_on_disk()) - len(views)))
    return capture


def read_colmap_cameras(root: Path, downscale: int = 1) -> list[Cameras]:
    """The cameras of a COLMAP folder alone (C = 1 each), by the photos' names; photos need not be there.

    Raises:
        InputError: see ``read_colmap``.
    """
    folder = find_model(root)
    model = read_model(folder)
    registered = registered_images(model)
    if len(registered) < MIN_VIEWS:
        raise InputError(f"{folder}: found {len(registered)} cameras, expected at least {MIN_VIEWS}.")
    found = []
    for image in registered:
        camera = model.cameras[image.camera_id]
        size, pose = (camera.width, camera.height), image.cam_from_world().matrix()
        found.append(fit_camera(pose, camera, size, downscale, folder / image.name).camera)
    return found


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
    def find(root: Path, options: ReadOptions) -> _PhotoFolder:
        """Prefer the reduced copy that the capture ships."""
        images, masks = root / options.images, root / options.masks
        shipped = root / f"{options.images}_{options.downscale}"
        if options.downscale > 1 and shipped.is_dir():
            return _PhotoFolder(shipped, masks, 1)
        if not images.is_dir():
            raise InputError(f"{images}: no such folder, expected the capture's photos.")
        return _PhotoFolder(images, masks, options.downscale)

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
        return [path for path in self.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]


def _read_view(
    image: pycolmap.Image, camera: pycolmap.Camera, photos: _PhotoFolder, observed: Int[Tensor, " n"]
) -> View:
    view = photo_view(
        image.name,
        photos.photo(image.name),
        camera,
        image.cam_from_world().matrix(),
        reduction=photos.reduction,
        mask=photos.mask(image.name),
    )
    return replace(view, observed=observed)


def _observed(image: pycolmap.Image, ids: UInt64[np.ndarray, " P"]) -> Int[Tensor, " n"]:
    """Rows of the points, in the order of their ids, that an image's keypoints were matched to."""
    seen = np.array([keypoint.point3D_id for keypoint in image.get_observation_points2D()], dtype=np.uint64)
    return torch.from_numpy(np.searchsorted(ids, seen).astype(np.int32))


def read_points(model: pycolmap.Reconstruction, folder: Path) -> Points:
    """Points in the order of their ids, so that the order does not hang on COLMAP's hash table.

    Raises:
        InputError: some are not finite.
    """
    points = [model.points3D[i] for i in sorted(model.points3D)]
    positions = float32([point.xyz for point in points]).reshape(-1, 3)
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
    reduced = f"reduced by {photos.reduction} (area filter)" if photos.reduction > 1 else "as shipped"
    return f"{photos.folder.name}/ {reduced}" + processing(views, f"{photos.masks.name}/")
