"""The door: what a file must be before anything of it is used.

Only plain files of bounded size are opened. A record (JSON or YAML) is parsed whole, against a type that
states its fields, their types and ranges (``msgspec``); inside the house there are values of that type, and
nobody looks for fields that may not be there. Whatever is wrong becomes one ``InputError`` that names file
and field.
"""

from __future__ import annotations

import contextlib
import stat
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TypeVar

import msgspec
import yaml

from flexgs_lightning.errors import InputError

if TYPE_CHECKING:
    import numpy as np

LARGEST_RECORD = 1 << 26
"""Bytes of a record beyond which it is not read."""
LARGEST_SETTINGS = 1 << 18
"""Bytes of a YAML file beyond which it is not read: settings take a few thousand."""
LARGEST_EXPANSION = 100_000
"""Values that a YAML file may stand for, with what its aliases repeat."""
DEEPEST = 64
"""Levels of a YAML file."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Finite = Annotated[float, msgspec.Meta(ge=-1.7e308, le=1.7e308)]
"""Not NaN, not infinite."""
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
"""In (0, 1]."""

T = TypeVar("T")

_NPY = b"\x93NUMPY"
"""What a file of one array begins with."""
_NO_ARRAY = (OSError, ValueError, EOFError, OverflowError, TypeError, SyntaxError, tokenize.TokenError)
"""What NumPy may raise at a damaged file: its header is Python's text, parsed as such and never run."""


def shown(value: Any, most: int = 60) -> str:
    """A value that was found, for a message: short, and without control characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= most else f"{text[:most]}…"


# -- files ---------------------------------------------------------------------------------------------


def plain_size(path: str | Path, most: int | None = None) -> int:
    """Size in bytes of a plain file, found without opening it: opening a pipe waits until somebody writes.

    Raises:
        InputError: there is no such file; it is a folder, pipe or device; it has more than ``most`` bytes.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(
            f"{path}: could not be read ({getattr(error, 'strerror', None) or error})."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise InputError(f"{path}: could not be read: found {kind}, expected a file.")
    if most is not None and found.st_size > most:
        raise InputError(f"{path}: found {found.st_size:,} bytes, expected at most {most:,}.")
    return found.st_size


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A plain file, open to be read in parts.

    Raises:
        InputError: see ``plain_size``; it cannot be read, also when that shows later.
    """
    plain_size(path)
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror or error}).") from error


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """A whole plain file.

    Raises:
        InputError: see ``plain_size``; it cannot be read.
    """
    plain_size(path, most)
    with opened(path) as file:
        return file.read()


def read_array(path: str | Path) -> np.ndarray:
    """An array of numbers as ``numpy.save`` writes it (.npy); its size is compared with the file's first.

    Raises:
        InputError: see ``plain_size``; no such file, or fewer bytes than it states.
    """
    import numpy as np  # here, because every start of the program would wait for it

    with opened(path) as file:
        beginning = file.read(len(_NPY))
    if beginning.startswith(b"PK"):
        raise InputError(f"{path}: expected one array (.npy), found an archive of arrays (.npz).")
    try:
        if beginning != _NPY:  # NumPy would take it for an archive or for Python's own format
            raise ValueError
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NO_ARRAY as error:
        raise InputError(f"{path}: expected an array written by NumPy (.npy), found damaged data.") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path}: expected numbers, found {array.dtype} {array.shape}.")
    return np.array(array)


def read_text(path: str | Path, most: int = LARGEST_RECORD) -> str:
    """A whole plain file of UTF-8.

    Raises:
        InputError: see ``read_bytes``; it holds something else than UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected text (UTF-8), found other bytes at place {error.start}."
        ) from error


# -- records -------------------------------------------------------------------------------------------


def read_json(path: str | Path, kind: type[T], most: int = LARGEST_RECORD) -> T:
    """A JSON file as a value of ``kind``; fields that ``kind`` does not have are left aside.

    Raises:
        InputError: see ``read_text``; no JSON; a field is missing, of another type or out of range.
    """
    return parse_json(path, read_text(path, most).encode(), kind)


def parse_json(where: str | Path, content: bytes, kind: type[T]) -> T:
    """As ``read_json``, for JSON that lies inside another file; ``where`` is for messages.

    Raises:
        InputError: see ``read_json``.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_explained(error)}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not sound JSON (not UTF-8).") from error
    except (msgspec.DecodeError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{where}: not sound JSON ({reason}).") from error


def parsed(where: str | Path, content: Any, kind: type[T]) -> T:
    """Plain values (of YAML, or a checkpoint) as a value of ``kind``; ``where`` is for messages.

    Raises:
        InputError: a field is missing, of another type or out of range.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_explained(error)}.") from error
    except RecursionError as error:
        raise InputError(f"{where}: too many levels.") from error


def read_yaml(path: str | Path) -> Any:
    """A YAML file of settings as plain values; None if it is empty.

    Raises:
        InputError: see ``read_text``; no YAML; a name given twice; more levels, or more values once aliases
            are followed, than settings have.
    """
    text = read_text(path, LARGEST_SETTINGS)
    if "\0" in text:
        raise InputError(f"{path}: expected text, found binary data.")
    try:
        _require_bounded(path, yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split()) if not isinstance(error, RecursionError) else "too many levels"
        raise InputError(f"{path}: not readable as YAML ({reason}).") from error


def _explained(error: msgspec.ValidationError) -> str:
    """``Expected `int`, got `str` - at `$.a.b``` as a sentence that begins with the field."""
    text, _, place = str(error).partition(" - at ")
    text = text.replace("`", "").replace(", got ", ", found ")
    text = text.replace("Object missing required field ", "there is no field ")
    place = place.replace("`", "").removeprefix("$").lstrip(".")
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else f"{text[:1].lower()}{text[1:]}"


def _require_bounded(path: str | Path, root: yaml.Node | None) -> None:
    """Refuse a tree of nodes that aliases make endless or huge, before anybody walks through it."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in above or depth > DEEPEST:
            raise InputError(f"{path}: its values lie within themselves, or more than {DEEPEST} levels deep.")
        above.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            _require_names_once(path, node)
            total += sum(size(part, depth + 1) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(part, depth + 1) for part in node.value)
        above.discard(id(node))
        if total > LARGEST_EXPANSION:
            raise InputError(f"{path}: its aliases stand for more than {LARGEST_EXPANSION:,} values.")
        sizes[id(node)] = total
        return total

    if root is not None:
        size(root, 0)


def _require_names_once(path: str | Path, node: yaml.MappingNode) -> None:
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    twice = sorted({name for name in names if names.count(name) > 1 and name != "<<"})
    if twice:
        line = node.start_mark.line + 1
        raise InputError(f"{path}: '{twice[0]}' is given twice in what begins at line {line}.")
