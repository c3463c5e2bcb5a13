"""Runs commands of the program in processes forked from one that has imported everything already.

``Launcher`` is the test's side. Started as a script, this file is the other: it reads a JSON line for each
command from standard input, forks, and writes the child's number and, when it has ended, its exit status.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ending:
    """How a command ended: exit status, negative for the signal that killed it, what it said, and when."""

    status: int
    said: str
    seconds: float


class Launcher:
    """Starts commands and sends them signals."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._read() == 0

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        signal_: int | None = None,
        when: float | Callable[[str], bool] = 0.0,
        group: bool = False,
        limits: Sequence[tuple[int, int]] = (),
    ) -> Ending:
        """Run ``flexgs arguments`` in ``folder``.

        Args:
            arguments: of the command line.
            folder: working directory.
            signal_: to send, if any.
            when: seconds after the start, or what the command must have said before.
            group: whether its own children get the signal, too, as a terminal's Ctrl-C reaches all.
            limits: resource limits of the process: number and value.
        """
        log = folder.parent / f"{folder.name}.log"
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "log": str(log),
            "limits": list(limits),
        }
        log.unlink(missing_ok=True)
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        start, process = time.monotonic(), self._read()
        if signal_ is not None:
            if callable(when):
                while not when(log.read_text(errors="replace")):
                    assert time.monotonic() < start + 250, log.read_text(errors="replace")
                    time.sleep(0.01)
            else:
                time.sleep(max(when, 0.005))  # until its first lines are behind it
            (os.killpg if group else os.kill)(
                process, signal_
            )  # no other has this number yet: the server waits for it later
        assert self._server.stdin is not None
        self._server.stdin.write("wait\n")
        self._server.stdin.flush()
        return Ending(self._read(), log.read_text(errors="replace"), time.monotonic() - start)

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def _serve() -> None:
    import resource

    from flexgs_lightning.cli import COMMANDS, TRAINING, _command

    for command in (*COMMANDS, TRAINING[0]):
        _command(command.split())
    import torch
    from small_scene import around, ball

    from flexgs_lightning.deploy.render import draw
    from flexgs_lightning.deploy.viewer import viewer  # noqa: F401

    torch.set_num_threads(1)
    draw(ball(), around(1))  # loads kernels; without gradients, whose threads would not survive a fork
    _answer(0)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            for number, value in request["limits"]:
                resource.setrlimit(number, (value, value))
            _child(request["arguments"], request["folder"], request["log"])
        assert sys.stdin.readline() == "wait\n"
        _answer(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _child(arguments: list[str], folder: str, log: str) -> None:
    """What the installed program does, from its first line on."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        answers = os.dup(1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(folder)
        from flexgs_lightning.cli import main

        os.write(answers, f"{os.getpid()}\n".encode())
        os.close(answers)
        sys.argv = ["flexgs", *arguments]
        sys.exit(main())
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import atexit
        import threading

        sys.stdout.flush()
        threading._shutdown()  # as an interpreter does: wait for what is still being written,
        atexit._run_exitfuncs()  # and end its own processes
        os._exit(status)


def _answer(number: int) -> None:
    os.write(1, f"{number}\n".encode())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    _serve()
