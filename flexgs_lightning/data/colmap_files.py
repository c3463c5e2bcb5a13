"""COLMAP's model files: found, and checked before they are parsed.

COLMAP's own reader does not look for the end of a file: a truncated ``cameras.bin`` is read as garbage
without a word, and a corrupt count allocates without limit. So every binary file is walked once here:
its records must end exactly where the file ends. What a model may say is checked after that, in one place
(``_require_sound``). Formats: https://colmap.github.io/format.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.errors import InputError
from flexgs_lightning.records import plain_size, read_bytes, read_text, shown

LARGEST_SIDE = 1 << 16
"""Pixels of a camera's image; undistortion walks along its border."""
LARGEST_NUMBER = 1e15
"""Of a pose, point or camera: products of such are finite in float32."""
LARGEST_TEXT = 1 << 32
_UNIT_WITHIN = 1e-3
_LONGEST_NAME, _LONGEST_PATH = 255, 4000
"""Bytes of a file's name and of a path."""
_PARTS = ("cameras", "images", "points3D")


def find_model(root: Path) -> Path:
    """The folder of a capture that holds its sparse model: ``sparse/0`` or ``sparse``.

    Raises:
        InputError: the capture's folder is missing or empty, or holds no complete model.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, expected a capture (images/ and sparse/).")
    if not any(root.iterdir()):
        raise InputError(f"{root}: the folder is empty, expected a capture (images/ and sparse/).")
    for folder in (root / "sparse" / "0", root / "sparse"):
        for suffix in (".bin", ".txt"):
            present = [part for part in _PARTS if (folder / f"{part}{suffix}").is_file()]
            if len(present) == len(_PARTS):
                return folder
            if "cameras" in present:
                missing = ", ".join(f"{part}{suffix}" for part in _PARTS if part not in present)
                raise InputError(f"{folder}: the sparse model is incomplete, expected {missing} as well.")
    raise InputError(
        f"{root / 'sparse'}: no COLMAP model found; expected cameras, images and points3D "
        "(.bin or .txt) in sparse/0 or sparse."
    )


def read_model(folder: Path) -> pycolmap.Reconstruction:
    """Read a sparse model, binary or text, with or without rigs and frames.

    Raises:
        InputError: a file is truncated or corrupt, names an unknown camera model or a photo outside its
            folder, or holds numbers that no camera, pose or point has.
    """
    if (folder / "cameras.bin").is_file():
        for name, record in _RECORDS.items():
            if (folder / name).is_file():
                _check_binary(folder / name, record)
    else:
        for name in ("images.txt", "points3D.txt", "rigs.txt", "frames.txt"):
            if (folder / name).exists():
                plain_size(folder / name)
        _check_text_cameras(folder / "cameras.txt")
    try:
        model = pycolmap.Reconstruction(str(folder))
    except (ValueError, IndexError, KeyError, RuntimeError, MemoryError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0], 200)
        raise InputError(f"{folder}: expected a valid COLMAP model, found: {reason}.") from error
    if not (folder / "cameras.bin").is_file():
        _check_text_count(folder / "images.txt", "images", model.num_images())
        _check_text_count(folder / "points3D.txt", "points", model.num_points3D())
    _require_sound(model, folder)
    return model


def registered_images(model: pycolmap.Reconstruction) -> list[pycolmap.Image]:
    """The images whose pose is known, by name."""
    return sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name)


def _require_sound(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Refuse what COLMAP's reader lets pass."""
    for number, camera in model.cameras.items():
        where = f"{folder / 'cameras'}: camera {number}"
        if not (1 <= camera.width <= LARGEST_SIDE and 1 <= camera.height <= LARGEST_SIDE):
            raise InputError(
                f"{where}: found {camera.width}x{camera.height} pixels, "
                f"expected 1 to {LARGEST_SIDE:,} a side."
            )
        parameters = np.asarray(camera.params)
        if not (np.abs(parameters) < LARGEST_NUMBER).all():
            raise InputError(f"{where}: found parameters {parameters.tolist()}, expected finite numbers.")
        focal = parameters[list(camera.focal_length_idxs())]  # a panorama has none
        if not (focal > 0).all():
            raise InputError(f"{where}: found {focal.tolist()}, expected a positive focal length.")
    for number in _registered(model, folder):
        image = model.images[number]
        where = f"{folder / 'images'}: image {number}"
        _require_inside(where, image.name)
        if image.camera_id not in model.cameras:
            raise InputError(f"{where}: its camera {image.camera_id} is not in the model.")
        pose = image.cam_from_world()
        if not abs(float(np.linalg.norm(pose.rotation.quat)) - 1) < _UNIT_WITHIN:
            found = pose.rotation.quat.tolist()
            raise InputError(f"{where}: found the rotation {found}, expected a quaternion of length 1.")
        if not (np.abs(pose.translation) < LARGEST_NUMBER).all():
            raise InputError(
                f"{where}: found the translation {pose.translation.tolist()}, expected finite numbers."
            )
    if model.num_points3D():
        positions = np.array([point.xyz for point in model.points3D.values()])
        broken = int((~(np.abs(positions) < LARGEST_NUMBER)).any(axis=1).sum())
        if broken:
            raise InputError(
                f"{folder / 'points3D'}: {broken} of {len(positions)} points are not finite, or beyond "
                f"{LARGEST_NUMBER:g}; expected none."
            )


def _registered(model: pycolmap.Reconstruction, folder: Path) -> list[int]:
    """Numbers of the images with poses; COLMAP finds out here whether its files belong together."""
    try:
        return list(model.reg_image_ids())
    except ValueError as error:
        message = f"{folder}: its frames and images contradict each other: {shown(str(error))}."
        raise InputError(message) from error


def _require_inside(where: str, name: str) -> None:
    """A photo's name must be that of a file below the photo folder, as file systems allow it."""
    parts = PurePosixPath(name).parts
    outside = name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable()
    if outside or not parts or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise InputError(f"{where}: named {shown(name)}; expected a file below the folder of photos.")
    if len(name.encode()) > _LONGEST_PATH:
        raise InputError(f"{where}: named {shown(name)}, {len(name):,} letters; file systems allow fewer.")


class _TruncatedError(Exception):
    pass


class _Walk:
    """A position in a binary file that never passes its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_bytes(path)
        self.position = 0

    def skip(self, size: int) -> None:
        if self.position + size > len(self.data):
            raise _TruncatedError
        self.position += size

    def take(self, layout: struct.Struct) -> int:
        start = self.position
        self.skip(layout.size)
        value: int = layout.unpack_from(self.data, start)[0]
        return value

    def skip_text(self) -> None:
        end = self.data.find(b"\0", self.position)
        if end < 0:
            raise _TruncatedError
        try:
            self.data[self.position : end].decode()
        except UnicodeDecodeError:
            name = self.data[self.position : end]
            raise InputError(f"{self.path}: expected UTF-8 image names, found {shown(name)}.") from None
        self.position = end + 1


_U64, _U32, _I32, _U8 = (struct.Struct(f"<{code}") for code in "QIiB")


def _check_binary(path: Path, skip_record: Callable[[_Walk], None]) -> None:
    walk = _Walk(path)
    count, found = 0, 0
    try:
        count = walk.take(_U64)
        for found in range(count):  # noqa: B007 (reported below)
            skip_record(walk)
    except _TruncatedError:
        raise InputError(
            f"{path}: truncated or corrupt; found {len(walk.data)} bytes that end in record {found + 1}, "
            f"expected {count} records."
        ) from None
    if walk.position != len(walk.data):
        raise InputError(
            f"{path}: corrupt; found {len(walk.data)} bytes, "
            f"expected {walk.position} for its {count} records."
        )


def _skip_camera(walk: _Walk) -> None:
    walk.skip(4)
    model = walk.take(_I32)
    counts = _parameter_counts()
    if model not in counts:
        raise InputError(
            f"{walk.path}: unknown camera model number {model}; expected one of {_known_models()}."
        )
    walk.skip(16 + 8 * counts[model])


def _skip_image(walk: _Walk) -> None:
    walk.skip(4 + 7 * 8 + 4)
    walk.skip_text()
    walk.skip(24 * walk.take(_U64))


def _skip_point(walk: _Walk) -> None:
    walk.skip(8 + 3 * 8 + 3 + 8)
    walk.skip(8 * walk.take(_U64))


def _skip_rig(walk: _Walk) -> None:
    walk.skip(4)
    sensors = walk.take(_U32)
    if sensors:
        walk.skip(8)
    for _ in range(1, sensors):
        walk.skip(8)
        if walk.take(_U8):
            walk.skip(7 * 8)


def _skip_frame(walk: _Walk) -> None:
    walk.skip(8 + 7 * 8)
    walk.skip(16 * walk.take(_U32))


_RECORDS = {
    "cameras.bin": _skip_camera,
    "images.bin": _skip_image,
    "points3D.bin": _skip_point,
    "rigs.bin": _skip_rig,
    "frames.bin": _skip_frame,
}


def _camera_models() -> dict[str, pycolmap.CameraModelId]:
    return {name: m for name, m in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}


@lru_cache
def _parameter_counts() -> dict[int, int]:
    return {int(member): _parameter_count(name) for name, member in _camera_models().items()}


def _known_models() -> str:
    return ", ".join(_camera_models())


def _parameter_count(model: str) -> int:
    return len(pycolmap.Camera(model=model, width=1, height=1).params_info.split(","))


def _check_text_cameras(path: Path) -> None:
    """Refuse unknown models and wrong numbers of parameters by line."""
    for number, line in enumerate(_text_lines(path), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        model = words[1] if len(words) > 1 else ""
        if model not in _camera_models():
            raise InputError(
                f"{path}, line {number}: unknown camera model {shown(model)}; "
                f"expected one of {_known_models()}."
            )
        if len(words) - 4 != _parameter_count(model):
            raise InputError(
                f"{path}, line {number}: found {len(words) - 4} parameters, "
                f"expected {_parameter_count(model)} for {model}."
            )


def _check_text_count(path: Path, what: str, found: int) -> None:
    """Compare with the count in the header that COLMAP writes, which a truncated file cannot reach."""
    for line in _text_lines(path):
        if not line.startswith("#"):
            return
        label, _, rest = line.removeprefix("# Number of ").partition(":")
        stated = rest.split(",")[0].strip()
        if label == what and stated.isdigit() and int(stated) != found:
            raise InputError(f"{path}: truncated; found {found} {what}, expected {stated}.")


def _text_lines(path: Path) -> list[str]:
    return read_text(path, LARGEST_TEXT).split("\n")
