"""Time of one training step on a capture, everything included.

    python benchmarks/training_step.py --root data/fox --downscale 8 [--gaussians 50000] [--threads 2]

A real ``flexgs fit``: photos, rendering, loss, gradients, Adam, densification statistics, progress and
TensorBoard. The SfM points are grown to the wanted number by jittered copies; nothing is densified, so
that it stays there, and the spherical harmonics have their full degree. A step lasts from its beginning
to the next one's. Prints Markdown; the CPU time, of all threads together, says most on a busy machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import numpy as np
import pycolmap
import torch
from lightning import Callback
from rasterizer import processor

from flexgs_lightning.data.colmap_files import find_model, read_model
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.gaussians import neighbour_distances

WARM_UP = 100
"""Steps that compile, load and fill the cache of photos."""


class StepTimer(Callback):
    """Notes wall and CPU time when each step begins."""

    def __init__(self) -> None:
        self.starts: list[tuple[float, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append((time.perf_counter(), time.process_time()))

    def milliseconds(self, clock: int) -> list[float]:
        """Duration of every step after the warm-up, shortest first: wall (0) or CPU of all threads (1)."""
        starts = [start[clock] for start in self.starts[WARM_UP:]]
        return sorted(1e3 * (end - start) for start, end in itertools.pairwise(starts))


def write_grown(source: Path, target: Path, count: int) -> None:
    """The capture with its points grown to ``count`` by jittered copies; photos are linked."""
    model = read_model(find_model(source))
    points = [model.points3D[i] for i in sorted(model.points3D)]
    positions = torch.from_numpy(np.array([point.xyz for point in points]))
    spacing = neighbour_distances(positions)
    random = torch.Generator().manual_seed(0)
    copies = torch.randint(len(points), (max(0, count - len(points)),), generator=random)
    offsets = torch.randn(len(copies), 3, generator=random)
    for i, offset in zip(copies.tolist(), offsets, strict=True):
        xyz = positions[i] + 0.5 * spacing[i] * offset
        model.add_point3D(xyz.numpy(), pycolmap.Track(), points[i].color)
    (target / "sparse" / "0").mkdir(parents=True)
    model.write_binary(str(target / "sparse" / "0"))
    for folder in source.glob("images*"):
        (target / folder.name).symlink_to(folder.resolve())


def train(options: argparse.Namespace, root: Path, runs: Path) -> FlexGSCLI:
    """A training of ``options.steps`` steps after the warm-up."""
    steps = WARM_UP + options.steps + 1
    return FlexGSCLI(
        [
            "fit",
            *("--data.root", str(root), "--data.downscale", str(options.downscale)),
            *("--runs", str(runs), "--test_after_fit", "false"),
            *("--model.reconstruction_steps", str(steps), "--model.sh_degree_interval", "1"),
            *("--model.densification.every", "1000000", "--model.densification.stop_step", str(steps)),
            *("--model.densification.start_step", "0", "--model.densification.reset_every", "0"),
            *("--trainer.accelerator", "cpu", "--trainer.val_check_interval", str(steps)),
            *("--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", str(10 * steps)),
            "--trainer.callbacks+=training_step.StepTimer",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="capture, for instance data/fox")
    parser.add_argument("--downscale", type=int, default=8)
    parser.add_argument("--gaussians", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / options.root.resolve().name
        write_grown(options.root, root, options.gaussians)
        cli = train(options, root, Path(folder) / "runs")
    timer = next(callback for callback in cli.trainer.callbacks if hasattr(callback, "milliseconds"))
    times, cpu_times = timer.milliseconds(0), timer.milliseconds(1)
    camera = cli.datamodule.capture.views[0].camera
    print(f"\n{processor()}, {options.threads} threads, torch {torch.__version__}\n")
    print("| capture | image | Gaussians | steps | median | minimum | 90 % are below | CPU time |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {cli.datamodule.capture.name} | {camera.width}x{camera.height} | {len(cli.model.gaussians):,} "
        f"| {len(times)} | {statistics.median(times):.1f} ms | {times[0]:.1f} ms "
        f"| {times[int(0.9 * len(times))]:.1f} ms | {statistics.median(cpu_times):.1f} ms |"
    )


if __name__ == "__main__":
    main()
