"""ChunkCoder: codes a model's chunks one after the other, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from flexgs_lightning.codec import rows as kernels
from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.codec.movement import Movement
from flexgs_lightning.codec.quantization import MEANS_BITS, Numbers
from flexgs_lightning.codec.rans import Stream, Trace, new_tables
from flexgs_lightning.model.compression.coordinates import WIDTH
from flexgs_lightning.model.compression.layout import DISTANCE, Field

_SYMBOLS_EACH = 6
"""Most intervals that one number takes."""

Pipe = Trace | Stream


class DamagedChunkError(ValueError):
    """A chunk holds what no encoder writes; the message says what."""


class _Columns:
    """What the columns of a kind adapt: tables, running means, and the weights of their prediction."""

    def __init__(self, first: int, count: int, mixing: Int32[np.ndarray, "C N"]) -> None:
        self.first, self.mixing = first, mixing
        self.new = new_tables(count * kernels.TABLES_A_COLUMN)
        self.updates = new_tables(count * kernels.TABLES_A_COLUMN)
        self.means = np.zeros(count, dtype=np.int64)


class RowTargets(NamedTuple):
    """What an encoder wants a chunk's rows to be, in the order of coding.

    Attributes:
        codes: [n] ascending Morton codes of the rows' cells.
        rows: [n, W] integers.
        flags: [n] who moves.
        sh: [n, C] transformed spherical harmonics.
    """

    codes: Int64[np.ndarray, " n"]
    rows: Int32[np.ndarray, "n W"]
    flags: UInt8[np.ndarray, " n"]
    sh: Float32[np.ndarray, "n C"]


@dataclass
class ChunkCoder:
    """Tables, rows and levels as they stand after the chunks so far.

    Attributes:
        numbers: what the file says about its numbers.
        total: N.
        ratios: those of the levels, the last one 1.
        counts: rows of each level.
    """

    numbers: Numbers
    total: int
    ratios: tuple[float, ...]
    counts: tuple[int, ...]
    rows: list[Int32[np.ndarray, "n W"]] = field(default_factory=list)
    flags: list[UInt8[np.ndarray, " n"]] = field(default_factory=list)
    sh_rest: list[Float32[np.ndarray, "n K 3"]] = field(default_factory=list)
    levels: list[list[Int32[np.ndarray, "n W"]]] = field(default_factory=list)
    sh_classes: list[Int32[np.ndarray, " n"]] = field(default_factory=list)
    """Step classes of the other spherical harmonics."""

    def __post_init__(self) -> None:
        numbers = self.numbers
        self.layout = numbers.layout
        self._cells = new_tables(kernels.CELL_TABLES)
        self._still = _Columns(0, WIDTH, numbers.mixing)
        self._motion = _Columns(DISTANCE + 1, self.layout.motion_columns, numbers.motion_mixing)
        self._moves = new_tables(kernels.FLAG_TABLES)
        self._sh = new_tables(kernels.SH_TABLES)
        self._unused = np.zeros((0, self.layout.width), dtype=np.int32)

    @property
    def done(self) -> int:
        """Rows so far."""
        return sum(map(len, self.rows))

    def needs_update(self) -> bool:
        """Whether the rows so far are a level's prefix, and must move on before more can follow."""
        return len(self.levels) < len(self.counts) - 1 and self.done == self.counts[len(self.levels)]

    def update(
        self,
        pipes: Sequence[Pipe],
        offsets: Int32[np.ndarray, "c A"],
        targets: Sequence[Int32[np.ndarray, "n W"]] | None,
    ) -> None:
        """Bring all rows from the level that they complete to the next one.

        Args:
            pipes: one for each of the layout's ``update_streams``.
            offsets: of each chunk so far and attribute.
            targets: rows of each chunk so far at the next level, or None to decode.

        Raises:
            DamagedChunkError: naming the stream.
        """
        moved = [rows.copy() for rows in self.rows]
        for attribute, (attributes, pipe) in enumerate(zip(self.layout.moved, pipes, strict=True)):
            for chunk, (rows, flags) in enumerate(zip(moved, self.flags, strict=True)):
                wanted = None if targets is None else targets[chunk]
                self._code(pipe, False, attributes, wanted, rows, flags, int(offsets[chunk, attribute]))
            self._check(pipe, f"update of {attributes.name}")
        self.levels.append(self.rows)
        self.rows = moved

    def code_rows(
        self,
        pipes: Sequence[Pipe],
        count: int,
        offsets: Int32[np.ndarray, " A"],
        targets: RowTargets | None,
    ) -> None:
        """Add a chunk's rows.

        Args:
            pipes: one for each of the layout's ``row_streams``.
            count: n.
            offsets: of each of its ``attributes``.
            targets: what the rows should be, or None to decode.

        Raises:
            DamagedChunkError: naming the stream.
        """
        numbers, layout = self.numbers, self.layout
        pipe_of = dict(zip(layout.row_streams, pipes, strict=True))
        offset_of = dict(zip(layout.attributes, offsets.tolist(), strict=True))
        codes = np.zeros(count, dtype=np.int64) if targets is None else targets.codes
        flags = np.zeros(count, dtype=np.uint8) if targets is None else targets.flags.copy()
        self._code_cells(pipe_of["cells"], codes, targets is not None)
        rows = np.zeros((count, layout.width), dtype=np.int32)
        shift = MEANS_BITS - numbers.cell_bits
        kernels.place_rows(cells_of(codes, numbers.cell_bits), shift, numbers.centre, rows)
        for name in layout.row_streams[1:-1]:
            pipe = pipe_of[name]
            if name == "moves":
                pipe.reserve(count)
                kernels.code_flags(targets is not None, flags, self._moves, *_arguments(pipe))
            else:
                attribute = next(field for field in layout.fields if field.name == name)
                wanted = None if targets is None else targets.rows
                self._code(pipe, True, attribute, wanted, rows, flags, offset_of[name])
            self._check(pipe, name)
        sh_targets = None if targets is None else targets.sh
        sh_rest = self._code_sh(pipe_of["sh_rest"], rows, offset_of["sh_rest"], sh_targets)
        self.rows.append(rows)
        self.flags.append(flags)
        self.sh_rest.append(sh_rest)

    def _code_cells(self, pipe: Pipe, codes: Int64[np.ndarray, " n"], encoding: bool) -> None:
        pipe.reserve(_SYMBOLS_EACH * len(codes))
        kernels.code_cells(encoding, codes, 3 * self.numbers.cell_bits, self._cells, *_arguments(pipe))
        self._check(pipe, "cells")

    def _code(
        self,
        pipe: Pipe,
        new: bool,
        attribute: Field,
        targets: Int32[np.ndarray, "n W"] | None,
        rows: Int32[np.ndarray, "n W"],
        flags: UInt8[np.ndarray, " n"],
        offset: int,
    ) -> None:
        """Code an attribute's columns of a chunk's rows, in place."""
        numbers, place = self.numbers, attribute.place
        kind = self._motion if place.start > DISTANCE else self._still
        pipe.reserve(_SYMBOLS_EACH * len(rows) * (place.stop - place.start))
        kernels.code_columns(
            targets is not None, new, place.start, place.stop, kind.first,
            self._unused if targets is None else targets, rows, flags, attribute.flag, offset,
            numbers.weights, numbers.bounds, kind.mixing, kind.means, kind.new if new else kind.updates,
            *_arguments(pipe),
        )  # fmt: skip

    def _code_sh(
        self,
        pipe: Pipe,
        rows: Int32[np.ndarray, "n W"],
        offset: int,
        targets: Float32[np.ndarray, "n C"] | None,
    ) -> Float32[np.ndarray, "n K 3"]:
        numbers = self.numbers
        width, coefficients = numbers.basis.shape
        steps = np.zeros((len(rows), width), dtype=np.int32)
        classes = np.zeros(len(rows), dtype=np.int32)
        encoding = targets is not None
        wanted = np.zeros((0, width), dtype=np.float32) if targets is None else targets
        if width:
            pipe.reserve(_SYMBOLS_EACH * len(rows) * (width + 1))
            kernels.code_sh(
                encoding, wanted, steps, classes, rows, offset, numbers.weights, numbers.bounds,
                numbers.groups, self._sh, *_arguments(pipe),
            )  # fmt: skip
        self._check(pipe, "sh_rest")
        self.sh_classes.append(classes)
        values = np.empty((len(rows), coefficients), dtype=np.float32)
        kernels.expand_sh(steps, classes, numbers.basis, numbers.basis_scales, values)
        return values.reshape(len(rows), coefficients // 3, 3)

    @staticmethod
    def _check(pipe: Pipe, name: str) -> None:
        if isinstance(pipe, Stream) and not pipe.ended_well():
            raise DamagedChunkError(f"its stream {name} holds what no encoder writes")

    def arrays(
        self, background: tuple[float, float, float], antialiased: bool, movement: Movement
    ) -> ElasticModelArrays:
        """The model of all rows so far; within a chunk, rows are spread evenly over the scene."""
        complete = [*self.levels, self.rows]
        levels = tuple(
            Level(ratio, self.numbers.values(np.concatenate([spread(rows) for rows in chunks])))
            for ratio, chunks in zip(self.ratios[: len(complete)], complete, strict=True)
        )
        sh_rest = np.concatenate([spread(chunk) for chunk in self.sh_rest])
        flags = np.concatenate([spread(chunk) for chunk in self.flags])
        return ElasticModelArrays(self.total, levels, sh_rest, background, antialiased, movement, flags)


def _arguments(pipe: Pipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pipe.intervals, pipe.data, pipe.state


def spread(rows: np.ndarray) -> np.ndarray:
    """Rows in the order of their places' bits reversed, so that each part of them covers the scene."""
    bits = max(len(rows) - 1, 0).bit_length()
    places = np.arange(1 << bits)
    reverse = np.zeros_like(places)
    for bit in range(bits):
        reverse |= ((places >> bit) & 1) << (bits - 1 - bit)
    return rows[reverse[reverse < len(rows)]]


def morton_codes(cells: Int64[np.ndarray, "n 3"], bits: int) -> Int64[np.ndarray, " n"]:
    """Bits of x, y and z interleaved, x the highest of three."""
    codes = np.zeros(len(cells), dtype=np.int64)
    for bit in range(bits):
        for axis in range(3):
            codes |= ((cells[:, axis].astype(np.int64) >> bit) & 1) << (3 * bit + 2 - axis)
    return codes


def cells_of(codes: Int64[np.ndarray, " n"], bits: int) -> Int64[np.ndarray, "n 3"]:
    """The inverse of ``morton_codes``."""
    cells = np.zeros((len(codes), 3), dtype=np.int64)
    for bit in range(bits):
        for axis in range(3):
            cells[:, axis] |= ((codes >> (3 * bit + 2 - axis)) & 1) << bit
    return cells
