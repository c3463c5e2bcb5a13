"""ChunkCoder: codes a model's chunks one after the other, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int32, Int64

from flexgs_lightning.codec import rows as kernels
from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.codec.quantization import MEANS_BITS, Numbers
from flexgs_lightning.codec.rans import Stream, Trace, new_tables
from flexgs_lightning.model.compression.coordinates import PLACES, WIDTH

ATTRIBUTES = (*PLACES, "sh_rest")
"""What has an offset of its own in each chunk."""
ROW_STREAMS = ("cells", *ATTRIBUTES)
"""Streams of a chunk's rows, in this order."""
UPDATE_STREAMS = tuple(PLACES)
"""Streams of what brings the rows before a chunk to the next level."""
_SYMBOLS_EACH = 6
"""Most intervals that one number takes."""

Pipe = Trace | Stream


class DamagedChunkError(ValueError):
    """A chunk holds what no encoder writes; the message says what."""


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
    rows: list[Int32[np.ndarray, "n 14"]] = field(default_factory=list)
    sh_rest: list[Float32[np.ndarray, "n K 3"]] = field(default_factory=list)
    levels: list[list[Int32[np.ndarray, "n 14"]]] = field(default_factory=list)
    sh_classes: list[Int32[np.ndarray, " n"]] = field(default_factory=list)
    """Step classes of the other spherical harmonics."""

    def __post_init__(self) -> None:
        self._cells = new_tables(kernels.CELL_TABLES)
        self._columns = new_tables(kernels.COLUMN_TABLES)
        self._updates = new_tables(kernels.COLUMN_TABLES)
        self._sh = new_tables(kernels.SH_TABLES)
        self._means = np.zeros(WIDTH, dtype=np.int64)
        self._unused = np.zeros((0, WIDTH + 1), dtype=np.int32)

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
        offsets: Int32[np.ndarray, "c 5"],
        targets: Sequence[Int32[np.ndarray, "n 14"]] | None,
    ) -> None:
        """Bring all rows from the level that they complete to the next one.

        Args:
            pipes: one for each of ``UPDATE_STREAMS``.
            offsets: of each chunk so far and attribute.
            targets: rows of each chunk so far at the next level, or None to decode.

        Raises:
            DamagedChunkError: naming the stream.
        """
        moved = [rows.copy() for rows in self.rows]
        for attribute, (name, place) in enumerate(PLACES.items()):
            for chunk, rows in enumerate(moved):
                wanted = self._unused if targets is None else targets[chunk]
                offset = int(offsets[chunk, attribute])
                self._columns_of(pipes[attribute], False, place, wanted, rows, offset, targets is not None)
            self._check(pipes[attribute], f"update of {name}")
        self.levels.append(self.rows)
        self.rows = moved

    def code_rows(
        self,
        pipes: Sequence[Pipe],
        count: int,
        offsets: Int32[np.ndarray, " 6"],
        codes: Int64[np.ndarray, " n"] | None,
        targets: Int32[np.ndarray, "n 14"] | None,
        sh_targets: Float32[np.ndarray, "n C"] | None,
    ) -> None:
        """Add a chunk's rows.

        Args:
            pipes: one for each of ``ROW_STREAMS``.
            count: n.
            offsets: of each attribute.
            codes: ascending Morton codes of the rows' cells, or None to decode.
            targets: rows in that order, or None.
            sh_targets: transformed spherical harmonics in that order, or None.

        Raises:
            DamagedChunkError: naming the stream.
        """
        numbers, encoding = self.numbers, targets is not None
        codes = np.zeros(count, dtype=np.int64) if codes is None else codes
        pipes[0].reserve(_SYMBOLS_EACH * count)
        kernels.code_cells(encoding, codes, 3 * numbers.cell_bits, self._cells, *_arguments(pipes[0]))
        self._check(pipes[0], "cells")
        rows = np.zeros((count, WIDTH + 1), dtype=np.int32)
        shift = MEANS_BITS - numbers.cell_bits
        kernels.place_rows(cells_of(codes, numbers.cell_bits), shift, numbers.centre, rows)
        for attribute, (name, place) in enumerate(PLACES.items()):
            wanted = self._unused if targets is None else targets
            pipe = pipes[attribute + 1]
            self._columns_of(pipe, True, place, wanted, rows, int(offsets[attribute]), encoding)
            self._check(pipe, name)
        sh_rest = self._code_sh(pipes[-1], rows, int(offsets[-1]), sh_targets)
        self.rows.append(rows)
        self.sh_rest.append(sh_rest)

    def _columns_of(
        self,
        pipe: Pipe,
        new: bool,
        place: slice,
        targets: Int32[np.ndarray, "n 14"],
        rows: Int32[np.ndarray, "n 14"],
        offset: int,
        encoding: bool,
    ) -> None:
        numbers = self.numbers
        tables = self._columns if new else self._updates
        pipe.reserve(_SYMBOLS_EACH * len(rows) * (place.stop - place.start))
        kernels.code_columns(
            encoding, new, place.start, place.stop, targets, rows, offset, numbers.weights, numbers.bounds,
            numbers.mixing, self._means, tables, *_arguments(pipe),
        )  # fmt: skip

    def _code_sh(
        self,
        pipe: Pipe,
        rows: Int32[np.ndarray, "n 14"],
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

    def arrays(self, background: tuple[float, float, float], antialiased: bool) -> ElasticModelArrays:
        """The model of all rows so far; within a chunk, rows are spread evenly over the scene."""
        complete = [*self.levels, self.rows]
        levels = tuple(
            Level(ratio, self.numbers.values(np.concatenate([spread(rows) for rows in chunks])))
            for ratio, chunks in zip(self.ratios[: len(complete)], complete, strict=True)
        )
        sh_rest = np.concatenate([spread(chunk) for chunk in self.sh_rest])
        return ElasticModelArrays(self.total, levels, sh_rest, background, antialiased)


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
