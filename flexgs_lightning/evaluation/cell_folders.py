"""Cells: pieces of a report, each in a folder of its own, run once and never lost to another's failure."""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path, locked
from flexgs_lightning.records import read_json, read_text
from flexgs_lightning.signals import keeping, raise_if_stopped

log = logging.getLogger(__name__)

RESULT, ERROR, FACTS = "cell.json", "error.txt", "facts.json"


@dataclass(frozen=True)
class CellFolder:
    """Where a cell's result lies.

    Attributes:
        folder: holds ``cell.json`` when it is finished, ``error.txt`` if it failed.
    """

    folder: Path

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return (self.folder / RESULT).is_file()

    @property
    def error(self) -> str | None:
        """Why it failed; None if it did not."""
        path = self.folder / ERROR
        return (read_text(path).splitlines() or [""])[0] if path.is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep what was measured."""
        write_json(self.folder / RESULT, result)
        (self.folder / ERROR).unlink(missing_ok=True)

    def note_error(self, error: Exception) -> None:
        """Keep why it failed."""
        log.error("%s failed: %s", self, summary(error))
        details = "" if isinstance(error, InputError) else "".join(traceback.format_exception(error))
        with atomic_path(self.folder / ERROR) as temporary:
            temporary.write_text(f"{summary(error)}\n{details}")


C = TypeVar("C", bound=CellFolder)
M = TypeVar("M")


def run_cells(cells: Sequence[C], work: Callable[[C], None]) -> None:
    """Finish every cell that is not; one that fails leaves ``error.txt`` and does not stop the others."""
    for number, cell in enumerate(cells, start=1):
        log.info("[%d/%d] %s%s", number, len(cells), cell, ": finished before" if cell.finished else "")
        if cell.finished:
            continue
        try:
            work(cell)
        except Exception as error:  # whatever it is, the other cells go on
            raise_if_stopped()
            cell.note_error(error)


@contextlib.contextmanager
def keeping_cells(output: Path) -> Iterator[None]:
    """Work on the cells of a folder, alone; a signal says that what is finished is kept."""
    with locked(output), keeping(f"What is finished is kept in {output}; the same command goes on."):
        yield


def require_finished(cells: Sequence[CellFolder]) -> None:
    """End a command whose cells did not all succeed.

    Raises:
        InputError: some failed.
    """
    failed = [cell for cell in cells if not cell.finished]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(cells)} cells failed, the first at {failed[0].folder / ERROR}; "
            "the report holds the others. The same command tries the failed ones again."
        )


class Shared(Generic[M]):
    """What all cells of a method have in common, made once; where that fails it is not tried again.

    Only that of one method is held at a time: others' models are done with.
    """

    def __init__(self) -> None:
        self._made: dict[str, M] = {}
        self._broken: dict[str, str] = {}

    def get(self, name: str, make: Callable[[], M]) -> M:
        """The method's own, from before or made now.

        Raises:
            InputError: making it failed before.
        """
        if name in self._broken:
            raise InputError(f"what all cells of {name} have in common failed: {self._broken[name]}")
        if name not in self._made:
            try:
                self._made.clear()
                self._made[name] = make()
            except Exception as error:
                raise_if_stopped()
                self._broken[name] = summary(error)
                raise
        return self._made[name]


def keep_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down what a folder's results depend on, or check that it is still the same.

    Raises:
        InputError: the folder holds results of something else.
    """
    facts = json.loads(json.dumps(_flat(facts)))
    path = folder / FACTS
    if not path.is_file():
        write_json(path, facts)
        return
    kept = read_json(path, dict[str, Any])
    for name in {**kept, **facts}:
        if kept.get(name) != facts.get(name):
            raise InputError(
                f"{folder}: holds results of {name} {_short(kept.get(name))}, but now it is "
                f"{_short(facts.get(name))}. Choose another --output, or remove this folder."
            )


def summary(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def write_json(path: Path, content: Any) -> None:
    """Write plain values for people and programs."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts by dotted names, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
