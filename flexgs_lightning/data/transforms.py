"""``transforms.json`` captures: nerfstudio, instant-ngp, and Blender's synthetic scenes.

One JSON file lists the photos with a camera-to-world matrix each (OpenGL's axes: x right, y up, z towards
the viewer) and intrinsics, for all or for single photos. Blender's scenes (NeRF, D-NeRF) have a file for each
split. Pixel coordinates are as everywhere here: COLMAP's, whose numbers these producers hand on.

Sources: nerfstudio's "Data conventions", instant-ngp's "nerf_dataset_tips", NeRF's and D-NeRF's published
scenes. What only scales or frames a network's volume (``aabb_scale``, ``scale``, ``offset``) is ignored: the
world stays the file's own.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.calibration import fit_camera
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.images import Size, read_header
from flexgs_lightning.data.photos import (
    IMAGE_SUFFIXES,
    MIN_VIEWS,
    ReadOptions,
    log_capture,
    photo_view,
    processing,
)
from flexgs_lightning.data.transforms_files import (
    CameraFields,
    Frame,
    TransformsFile,
    has_transforms,
    read_file,
    read_points,
    read_transforms,
    relative_path,
)
from flexgs_lightning.errors import InputError

__all__ = ["has_transforms", "read_transforms_cameras", "read_transforms_capture"]

_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_LARGEST_SIDE = 1_000_000
"""Pixels; no photo is wider."""
_LARGEST_SKEW = 1e-2
"""Of a matrix that still passes for a rotation, in each product of its columns."""
_LATEST = float(np.nextafter(np.float32(1), np.float32(0)))
"""D-NeRF counts the last moment as 1; here time is below it."""


def read_transforms_capture(root: Path, options: ReadOptions) -> Capture:
    """Read a folder with ``transforms.json``, or with ``transforms_train.json`` and its like.

    Its own test photos are held out: those of ``transforms_test.json`` (without one, ``transforms_val.json``)
    or those that ``test_filenames`` (``val_filenames``) lists. Photos that are in neither split stay out.
    Points come from the PLY that ``ply_file_path`` names, else from ``points3d.ply``, or from nerfstudio's
    ``colmap/sparse/0``, if there is any.

    Args:
        root: folder of the file or files, to which its paths are relative.
        options: reduced photos are ``images_N/a.jpg`` for ``images/a.jpg`` if there is such a folder,
            otherwise made by an area filter; ``test_every`` counts if the files name no test photos, but 0
            holds out none of either kind; masks are for photos without a ``mask_path``; a folder of images is
            not used, because the files name each photo.

    Raises:
        InputError: anything of it is missing, unreadable, contradictory or not finite.
    """
    files = read_transforms(root)
    photos = _Photos(root, options.masks, options.downscale)
    splits = {split: [photos.view(file, frame) for frame in file.frames] for split, file in files.items()}
    views = tuple(sorted(itertools.chain(*splits.values()), key=lambda view: view.name))
    held_out = _held_out(splits, files, root)
    views = tuple(view for view in views if held_out.uses(view.name))
    _check_views(views, root)
    capture = Capture(
        name=options.name_of(root),
        views=views,
        points=read_points(root, next(iter(files.values()))),
        protocol=_protocol(photos, files, views),
        test_every=options.test_every,
        test_names=held_out.test,
    )
    log_capture(capture, 0)
    return capture


def read_transforms_cameras(path: Path, downscale: int = 1) -> list[Cameras]:
    """The cameras alone (C = 1 each), of a folder or one file; photos need not be there if sizes are stated.

    Raises:
        InputError: see ``read_transforms_capture``.
    """
    root, files = (
        (path, read_transforms(path).values()) if path.is_dir() else (path.parent, [read_file(path)])
    )
    found = []
    for file in files:
        for frame in file.frames:
            photo = root / frame.file_path
            camera = _calibration(file, frame, _existing(photo) or photo)
            size, pose = (camera.width, camera.height), _cam_from_world(file, frame)
            found.append(fit_camera(pose[:3], camera, size, downscale, photo).camera)
    if len(found) < MIN_VIEWS:
        raise InputError(f"{path}: found {len(found)} cameras, expected at least {MIN_VIEWS}.")
    return found


@dataclass(frozen=True)
class _HeldOut:
    """The split that a capture brings: names of its photos, or None where it does not say."""

    train: frozenset[str] | None
    test: frozenset[str] | None

    def uses(self, name: str) -> bool:
        """Whether a photo belongs to either split."""
        return self.train is None or name in self.train or (self.test is not None and name in self.test)


def _held_out(splits: dict[str, list[View]], files: dict[str, TransformsFile], root: Path) -> _HeldOut:
    if len(splits) > 1:
        return _HeldOut(None, frozenset(view.name for view in splits["test"]))
    ((file, views),) = ((files[split], views) for split, views in splits.items())
    known = frozenset(view.name for view in views)
    stems = {str(PurePosixPath(name).with_suffix("")): name for name in known}

    def named(listed: Sequence[str] | None, option: str) -> frozenset[str] | None:
        if listed is None:
            return None
        paths = [relative_path(root, path) or path for path in listed]
        missing = next((path for path in paths if path not in known and path not in stems), None)
        if missing is not None:
            raise InputError(f"{file.path}: {option} lists {missing}, expected one of its frames.")
        return frozenset(path if path in known else stems[path] for path in paths)

    test = named(file.test_filenames, "test_filenames") or named(file.val_filenames, "val_filenames")
    return _HeldOut(named(file.train_filenames, "train_filenames"), test)


def _check_views(views: Sequence[View], root: Path) -> None:
    if len(views) < MIN_VIEWS:
        raise InputError(f"{root}: found {len(views)} photos, expected at least {MIN_VIEWS}.")
    twice = [name for name, count in Counter(view.name for view in views).items() if count > 1]
    if twice:
        raise InputError(f"{root}: {twice[0]} is listed twice, expected each photo once.")
    timed = sum(view.time is not None for view in views)
    if timed not in (0, len(views)):
        raise InputError(f"{root}: {timed} of {len(views)} frames state a time, expected all or none.")


@dataclass(frozen=True)
class _Photos:
    """Finds the photos in use and makes views of them.

    Attributes:
        root: folder that paths are relative to.
        masks: name of the folder of masks.
        downscale: factor by which photos are to be smaller than the calibration's.
    """

    root: Path
    masks: str
    downscale: int

    def view(self, file: TransformsFile, frame: Frame) -> View:
        """The view of one frame."""
        original, path = self._paths(file, frame.file_path)
        name = original.relative_to(self.root).as_posix()
        camera = _calibration(file, frame, original if original.is_file() else path)
        reduction = self.downscale if path == original else 1
        pose = _cam_from_world(file, frame)
        mask = self._mask(frame, name)
        view = photo_view(name, path, camera, pose[:3], reduction=reduction, mask=mask)
        return replace(view, time=_time(file, frame))

    def _paths(self, file: TransformsFile, listed: str) -> tuple[Path, Path]:
        """The photo at its full size, which need not exist where a reduced copy does; and the one in use."""
        listed_path = self.root / listed
        folder = listed_path.parent
        shipped = folder.with_name(f"{folder.name}_{self.downscale}") / listed_path.name
        original, copy = _existing(listed_path), _existing(shipped) if self.downscale > 1 else None
        if copy is not None:
            return original or listed_path.with_suffix(copy.suffix), copy
        if original is None:
            raise InputError(f"{listed_path}: no such file, expected a photo that {file.path.name} lists.")
        return original, original

    def _mask(self, frame: Frame, name: str) -> Path | None:
        if frame.mask_path is not None:
            return self.root / frame.mask_path
        folder = self.root / self.masks
        inside = PurePosixPath(*PurePosixPath(name).parts[1:]) if "/" in name else PurePosixPath(name)
        candidates = (folder / f"{inside}.png", folder / inside.with_suffix(".png"))
        return next((path for path in candidates if path.is_file()), None)


def _existing(path: Path) -> Path | None:
    """The file, also if its name is written without the ending, as Blender's scenes do."""
    candidates = (path.with_name(path.name + ending) for ending in ("", ".png", *IMAGE_SUFFIXES) if path.name)
    try:
        return next((candidate for candidate in candidates if candidate.is_file()), None)
    except OSError:  # a name that is too long for any file
        return None


def _calibration(file: TransformsFile, frame: Frame, photo: Path) -> pycolmap.Camera:
    """The camera that a frame was taken with, for images of the size that the file states."""
    fields, where = CameraFields.merged(file, frame), f"{file.path}: {frame.file_path}"
    width, height = _size(fields, photo, where)
    fx, fy = _focal_lengths(fields, width, height, where)
    cx = width / 2 if fields.cx is None else fields.cx
    cy = height / 2 if fields.cy is None else fields.cy
    model, distortion = fields.distortion(where)
    params = [fx, fy, cx, cy, *distortion]
    if not all(map(math.isfinite, params)):
        raise InputError(f"{where}: found camera parameters {params}, expected finite numbers.")
    return pycolmap.Camera(model=model, width=width, height=height, params=params)


def _size(fields: CameraFields, photo: Path, where: str) -> Size:
    """Of the images that the numbers are for: as stated, or the photo's own."""
    if fields.w is None or fields.h is None:
        return read_header(photo).size
    if not (1 <= fields.w <= _LARGEST_SIDE and 1 <= fields.h <= _LARGEST_SIDE):
        raise InputError(f"{where}: found w {fields.w:g}, h {fields.h:g}, expected 1 to {_LARGEST_SIDE:,}.")
    return round(fields.w), round(fields.h)


def _focal_lengths(fields: CameraFields, width: int, height: int, where: str) -> tuple[float, float]:
    """Of x and y in pixels; where only one is stated, pixels are square."""
    fx = _focal_length(fields.fl_x, fields.camera_angle_x, fields.x_fov, width)
    fy = _focal_length(fields.fl_y, fields.camera_angle_y, fields.y_fov, height)
    if fx is None and fy is None:
        raise InputError(f"{where}: states no focal length; expected fl_x, camera_angle_x or x_fov.")
    fx, fy = fx or fy or 0.0, fy or fx or 0.0
    if not (0 < fx < math.inf and 0 < fy < math.inf):
        raise InputError(f"{where}: found focal length {fx:g}, {fy:g}, expected positive numbers of pixels.")
    return fx, fy


def _focal_length(
    pixels: float | None, radians: float | None, degrees: float | None, side: int
) -> float | None:
    """From the first of three ways to say it that is there."""
    if pixels is not None:
        return pixels
    angle = radians if radians is not None or degrees is None else math.radians(degrees)
    return None if angle is None else 0.5 * side / math.tan(0.5 * angle) if angle else math.inf


def _cam_from_world(file: TransformsFile, frame: Frame) -> Float[np.ndarray, "4 4"]:
    """Inverse of the frame's matrix, with OpenCV's axes; a uniform scale of its axes has no effect.

    Raises:
        InputError: not a matrix of 3 or 4 rows of 4 finite numbers, or its axes are not those of a camera.
    """
    where = f"{file.path}: transform_matrix of {frame.file_path}"
    rows = frame.transform_matrix
    if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
        raise InputError(f"{where}: found {len(rows)} rows, expected a matrix of 4 x 4 numbers.")
    matrix = np.eye(4)
    matrix[:3] = rows[:3]
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    axes = matrix[:3, :3] / scale if 0 < scale < np.inf else np.zeros((3, 3))
    if np.abs(axes.T @ axes - np.eye(3)).max() > _LARGEST_SKEW:
        raise InputError(f"{where}: found {matrix[:3].tolist()}, expected a rotation and a position.")
    u, _, vt = np.linalg.svd(axes)
    matrix[:3, :3] = u @ vt
    return np.asarray(_OPENCV_FROM_OPENGL @ np.linalg.inv(matrix))


def _time(file: TransformsFile, frame: Frame) -> float | None:
    if frame.time is None:
        return None
    if not 0 <= frame.time <= 1:
        raise InputError(f"{file.path}: time of {frame.file_path}: found {frame.time:g}, expected 0 to 1.")
    return min(frame.time, _LATEST)


def _protocol(photos: _Photos, files: dict[str, TransformsFile], views: Sequence[View]) -> str:
    """One line for logs and reports: which pixels these are."""
    names = " and ".join(file.path.name for file in files.values())
    reduced = {getattr(view.source, "reduction", 1) for view in views} - {1}
    if reduced:
        size = f"reduced by {photos.downscale} (area filter)"
    else:
        size = "as shipped" if photos.downscale == 1 else f"as shipped, reduced by {photos.downscale}"
    return f"photos of {names} {size}" + processing(views, "masks")
