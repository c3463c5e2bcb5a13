"""Arrays to an elastic file."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, UInt8

from flexgs_lightning.codec import rows as kernels
from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.chunks import ChunkCoder, RowTargets, morton_codes, spread
from flexgs_lightning.codec.container import MOST_ROWS_A_BYTE, UPDATE, Header, pack_chunk, pack_header
from flexgs_lightning.codec.film_container import FilmHeader, pack_film
from flexgs_lightning.codec.quantization import (
    MEANS_BITS,
    Numbers,
    bounds_table,
    fit_basis,
    fit_box,
    fit_mixing,
    fit_motion_mixing,
    motion_units,
)
from flexgs_lightning.codec.rans import Trace, new_tables
from flexgs_lightning.codec.sensitivity import Sensitivity
from flexgs_lightning.codec.steps import StepRule, fit_rule, row_features
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.compression.coordinates import PLACES, WIDTH
from flexgs_lightning.model.compression.layout import DISTANCE, MOVES

FIRST_CHUNK = 256
"""Gaussians of the first chunk."""
GROWTH = 1.5
"""Each chunk is this much larger than the one before, until the largest."""
LARGEST_CHUNK = 8192
CELL_BITS = range(6, 17)
"""What is tried for the cells that places are coded in."""
_JUDGING_CHUNKS = 4
"""Chunks that are looked at for that, evenly spread over the ranks."""


@dataclass(frozen=True)
class Plan:
    """Everything about an encoding but its quality.

    Attributes:
        arrays: the model.
        numbers: what the file will say about its numbers.
        rule: steps at the finest sensible quality; ``StepRule.scaled`` makes them coarser.
        stops: Gaussians up to each chunk's end.
        worth: [N, 2] second derivatives by the share of its motion, and of its turn, that a Gaussian keeps;
            or of no Gaussian.
        energies: [N, V] square of each value times the second derivative by it.
    """

    arrays: ElasticModelArrays
    numbers: Numbers
    rule: StepRule
    stops: tuple[int, ...]
    worth: Float[np.ndarray, "N 2"] = field(default_factory=lambda: np.zeros((0, 2)))
    energies: Float[np.ndarray, "N V"] = field(default_factory=lambda: np.zeros((0, 0)))

    def flags(self, rule: StepRule) -> UInt8[np.ndarray, " N"]:
        """Who moves: Gaussians whose motion is worth its bits at these steps.

        An error of a step's size costs harm^2 / 24, a bit of a number takes three quarters of it away, and
        motion of energy E takes about log2(1 + 12 E / harm^2) / 2 bits a number, beside the flag. Where
        images lose less by standing still, it stands still. Where nothing is known of worth, because training
        has decided, those move that may.
        """
        arrays, harm = self.arrays, rule.harms[-1]
        if not len(self.worth):
            return arrays.flags
        flags = np.zeros(arrays.total, dtype=np.uint8)
        for attribute in arrays.movement.layout.motion:
            if not attribute.flag:
                continue
            bits = 0.5 * np.log2(1 + 12 * self.energies[:, attribute.values] / harm**2).sum(axis=1)
            worth = self.worth[:, 0 if attribute.flag == MOVES else 1] / 2
            flags[worth > math.log(2) / 12 * harm**2 * bits] |= attribute.flag
        return flags & arrays.flags


@dataclass
class Encoding:
    """A file in memory, and the model that it decodes to.

    Attributes:
        header: without facts and index.
        chunks: Gaussians up to each one's end, and its bytes.
        decoded: what a decoder will find.
        bytes_by_stream: of all chunks.
        ranks: [N] row of the source that each decoded one is.
        sh_steps: [N] size of the steps of each decoded row's other spherical harmonics.
    """

    header: Header
    chunks: list[tuple[int, bytes]]
    decoded: ElasticModelArrays
    bytes_by_stream: dict[str, int]
    ranks: Int64[np.ndarray, " N"]
    sh_steps: Float32[np.ndarray, " N"]

    def size(self) -> int:
        """Bytes of the file, without facts."""
        if not self.header.movement.moves:
            return len(pack_header(self.header, self.chunks)) + sum(len(data) for _, data in self.chunks)
        header = self.header
        front = FilmHeader(header.sh_degree, header.antialiased, header.background)
        start, chunks = pack_film(front, [(header, self.chunks)])
        return len(start) + sum(map(len, chunks))

    def write(self, path: str | Path, facts: dict[str, Any] | None = None) -> None:
        """Write the file of a scene that stands still; for others see ``film.write_film``.

        Raises:
            InputError: it cannot be written.
        """
        assert not self.header.movement.moves
        header = replace(self.header, facts=facts or {})
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(pack_header(header, self.chunks))
            file.writelines(data for _, data in self.chunks)


def chunk_stops(total: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Gaussians up to each chunk's end: growing chunks, with an end at each level."""
    stops = [0]
    size = float(FIRST_CHUNK)
    while stops[-1] < total:
        level = next(count for count in counts if count > stops[-1])
        left = level - stops[-1]
        pieces = max(1, round(left / min(size, LARGEST_CHUNK)))
        stops.append(stops[-1] + math.ceil(left / pieces) if pieces > 1 else level)
        size = min(size * GROWTH, LARGEST_CHUNK)
    return tuple(stops[1:])


def make_plan(
    arrays: ElasticModelArrays,
    sensitivities: list[Sensitivity],
    harms: tuple[float, ...],
    balance: dict[str, float] | None = None,
) -> Plan:
    """Fit all that a file says once to a model and its sensitivities.

    Args:
        arrays: a whole model.
        sensitivities: of each of its levels.
        harms: see ``StepRule``.
        balance: see ``StepRule``.
    """
    full = arrays.levels[-1].values
    layout = arrays.movement.layout
    origin, unit = fit_box(full[:, PLACES["means"]])
    motion = layout.motion_columns
    blank = Numbers(
        origin, unit, np.zeros(3, np.int32), max(CELL_BITS),
        np.zeros((layout.width, layout.features), np.int32),
        bounds_table(layout), np.zeros((WIDTH, WIDTH + 1), np.int32), np.zeros((0, 0), np.int8),
        np.zeros(0, np.float32), layout, motion_units(layout, full, unit),
        np.zeros((motion, motion + 1), np.int32),
    )  # fmt: skip
    rows = blank.integers(full)
    means = rows[:, PLACES["means"]]
    centre = np.median(means, axis=0).astype(np.int32)
    counts = [count_at(level.ratio, arrays.total) for level in arrays.levels]
    stops = chunk_stops(arrays.total, counts)
    rows[:, DISTANCE] = distances(means, centre, blank.cell_bits)
    rule = fit_rule(row_features(rows, layout), sensitivities, harms, blank.unit_of, balance or {}, layout)
    flat = arrays.sh_rest.reshape(len(arrays), -1)
    by_coefficient = sensitivities[-1].sh_rest.reshape(len(arrays), -1)
    predicted = _predicted_sh(rows, rule)
    basis, scales = fit_basis(flat, predicted, np.maximum(by_coefficient.mean(axis=0), 1e-30))
    numbers = replace(
        blank,
        centre=centre,
        weights=rule.weights,
        mixing=fit_mixing(rows),
        basis=basis,
        basis_scales=scales,
        motion_mixing=fit_motion_mixing(layout, rows, arrays.flags),
    )
    energies = np.square(full.astype(np.float64)) * sensitivities[-1].values
    return Plan(arrays, numbers, rule, stops, sensitivities[-1].motion, energies)


def _predicted_sh(rows: Int32[np.ndarray, "N W"], rule: StepRule) -> Float[np.ndarray, " N"]:
    """What the rule says errors in each Gaussian's other spherical harmonics cost, up to a factor."""
    weights = rule.weights[DISTANCE].astype(np.float64)
    weights[0] *= 1 << 12
    classes = row_features(rows, rule.layout) @ weights / (1 << 16)
    slope = rule.curves[-1]["sh_rest"][1]
    logs = -classes * math.log(2) / 2 + slope * np.log(np.arange(len(rows)) + 1.0)
    return np.asarray(np.exp(np.maximum(logs - logs.max(), -50.0)))


def distances(
    means: Int32[np.ndarray, "N 3"], centre: Int32[np.ndarray, " 3"], bits: int
) -> Int32[np.ndarray, " N"]:
    """[N] the distance feature of Gaussians at given places."""
    rows = np.zeros((len(means), WIDTH + 1), dtype=np.int32)
    shift = MEANS_BITS - bits
    kernels.place_rows((means >> shift).astype(np.int64), shift, centre, rows)
    return rows[:, WIDTH]


def best_cell_bits(plan: Plan, rule: StepRule) -> int:
    """Bits of the cells that leave the fewest in all at given steps, judged by some of the chunks.

    What is left of a place in a cell of x steps is taken to cost log2(1.5 x) bits an axis, as it does about.
    Cells that are finer than steps would store what steps throw away.
    """
    numbers, levels = plan.numbers, plan.arrays.levels
    spans = list(itertools.pairwise((0, *plan.stops)))
    middles = (plan.arrays.total * (2 * i + 1) // (2 * _JUDGING_CHUNKS) for i in range(_JUDGING_CHUNKS))
    costs = dict.fromkeys(CELL_BITS, 0.0)
    for first, stop in {next(span for span in spans if span[1] > middle) for middle in middles}:
        level = next(i for i, level in enumerate(levels) if len(level.values) >= stop)
        rows = numbers.integers(levels[level].values[first:stop])
        means = np.clip(rows[:, PLACES["means"]], 0, (1 << MEANS_BITS) - 1)
        rows[:, DISTANCE] = distances(means, numbers.centre, max(CELL_BITS))
        steps = _steps_of_means(numbers, rule, rows, rule.offsets(level, first, stop))
        for bits in CELL_BITS:
            trace = Trace()
            trace.reserve(6 * len(means))
            codes = np.sort(morton_codes(means >> (MEANS_BITS - bits), bits))
            tables = new_tables(kernels.CELL_TABLES)
            kernels.code_cells(True, codes, 3 * bits, tables, trace.intervals, trace.data, trace.state)
            left = np.log2(np.maximum(1.5 * (1 << (MEANS_BITS - bits)) / steps, 1.0)).sum()
            costs[bits] += trace.bits() + float(left)
    return min(costs, key=lambda bits: costs[bits])


def _steps_of_means(
    numbers: Numbers, rule: StepRule, rows: Int32[np.ndarray, "n W"], offsets: Int32[np.ndarray, " A"]
) -> Float[np.ndarray, "n 3"]:
    """Sizes of the steps of new rows' means, up to what kernels round on the way."""
    place = PLACES["means"]
    weights = numbers.weights[place].astype(np.float64)
    weights[:, 0] *= 1 << 12
    sums = row_features(rows, rule.layout) @ weights.T
    sums += 1024.0 * offsets[rule.layout.attributes.index("means")]
    low, high = numbers.bounds[place].T
    classes = np.clip(np.floor((sums + 32768) / 65536), low, high).astype(np.int32)
    return kernels.step_sizes(classes.ravel()).reshape(-1, 3).astype(np.float64)


class CodedChunk(NamedTuple):
    """A chunk: Gaussians up to its end, its bytes, bytes by stream, rows of the source in coded order."""

    stop: int
    data: bytes
    sizes: dict[str, int]
    ranks: Int64[np.ndarray, " n"]


def encode(plan: Plan, rule: StepRule) -> Encoding:
    """Encode a whole model."""
    arrays = plan.arrays
    ratios = tuple(level.ratio for level in arrays.levels)
    counts = tuple(len(level.values) for level in arrays.levels)
    numbers = replace(plan.numbers, cell_bits=best_cell_bits(plan, rule))
    plan = replace(plan, numbers=numbers, arrays=replace(arrays, flags=plan.flags(rule)))
    coder = ChunkCoder(plan.numbers, arrays.total, ratios, counts)
    chunks = list(encoded_chunks(plan, rule, coder))
    red, green, blue = (float(np.float32(level)) for level in arrays.background)
    background = (red, green, blue)
    sizes: Counter[str] = Counter()
    for chunk in chunks:
        sizes.update(chunk.sizes)
    classes = np.concatenate([spread(chunk) for chunk in coder.sh_classes])
    header = Header(
        arrays.total,
        arrays.sh_degree,
        arrays.antialiased,
        background,
        ratios,
        plan.numbers,
        movement=arrays.movement,
    )
    return Encoding(
        header,
        [(chunk.stop, chunk.data) for chunk in chunks],
        coder.arrays(background, arrays.antialiased, arrays.movement),
        dict(sizes),
        np.concatenate([spread(chunk.ranks) for chunk in chunks]),
        kernels.step_sizes(classes),
    )


def encoded_chunks(plan: Plan, rule: StepRule, coder: ChunkCoder) -> Iterator[CodedChunk]:
    """Encode one chunk after the other; ``coder`` then holds the model that they decode to."""
    arrays, numbers = plan.arrays, plan.numbers
    layout = numbers.layout
    chunks: list[np.ndarray] = []
    for first, stop in itertools.pairwise((0, *plan.stops)):
        update = _update(coder, arrays, rule, chunks) if coder.needs_update() else None
        level = len(coder.levels)
        targets = numbers.integers(arrays.levels[level].values[first:stop])
        order, codes = _places(targets, numbers.cell_bits)
        ranks = first + order
        offsets = rule.offsets(level, first, stop)
        pipes = [Trace() for _ in layout.row_streams]
        wanted = RowTargets(
            codes, targets[order], arrays.flags[ranks], numbers.transformed(arrays.sh_rest[ranks])
        )
        coder.code_rows(pipes, stop - first, offsets, wanted)
        chunks.append(ranks)
        streams = [pipe.to_bytes() for pipe in pipes]
        sizes = dict(zip(layout.row_streams, map(len, streams), strict=True))
        if update is not None:
            names = [UPDATE + name for name in layout.update_streams]
            sizes |= dict(zip(names, map(len, update[1]), strict=True))
        data = pack_chunk(update, (offsets, streams))
        least = -(-(stop - first) // MOST_ROWS_A_BYTE)
        sizes["lengths"] = max(len(data), least) - sum(sizes.values())
        yield CodedChunk(stop, data.ljust(least, b"\0"), sizes, ranks)


def _update(
    coder: ChunkCoder, arrays: ElasticModelArrays, rule: StepRule, chunks: Sequence[np.ndarray]
) -> tuple[Int32[np.ndarray, "c A"], list[bytes]]:
    level = len(coder.levels) + 1
    values = arrays.levels[level].values
    targets = [coder.numbers.integers(values[ranks]) for ranks in chunks]
    offsets = np.stack(
        [
            rule.offsets(level, int(ranks.min()), int(ranks.max()) + 1)[: len(coder.layout.moved)]
            for ranks in chunks
        ]
    )
    pipes = [Trace() for _ in coder.layout.update_streams]
    coder.update(pipes, offsets, targets)
    return offsets, [pipe.to_bytes() for pipe in pipes]


def _places(
    rows: Int32[np.ndarray, "n W"], bits: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Order of rows by their cells, and the cells' codes in that order."""
    cells = np.clip(rows[:, PLACES["means"]], 0, (1 << MEANS_BITS) - 1) >> (MEANS_BITS - bits)
    codes = morton_codes(cells, bits)
    order = np.argsort(codes, kind="stable")
    return order, codes[order]
