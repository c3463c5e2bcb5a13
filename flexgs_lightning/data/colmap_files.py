"""COLMAP's model files: found, and checked before they are parsed.

COLMAP's own reader does not look for the end of a file: a truncated ``cameras.bin`` is read as garbage
without a word, and a corrupt count allocates without limit. So every binary file is walked once here:
its records must end exactly where the file ends. Formats: https://colmap.github.io/format.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.errors import InputError

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
        InputError: a file is truncated or corrupt, or names an unknown camera model.
    """
    if (folder / "cameras.bin").is_file():
        for name, record in _RECORDS.items():
            if (folder / name).is_file():
                _check_binary(folder / name, record)
    else:
        _check_text_cameras(folder / "cameras.txt")
    try:
        model = pycolmap.Reconstruction(str(folder))
    except (ValueError, IndexError, KeyError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: expected a valid COLMAP model, found: {reason}.") from error
    if not (folder / "cameras.bin").is_file():
        _check_text_count(folder / "images.txt", "images", model.num_images())
        _check_text_count(folder / "points3D.txt", "points", model.num_points3D())
    return model


class _TruncatedError(Exception):
    pass


class _Walk:
    """A position in a binary file that never passes its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
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
            raise InputError(f"{self.path}: expected UTF-8 image names, found {name!r}.") from None
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
                f"{path}, line {number}: unknown camera model {model!r}; expected one of {_known_models()}."
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
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text, found binary data.") from error
