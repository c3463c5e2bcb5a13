"""Kernels that code a chunk's rows: places, columns of a level, spherical harmonics. All in integers.

Each kernel codes both ways: with ``encoding`` it traces what it codes, otherwise it reads it from a stream.
One piece of code so decides for both which table a symbol uses, and they cannot come apart.
docs/elastic_file.md specifies every operation.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np

from flexgs_lightning.codec.rans import bit_length, long_bits, magnitude, magnitude_bits, plain_bits, symbol
from flexgs_lightning.jit import compiler, inlined, kernel

LIMIT = 1 << 24
"""Integers of a model lie below this in magnitude, so that float32 holds each of them."""
STEPS = 96
"""Step sizes; each is about 2^(1/4) of the one before."""
FEATURES = 7
"""What a step depends on, besides its chunk: see ``_step_class``. Where opacity varies in time, the width in
time is one more."""
FRACTION = 16
"""Bits behind the point of the rule's weights."""

CELL_TABLES = 16 + 16 + 48
"""Tables of places: high part of a gap's length by the one before; low part by the high; leading bits."""
TABLES_A_COLUMN = 48 * 3 + 4
"""Tables of each column: magnitudes by step and what came before in the row; behind those of all columns, the
signs of new rows."""
FLAG_TABLES = 16
"""Tables of flags, by those of the two Gaussians before."""
SH_GROUPS = 10
_SH_FIRST = 48
SH_TABLES = _SH_FIRST + SH_GROUPS * 4 * 12
"""Tables of spherical harmonics: how many are coded, by step; magnitudes by group, how many are left, and
the magnitudes before."""

SH_RULE = 13
"""Row of the rule's weights that belongs to the other spherical harmonics."""

BIT_PRICE = 0.15
"""What an encoder pays for a bit of a column, in squared steps. At fine steps it is worth ln(2) / 6 = 0.116:
a step s makes errors of s^2 / 12, and one more bit a quarter of that; at coarse ones more."""

UNSEEN = 149
"""The largest t of an opacity, in units of 2^-12, whose t^2 (3 - 2 t) is below 1/255: nobody draws it."""

exact = compiler(fastmath=set())
"""Decorator of kernels whose floating-point operations are the file's meaning: done one by one as written."""


@inlined
def step_size(step_class):
    """Step of a class: 16, 19, 23, 27 times a power of two, sixteenths rounded down, at least 1."""
    part = step_class & 3
    base = 16
    if part == 1:
        base = 19
    elif part == 2:
        base = 23
    elif part == 3:
        base = 27
    return max(np.int64(1), (np.int64(base) << (step_class >> 2)) >> 4)


@inlined
def _limited(value):
    """The nearest integer that a model may hold."""
    return min(max(value, np.int64(-16777215)), np.int64(16777215))


@inlined
def _short(value):
    """The nearest 16-bit integer."""
    return min(max(np.int64(value), np.int64(-32768)), np.int64(32767))


@inlined
def _step_class(rows, i, weights, c, offset, bounds):
    """The rule: a chunk's offset, and weights times what the row already says about its Gaussian."""
    t = min(max(np.int64(rows[i, 0]), np.int64(0)), np.int64(4096))
    total = np.int64(offset) << 10
    total += np.int64(weights[c, 0]) << 12
    total += np.int64(weights[c, 1]) * t
    total += np.int64(weights[c, 2]) * ((t * t) >> 12)
    total += np.int64(weights[c, 3]) * _short(rows[i, 1])
    total += np.int64(weights[c, 4]) * _short(rows[i, 2])
    total += np.int64(weights[c, 5]) * _short(rows[i, 3])
    total += np.int64(weights[c, 6]) * rows[i, 13]
    if weights.shape[1] > 7:
        total += np.int64(weights[c, 7]) * _short(rows[i, 14])
    return min(max((total + 32768) >> 16, np.int64(bounds[c, 0])), np.int64(bounds[c, 1]))


@inlined
def _cheapest(wanted, tables, context):
    """How many steps to code for ``wanted`` >= 0 of them: what costs least in squared error and bits.

    Tried are the nearest number, one less, and none, which needs no sign.
    """
    best = np.int64(wanted + 0.5)
    if best == 0:
        return best
    sign = 1.0
    least = (wanted - best) ** 2 + BIT_PRICE * (magnitude_bits(best, tables, context) + sign)
    for fewer in (best - 1, np.int64(0)):
        sign = 1.0 if fewer else 0.0
        cost = (wanted - fewer) ** 2 + BIT_PRICE * (magnitude_bits(fewer, tables, context) + sign)
        if cost < least:
            least = cost
            best = fewer
    return best


@inlined
def _still_unseen(steps, predicted, step):
    """The same number of steps, or fewer, so that an opacity that nobody sees stays one.

    Their errors cannot be left to chance: what is predicted for a faint Gaussian is what is predicted for all
    of its kind, and a thousand faint ones that all come out a little too dense are a fog.
    """
    beyond = predicted + steps * step - UNSEEN
    return steps - (beyond + step - 1) // step if beyond > 0 else steps


@inlined
def _logarithm(value):
    """About 1024 log2 of a positive integer: linear within each octave."""
    length = bit_length(value) - 1
    return (np.int64(length) << 10) + ((value << 10) >> length) - 1024


@kernel
def place_rows(cells, shift, centre, rows):
    """Start rows [n, W] of Gaussians in cells [n, 3]: all zero but the means, and the distance in column 13.

    The distance is that of the cell's middle from ``centre`` [3], largest over the axes, as ``_logarithm``.
    """
    half = (np.int64(1) << shift) >> 1
    for i in range(len(cells)):
        distance = np.int64(1)
        for axis in range(3):
            middle = (np.int64(cells[i, axis]) << shift) + half
            rows[i, 4 + axis] = middle
            distance = max(distance, abs(middle - centre[axis]))
        rows[i, 13] = _logarithm(distance)


@kernel
def code_cells(encoding, codes, bits, tables, intervals, data, state):
    """Code ascending Morton codes [n] int64 of ``bits`` bits as differences."""
    previous = np.int64(0)
    before = 0
    for i in range(len(codes)):
        gap = codes[i] - previous if encoding else np.int64(0)
        length = bit_length(gap) if encoding else 0
        high = symbol(encoding, length >> 2, tables, before, intervals, data, state)
        low = symbol(encoding, length & 3, tables, 16 + high, intervals, data, state)
        length = 4 * high + (low & 3)
        if length > bits:
            state[3] = 1
            return
        if length > 1:
            rest = length - 1
            top = min(rest, 3)
            part = (gap >> (rest - top)) & ((1 << top) - 1)
            part = symbol(encoding, part, tables, 31 + length, intervals, data, state) & ((1 << top) - 1)
            rest -= top
            plain = long_bits(encoding, gap & ((np.int64(1) << rest) - 1), rest, intervals, data, state)
            gap = (((np.int64(1) << top) | part) << rest) | plain
        else:
            gap = np.int64(length)
        previous += gap
        if previous >> bits:
            state[3] = 1
            return
        codes[i] = previous
        before = high


@kernel
def code_flags(encoding, flags, tables, intervals, data, state):
    """Code flags [n] uint8 of 0 to 3 by those of the two Gaussians before."""
    before = 0
    earlier = 0
    for i in range(len(flags)):
        place = 4 * before + earlier
        found = symbol(encoding, np.int64(flags[i]), tables, place, intervals, data, state) & 3
        flags[i] = found
        earlier = before
        before = found


@kernel
def code_columns(
    encoding, new, start, stop, first, targets, rows, flags, flag, offset, weights, bounds, mixing, means,
    tables, intervals, data, state,
):  # fmt: skip
    """Code columns ``start`` to ``stop`` of rows [n, W] int32, in place.

    Args:
        encoding: trace what leads from ``rows`` as near to ``targets`` as the steps allow; else read it.
        new: columns other than means are predicted from the row's earlier ones; else from what they are.
        start: first column.
        stop: behind the last column.
        first: the first of the columns that share ``mixing``, ``means`` and ``tables``: 0, or 14 for motion.
        targets: [n, W] int32, wanted values (encoding).
        rows: [n, W] int32, the rows as far as known; columns are overwritten by their new values.
        flags: [n] uint8 of the rows.
        flag: rows without it are left out; 0 for all.
        offset: of the chunk and attribute, added to the rule.
        weights: [W, F] int32 of the rule.
        bounds: [W, 2] int32 lowest and highest step class.
        mixing: [C, C + 1] int32 weights of the prediction in 2^-12, over columns and the row before.
        means: [C] int64 running means of the prediction's errors, in 2^-8.
        tables: [T, 18] int32, see ``TABLES_A_COLUMN``.
        intervals: of a trace.
        data: of a stream.
        state: of the trace or stream.
    """
    count = len(means)
    signs = 144 * count
    for i in range(len(rows)):
        if flag != 0 and flags[i] & flag == 0:
            continue
        active = 0
        for c in range(start, stop):
            place = c - first
            step_class = _step_class(rows, i, weights, c, offset, bounds)
            step = step_size(step_class)
            predicted = np.int64(rows[i, c])
            mixed = new and not 4 <= c < 7
            if mixed:
                total = np.int64(0)
                for d in range(place):
                    total += np.int64(mixing[place, d]) * rows[i, first + d]
                if i > 0:
                    total += np.int64(mixing[place, count]) * rows[i - 1, c]
                predicted = _limited(((total + 2048) >> 12) + ((means[place] + 128) >> 8))
            bucket = step_class >> (1 if new else 2)
            context = (place * 48 + bucket) * 3 + min(active, 2)
            steps = np.int64(0)
            if encoding:
                error = np.int64(targets[i, c]) - predicted
                steps = _cheapest(abs(error) / np.float64(step), tables, context)
                if error < 0:
                    steps = -steps
                if c == 0 and targets[i, 0] <= UNSEEN:
                    steps = _still_unseen(steps, predicted, step)
            size = magnitude(encoding, abs(steps), tables, context, intervals, data, state)
            if size > 0:
                sign = 1 if steps < 0 else 0
                if new:
                    context = signs + place * 4 + min(size, 4) - 1
                    sign = symbol(encoding, sign, tables, context, intervals, data, state) & 1
                else:
                    sign = plain_bits(encoding, sign, 1, intervals, data, state)
                steps = -size if sign else size
                active += 1
            else:
                steps = np.int64(0)
            value = _limited(predicted + steps * step)
            if mixed:
                means[place] += ((value - predicted) * 256) >> 6
            rows[i, c] = value


@kernel
def code_sh(
    encoding, targets, coefficients, classes, rows, offset, weights, bounds, groups, tables,
    intervals, data, state,
):  # fmt: skip
    """Code the transformed spherical harmonics of n Gaussians: [n, C] int32 multiples of a step each.

    Args:
        encoding: trace ``targets`` divided by the steps; else read.
        targets: [n, C] float32 coefficients in units of 1 (encoding).
        coefficients: [n, C] int32 numbers of steps; written both ways.
        classes: [n] int32 step class of each Gaussian; written both ways.
        rows: [n, W] int32 of the Gaussians, complete.
        offset: as in ``code_columns``, with the weights of row ``SH_RULE``.
        weights: as in ``code_columns``.
        bounds: as in ``code_columns``.
        groups: [C] int32 group of tables of each coefficient.
        tables: [T, 18] int32, see ``SH_TABLES``.
        intervals: of a trace.
        data: of a stream.
        state: of the trace or stream.
    """
    width = coefficients.shape[1]
    for i in range(len(coefficients)):
        step_class = _step_class(rows, i, weights, 13, offset, bounds)
        classes[i] = step_class
        coded = 0
        if encoding:
            step = np.float32(step_size(step_class))
            for j in range(width):
                steps = np.int32(np.rint(targets[i, j] / step))
                coefficients[i, j] = steps
                if steps != 0:
                    coded = j + 1
        coded = magnitude(encoding, coded, tables, step_class >> 1, intervals, data, state)
        if coded > width:
            state[3] = 1
            return
        first, second, third = np.int64(3), np.int64(2), np.int64(2)
        for j in range(coded):
            activity = 2 * first + second + third
            if activity >= 8:
                activity = min(6 + bit_length(activity >> 2), 11)
            left = coded - 1 - j
            left = 0 if left == 0 else (1 if left < 4 else (2 if left < 12 else 3))
            context = 48 + (groups[j] * 4 + left) * 12 + activity
            steps = np.int64(coefficients[i, j])
            size = magnitude(encoding, abs(steps), tables, context, intervals, data, state)
            if size >= 32768:
                state[3] = 1
                return
            if size > 0:
                sign = plain_bits(encoding, 1 if steps < 0 else 0, 1, intervals, data, state)
                coefficients[i, j] = -size if sign else size
            else:
                coefficients[i, j] = 0
            third = second
            second = first
            first = size
        for j in range(coded, width):
            coefficients[i, j] = 0


@exact
def expand_sh(coefficients, classes, basis, scales, values):
    """Coefficients [n, C] in steps to spherical harmonics [n, D] float32.

    The integer sum over the basis is exact; then float32(sum) * (float32(step) * scale), rounded twice.
    """
    for i in range(len(coefficients)):
        sums = np.zeros(values.shape[1], dtype=np.int32)
        for j in range(coefficients.shape[1]):
            steps = coefficients[i, j]
            if steps != 0:
                for d in range(len(sums)):
                    sums[d] += steps * np.int32(basis[j, d])
        step = np.float32(step_size(np.int64(classes[i])))
        for d in range(len(sums)):
            values[i, d] = np.float32(sums[d]) * np.float32(step * scales[d])


@exact
def step_sizes(classes):
    """Steps [n] float32 of step classes."""
    steps = np.empty(len(classes), dtype=np.float32)
    for i in range(len(classes)):
        steps[i] = np.float32(step_size(np.int64(classes[i])))
    return steps
