"""When to stop densifying: at half of the first stage, or at its end as the FlexGS paper does.

    python benchmarks/densification_stop.py data/fox:8 data/gerrard_hall:4 data/bonsai:4 [--views test]

Trains the first stage of each capture (``FOLDER:DOWNSCALE``) twice for each number of steps, alike but for
``densification.stop_step``, and prints a Markdown table. The number of Gaussians is capped, so that a CPU
manages: without a cap the later stop ends with more Gaussians still.

The choice is made on the training views alone: the capture is copied without its held-out views, and every
8th of what is left is held out instead. ``--views test`` measures on the capture's own held-out views.

What is finished is not trained again, and an interrupted training goes on: the same command continues.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import torch
from lightning import Callback
from rasterizer import processor

from flexgs_lightning.data.capture import TEST_EVERY
from flexgs_lightning.data.colmap_files import find_model, read_model
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.checkpoint import read_checkpoint

RUNS = Path("runs") / "densification_stop"
CLOCK = "CpuClock"


class CpuClock(Callback):
    """Counts the CPU seconds of all threads spent in training, over interruptions."""

    def __init__(self) -> None:
        self._before, self._since = 0.0, time.process_time()

    def on_train_start(self, *_: Any) -> None:
        self._since = time.process_time()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._before + time.process_time() - self._since}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["seconds"]


@dataclass(frozen=True)
class Run:
    """One training: a capture, its length, and where densification stops."""

    root: Path
    downscale: int
    steps: int
    to_the_end: bool
    max_gaussians: int
    runs: Path

    @property
    def folder(self) -> Path:
        stop = "end" if self.to_the_end else "half"
        return self.runs / f"{self.root.name}_{self.downscale}" / f"{self.steps}_{stop}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "version_0" / "checkpoints" / "last.ckpt"

    @property
    def metrics(self) -> Path:
        return self.folder / "version_0" / "metrics.json"

    def train(self) -> None:
        stop = self.steps if self.to_the_end else self.steps // 2
        FlexGSCLI(
            [
                "fit",
                *("--data.root", str(self.root), "--data.downscale", str(self.downscale)),
                *("--runs", str(self.folder.parent), "--name", self.folder.name),
                *("--model.reconstruction_steps", str(self.steps), "--model.lpips", "none"),
                *("--model.densification.stop_step", str(stop)),
                *("--model.densification.max_gaussians", str(self.max_gaussians)),
                *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"),
                *("--checkpoint.every_n_steps", "500"),
                "--trainer.callbacks+=densification_stop.CpuClock",
                *(("--ckpt_path", str(self.checkpoint)) if self.checkpoint.is_file() else ()),
            ]
        )
        gc.collect()  # a trainer and its module refer to each other, and hold the scene and its moments

    def row(self) -> str:
        metrics = json.loads(self.metrics.read_text())
        worst = min(metrics["images"], key=lambda image: image["psnr"])
        seconds = read_checkpoint(self.checkpoint)["callbacks"][CLOCK]["seconds"]
        return (
            f"| `{self.root.name}` | {self.steps:,} | {'the end' if self.to_the_end else 'half'} "
            f"| {metrics['mean']['psnr']:.2f} | {metrics['mean']['ssim']:.4f} "
            f"| {worst['psnr']:.2f} ({worst['name']}) | {metrics['gaussians']:,} | {seconds:,.0f} |"
        )


def without_held_out(source: Path, target: Path) -> Path:
    """A copy of a capture that knows its training views only; photos are linked."""
    if not (target / "sparse" / "0").is_dir():
        model = read_model(find_model(source))
        held_out = sorted(model.reg_image_ids(), key=lambda i: model.images[i].name)[::TEST_EVERY]
        for i in held_out:
            model.deregister_frame(model.images[i].frame_id)
        for folder in source.glob("images*"):
            (target / folder.name).parent.mkdir(parents=True, exist_ok=True)
            (target / folder.name).unlink(missing_ok=True)
            (target / folder.name).symlink_to(folder.resolve())
        (target / "sparse" / "new").mkdir(parents=True, exist_ok=True)
        model.write_binary(str(target / "sparse" / "new"))
        (target / "sparse" / "new").rename(target / "sparse" / "0")
    return target


def plan(options: argparse.Namespace) -> Iterator[Run]:
    """Every training, short ones first; both stops of a capture beside each other."""
    runs = options.output / options.views
    for steps in sorted(options.steps):
        for capture in options.captures:
            folder, _, downscale = capture.rpartition(":")
            root = Path(folder).resolve()
            if options.views == "training":
                root = without_held_out(root, options.output / "captures" / root.name)
            for to_the_end in (False, True):
                yield Run(root, int(downscale), steps, to_the_end, options.max_gaussians, runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captures", nargs="+", help="FOLDER:DOWNSCALE, for instance data/fox:8")
    parser.add_argument("--steps", type=int, nargs="+", default=[4_000, 15_000])
    parser.add_argument("--views", choices=["training", "test"], default="training", help="measured on")
    parser.add_argument("--max_gaussians", type=int, default=200_000)
    parser.add_argument("--output", type=Path, default=RUNS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--report", action="store_true", help="train nothing, print what is finished")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = list(plan(options))
    if not options.report:
        for run in runs:
            if not run.metrics.is_file():
                run.train()
    views = "every 8th training view" if options.views == "training" else "test views"
    print(f"\n{processor()}, at most {options.max_gaussians:,} Gaussians, measured on {views}\n")
    print("| capture | steps | densified up to | PSNR | SSIM | worst view | Gaussians | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for run in runs:
        if run.metrics.is_file():
            print(run.row())


if __name__ == "__main__":
    main()
