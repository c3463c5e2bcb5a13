"""The frame of all recipes' files: a ZIP of streams, stored as they are, and ``meta.json``."""

from __future__ import annotations

import json
import lzma
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import shown
from flexgs_lightning.zip_archives import open_archive, read_member

META = "meta.json"
MOST_META = 1 << 20
"""Bytes of ``meta.json`` beyond which it is refused."""
LARGEST_NUMBER = 1e30
"""Of the facts: sums and products of such are finite."""
PRESET = 9 | lzma.PRESET_EXTREME
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": PRESET}]


@dataclass(frozen=True)
class Package:
    """What a recipe's file holds.

    Attributes:
        recipe: whose file it is.
        count: Gaussians.
        sh_degree: degree of their spherical harmonics.
        facts: whatever else the recipe needs to know, as plain values.
        streams: bytes by name; what stands before a name's first dot is the attribute.
    """

    recipe: str
    count: int
    sh_degree: int
    facts: dict[str, Any]
    streams: dict[str, bytes]

    def write(self, path: str | Path) -> None:
        """Write the file; the same content gives the same bytes.

        Raises:
            InputError: it cannot be written.
        """
        meta = {"recipe": self.recipe, "count": self.count, "sh_degree": self.sh_degree, **self.facts}
        members = {META: json.dumps(meta, separators=(",", ":")).encode(), **self.streams}
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # stored, without today's date

    def array(self, path: Path, name: str, dtype: str, *shape: int) -> np.ndarray:
        """A stream of ``packed`` numbers, of exactly this shape.

        Raises:
            InputError: there is no such stream, or it holds something else.
        """
        return unpacked(path, name, self.stream(path, name), dtype, *shape)

    def stream(self, path: Path, name: str) -> bytes:
        """A stream as it is stored.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.streams:
            raise InputError(f"{path}: there is no stream '{name}'.")
        return self.streams[name]

    def number(self, path: Path, *names: str) -> float:
        """A finite number among the facts, by the names that lead to it.

        Raises:
            InputError: there is none.
        """
        value: Any = self.facts
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST_NUMBER:
            raise InputError(f"{path}: {META}: {'.'.join(names)}: expected a number, found {shown(value)}.")
        return float(value)


def packed(values: np.ndarray) -> bytes:
    """Numbers column by column and byte by byte, then LZMA: neighbours in a stream are alike."""
    columns = np.ascontiguousarray(values.T).reshape(-1)
    planes = columns.view(np.uint8).reshape(-1, columns.itemsize).T
    return lzma.compress(planes.tobytes(), format=lzma.FORMAT_RAW, filters=_FILTERS)


def unpacked(path: Path, name: str, data: bytes, dtype: str, *shape: int) -> np.ndarray:
    """The inverse of ``packed``; never makes more than the array takes.

    Raises:
        InputError: damaged, or of another size.
    """
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        found = decoder.decompress(data, max_length=expected + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise InputError(f"{path}: {name}: damaged ({error}).") from error
    if len(found) != expected:
        raise InputError(f"{path}: {name}: expected {expected:,} bytes, found {len(found):,} or more.")
    planes = np.frombuffer(found, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(shape[::-1]).T


def read_package(path: str | Path, recipe: str) -> Package:
    """Read what ``Package.write`` wrote; nothing in it is executed.

    Raises:
        InputError: no such file, another recipe's, or a damaged one.
    """
    path = Path(path)
    with open_archive(path, f"a file of {recipe}") as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InputError(f"{path}: expected streams that are stored as they are.")
        streams = {member.filename: read_member(archive, path, member) for member in members}
    facts = _facts(path, streams.pop(META, b""))
    found, count, degree = (facts.pop(name, None) for name in ("recipe", "count", "sh_degree"))
    if found != recipe:
        raise InputError(f"{path}: {META}: expected a file of '{recipe}', found one of {shown(found)}.")
    length = path.stat().st_size
    if type(count) is not int or not 1 <= count <= length:  # so that memory is bounded by the file's size
        raise InputError(f"{path}: {META}: count: expected 1 to {length:,}, found {shown(count)}.")
    if type(degree) is not int or not 0 <= degree <= 3:
        raise InputError(f"{path}: {META}: sh_degree: expected 0 to 3, found {shown(degree)}.")
    return Package(recipe, count, degree, facts, streams)


def bytes_by_attribute(path: str | Path) -> dict[str, int]:
    """Bytes of each attribute in a recipe's file; names, index and ``meta.json`` as "frame"."""
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename != META:
                name = member.filename.partition(".")[0]
                sizes[name] = sizes.get(name, 0) + member.file_size
    return {**sizes, "frame": Path(path).stat().st_size - sum(sizes.values())}


def _facts(path: Path, data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data) if len(data) <= MOST_META else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {META}: not readable as JSON ({error}).") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path}: {META}: expected facts by name.")
    return facts
