"""Programs side by side: one on each place (a GPU, the CPU), the next when a place is free."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

POLL_SECONDS = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, and what clusters send before they end a job."""


@dataclass(frozen=True)
class Task:
    """A program to run.

    Attributes:
        name: for messages and results.
        start: starts it, given environment variables that name its place; None if there is nothing to do.
        done: called with its exit status when it ends, negative for the signal that killed it.
    """

    name: str
    start: Callable[[Mapping[str, str]], subprocess.Popen[bytes] | None]
    done: Callable[[int], None]


def run_side_by_side(tasks: Sequence[Task], places: Sequence[Mapping[str, str]]) -> int | None:
    """Run all tasks, at most one on each place at a time; one that fails does not stop the others.

    Signals that ask to stop are handed on to the running programs, and no more are started. Programs must
    therefore be started in sessions of their own, where a terminal's Ctrl-C does not reach them by itself.

    Returns:
        The signal that stopped it, or None if all tasks have run.

    Raises:
        Exception: what a task raised instead of starting, once the others have been stopped.
    """
    waiting = list(tasks)
    free = list(places)
    running: list[tuple[Task, subprocess.Popen[bytes], Mapping[str, str]]] = []
    received: list[int] = []
    handed_on = 0
    failure: Exception | None = None

    def note(number: int, frame: FrameType | None) -> None:
        """No more than that: the signal may come while a program is being started."""
        received.append(number)

    with _on_signals(note):
        while running or (waiting and not received):
            while waiting and free and not received:
                task, place = waiting.pop(0), free.pop(0)
                try:
                    process = task.start(place)
                except Exception as error:  # whatever it is, no program may be left behind
                    failure, process = error, None
                    received.append(signal.SIGTERM)
                if process is None:
                    free.insert(0, place)
                else:
                    running.append((task, process, place))
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                task, process, place = entry
                free.append(place)
                task.done(process.returncode)
            while handed_on < len(received):
                for _, process, _ in running:
                    process.send_signal(received[handed_on])
                handed_on += 1
            if running:
                time.sleep(POLL_SECONDS)
    if failure is not None:
        raise failure
    return received[0] if received else None


@contextlib.contextmanager
def _on_signals(react: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """React to ``SIGNALS``; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, react) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
