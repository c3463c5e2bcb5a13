"""The PLY container: its header, and one element of scalar properties as a NumPy record array.

Knows nothing of Gaussians or points. Format: G. Turk, "The PLY Polygon File Format", 1994.
"""

from __future__ import annotations

import io
import itertools
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import shown

_BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_SCALARS = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_LONGEST_COUNT = 30
"""Digits from which on a number of records is none."""
_LONGEST_HEADER = 1 << 20
"""Bytes after which a file without ``end_header`` is given up: it is something else."""


@dataclass
class Element:
    """One ``element`` of a header: ``count`` records of named scalars.

    Attributes:
        properties: NumPy type code without byte order, by property name, in file order.
        has_lists: whether a list property was declared, so that records vary in length.
    """

    name: str
    count: int
    properties: dict[str, str] = field(default_factory=dict)
    has_lists: bool = False

    def dtype(self, byte_order: str) -> np.dtype:
        """Type of one record."""
        return np.dtype([(name, byte_order + code) for name, code in self.properties.items()])


@dataclass
class Header:
    """A parsed header; ``size`` is where the data begins, in bytes."""

    encoding: str
    elements: list[Element]
    comments: list[str]
    size: int

    def has(self, name: str) -> bool:
        """Whether there is an element of that name."""
        return any(element.name == name for element in self.elements)


def read_header(path: Path, file: BinaryIO) -> Header:
    """Parse the header; ``path`` is for messages only.

    Raises:
        InputError: not a PLY file, or a header line that the format does not know.
    """
    if file.readline(8).rstrip() != b"ply":
        raise InputError(f"{path}: not a PLY file (it does not start with a line 'ply').")
    encoding, elements, comments = "", list[Element](), list[str]()
    while (line := file.readline(_LONGEST_HEADER)) and file.tell() < _LONGEST_HEADER:
        match line.decode("latin-1").split():
            case ["end_header"]:
                if not encoding:
                    raise InputError(f"{path}: the PLY header states no format.")
                return Header(encoding, elements, comments, file.tell())
            case ["format", name, "1.0"] if name in _BYTE_ORDER:
                encoding = name
            case ["element", name, count] if count.isdecimal() and len(count) < _LONGEST_COUNT:
                if any(element.name == name for element in elements):
                    raise InputError(f"{path}: the PLY header declares element {shown(name)} twice.")
                elements.append(Element(name, int(count)))
            case ["property", "list", size, item, _] if elements and {size, item} <= _SCALARS.keys():
                elements[-1].has_lists = True
            case ["property", kind, name] if elements and kind in _SCALARS:
                if name in elements[-1].properties:
                    raise InputError(f"{path}: the PLY header declares property {shown(name)} twice.")
                elements[-1].properties[name] = _SCALARS[kind]
            case ["comment", *words]:
                comments.append(" ".join(words))
            case [] | ["obj_info", *_]:
                pass
            case words:
                raise InputError(f"{path}: unknown PLY header line {shown(' '.join(words))}.")
    raise InputError(f"{path}: the PLY header does not end; the file is truncated or damaged.")


def read_element(path: Path, file: BinaryIO, header: Header, name: str) -> np.ndarray:
    """The records of element ``name``: [count] with one NumPy field per property.

    Binary data is mapped, not loaded: only what is touched is read.

    Raises:
        InputError: the element is missing, empty or has list properties, or the file holds fewer or
            more records than its header states.
    """
    index = next((i for i, element in enumerate(header.elements) if element.name == name), None)
    if index is None:
        found = shown(", ".join(element.name for element in header.elements)) if header.elements else "none"
        raise InputError(f"{path}: no element '{name}' in the PLY header (elements: {found}).")
    element = header.elements[index]
    if element.count == 0 or not element.properties:
        raise InputError(f"{path}: element '{name}' of the PLY file is empty; expected at least one record.")
    if element.has_lists:
        raise InputError(f"{path}: element '{name}' has list properties; expected numbers only.")
    is_last = index == len(header.elements) - 1
    read = _read_ascii if header.encoding == "ascii" else _map_binary
    return read(path, file, header, index, is_last)


def _map_binary(path: Path, file: BinaryIO, header: Header, index: int, is_last: bool) -> np.ndarray:
    byte_order = _BYTE_ORDER[header.encoding]
    before, element = header.elements[:index], header.elements[index]
    if any(other.has_lists for other in before):
        raise InputError(f"{path}: a list element lies before '{element.name}'; expected it first.")
    start = header.size + sum(other.count * other.dtype(byte_order).itemsize for other in before)
    record = element.dtype(byte_order)
    held = (file.seek(0, io.SEEK_END) - start) // record.itemsize
    if held < element.count or (is_last and held > element.count):
        raise _wrong_count(path, element, max(held, 0))
    return np.memmap(file, record, "r", start, (element.count,))


def _read_ascii(path: Path, file: BinaryIO, header: Header, index: int, is_last: bool) -> np.ndarray:
    element = header.elements[index]
    lines_at_most = (file.seek(0, io.SEEK_END) - header.size + 1) // 2  # a character and a line's end each
    if element.count > lines_at_most:
        raise _wrong_count(path, element, lines_at_most)
    file.seek(header.size)
    skipped = min(sum(other.count for other in header.elements[:index]), lines_at_most)
    stop = skipped + element.count + is_last  # one line more shows that the count is too small
    lines = itertools.islice((line for line in file if not line.isspace()), skipped, stop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "input contained no data": counted below
            records = np.loadtxt(lines, element.dtype("="), comments=None, encoding="latin-1", ndmin=1)
    except (ValueError, OverflowError) as error:
        reason = shown(str(error))
        raise InputError(f"{path}: element '{element.name}' cannot be read as text ({reason}).") from error
    if len(records) != element.count:
        raise _wrong_count(path, element, len(records))
    return records


def _wrong_count(path: Path, element: Element, held: int) -> InputError:
    found = f"only {held:,}; is it truncated?" if held < element.count else f"at least {held:,}"
    return InputError(
        f"{path}: the PLY header states {element.count:,} records of '{element.name}', the file holds {found}"
    )
