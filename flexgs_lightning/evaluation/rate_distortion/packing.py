"""Packings: what a file may be compressed with as a whole."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import zstandard

ZSTD_LEVEL = 19
XZ_PRESET = 9
DESCRIPTIONS = {
    "": "",
    "zstd": f", compressed by zstd at level {ZSTD_LEVEL}",
    "xz": f", compressed by xz at {XZ_PRESET}",
}
"""Of each packing, "" for none."""
PACKINGS = tuple(name for name in DESCRIPTIONS if name)
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data),
    "xz": lambda data: lzma.compress(data, preset=XZ_PRESET),
}
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdDecompressor().decompress(data),
    "xz": lzma.decompress,
}
T = TypeVar("T")


def write_packed(path: Path, packing: str, write: Callable[[Path], None]) -> None:
    """Write a file, packed; its name then ends in the packing's."""
    if not packing:
        write(path)
        return
    plain = path.with_suffix("")
    write(plain)
    path.write_bytes(_PACK[packing](plain.read_bytes()))
    plain.unlink()


def read_packed(path: Path, packing: str, read: Callable[[Path], T]) -> T:
    """The inverse of ``write_packed``."""
    if not packing:
        return read(path)
    plain = path.with_suffix("")
    plain.write_bytes(_UNPACK[packing](path.read_bytes()))
    found = read(plain)
    plain.unlink()
    return found
