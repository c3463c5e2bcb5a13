"""SIGINT (Ctrl-C) and SIGTERM end a command with one line, which says what is kept and how to go on.

A signal is turned into an exception in the main thread, so that whatever is being written is taken back by
the code that writes it (``files.atomic_path``). A training takes the signals over for as long as it runs and
ends after the iteration in progress; see ``training.callbacks.interruption``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from flexgs_lightning import files

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0
"""Seconds after a signal in which another is the same one, sent to a group or by two supervisors."""
NOTHING = "Nothing was written or changed; the same command starts again."

_statements: list[Callable[[], str]] = []
_received: tuple[int, float] | None = None  # number and time
_waiting: tuple[int, threading.Timer] | None = None  # number, and what sends it again


class Stopped(SystemExit):
    """A signal asked the program to end. No ``Exception``, so that nobody handles it on its way.

    Args:
        number: of the signal; the exit status is 128 more, as shells have it.
        told: whether the user knows already what is kept.
    """

    def __init__(self, number: int, told: bool = False) -> None:
        super().__init__(128 + number)
        self.number, self.told = number, told
        self._statement = _statements[0] if _statements else _what_is_written

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}. {self._statement()}"


@contextlib.contextmanager
def keeping(statement: str | Callable[[], str]) -> Iterator[None]:
    """State what a signal that comes in this block leaves, and how to go on.

    A block inside another has nothing to say: the outer one knows the command that was typed.
    """
    _statements.append(statement if callable(statement) else lambda: statement)
    try:
        yield
    finally:
        _statements.pop()


@contextlib.contextmanager
def heeded(last: bool = False) -> Iterator[None]:
    """Let signals end the block with ``Stopped``; a second one, after ``PATIENCE``, ends the process at once.

    Whatever else comes out of the block after a signal is ``Stopped`` as well: a library whose work broke off
    in the middle, or whose worker processes have got the signal too, may report it as an error of its own.
    A signal that was ignored when the program was started (``nohup``, a shell's background) stays so.

    Args:
        last: whether nothing follows but the interpreter's end, which signals have no reason to disturb.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set them
        yield
        return
    heed = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heed}
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_deliver_again, hook)
    _received = None
    files.written.clear()
    try:
        yield
        if _waiting is not None:
            raise Stopped(_waiting[0])
    except Stopped:
        raise
    except BaseException as error:
        if _received is not None:
            raise Stopped(_received[0]) from error
        raise
    finally:
        sys.unraisablehook = hook
        _forget_waiting()
        _restore(dict.fromkeys(heed, signal.SIG_IGN) if last else before)
        if _received is not None:
            files.remove_unfinished()
        _received = None


@contextlib.contextmanager
def handlers_kept(numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Leave the handlers of signals as they were found, whatever the block puts in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # not set from Python
            signal.signal(number, handler)


def _what_is_written() -> str:
    if not files.written:
        return NOTHING
    return (
        f"Written whole: {', '.join(map(str, files.written[-3:]))}; the same command makes what is missing."
    )


def what_is_kept(otherwise: str) -> str:
    """The statement that holds now, if there is one."""
    return _statements[0]() if _statements else otherwise


def stop(number: int, frame: FrameType | None = None) -> None:
    """Handle a signal.

    Raises:
        Stopped: it is the first.
    """
    global _received
    now = time.monotonic()
    _forget_waiting()
    if _received is None and _has_to_wait(frame):
        _send_again(number)
        return
    if _received is None:
        _received = (number, now)
        raise Stopped(number)
    if now - _received[1] > PATIENCE:
        files.remove_unfinished()
        os._exit(128 + number)


def raise_if_stopped() -> None:
    """For code that survives errors of all kinds: not this one, whatever it looks like.

    Raises:
        Stopped: there was a signal.
    """
    if _received is not None:
        raise Stopped(_received[0])


def _has_to_wait(frame: FrameType | None) -> bool:
    """Whether a function that is run whole (``files.undisturbed``), or LLVM, waits for what is interrupted.

    LLVM calls back for machine code from the cache. An exception there would be dropped, and the kernel be
    taken for an empty one: the interpreter crashes where its address is asked for.
    """
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module == "llvmlite" or frame.f_code in files.undisturbed_code:
            return True
        frame = frame.f_back
    return False


def _deliver_again(otherwise: Callable[[Any], Any], unraisable: Any) -> None:
    """Where Python drops an exception (a finalizer, a callback from C), the signal comes once more."""
    global _received
    if not issubclass(unraisable.exc_type, Stopped) or _received is None:
        otherwise(unraisable)
        return
    number, _ = _received
    _received = None
    _send_again(number)


def _send_again(number: int) -> None:
    """A little later, to the main thread."""
    global _waiting
    main = threading.main_thread().ident
    assert main is not None
    _waiting = number, threading.Timer(0.01, signal.pthread_kill, (main, number))
    _waiting[1].start()


def _forget_waiting() -> None:
    global _waiting
    if _waiting is not None:
        _waiting[1].cancel()
        _waiting = None


def close_progress_bars() -> None:
    """So that what is said next has a line of its own, also where both streams end up in one file."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()
    sys.stdout.flush()  # Lightning's bars are there
