"""Several training processes on one machine, each started as ``srun`` or ``torchrun`` would start it."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(  # imported once, not in every process
    [
        "flexgs_lightning.lightning_cli",
        "flexgs_lightning.rendering.cpu_backend",
        "flexgs_lightning.metrics.ssim_cpu",
    ]
)

Preparation = Callable[[int], None]
"""Called with the rank before a process begins: a place for sabotage."""


@dataclass
class Outcome:
    """How a process ended: exit status, negative for a signal's number, and standard error."""

    status: int
    errors: str

    @property
    def message(self) -> str:
        """The one message of a refusal."""
        assert "Traceback" not in self.errors, self.errors
        lines = [line for line in self.errors.splitlines() if line.startswith("flexgs: error: ")]
        assert len(lines) == 1, self.errors
        return lines[0]


class Processes:
    """``count`` processes that run ``flexgs arguments`` together."""

    def __init__(
        self, count: int, arguments: Sequence[str], folder: Path, prepare: Preparation | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"stderr_{rank}.txt" for rank in range(count)]
        port = _free_port()
        options = [*arguments, f"--trainer.devices={count}"]
        self.processes = [
            _context.Process(target=_run, args=(rank, count, port, options, log, prepare))
            for rank, log in enumerate(self.logs)
        ]
        for process in self.processes:
            process.start()

    def pid(self, rank: int) -> int:
        pid = self.processes[rank].pid
        assert pid is not None
        return pid

    def wait(self, seconds: float = 120) -> list[Outcome]:
        """Outcome of each process, by rank; a process that does not end is killed and fails the test."""
        for process in self.processes:
            process.join(seconds)
        stuck = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            process.kill()
            process.join()
        assert not stuck, f"processes {stuck} did not end: {[log.read_text() for log in self.logs]}"
        return [
            Outcome(process.exitcode or 0, log.read_text())
            for process, log in zip(self.processes, self.logs, strict=True)
        ]


def run(
    count: int, arguments: Sequence[str], folder: Path, prepare: Preparation | None = None
) -> list[Outcome]:
    """Start, and wait for the end."""
    return Processes(count, arguments, folder, prepare).wait()


def together(count: int, function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``function(rank)`` returns in each of ``count`` processes of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        _context.Process(target=_in_group, args=(rank, count, function, folder)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, "see standard error"
    return [torch.load(folder / f"result_{rank}", weights_only=False) for rank in range(count)]


def _in_group(rank: int, count: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=count
    )
    torch.save(function(rank), folder / f"result_{rank}")
    torch.distributed.destroy_process_group()


def scene(checkpoint: Path) -> dict[str, Tensor]:
    """The scene's tensors in a checkpoint."""
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("scene.")}


def _run(
    rank: int, count: int, port: int, arguments: Sequence[str], log: Path, prepare: Preparation | None
) -> None:
    stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stderr, 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if count > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(count)}
    from flexgs_lightning.cli import main

    if prepare is not None:
        prepare(rank)
    sys.exit(main(list(arguments)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
