"""The elastic file's frame: header, index and checksums, without a look into the chunks."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flexgs_lightning.codec.drawing import STANDING
from flexgs_lightning.codec.movement import Movement
from flexgs_lightning.codec.quantization import MEANS_BITS, Numbers
from flexgs_lightning.codec.rows import FEATURES, SH_RULE, STEPS
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.compression.coordinates import WIDTH
from flexgs_lightning.model.compression.layout import Layout
from flexgs_lightning.records import parse_json

MAGIC = b"\x89EGS\r\n\x1a\n"
"""Not text, and damaged by whatever converts line ends or strips the eighth bit."""
VERSION = 1
FILM_VERSION = 2
"""Of films: groups of frames that move, see ``film_container``."""
_START = struct.Struct("<8sHHII")
"""Magic, version, flags (0), bytes of the header after this, their CRC-32."""
_FACTS = struct.Struct("<IBBBB3fi3ff3i")
_ENTRY = struct.Struct("<III")
"""Gaussians up to a chunk's end, bytes of the chunk, their CRC-32."""
MOST_HEADER = 1 << 24
"""A header beyond this many bytes is refused."""
MOST_LEVELS = 32
MOST_WEIGHT = 1 << 20
"""Largest weight of the rule: its sums are exact in 53 bits."""
MOST_LEVEL_ROWS = 2
"""Rows of all levels below the full one, for each Gaussian, at most."""
MOST_ROWS_A_BYTE = 1
"""A chunk has at most this many Gaussians a byte, so that memory is bounded by the file's size."""
START_BYTES = _START.size
"""Bytes that say how long the header is."""
UPDATE = "update of "
"""Before the names of streams that bring earlier rows to the next level."""


class Entry(NamedTuple):
    """A chunk in the index: Gaussians up to its end, its place and length in the file, its checksum."""

    stop: int
    offset: int
    length: int
    checksum: int


@dataclass(frozen=True)
class Header:
    """All that stands before the first chunk.

    Attributes:
        total: N.
        sh_degree: degree of the spherical harmonics.
        antialiased: see ``ElasticModelArrays``.
        background: likewise.
        ratios: of the levels, ascending, the last one 1.
        numbers: units, rule and transform.
        facts: whatever the writer wants to tell people, such as PSNR; no reader needs it.
        entries: the index.
        movement: how a group of frames moves.
    """

    total: int
    sh_degree: int
    antialiased: bool
    background: tuple[float, float, float]
    ratios: tuple[float, ...]
    numbers: Numbers
    facts: dict[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    movement: Movement = STANDING

    @property
    def counts(self) -> tuple[int, ...]:
        """Gaussians of each level."""
        return tuple(count_at(ratio, self.total) for ratio in self.ratios)

    def indexed_lengths(self) -> list[int]:
        """Lengths in bytes at which the file may be cut, one a chunk."""
        return [entry.offset + entry.length for entry in self.entries]


def pack_header(header: Header, chunks: Sequence[tuple[int, bytes]]) -> bytes:
    """The file up to its first chunk; ``chunks`` are Gaussians up to each one's end, and its bytes."""
    numbers = header.numbers
    facts = json.dumps(header.facts, separators=(",", ":")).encode()
    parts = [
        _FACTS.pack(
            header.total,
            header.sh_degree,
            header.antialiased,
            len(header.ratios),
            numbers.cell_bits,
            *header.background,
            len(numbers.basis),
            *numbers.origin.tolist(),
            float(numbers.means_unit),
            *numbers.centre.tolist(),
        ),
        np.array(header.ratios, dtype="<f8").tobytes(),
        numbers.weights.astype("<i4").tobytes(),
        numbers.bounds.astype("u1").tobytes(),
        numbers.mixing.astype("<i2").tobytes(),
        numbers.basis_scales.astype("<f4").tobytes(),
        numbers.basis.tobytes(),
        struct.pack("<I", len(facts)),
        facts,
        struct.pack("<I", len(chunks)),
        *(_ENTRY.pack(stop, len(data), zlib.crc32(data)) for stop, data in chunks),
    ]
    return packed(VERSION, b"".join(parts))


def packed(version: int, body: bytes) -> bytes:
    """A header's body, with what stands before it."""
    return _START.pack(MAGIC, version, 0, len(body), zlib.crc32(body)) + body


class Reader:
    """Takes numbers from a header, and never more than are there."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.place = path, data, 0

    def bytes(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            InputError: there are fewer.
        """
        if count < 0 or self.place + count > len(self.data):
            raise InputError(f"{self.path}: header: expected {count} more bytes, found fewer.")
        self.place += count
        return self.data[self.place - count : self.place]

    def struct(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Some numbers; see ``bytes``."""
        return layout.unpack(self.bytes(layout.size))

    def number(self) -> int:
        """A u32; see ``bytes``."""
        return int.from_bytes(self.bytes(4), "little")

    def array(self, kind: str, *shape: int) -> np.ndarray:
        """Numbers of a kind of NumPy's; see ``bytes``."""
        count = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer(self.bytes(count), dtype=kind).reshape(shape)


def read_header(path: Path, start: bytes) -> Header:
    """Read what ``pack_header`` wrote.

    Args:
        path: for messages.
        start: the file's first bytes, at least ``header_bytes`` of them.

    Raises:
        InputError: no elastic file, another version, or a header that is damaged or contradicts itself.
    """
    reader = header_body(path, start, VERSION)
    end = START_BYTES + len(reader.data)
    (total, sh_degree, antialiased, levels, cell_bits, *rest) = reader.struct(_FACTS)
    components = rest[3]
    width = 3 * ((sh_degree + 1) ** 2 - 1)
    check(path, total >= 1, "Gaussians", total)
    check(path, sh_degree <= 3, "SH degree", sh_degree)
    check(path, antialiased <= 1, "antialiased", antialiased)
    check_sizes(path, levels, cell_bits, components, width)
    ratios = tuple(reader.array("<f8", levels).tolist())
    weights = reader.array("<i4", SH_RULE + 1, FEATURES).astype(np.int32)
    bounds = reader.array("u1", SH_RULE + 1, 2).astype(np.int32)
    mixing = reader.array("<i2", WIDTH, WIDTH + 1).astype(np.int32)
    scales = reader.array("<f4", width).astype(np.float32)
    basis = reader.array("i1", components, width).astype(np.int8)
    origin, centre = np.array(rest[4:7], dtype=np.float32), np.array(rest[8:11], dtype=np.int32)
    numbers = Numbers(origin, np.float32(rest[7]), centre, cell_bits, weights, bounds, mixing, basis, scales)
    check_numbers(path, numbers, np.array(rest[:3]))
    check_ratios(path, ratios, total)
    facts = read_facts(path, reader.bytes(reader.number()))
    entries = _entries(path, reader, end, total)
    check_ends(path, ratios, entries)
    background = (float(rest[0]), float(rest[1]), float(rest[2]))
    return Header(total, sh_degree, bool(antialiased), background, ratios, numbers, facts, entries)


def header_body(path: Path, start: bytes, version: int) -> Reader:
    """The body of a header of a version, checked, ready to be read.

    Raises:
        InputError: see ``read_header``.
    """
    found, length, checksum = _start(path, start)
    if found != version:
        raise InputError(f"{path}: elastic file of version {found}, expected version {version}.")
    end = _START.size + length
    if len(start) < end:
        raise InputError(
            f"{path}: header: expected {end:,} bytes, found {len(start):,}: the file is cut off."
        )
    body = start[_START.size : end]
    if zlib.crc32(body) != checksum:
        raise InputError(f"{path}: header: its checksum is not that of its bytes, the file is damaged.")
    return Reader(path, body)


def header_bytes(path: Path, start: bytes) -> int:
    """Length of the file up to its first chunk, by its first ``START_BYTES`` bytes.

    Raises:
        InputError: no elastic file, or another version.
    """
    return _START.size + _start(path, start)[1]


def version_of(path: Path, start: bytes) -> int:
    """The version that a file's first ``START_BYTES`` bytes name.

    Raises:
        InputError: as ``header_bytes``.
    """
    return _start(path, start)[0]


def _start(path: Path, start: bytes) -> tuple[int, int, int]:
    """Version, and length and checksum of the header's body."""
    if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
        raise InputError(f"{path}: not an elastic file (.egs), it does not begin like one.")
    if len(start) < _START.size:
        raise InputError(
            f"{path}: header: expected {_START.size} bytes, found {len(start)}: the file is cut off."
        )
    _, version, flags, length, checksum = _START.unpack(start[: _START.size])
    if version not in (VERSION, FILM_VERSION):
        raise InputError(
            f"{path}: elastic file of version {version}, this release reads versions {VERSION} and "
            f"{FILM_VERSION}."
        )
    if flags:
        raise InputError(f"{path}: header: unknown flags {flags:#x}; it needs a newer release.")
    if length > MOST_HEADER:
        raise InputError(f"{path}: header: says it has {length:,} bytes, expected at most {MOST_HEADER:,}.")
    return version, length, checksum


def check(path: Path, good: bool, name: str, found: object) -> None:
    """Refuse a header that says what cannot be."""
    if not good:
        raise InputError(f"{path}: header: {name} outside its range, found {found}.")


def check_sizes(path: Path, levels: int, cell_bits: int, components: int, width: int) -> None:
    """Refuse sizes that cannot be; ``width`` is D."""
    check(path, 1 <= levels <= MOST_LEVELS, "levels", levels)
    check(path, 1 <= cell_bits <= 16, "bits of a cell", cell_bits)
    check(path, 0 <= components <= width, "components", components)


def check_numbers(path: Path, numbers: Numbers, background: np.ndarray) -> None:
    """Refuse units, rules and transforms that cannot be."""
    floats = [
        numbers.origin, numbers.basis_scales, background, np.array([numbers.means_unit]), numbers.motion_units
    ]  # fmt: skip
    finite = all(np.isfinite(values).all() for values in floats)
    check(path, finite, "numbers", "NaN or infinity")
    check(path, bool(numbers.means_unit > 0), "unit of the means", numbers.means_unit)
    check(path, bool((numbers.motion_units > 0).all()), "units of the motion", numbers.motion_units.tolist())
    low, high = numbers.bounds[:, 0], numbers.bounds[:, 1]
    check(path, bool((low <= high).all() and (high < STEPS).all()), "step classes", numbers.bounds.tolist())
    inside = bool((np.abs(numbers.centre) < 1 << (MEANS_BITS + 2)).all())
    check(path, inside, "centre", numbers.centre.tolist())
    check(path, int(np.abs(numbers.weights.astype(np.int64)).max()) <= MOST_WEIGHT, "rule", "a larger weight")


def check_ratios(path: Path, ratios: tuple[float, ...], total: int) -> None:
    """Refuse levels that cannot be."""
    ascending = all(0 < low < high for low, high in itertools.pairwise((*ratios, 1.5)))
    check(path, ascending and ratios[-1] == 1.0, "ratios", ratios)
    try:
        counts = [count_at(ratio, total) for ratio in ratios]
    except InputError as error:
        raise InputError(f"{path}: header: ratios out of range, found {ratios} of {total}.") from error
    check(path, counts == sorted(set(counts)), "ratios", ratios)
    check(path, sum(counts[:-1]) <= MOST_LEVEL_ROWS * total, "rows of all levels", sum(counts))


def check_ends(path: Path, ratios: Sequence[float], entries: Sequence[Entry]) -> None:
    """Refuse levels that do not end where a chunk does."""
    levels_end = {count_at(ratio, entries[-1].stop) for ratio in ratios}
    missing = levels_end - {entry.stop for entry in entries}
    check(
        path, not missing, "index", f"no chunk that ends at {sorted(missing)} Gaussians, where a level does"
    )


def read_facts(path: Path, data: bytes) -> dict[str, Any]:
    """A file's facts, for people."""
    return parse_json(f"{path}: header: its facts", data, dict[str, Any])


def _entries(path: Path, reader: Reader, offset: int, total: int) -> tuple[Entry, ...]:
    """The index; lengths that lie are found out by checksums, later."""
    count = reader.number()
    check(path, count >= 1, "chunks", count)
    data = reader.bytes(count * _ENTRY.size)
    if reader.place != len(reader.data):
        raise InputError(f"{path}: header: {len(reader.data) - reader.place} bytes behind the index.")
    entries = []
    before = 0
    for i, (stop, length, checksum) in enumerate(_ENTRY.iter_unpack(data)):
        rows = stop - before
        if not (before < stop <= total and rows <= length * MOST_ROWS_A_BYTE):
            raise InputError(
                f"{path}: header: chunk {i} says it has {rows:,} Gaussians in {length:,} bytes; expected "
                f"1 to {MOST_ROWS_A_BYTE} a byte, and {total:,} in all."
            )
        entries.append(Entry(stop, offset, length, checksum))
        before, offset = stop, offset + length
    check(path, before == total, "Gaussians in all chunks", before)
    return tuple(entries)


def pack_chunk(
    update: tuple[np.ndarray, Sequence[bytes]] | None, rows: tuple[np.ndarray, Sequence[bytes]]
) -> bytes:
    """A chunk: offsets and streams of the update before it, if there is one, and of its rows."""
    parts: list[bytes] = []
    for offsets, streams in ([] if update is None else [update]) + [rows]:
        parts.append(offsets.astype("<i2").tobytes())
        parts.append(np.array([len(stream) for stream in streams], dtype="<u4").tobytes())
        parts.extend(streams)
    return b"".join(parts)


def unpack_chunk(
    data: bytes, chunks_before: int, updates: bool, layout: Layout
) -> tuple[tuple[np.ndarray, list[bytes]] | None, tuple[np.ndarray, list[bytes]], dict[str, int]]:
    """The inverse of ``pack_chunk``, and the bytes of each stream by name.

    Raises:
        ValueError: lengths that do not fit; the message says which.
    """
    place = 0
    sizes: dict[str, int] = {}

    def section(names: Sequence[str], shape: tuple[int, ...], prefix: str) -> tuple[np.ndarray, list[bytes]]:
        nonlocal place
        front = 2 * int(np.prod(shape)) + 4 * len(names)
        if place + front > len(data):
            raise ValueError("it ends within its table of lengths")
        offsets = np.frombuffer(data, "<i2", int(np.prod(shape)), place).astype(np.int32).reshape(shape)
        lengths = np.frombuffer(data, "<u4", len(names), place + front - 4 * len(names)).tolist()
        place += front
        streams = []
        for name, length in zip(names, lengths, strict=True):
            if place + length > len(data):
                raise ValueError(f"its stream {prefix}{name} is longer than the chunk")
            streams.append(data[place : place + length])
            sizes[prefix + name] = length
            place += length
        sizes["lengths"] = sizes.get("lengths", 0) + front
        return offsets, streams

    names = layout.update_streams
    update = section(names, (chunks_before, len(names)), UPDATE) if updates else None
    rows = section(layout.row_streams, (len(layout.attributes),), "")
    if place != len(data) and any(data[place:]):
        raise ValueError(f"{len(data) - place} bytes stand behind its streams")
    return update, rows, sizes
