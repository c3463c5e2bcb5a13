"""What may come of broken input: a refusal in one line that names it, or the result of the sound one."""

from __future__ import annotations

import contextlib
import io
import re
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flexgs_lightning.cli import main

SECONDS = 120
"""After so long a command hangs: sound input takes well below one, kernels that are not compiled yet some."""
_PYTHON = re.compile(
    r"object (is not|has no|of type)|not subscriptable|unsupported operand|index out of range|"
    r"has no attribute|missing \d+ required|unexpected keyword|codec can't|not supported between|"
    r"NoneType|Traceback|\b0x[0-9a-f]{8}"
)
"""What Python says to programmers, and tells a user nothing."""
LONGEST = 1_500


MEMORY = 1 << 30
"""Bytes that sound input is far from taking."""


class Hang(BaseException):
    """The time is up; no ``except Exception`` takes it for an error."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: its exit status; 1 or 2 for a refusal.
        message: what it wrote to standard error.
        fault: what is wrong with that; None if nothing is.
    """

    status: int
    message: str
    fault: str | None = None


def run(arguments: list[str], named: tuple[str, ...]) -> Outcome:
    """Run a command in this process and judge how it ends.

    Args:
        arguments: of the command line.
        named: words of which a refusal must hold one: the file's or option's name.
    """
    return judged(lambda: main(arguments), named)


def judged(command: Callable[[], Any], named: tuple[str, ...]) -> Outcome:
    """As ``run``, for a function that returns an exit status."""
    errors, output, before = io.StringIO(), io.StringIO(), _most_memory()
    try:
        with _limited(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
            status = command()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except (Exception, Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = frames[-2] if isinstance(error, Hang) and len(frames) > 1 else frames[-1]
        text = f"{type(error).__name__}: {error} at {where.filename}:{where.lineno}"
        return Outcome(-1, text, "hang" if isinstance(error, Hang) else "traceback")
    if _most_memory() - before > MEMORY:
        return Outcome(status, errors.getvalue()[-500:], "far more memory than the file has bytes")
    if status == 0:
        return Outcome(0, errors.getvalue())
    refusals = [line for line in errors.getvalue().splitlines() if "error: " in line]
    message = refusals[-1] if refusals else errors.getvalue()[-500:]
    message = message[max(message.find("flexgs: error: "), 0) :]  # behind a progress bar
    return Outcome(status, message, _fault(message, errors.getvalue(), named))


def _most_memory() -> int:
    """The most bytes that this process has had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _fault(message: str, everything: str, named: tuple[str, ...]) -> str | None:
    after = everything.rpartition(message)[2].strip()
    if "error: " not in message:
        return "no message"
    if after:
        return "more than one line"
    if not message.isprintable():
        return "control characters"
    if len(message) > LONGEST:
        return "far too long"
    if _PYTHON.search(message):
        return "Python's words"
    return None if any(name in message for name in named) else "does not name what is wrong"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
