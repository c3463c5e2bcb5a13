"""The frame of films, version 2 of the elastic file: front, index, and heads of groups of frames."""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flexgs_lightning.codec.container import (
    FILM_VERSION,
    START_BYTES,
    Entry,
    Header,
    Reader,
    check,
    check_ends,
    check_numbers,
    check_ratios,
    check_sizes,
    header_body,
    packed,
    read_facts,
)
from flexgs_lightning.codec.movement import MOST_BASES, MOST_DEGREE, MOST_KNOTS, PATHS, Movement
from flexgs_lightning.codec.quantization import Numbers
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.basis_motion import LEAST_KNOTS
from flexgs_lightning.model.compression.coordinates import WIDTH

_FRONT = struct.Struct("<BB3fdIH")
"""SH degree, antialiased, background, seconds, frames, groups."""
_ENTRY = struct.Struct("<IIII")
"""Group, Gaussians of the group up to the chunk's end, bytes, CRC-32."""
_HEAD = struct.Struct("<BBi3ff3iBBBHf")
"""Levels, bits of a cell, components, origin, unit, centre, path, varying, order, knots, least opacity."""
BYTES_A_ROW = 4
"""A chunk has at most one Gaussian for so many bytes, so that memory is bounded by the file's size."""


class FilmEntry(NamedTuple):
    """A chunk in the index of a film, and the group that it belongs to."""

    group: int
    chunk: Entry


@dataclass(frozen=True)
class FilmHeader:
    """All that stands before the first chunk of a film.

    Attributes:
        sh_degree: of all groups.
        antialiased: see ``ElasticModelArrays``.
        background: likewise.
        seconds: how long the film lasts; None if that is unknown.
        frames: of the film; None if that is unknown.
        bounds: [G + 1] where groups begin and end, from 0 to 1.
        facts: for people.
        entries: the index, in the file's order.
    """

    sh_degree: int
    antialiased: bool
    background: tuple[float, float, float]
    seconds: float | None = None
    frames: int | None = None
    bounds: tuple[float, ...] = (0.0, 1.0)
    facts: dict[str, Any] = field(default_factory=dict)
    entries: tuple[FilmEntry, ...] = ()

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.bounds) - 1

    def chunks_of(self, group: int) -> tuple[Entry, ...]:
        """A group's chunks."""
        return tuple(entry.chunk for entry in self.entries if entry.group == group)

    def indexed_lengths(self) -> list[int]:
        """Lengths in bytes at which the film may be cut, one a chunk."""
        return [entry.chunk.offset + entry.chunk.length for entry in self.entries]


def pack_film(
    front: FilmHeader, groups: Sequence[tuple[Header, Sequence[tuple[int, bytes]]]]
) -> tuple[bytes, list[bytes]]:
    """A film up to its first chunk, and its chunks in the order of the file.

    Chunks stand in the order of the share of their group's Gaussians before them: the coarse prefix of each
    group comes first, and a cut is the whole film, coarser.

    Args:
        front: index and all, but for the entries.
        groups: of each its header, and its chunks as ``Encoding`` has them.
    """
    rows: list[tuple[float, int, int, bytes]] = []
    for group, (header, chunks) in enumerate(groups):
        before = 0
        for index, (stop, data) in enumerate(chunks):
            data = data if index else pack_head(header) + data
            padded = data.ljust(BYTES_A_ROW * (stop - before), b"\0")
            rows.append((before / header.total, group, stop, padded))
            before = stop
    rows.sort(key=lambda row: row[:3])
    facts = json.dumps(front.facts, separators=(",", ":")).encode()
    body = [
        _FRONT.pack(
            front.sh_degree, front.antialiased, *front.background, front.seconds or 0.0, front.frames or 0,
            len(groups),
        ),
        np.array(front.bounds, dtype="<f8").tobytes(),
        struct.pack("<I", len(facts)),
        facts,
        struct.pack("<I", len(rows)),
        *(_ENTRY.pack(group, stop, len(data), zlib.crc32(data)) for _, group, stop, data in rows),
    ]  # fmt: skip
    return packed(FILM_VERSION, b"".join(body)), [data for *_, data in rows]


def pack_head(header: Header) -> bytes:
    """What a group's first chunk begins with."""
    numbers, movement = header.numbers, header.movement
    body = b"".join(
        [
            _HEAD.pack(
                len(header.ratios), numbers.cell_bits, len(numbers.basis), *numbers.origin.tolist(),
                float(numbers.means_unit), *numbers.centre.tolist(), PATHS.index(movement.path),
                movement.varying, movement.order, len(movement.knots), movement.least_opacity,
            ),
            np.array(header.ratios, dtype="<f8").tobytes(),
            numbers.motion_units.astype("<f4").tobytes(),
            numbers.weights.astype("<i4").tobytes(),
            numbers.bounds.astype("u1").tobytes(),
            numbers.mixing.astype("<i2").tobytes(),
            numbers.motion_mixing.astype("<i2").tobytes(),
            numbers.basis_scales.astype("<f4").tobytes(),
            numbers.basis.tobytes(),
            np.ascontiguousarray(movement.knots[..., :3], dtype="<f4").tobytes(),
            np.ascontiguousarray(movement.knots[..., 3:], dtype="<f4").tobytes(),
        ]
    )  # fmt: skip
    return struct.pack("<I", len(body)) + body


def read_front(path: Path, start: bytes) -> FilmHeader:
    """Read what stands before a film's first chunk.

    Args:
        path: for messages.
        start: the file's first bytes, at least ``header_bytes`` of them.

    Raises:
        InputError: no film, or a front that is damaged or contradicts itself.
    """
    reader = header_body(path, start, FILM_VERSION)
    sh_degree, antialiased, red, green, blue, seconds, frames, groups = reader.struct(_FRONT)
    check(path, sh_degree <= 3, "SH degree", sh_degree)
    check(path, antialiased <= 1, "antialiased", antialiased)
    check(path, all(map(math.isfinite, (red, green, blue))), "background", (red, green, blue))
    check(path, 0 <= seconds < math.inf, "seconds", seconds)
    check(path, groups >= 1, "groups", groups)
    bounds = tuple(reader.array("<f8", groups + 1).tolist())
    ascending = all(low < high for low, high in itertools.pairwise(bounds))
    check(path, ascending and bounds[0] == 0.0 and bounds[-1] == 1.0, "times of groups", bounds)
    facts = read_facts(path, reader.bytes(reader.number()))
    entries = _entries(path, reader, groups)
    background = (red, green, blue)
    return FilmHeader(
        sh_degree, bool(antialiased), background, seconds or None, frames or None, bounds, facts, entries
    )


def _entries(path: Path, reader: Reader, groups: int) -> tuple[FilmEntry, ...]:
    count = reader.number()
    check(path, count >= 1, "chunks", count)
    data = reader.bytes(count * _ENTRY.size)
    if reader.place != len(reader.data):
        raise InputError(f"{path}: header: {len(reader.data) - reader.place} bytes behind the index.")
    offset = START_BYTES + len(reader.data)
    before = [0] * groups
    entries = []
    for index, (group, stop, length, checksum) in enumerate(_ENTRY.iter_unpack(data)):
        check(path, group < groups, f"group of chunk {index}", group)
        rows = stop - before[group]
        check(path, 1 <= rows <= length // BYTES_A_ROW, f"Gaussians of chunk {index}", f"{rows} in {length}")
        entries.append(FilmEntry(group, Entry(stop, offset, length, checksum)))
        before[group], offset = stop, offset + length
    check(path, all(before), "groups", f"one without a chunk: {before.index(min(before))}")
    return tuple(entries)


def read_head(path: Path, front: FilmHeader, group: int, data: bytes) -> tuple[Header, bytes]:
    """A group's header, and what is left of its first chunk.

    Args:
        path: for messages.
        front: of the film.
        group: its number.
        data: its first chunk.

    Raises:
        InputError: a head that contradicts itself.
    """
    length = Reader(path, data[:4]).number()
    reader = Reader(path, data[4 : 4 + length])
    levels, cell_bits, components, *rest = reader.struct(_HEAD)
    movement = _movement(path, reader, *rest[7:])
    layout, width = movement.layout, 3 * ((front.sh_degree + 1) ** 2 - 1)
    check_sizes(path, levels, cell_bits, components, width)
    motion = layout.motion_columns
    ratios = tuple(reader.array("<f8", levels).tolist())
    motion_units = reader.array("<f4", motion).astype(np.float32)
    weights = reader.array("<i4", layout.width, layout.features).astype(np.int32)
    bounds = reader.array("u1", layout.width, 2).astype(np.int32)
    mixing = reader.array("<i2", WIDTH, WIDTH + 1).astype(np.int32)
    motion_mixing = reader.array("<i2", motion, motion + 1).astype(np.int32)
    scales = reader.array("<f4", width).astype(np.float32)
    basis = reader.array("i1", components, width).astype(np.int8)
    numbers = Numbers(
        np.array(rest[:3], dtype=np.float32), np.float32(rest[3]), np.array(rest[4:7], dtype=np.int32),
        cell_bits, weights, bounds, mixing, basis, scales, layout, motion_units, motion_mixing,
    )  # fmt: skip
    movement = _with_knots(path, reader, movement, rest[10])
    left = len(reader.data) - reader.place
    check(path, len(reader.data) == length and left == 0, f"length of the head of group {group}", length)
    entries = front.chunks_of(group)
    check_numbers(path, numbers, np.array(front.background))
    check_ratios(path, ratios, entries[-1].stop)
    check_ends(path, ratios, entries)
    header = Header(
        entries[-1].stop, front.sh_degree, front.antialiased, front.background, ratios, numbers,
        entries=entries, movement=movement,
    )  # fmt: skip
    return header, data[4 + length :]


def _movement(
    path: Path, reader: Reader, number: int, varying: int, order: int, knots: int, least: float
) -> Movement:
    """How a group moves, without its bases' knots."""
    check(path, number < len(PATHS), "path of the motion", number)
    kind = PATHS[number]
    low, high = {"none": (0, 0), "polynomial": (1, MOST_DEGREE)}.get(kind, (1, MOST_BASES))
    check(path, low <= order <= high, "degree or bases of the motion", order)
    based = kind in ("bases", "free_bases")
    check(path, LEAST_KNOTS <= knots <= MOST_KNOTS if based else knots == 0, "knots", knots)
    check(path, varying <= 1, "varying opacity", varying)
    check(path, 0 < least < 1 if varying else least == 0, "least opacity", least)
    return Movement(kind, order, bool(varying), least)


def _with_knots(path: Path, reader: Reader, movement: Movement, knots: int) -> Movement:
    if not knots:
        return movement
    parts = [reader.array("<f4", knots, movement.order, width) for width in (3, 4)]
    found = np.concatenate(parts, axis=-1).astype(np.float32)
    check(path, bool(np.isfinite(found).all()), "knots", "NaN or infinity")
    return Movement(movement.path, movement.order, movement.varying, movement.least_opacity, found)
