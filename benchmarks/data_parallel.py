"""What data parallelism costs and brings on the CPU, and what a checkpoint of a large scene costs.

    python benchmarks/data_parallel.py overhead   --root data/fox --downscale 8
    python benchmarks/data_parallel.py throughput --root data/fox --downscale 8
    python benchmarks/data_parallel.py checkpoint --root data/fox --downscale 8 --gaussians 1000000

overhead: time of a step without a process group and with a group of one process, in turn. throughput: images
a second of one process with all threads, and of two processes that share them, each with all Gaussians or
with half of them. checkpoint: how long training pauses for one, how long the file takes to be written beside
it, and to be read again. Real ``flexgs fit``s on the capture, its points grown to the wanted number by
jittered copies; prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import torch
from lightning import Callback, Trainer
from rasterizer import processor
from training_step import WARM_UP, write_grown

from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model import checkpoint as reading
from flexgs_lightning.training.callbacks import checkpointing as writing

ROUNDS = 3
"""Trainings of each kind, in turn, so that a change of the machine's mood meets both."""


class StepReport(Callback):
    """Writes the milliseconds of every step after the warm-up to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            steps = itertools.pairwise(self.starts[WARM_UP:])
            self.path.write_text(json.dumps([1e3 * (end - start) for start, end in steps]))


def options(root: Path, runs: Path, downscale: int, steps: int) -> list[str]:
    """A training that densifies nothing, measures nothing and saves nothing on the way."""
    return [
        "fit",
        *("--data.root", str(root), "--data.downscale", str(downscale)),
        *("--runs", str(runs), "--test_after_fit", "false"),
        *("--model.reconstruction_steps", str(steps), "--model.sh_degree_interval", "1"),
        *("--model.densification.every", "1000000", "--model.densification.stop_step", str(steps)),
        *("--model.densification.start_step", "0", "--model.densification.reset_every", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"),
        *("--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", str(steps)),
    ]


def step_milliseconds(arguments: argparse.Namespace, root: Path, threads: int, *extra: str) -> list[float]:
    """Steps of the program as typed, with ``threads`` for each of its processes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "steps.json"
        training = options(root, Path(folder) / "runs", arguments.downscale, WARM_UP + arguments.steps + 1)
        timer = ["--trainer.callbacks+=data_parallel.StepReport", f"--trainer.callbacks.path={report}"]
        subprocess.run(
            [sys.executable, "-m", "flexgs_lightning.cli", *training, *timer, *extra],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parent)},
            check=True,
            stderr=subprocess.DEVNULL,
        )
        steps: list[float] = json.loads(report.read_text())
        return steps


def overhead(arguments: argparse.Namespace, root: Path) -> None:
    """None against a group of one."""
    kinds = {"no process group": (), "group of one process": ("--trainer.strategy", "ddp")}
    times: dict[str, list[float]] = defaultdict(list)
    for _, (kind, extra) in itertools.product(range(ROUNDS), kinds.items()):
        times[kind] += step_milliseconds(arguments, root, arguments.threads, *extra)
    medians = {kind: statistics.median(steps) for kind, steps in times.items()}
    none, one = medians.values()
    print("| | step, median | overhead |\n|---|---|---|")
    print(f"| no process group | {none:.2f} ms | |")
    print(f"| group of one process | {one:.2f} ms | {100 * (one / none - 1):+.1f} % |")


def throughput(arguments: argparse.Namespace, root: Path) -> None:
    """One process with all threads against two that share them."""
    share = max(1, arguments.threads // 2)
    kinds = {
        f"1 process, {arguments.threads} threads, 1 view a step": (arguments.threads, 1, ()),
        f"1 process, {arguments.threads} threads, 2 views a step": (
            arguments.threads,
            2,
            ("--data.batch_size", "2"),
        ),
        f"2 processes, {share} threads each, 1 view each": (share, 2, ("--trainer.devices", "2")),
        f"2 processes, {share} threads each, 1 view each, sharded": (
            share,
            2,
            ("--trainer.devices", "2", "--trainer.strategy", "sharded"),
        ),
    }
    print("| | step, median | images a second |\n|---|---|---|")
    for kind, (threads, views, extra) in kinds.items():
        median = statistics.median(step_milliseconds(arguments, root, threads, *extra))
        print(f"| {kind} | {median:.2f} ms | {1e3 * views / median:.1f} |")


def checkpoint(arguments: argparse.Namespace, root: Path) -> None:
    """Pause, writing, reading; the first save also touches its memory for the first time."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[name].append(time.perf_counter() - start)
            return result

        setattr(owner, name, call)

    timed(Trainer, "save_checkpoint")
    timed(writing, "_write")
    timed(reading.torch, "load")
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        steps = 20
        training = options(root, Path(folder), arguments.downscale, steps)
        first = FlexGSCLI([*training, "--checkpoint.every_n_steps", str(steps // 4)])
        file = first.run_folder / "checkpoints" / "last.ckpt"
        size = file.stat().st_size / 1e6
        resumed = training[: training.index("--model.reconstruction_steps") + 1]
        rest = training[training.index("--model.reconstruction_steps") + 2 :]
        FlexGSCLI([*resumed, str(steps + 2), *rest, "--ckpt_path", str(file)])
    pauses, writes, reads = seconds["save_checkpoint"], seconds["_write"], seconds["load"]
    print("| Gaussians | file | pause of training | written beside it in | read in |\n|---|---|---|---|---|")
    print(
        f"| {len(first.model.gaussians):,} | {size:.0f} MB | {statistics.median(pauses[1:4]):.2f} s (first "
        f"{pauses[0]:.2f} s) | {statistics.median(writes[:4]):.2f} s | {statistics.median(reads):.2f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("overhead", "throughput", "checkpoint"))
    parser.add_argument("--root", type=Path, required=True, help="capture, for instance data/fox")
    parser.add_argument("--downscale", type=int, default=8)
    parser.add_argument("--gaussians", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all processes")
    parser.add_argument("--disk", type=Path, default=None, help="folder for the checkpoint; by default /tmp")
    arguments = parser.parse_args()
    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}\n")
    measure = {"overhead": overhead, "throughput": throughput, "checkpoint": checkpoint}[arguments.what]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / arguments.root.resolve().name
        write_grown(arguments.root, root, arguments.gaussians)
        measure(arguments, root)


if __name__ == "__main__":
    main()
