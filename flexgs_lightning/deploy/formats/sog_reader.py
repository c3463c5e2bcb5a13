"""Reading SOG, versions 1 and 2, from a ``.sog`` file or an unpacked folder's ``meta.json``; see ``sog``.

Version 1 states minima and maxima where version 2 has codebooks, and keeps opacities as logits.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flexgs_lightning.deploy.formats.bits import from_smallest_three
from flexgs_lightning.deploy.formats.sog import (
    ANTIALIASED,
    COEFFICIENTS,
    META,
    PALETTE_COLUMNS,
    SQRT2,
)
from flexgs_lightning.deploy.formats.splat_file import SplatFile, assemble, require_plausible
from flexgs_lightning.errors import InputError
from flexgs_lightning.records import parse_json, read_bytes, shown
from flexgs_lightning.zip_archives import open_archive, read_member

_LARGEST_META = 1 << 24
_FIRST_TAG = 252
"""Alpha of a rotation whose largest component is w."""
_PIXELS = 20
"""Bytes that a Gaussian takes in the images that every file has."""


def read_sog(path: Path) -> SplatFile:
    """Read a ``.sog`` file, or the folder that a ``meta.json`` lies in.

    Raises:
        InputError: not SOG; members missing or damaged; images too small or far too large for the count;
            indices beyond the palette; values that are NaN, infinite or out of range; content far larger than
            the file can hold.
    """
    if path.name.lower().endswith(META):
        return _decode(path, lambda name: _member_of_folder(path, name), _folder_bytes(path))
    with open_archive(path, "a SOG file") as archive:
        packed = path.stat().st_size
        unpacked = sum(member.file_size for member in archive.infolist())
        require_plausible(path, unpacked, packed)
        return _decode(path, lambda name: read_member(archive, path, name), packed)


# -- members -------------------------------------------------------------------------------------------


def _member_of_folder(path: Path, name: str) -> bytes:
    """A file beside ``meta.json``, and none elsewhere whatever the name says."""
    if not name or "\0" in name or Path(name).name != name:
        raise InputError(f"{path}: names {shown(name)}; expected a file of the same folder.")
    try:
        return read_bytes(path if name == META else path.with_name(name))
    except InputError as error:
        raise InputError(f"{path}: of what belongs to it, {error}") from error


def _folder_bytes(path: Path) -> int:
    try:
        return sum(member.stat().st_size for member in path.parent.iterdir() if member.is_file())
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror or error}).") from error


# -- what meta.json says -------------------------------------------------------------------------------


class _Meta:
    """``meta.json`` with every access checked; ``path`` is for messages."""

    def __init__(self, path: Path, content: Any, where: str = META) -> None:
        if not isinstance(content, dict):
            raise InputError(f"{path}: {where}: expected an object, found {shown(content)}.")
        self._path, self._content, self._where = path, content, where

    def __contains__(self, key: str) -> bool:
        return self._content.get(key) is not None

    def part(self, key: str) -> _Meta:
        return _Meta(self._path, self._content.get(key), f"{self._where}: {key}")

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._content.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fault(key, f"a whole number from {low} to {high:,}", value)
        return value

    def numbers(self, key: str, count: int) -> np.ndarray:
        """[count] float64; one number stands for itself where one is expected."""
        value = self._content.get(key)
        values = value if isinstance(value, list) else [value]
        sound = [
            v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e30
        ]
        if len(values) != count or len(sound) != count:
            raise self.fault(key, f"{count} numbers", value)
        return np.array(sound, np.float64)

    def files(self, count: int) -> list[str]:
        value = self._content.get("files")
        if not isinstance(value, list) or len(value) < count or not all(isinstance(v, str) for v in value):
            raise self.fault("files", f"{count} names", value)
        return value[:count]

    def get(self, key: str) -> Any:
        return self._content.get(key)

    def fault(self, key: str, expected: str, found: Any) -> InputError:
        return InputError(f"{self._path}: {self._where}: {key}: expected {expected}, found {shown(found)}.")


def _read_meta(path: Path, content: bytes) -> _Meta:
    if len(content) > _LARGEST_META:
        raise InputError(f"{path}: {META}: found {len(content):,} bytes, expected at most {_LARGEST_META:,}.")
    return _Meta(path, parse_json(f"{path}: {META}", content, dict[str, Any]))


# -- images to values ----------------------------------------------------------------------------------


def _decode(path: Path, member: Callable[[str], bytes], packed: int) -> SplatFile:
    meta = _read_meta(path, member(META))
    legacy = "version" not in meta
    if not legacy and meta.get("version") != 2:
        raise InputError(
            f"{path}: SOG version {shown(meta.get('version'))}; expected 2, or none for version 1."
        )
    if legacy:
        shape = meta.part("means").get("shape")
        count = shape[0] if isinstance(shape, list) and shape else None
        meta = _Meta(path, {**meta._content, "count": count})
    count = meta.integer("count", 1, 16383**2)
    require_plausible(path, count * _PIXELS, packed)

    def pixels(part: _Meta, index: int, files: int = 1) -> np.ndarray:
        name = part.files(files)[index]
        image = _image(path, name, member(name), most=2 * count + 4096).reshape(-1, 4)
        if len(image) < count:
            raise InputError(f"{path}: '{name}' has {len(image):,} pixels for {count:,} Gaussians.")
        return image[:count]

    means = meta.part("means")
    low, high = means.numbers("mins", 3), means.numbers("maxs", 3)
    levels = pixels(means, 0, 2)[:, :3] + pixels(means, 1, 2)[:, :3].astype(np.float64) * 256
    logs = low + (high - low) * levels / 65535
    quats = pixels(meta.part("quats"), 0)
    if (quats[:, 3] < _FIRST_TAG).any():
        raise InputError(f"{path}: quats: alpha below {_FIRST_TAG}; expected the index of a component in it.")
    three = (quats[:, :3].astype(np.float32) / 255 - 0.5) * SQRT2
    scales, sh0 = pixels(meta.part("scales"), 0)[:, :3], pixels(meta.part("sh0"), 0)
    if legacy:
        log_scales = _between(meta.part("scales"), scales)
        colors = _between(meta.part("sh0"), sh0)
        colors, opacities = colors[:, :3], 1 / (1 + np.exp(-colors[:, 3]))
    else:
        log_scales = meta.part("scales").numbers("codebook", 256)[scales]
        colors = meta.part("sh0").numbers("codebook", 256)[sh0[:, :3]]
        opacities = sh0[:, 3] / 255
    rest = _decode_sh(path, meta.part("shN"), member, pixels, legacy) if "shN" in meta else None
    sh = colors[:, None] if rest is None else np.concatenate([colors[:, None], rest], axis=1)
    with np.errstate(over="ignore"):
        splats = assemble(
            path,
            means=np.sign(logs) * np.expm1(np.abs(logs)),
            quats=from_smallest_three((quats[:, 3] - _FIRST_TAG).astype(np.intp), three),
            log_scales=log_scales,
            opacities=opacities,
            sh=sh,
        )
    return SplatFile(splats, meta.get("model") == ANTIALIASED)


def _decode_sh(
    path: Path,
    meta: _Meta,
    member: Callable[[str], bytes],
    pixels: Callable[[_Meta, int, int], np.ndarray],
    legacy: bool,
) -> np.ndarray | None:
    """[N, K - 1, 3] float32."""
    name = meta.files(2)[0]
    image = _image(path, name, member(name), most=PALETTE_COLUMNS * 15 * 1024)
    coefficients = image.shape[1] // PALETTE_COLUMNS
    expected = COEFFICIENTS[1:] if legacy else COEFFICIENTS[meta.integer("bands", 0, 3) :][:1]
    if expected == (0,):
        return None
    if coefficients not in expected or image.shape[1] % PALETTE_COLUMNS:
        widths = " or ".join(str(PALETTE_COLUMNS * each) for each in expected)
        raise InputError(f"{path}: '{name}' is {image.shape[1]} pixels wide; expected {widths}.")
    size = image.shape[0] * PALETTE_COLUMNS
    size = size if legacy else meta.integer("count", 1, size)
    if legacy:
        low, high = meta.numbers("mins", 1)[0], meta.numbers("maxs", 1)[0]
        codes = low + (high - low) * np.arange(256) / 255
    else:
        codes = meta.numbers("codebook", 256)
    labels = pixels(meta, 1, 2).astype(np.int64)
    labels = labels[:, 0] + 256 * labels[:, 1]
    if labels.max() >= size:
        raise InputError(f"{path}: SH label {labels.max():,} of a palette of {size:,} entries.")
    entries = codes.astype(np.float32)[image[:, :, :3].reshape(-1, coefficients, 3)]
    return entries[labels]


def _between(meta: _Meta, levels: np.ndarray) -> np.ndarray:
    """Version 1: bytes as shares of the extent of each column."""
    low, high = meta.numbers("mins", levels.shape[1]), meta.numbers("maxs", levels.shape[1])
    return low + (high - low) * levels / 255


def _image(path: Path, name: str, content: bytes, most: int) -> np.ndarray:
    """[height, width, 4] uint8; refused before it is decoded if it has more than ``most`` pixels."""
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            if math.prod(image.size) > most:
                raise InputError(
                    f"{path}: '{name}' is {image.width}x{image.height} pixels; expected at most {most:,}."
                )
            return np.asarray(image.convert("RGBA"))
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: '{name}' is no sound WebP image.") from error
