"""The entropy coder: range asymmetric numeral systems (rANS) with adaptive tables of 16 symbols, in integers.

rANS is Duda's (arXiv 1311.2540), with a state in [2^23, 2^31), bytes moved at renormalisation and
probabilities in units of 2^-16. The decoder reads a stream forwards; the encoder traces the intervals of all
symbols forwards, because tables adapt, and then writes them backwards. docs/elastic_file.md specifies every
operation.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt8, UInt32

from flexgs_lightning.jit import inlined, kernel

SYMBOLS = 16
"""Size of the alphabet of every table."""
ROW = SYMBOLS + 2
"""Numbers of a table: the 17 bounds of the symbols' intervals, 0 to 2^16, and how often it has adapted."""
_COUNT = SYMBOLS + 1
_BITS = 16
_WHOLE = 1 << _BITS
_LOWEST = 1 << 23
DIRECT = 8
"""Magnitudes below this have tokens of their own."""

FAILED = 3
"""Place in a stream's state that is 1 after what no encoder writes."""


def new_tables(count: int) -> Int32[np.ndarray, "T 18"]:
    """Tables before they have seen a symbol: all symbols alike."""
    tables = np.zeros((count, ROW), dtype=np.int32)
    tables[:, : SYMBOLS + 1] = np.arange(SYMBOLS + 1) * (_WHOLE // SYMBOLS)
    return tables


class Trace:
    """What an encoder has coded so far: one interval a symbol, in the order of decoding.

    ``intervals`` and ``state`` are what kernels work on; ``reserve`` makes room before they run.
    """

    data = np.zeros(0, dtype=np.uint8)

    def __init__(self) -> None:
        self.intervals = np.zeros(1 << 10, dtype=np.uint32)
        self.state = np.zeros(4, dtype=np.int64)

    def reserve(self, symbols: int) -> None:
        """Make room for that many more symbols."""
        needed = int(self.state[1]) + symbols
        if needed > len(self.intervals):
            grown = np.zeros(max(needed, 2 * len(self.intervals)), dtype=np.uint32)
            grown[: len(self.intervals)] = self.intervals
            self.intervals = grown

    def bits(self) -> float:
        """Information of what was coded, without the stream's own 4 bytes."""
        frequencies = (self.intervals[: self.state[1]] & 0xFFFF).astype(np.float64) + 1.0
        return float(_BITS * len(frequencies) - np.log2(frequencies).sum())

    def to_bytes(self) -> bytes:
        """The stream."""
        if self.state[1] == 0:
            return b""
        out = np.zeros(2 * int(self.state[1]) + 8, dtype=np.uint8)
        start = _write(self.intervals, int(self.state[1]), out)
        return out[start:].tobytes()


class Stream:
    """What a decoder reads from; the same fields as ``Trace``."""

    intervals = np.zeros(0, dtype=np.uint32)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = np.frombuffer(data, dtype=np.uint8)
        self.state = np.zeros(4, dtype=np.int64)
        if len(self.data) >= 4:
            self.state[0] = int.from_bytes(self.data[:4].tobytes(), "big")
            self.state[1] = 4
        self.empty = len(self.data) == 0
        self.failed = not self.empty and not _LOWEST <= self.state[0] < 1 << 31

    def reserve(self, symbols: int) -> None:
        """A decoder needs no room."""

    def ended_well(self) -> bool:
        """Whether all of the stream was read and its state is where every encoder starts.

        Bytes that say something else are found out here, all but one in 2^31 of them.
        """
        if self.failed or self.state[FAILED]:
            return False
        return self.empty or bool(self.state[0] == _LOWEST and self.state[1] == len(self.data))


@kernel
def _write(intervals: UInt32[np.ndarray, " S"], count: int, out: UInt8[np.ndarray, " B"]) -> int:
    """Write a trace to the end of ``out``; returns where it begins."""
    place = len(out)
    state = np.int64(_LOWEST)
    for i in range(count - 1, -1, -1):
        start = np.int64(intervals[i] >> np.uint32(16))
        frequency = np.int64(intervals[i] & np.uint32(0xFFFF)) + 1
        limit = frequency << 15
        while state >= limit:
            place -= 1
            out[place] = state & 255
            state >>= 8
        state = ((state // frequency) << 16) + state % frequency + start
    for _ in range(4):
        place -= 1
        out[place] = state & 255
        state >>= 8
    return place


@inlined
def _advance(start, frequency, slot, data, state):
    """Leave a decoded interval, and read what the state has room for."""
    x = frequency * (state[0] >> 16) + slot - start
    place = state[1]
    while x < 8388608:
        byte = 0
        if place < len(data):
            byte = np.int64(data[place])
        else:
            state[3] = 1
            if x == 0:  # nothing that an encoder writes; must not loop
                x = 8388608
        place += 1
        x = (x << 8) | byte
    state[0] = x
    state[1] = place


@inlined
def symbol(encoding, value, tables, place, intervals, data, state):
    """Code one symbol of 0..15 by the adaptive table ``tables[place]``; returns it.

    Tables are not passed as slices: numba would count references to each.
    """
    if encoding:
        start = tables[place, value]
        intervals[state[1]] = (np.uint32(start) << np.uint32(16)) | np.uint32(
            tables[place, value + 1] - start - 1
        )
        state[1] += 1
    else:
        slot = np.int32(state[0] & 65535)
        value = 0
        for i in range(1, 16):
            value += tables[place, i] <= slot
        start = tables[place, value]
        _advance(np.int64(start), np.int64(tables[place, value + 1] - start), np.int64(slot), data, state)
    count = tables[place, 17]
    rate = np.int32(4 + (count > 15) + (count > 50) + (count > 150))
    tables[place, 17] = count + (count < 255)
    for i in range(1, 16):
        target = np.int32(i) + (np.int32(65520) if i > value else np.int32(0))
        tables[place, i] += (target - tables[place, i]) >> rate
    return value


@inlined
def plain_bits(encoding, value, count, intervals, data, state):
    """Code an integer of 1 to 16 bits, every value alike; returns it."""
    frequency = np.int64(1) << (16 - count)
    if encoding:
        intervals[state[1]] = np.uint32(((value << (16 - count)) << 16) | (frequency - 1))
        state[1] += 1
        return value
    slot = state[0] & 65535
    value = slot >> (16 - count)
    _advance(value << (16 - count), frequency, slot, data, state)
    return value


@inlined
def long_bits(encoding, value, count, intervals, data, state):
    """Code an integer of 0 to 48 bits, every value alike, in pieces of 16 from the top; returns it."""
    result = np.int64(0)
    left = count
    while left > 0:
        piece = min(left, 16)
        left -= piece
        part = (value >> left) & ((np.int64(1) << piece) - 1)
        result = (result << piece) | plain_bits(encoding, part, piece, intervals, data, state)
    return result


@inlined
def bit_length(value):
    """Bits that a non-negative integer takes; 0 for 0."""
    bits = 0
    while value > 0:
        bits += 1
        value >>= 1
    return bits


@inlined
def magnitude_bits(value, tables, place):
    """Bits that ``magnitude`` would take for a value; of one above 63 about as many."""
    token = value
    plain = 0
    if value >= 8:
        length = bit_length(value)
        token = min(8 + 2 * (length - 4) + ((value >> (length - 2)) & 1), np.int64(15))
        plain = length - 2
    return 16.0 - np.log2(np.float64(tables[place, token + 1] - tables[place, token])) + plain


@inlined
def magnitude(encoding, value, tables, place, intervals, data, state):
    """Code a non-negative integer below 2^25: a token by ``tables[place]``, and plain bits; returns it.

    Tokens 0..7 are the values themselves; 8..13 halves of the octaves from 8, 16 and 32; 14 is 64..127; 15
    all that is larger, with its number of bits.
    """
    token = 0
    bits = 0
    if encoding:
        if value < 8:
            token = value
        elif value < 64:
            bits = bit_length(value)
            token = 8 + 2 * (bits - 4) + ((value >> (bits - 2)) & 1)
        else:
            token = 14 if value < 128 else 15
    token = symbol(encoding, token, tables, place, intervals, data, state)
    if token < 8:
        return np.int64(token)
    if token < 14:
        bits = 2 + ((token - 8) >> 1)
        low = np.int64(2 + (token & 1)) << bits
        return low + plain_bits(encoding, value - low, bits, intervals, data, state)
    if token == 14:
        return 64 + plain_bits(encoding, value - 64, 6, intervals, data, state)
    extra = value - 127  # at least 1
    bits = bit_length(extra) - 1 if encoding else 0
    bits = plain_bits(encoding, bits, 5, intervals, data, state)
    if bits > 24:
        state[3] = 1
        return np.int64(0)
    low = np.int64(1) << bits
    return 127 + low + long_bits(encoding, extra - low, bits, intervals, data, state)
