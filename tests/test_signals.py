"""Signals become one line and an exit status, whatever the code was doing that they interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flexgs_lightning import signals
from flexgs_lightning.files import LOCK, atomic_path, locked
from flexgs_lightning.signals import Stopped, handlers_kept, heeded, keeping, raise_if_stopped

NUMBERS = [signal.SIGINT, signal.SIGTERM]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1)  # until it arrives


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_an_exception_with_a_statement(number: int, tmp_path: Path) -> None:
    before = [signal.getsignal(each) for each in NUMBERS]

    def interrupted() -> None:
        with (
            heeded(),
            keeping("All is kept."),
            keeping("Inside."),
            atomic_path(tmp_path / "a.ply") as temporary,
        ):
            temporary.touch()
            send(number)

    with pytest.raises(Stopped) as stopped:
        interrupted()
    assert stopped.value.code == 128 + number
    assert str(stopped.value) == f"stopped by {signal.Signals(number).name}. All is kept."
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(each) for each in NUMBERS] == before
    raise_if_stopped()  # it is over


def test_errors_that_follow_a_signal_are_the_signals(tmp_path: Path) -> None:
    """A pipe that broke because the program at its other end has got the signal, too."""

    def breaking(number: int | None) -> None:
        with heeded():
            try:
                if number is not None:
                    send(number)
            except Stopped:
                with pytest.raises(Stopped):
                    raise_if_stopped()
            raise BrokenPipeError

    with pytest.raises(Stopped):
        breaking(signal.SIGTERM)
    with pytest.raises(BrokenPipeError):
        breaking(None)


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    class Slow:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(1000))

    def interrupted() -> None:
        with heeded():
            slow = Slow()
            del slow
            time.sleep(60)

    start = time.monotonic()
    with pytest.raises(Stopped):
        interrupted()
    assert time.monotonic() - start < 30


WHILE_LOADING = """
import os, signal, sys, time
from numba.core.codegen import JITCodeLibrary

hook = JITCodeLibrary._object_getbuffer_hook

def interrupted(library, module):
    found = hook(module)
    if found is not None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
    return found

if sys.argv[1:]:
    JITCodeLibrary._object_getbuffer_hook = classmethod(interrupted)

import numpy as np
from flexgs_lightning.jit import kernel
from flexgs_lightning.signals import heeded

@kernel
def total(values):
    return values.sum()

with heeded():
    total(np.ones(3))
    time.sleep(0.2)
    print("not interrupted")
"""


def test_a_signal_waits_while_machine_code_is_loaded(tmp_path: Path) -> None:
    """LLVM calls back for what the cache has; an exception there is dropped, and the program would crash."""
    (tmp_path / "program.py").write_text(WHILE_LOADING)
    command = [sys.executable, str(tmp_path / "program.py")]
    subprocess.run(command, check=True, capture_output=True)  # fills the cache
    ended = subprocess.run([*command, "interrupt"], capture_output=True, timeout=120)
    assert ended.returncode == 130, (ended.stdout + ended.stderr).decode()


@pytest.mark.parametrize("moment", ["write_text", "unlink"])
def test_a_folder_is_locked_or_not_at_all(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lock and what it says, and between its file's end and its own."""
    plain = getattr(Path, moment)

    def interrupted(path: Path, *arguments: object, **options: object) -> object:
        result = plain(path, *arguments, **options)
        if path.name == LOCK:
            send(signal.SIGTERM)
        return result

    monkeypatch.setattr(Path, moment, interrupted)
    with pytest.raises(Stopped), heeded(), locked(tmp_path / "a" / "b"):
        time.sleep(0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_soon_after_is_the_same_one_and_a_later_one_ends_the_process(tmp_path: Path) -> None:
    script = """
import os, signal, sys, time
from flexgs_lightning import signals
from flexgs_lightning.files import atomic_path
from pathlib import Path
signals.PATIENCE = 3
with signals.heeded(), atomic_path(Path(sys.argv[1])) as temporary:
    temporary.touch()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleaning up", flush=True)
        time.sleep(3.2)
        os.kill(os.getpid(), signal.SIGTERM)
        print("not reached", flush=True)
"""
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stdout, found.stderr) == (143, "cleaning up\n", "")
    assert list(tmp_path.iterdir()) == []


def test_nothing_disturbs_the_end_of_the_program() -> None:
    script = (
        "import os, signal; from flexgs_lightning.signals import heeded\n"
        "with heeded(last=True): pass\n"
        "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); print('end')"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (found.returncode, found.stdout, found.stderr) == (0, "end\n", "")


def test_a_signal_that_was_ignored_stays_so() -> None:
    """As nohup and a shell's background jobs have it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_library_cannot_replace_the_handlers_and_other_threads_have_none() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handlers_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before

    found: list[bool] = []

    def elsewhere() -> None:
        with heeded(), handlers_kept():
            found.append(signal.getsignal(signal.SIGTERM) == before)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [True]
    assert signals.what_is_kept("nothing") == "nothing"


def test_reading_captures_leaves_sigterm_alone() -> None:
    """pycolmap's logging library would print a stack trace, and the program end with it."""
    script = (
        "import os, signal, time\n"
        "from flexgs_lightning.signals import heeded\n"
        "with heeded():\n"
        "    import flexgs_lightning.data.colmap_library\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (found.returncode, found.stderr) == (143, "")
