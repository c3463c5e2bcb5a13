"""Bytes by asymmetric numeral systems, each column by its own histogram.

Probabilities are integers in the stream divided in double precision, hence the same everywhere; a network's
output would not be.
"""

from __future__ import annotations

import struct
from pathlib import Path

import constriction
import numpy as np
from jaxtyping import UInt8

from flexgs_lightning.codec.recipes.package import packed, unpacked
from flexgs_lightning.errors import InputError

SYMBOLS = 256
_START = struct.Struct("<I")
"""Bytes of the packed histograms that follow."""


def ans_bytes(symbols: UInt8[np.ndarray, "N C"]) -> bytes:
    """Histograms of all columns, then the columns, the last one first: what is coded last is read first."""
    counts = np.stack([np.bincount(column, minlength=SYMBOLS) for column in symbols.T]).astype("<u4")
    coder = constriction.stream.stack.AnsCoder()
    for column, histogram in reversed(list(zip(symbols.T, counts, strict=True))):
        coder.encode_reverse(column.astype(np.int32), _model(histogram))
    table = packed(counts)
    return _START.pack(len(table)) + table + coder.get_compressed().astype("<u4").tobytes()


def ans_symbols(path: Path, name: str, data: bytes, count: int, columns: int) -> UInt8[np.ndarray, "N C"]:
    """The inverse of ``ans_bytes``.

    Raises:
        InputError: damaged, or of another size.
    """
    if len(data) < _START.size:
        raise InputError(f"{path}: {name}: cut off.")
    end = _START.size + _START.unpack(data[: _START.size])[0]
    counts = unpacked(path, f"{name}: histograms", data[_START.size : end], "<u4", columns, SYMBOLS)
    words = data[end:]
    if len(words) % 4 or (counts.sum(axis=1, dtype=np.int64) != count).any():
        raise InputError(f"{path}: {name}: expected histograms of {count:,} symbols and whole words.")
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    decoded = [np.asarray(coder.decode(_model(histogram), count), np.uint8) for histogram in counts]
    return np.stack(decoded, axis=1)


def _model(histogram: np.ndarray) -> constriction.stream.model.Categorical:
    """Shares of a histogram; ``perfect=False`` is the way that is the same on all machines."""
    shares = histogram.astype(np.float64) / float(histogram.sum())
    return constriction.stream.model.Categorical(shares, perfect=False)
