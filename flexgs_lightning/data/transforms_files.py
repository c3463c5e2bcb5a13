"""The files of a ``transforms.json`` capture: their schema, and the points beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import torch

from flexgs_lightning.data.calibration import float32
from flexgs_lightning.data.capture import Points
from flexgs_lightning.data.colmap_files import read_model
from flexgs_lightning.errors import InputError
from flexgs_lightning.ply_container import read_element, read_header
from flexgs_lightning.records import plain_size, read_json, shown

_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "RADIAL", "SIMPLE_RADIAL", "FULL_OPENCV")
_FISHEYE = ("OPENCV_FISHEYE", "FISHEYE")
Name = Annotated[str, msgspec.Meta(max_length=1024)]
"""Of a file; longer ones are no names, and would make messages that nobody reads."""
Fields = TypeVar("Fields", bound="CameraFields")


class CameraFields(msgspec.Struct, kw_only=True):
    """What says how a camera maps rays to pixels; for all frames at the top of the file, or in a frame."""

    camera_model: str | None = None
    is_fisheye: bool | None = None
    w: float | None = None
    h: float | None = None
    fl_x: float | None = None
    fl_y: float | None = None
    cx: float | None = None
    cy: float | None = None
    camera_angle_x: float | None = None
    camera_angle_y: float | None = None
    x_fov: float | None = None
    y_fov: float | None = None
    k1: float | None = None
    k2: float | None = None
    k3: float | None = None
    k4: float | None = None
    p1: float | None = None
    p2: float | None = None

    @staticmethod
    def merged(everywhere: CameraFields, here: CameraFields) -> CameraFields:
        """A frame's own fields, and the file's where it has none."""
        names = CameraFields.__struct_fields__
        own = {name: getattr(here, name) for name in names}
        shared = {name: getattr(everywhere, name) for name in names}
        return CameraFields(**{n: shared[n] if own[n] is None else own[n] for n in names})

    def distortion(self, where: str) -> tuple[str, list[float]]:
        """COLMAP's name of the model, and its parameters after the pinhole's.

        Raises:
            InputError: a model that no pinhole can show, or a coefficient that its model does not have.
        """
        k1, k2, k3, k4, p1, p2 = (
            value or 0.0 for value in (self.k1, self.k2, self.k3, self.k4, self.p1, self.p2)
        )
        model = self.camera_model or ("OPENCV_FISHEYE" if self.is_fisheye else "OPENCV")
        if model in _FISHEYE:
            return "OPENCV_FISHEYE", [k1, k2, k3, k4]
        if model not in _PERSPECTIVE:
            known = ", ".join((*_PERSPECTIVE, *_FISHEYE))
            raise InputError(f"{where}: camera_model: found {shown(model)}, expected one of {known}.")
        if k4:
            raise InputError(f"{where}: found k4 {k4:g}, which {model} does not have; expected 0.")
        return ("FULL_OPENCV", [k1, k2, p1, p2, k3, 0.0, 0.0, 0.0]) if k3 else ("OPENCV", [k1, k2, p1, p2])


class Frame(CameraFields, kw_only=True):
    """One photo: where it lies, how its camera stood (camera to world, OpenGL), and perhaps when.

    ``read_file`` makes its paths relative to the file's folder, which they cannot leave.
    """

    file_path: Name
    transform_matrix: list[list[float]]
    mask_path: Name | None = None
    time: float | None = None


class TransformsFile(CameraFields, kw_only=True):
    """The whole file.

    Attributes:
        path: where it was read, for messages.
        applied_transform: how poses were moved after COLMAP, [3, 4]; what COLMAP wrote was not.
        applied_scale: factor of positions after that.
    """

    frames: list[Frame]
    train_filenames: list[str] | None = None
    val_filenames: list[str] | None = None
    test_filenames: list[str] | None = None
    ply_file_path: Name | None = None
    applied_transform: list[list[float]] | None = None
    applied_scale: float = 1.0
    path: Path = Path()


def has_transforms(root: Path) -> bool:
    """Whether a folder holds such a capture."""
    return (root / "transforms.json").is_file() or (root / "transforms_train.json").is_file()


def read_transforms(root: Path) -> dict[str, TransformsFile]:
    """The file of each split: "train" and, where there are two, "test"; a single file has both.

    Raises:
        InputError: not readable as JSON of this schema.
    """
    train = root / "transforms_train.json"
    if not train.is_file():
        return {"train": read_file(root / "transforms.json")}
    candidates = (root / f"transforms_{split}.json" for split in ("test", "val"))
    test = next((path for path in candidates if path.is_file()), None)
    return {"train": read_file(train)} | ({"test": read_file(test)} if test else {})


def read_file(path: Path) -> TransformsFile:
    """One file.

    Raises:
        InputError: not readable as JSON of this schema, or it names a file outside its folder.
    """
    file = read_json(path, TransformsFile)
    file.path = path
    for number, frame in enumerate(file.frames):
        frame.file_path = _below(path, f"frames[{number}].file_path", frame.file_path)
        if frame.mask_path is not None:
            frame.mask_path = _below(path, f"frames[{number}].mask_path", frame.mask_path)
    if file.ply_file_path is not None:
        file.ply_file_path = _below(path, "ply_file_path", file.ply_file_path)
    return file


def _below(path: Path, field: str, listed: str) -> str:
    """A path that the file names, relative to the file's folder.

    Producers write paths relative to the file (nerfstudio, instant-ngp, Blender), or absolute ones of its
    folder (nerfstudio for Project Aria). What leads out of the folder is refused: a capture that was handed
    on must not choose what is read elsewhere. A link in the folder is its owner's own, and is followed.
    """
    relative = relative_path(path.parent, listed)
    if relative is None:
        raise InputError(
            f"{path}: {field}: found {shown(listed)}, expected a file below {path.parent}. Move or link the "
            "files into that folder, and write paths relative to it."
        )
    return relative


def relative_path(folder: Path, listed: str) -> str | None:
    """A path as somebody wrote it, relative to ``folder`` and without detours; None if it leads elsewhere."""
    base = Path(os.path.normpath(folder.absolute()))
    found = Path(os.path.normpath(base / listed.replace("\\", "/")))  # not resolved: links are followed
    return found.relative_to(base).as_posix() if base in found.parents else None


def read_points(root: Path, file: TransformsFile) -> Points:
    """Points in the world of the poses; none where the capture brings none.

    Raises:
        InputError: the file that is named is missing, or a file is damaged.
    """
    if file.ply_file_path is not None:
        return _read_ply(root / file.ply_file_path)
    if (root / "points3d.ply").is_file():
        return _read_ply(root / "points3d.ply")
    model = root / "colmap" / "sparse" / "0"
    if model.is_dir() and file.applied_transform is not None:
        return _moved_model(model, file)
    return Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))


def _read_ply(path: Path) -> Points:
    plain_size(path)
    with path.open("rb") as stream:
        vertices = read_element(path, stream, read_header(path, stream), "vertex")
    names = vertices.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise InputError(f"{path}: found properties {', '.join(names)}; expected x, y and z among them.")
    positions = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    colors = np.full(positions.shape, 128, np.uint8)
    if {"red", "green", "blue"} <= set(names):
        stored = np.stack([vertices[color] for color in ("red", "green", "blue")], axis=1)
        colors = stored if stored.dtype == np.uint8 else np.clip(255 * stored, 0, 255).astype(np.uint8)
    return _points(positions, colors, path)


def _moved_model(model: Path, file: TransformsFile) -> Points:
    """COLMAP's points, moved as the poses were."""
    rows = file.applied_transform or []
    if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
        raise InputError(f"{file.path}: applied_transform: found {len(rows)} rows, expected 3 x 4 numbers.")
    transform = np.array(rows)
    points = [point for _, point in sorted(read_model(model).points3D.items())]
    positions = np.array([point.xyz for point in points]).reshape(-1, 3)
    moved = file.applied_scale * (positions @ transform[:3, :3].T + transform[:3, 3])
    return _points(moved, np.array([point.color for point in points], np.uint8).reshape(-1, 3), model)


def _points(positions: np.ndarray, colors: np.ndarray, path: Path) -> Points:
    points = Points(float32(positions), torch.from_numpy(np.ascontiguousarray(colors)))
    broken = int((~points.positions.isfinite().all(dim=1)).sum())
    if broken:
        raise InputError(f"{path}: {broken} of {len(points)} points are not finite, expected none.")
    return points
