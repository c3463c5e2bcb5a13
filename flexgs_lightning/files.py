"""Writing files so that a failure, a signal or a kill leaves nothing half-written."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from flexgs_lightning.errors import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

P = ParamSpec("P")
T = TypeVar("T")

PARTIAL = ".partial"
"""In the name of a file that is still being written, before its suffix."""
LOCK = ".lock"
"""File by which a process claims the folder that it works in; it says who."""
_NAME_BYTES = 255
"""What file systems allow for a name."""
_ROOM_FOR_ENDINGS = 8
_DAY = 86_400.0
_NODE = f"{zlib.crc32(platform.node().encode()):08x}"
"""This machine in temporary names: process numbers of another one mean nothing here."""
_TEMPORARY = re.compile(rf"\..*\.([0-9a-f]{{8}})-(\d+)-\d+{re.escape(PARTIAL)}(\.[^.]*)?", re.DOTALL)

undisturbed_code: set[CodeType] = set()
"""Of functions that are run whole: a signal waits (``signals.stop``)."""


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator of short functions that leave something behind if they stop in the middle."""
    undisturbed_code.add(function.__code__)
    return function


_numbers = itertools.count()
_unfinished: set[Path] = set()
"""Temporary paths of this process."""
written: list[Path] = []
"""What this process has put in place, in order; for a program that is stopped and says what it leaves."""


def is_plain_name(name: str) -> bool:
    """Whether a name out of a file can be that of one file or folder, with an ending, anywhere."""
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        return False
    return name.isprintable() and len(name.encode()) <= _NAME_BYTES - _ROOM_FOR_ENDINGS


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name (same folder, same suffix) that becomes ``path`` on success.

    The block may write a file or create a folder under the temporary name. On any exception it is removed,
    with folders that were made for it, and ``path`` stays as it was; a folder with files in it is replaced in
    one step. What processes that were killed have left in the same folder is removed first.

    Raises:
        InputError: the folder cannot be created, or the write failed (a full disk, no permission).
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise InputError(f"{path}: expected the name of a file or folder to write.")
    made: list[Path] = []
    try:
        made = _missing_folders(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_path(path) as temporary:
            yield temporary
            _flush_to_disk(temporary)
            _put_in_place(temporary, path)
            if not any(each in (path, *path.parents) for each in _unfinished):
                written.append(path)
    except BaseException as error:
        _remove_empty(made)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield an unused name beside ``path``, with its suffix; what lies there in the end is removed."""
    remove_leftovers(path.parent)
    token = f".{_NODE}-{os.getpid()}-{next(_numbers)}{PARTIAL}{path.suffix}"
    stem = os.fsencode(path.stem)[: _NAME_BYTES - 1 - len(os.fsencode(token))]
    temporary = path.with_name(f".{stem.decode(errors='ignore')}{token}")
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _unfinished.discard(temporary)


class BusyError(InputError):
    """Another process works in a folder."""


@contextlib.contextmanager
def locked(folder: Path, new: bool = False) -> Iterator[None]:
    """Keep other processes from working in ``folder`` meanwhile; the lock ends with the process, however.

    The folder is made if it is not there, and removed again if nothing has come into it. The lock's file goes
    with the block; one that a killed process has left locks nothing.

    Args:
        folder: to work in.
        new: whether it must not exist yet.

    Raises:
        FileExistsError: it exists, but ought to be new.
        BusyError: another process works there, which the message names.
        InputError: the folder cannot be written.
    """
    from filelock import FileLock  # here, because every start of the program would wait for it

    lock, made = FileLock(folder / LOCK), list[Path]()
    try:
        _take(lock, folder, new, made)
        yield
    finally:
        if lock.is_locked:
            _let_go(lock, folder, made)


@undisturbed
def _take(lock: BaseFileLock, folder: Path, new: bool, made: list[Path]) -> None:
    """Acquire the lock of a folder; see ``locked``. Folders that are made for it are noted in ``made``."""
    from filelock import Timeout

    path = folder / LOCK
    try:
        made += _missing_folders(folder)
        folder.mkdir(parents=True, exist_ok=not new)
        lock.acquire(timeout=0)
        path.write_text(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}")
    except Timeout:
        who = path.read_text() or "another process"
        raise BusyError(
            f"{folder}: {who}, is at work there. Wait until it is done, or choose another folder."
        ) from None
    except OSError as error:
        if new and isinstance(error, FileExistsError):
            raise
        raise unwritable(folder, error) from error


@undisturbed
def _let_go(lock: BaseFileLock, folder: Path, made: list[Path]) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        (folder / LOCK).unlink()
    _remove_empty(made)
    lock.release()


def place_of(error: OSError) -> str | None:
    """The path that an error is about, if it says so."""
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None


def unwritable(path: Path, error: OSError) -> InputError:
    """The message on a write that failed."""
    return InputError(f"{path}: could not be written ({error.strerror or error}).")


def remove_unfinished() -> None:
    """Remove the temporary files of this process, before it ends in the middle of writing them."""
    for path in list(_unfinished):
        _remove(path)
    _unfinished.clear()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that are gone; another machine's when they are a day old."""
    own = {path.name for path in list(_unfinished)}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name) if entry.name.startswith(".") else None
            if found and entry.name not in own and _is_left(entry, found[1], int(found[2])):
                _remove(Path(entry.path))


def _is_left(entry: os.DirEntry[str], node: str, process: int) -> bool:
    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY:
        return True
    return node == _NODE and (process == os.getpid() or not _runs(process))


def _runs(process: int) -> bool:
    if os.name != "posix":  # where signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _missing_folders(folder: Path) -> list[Path]:
    """Those that have to be made, innermost first."""
    return list(itertools.takewhile(lambda each: not each.exists(), (folder, *folder.parents)))


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # somebody else has put something in
            folder.rmdir()


def _flush_to_disk(path: Path) -> None:
    """Make the content durable before the rename, or a power cut can leave an empty file."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _put_in_place(temporary: Path, path: Path) -> None:
    if not (temporary.is_dir() and path.is_dir()):
        temporary.replace(path)
        return
    if _exchange(temporary, path):  # the old folder lies under the temporary name now
        return
    # Where the system cannot exchange, the old folder is kept under a name that is not cleaned up.
    aside = temporary.with_name(temporary.name.replace(PARTIAL, ".replaced"))
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    _remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths trade places in one step; False where the system or its file system cannot."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
