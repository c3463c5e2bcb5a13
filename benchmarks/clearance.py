"""What camera clearance does to held-out views: mean, worst view, and the view that changes most.

    python benchmarks/clearance.py train --data data --captures fox,herz_jesus_p25 --runs runs/clearance
    python benchmarks/clearance.py train --data data --captures herz_jesus_p25 --elastic_steps 1000
    python benchmarks/clearance.py cut --ckpts runs/fox/version_0/checkpoints/last.ckpt --ratios 0.05,1

train: trains every capture with and without ``model.clearance``, nothing else changed, and compares
``metrics.json`` view by view; ``--elastic_steps`` adds the second stage from there. Where clearance has
removed nothing, both trainings are the same, bit for bit, and the second one is left out. The same command
again skips what is finished and resumes what was interrupted. Prints Markdown, and writes it to
``RUNS/clearance.md`` after each capture, every view's PSNR to ``RUNS/clearance.json``.

cut: takes the Gaussians that lie too close to a training camera out of finished models, which were trained
without clearance, and draws the same held-out views again: what clearance does, free of what any other small
change does to a training (two trainings of one capture differ by some hundredths of a decibel in the mean).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flexgs_lightning import load, rasterize
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.evaluation.benchmark.scene import SceneRun
from flexgs_lightning.files import atomic_path
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, read_checkpoint
from flexgs_lightning.training.clearance import CameraClearance, clear_space

CAPTURES = {
    "herz_jesus_p25": (4, 40_000),
    "gerrard_hall": (4, 40_000),
    "llff_fern": (4, 40_000),
    "fox": (8, 40_000),
    "bonsai": (4, 89_000),
}
"""Factor by which photos are reduced, and most Gaussians (no fewer than its SfM points)."""
CONFIG = Path(__file__).parent.parent / "configs" / "flexgs.yaml"
WITHOUT = ("--model.clearance.share", "0")


@dataclass(frozen=True)
class Comparison:
    """One stage of one capture, with and without clearance.

    Attributes:
        capture: its name.
        stage: which stage.
        removed: Gaussians that clearance removed, of ``gaussians``.
        gaussians: Gaussians at the end.
        psnr: PSNR with and without it, in dB, of each held-out view by name.
    """

    capture: str
    stage: str
    removed: int
    gaussians: int
    psnr: dict[str, tuple[float, float]]

    def row(self) -> str:
        """A line of the table."""
        values = np.array(list(self.psnr.values()))
        names = list(self.psnr)
        with_, without = values.T
        change = with_ - without
        most = int(np.abs(change).argmax())
        cells = [
            self.capture,
            self.stage,
            str(len(names)),
            f"{self.removed} of {self.gaussians:,}",
            *(f"{mean:.2f}" for mean in (without.mean(), with_.mean())),
            f"{change.mean():+.3f}",
            *(f"{column.min():.2f} ({names[int(column.argmin())]})" for column in (without, with_)),
            f"{change[most]:+.2f} ({names[most]})",
        ]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| capture | after | views | removed | mean without, dB | with | change | worst view without | with "
    "| largest change of a view |\n|---|---|---|---|---|---|---|---|---|---|"
)


def finished(run: SceneRun, options: list[str]) -> Path:
    """The folder of a training's newest version, trained first if it is not yet."""
    if run.finished() is None:
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "flexgs_lightning.cli", "fit", *run.arguments(run.checkpoint())]
        with run.log.open("a") as log:
            subprocess.run([*command, *options], stdout=log, stderr=subprocess.STDOUT, check=True)
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    return checkpoint.parents[1]


def removed(folder: Path) -> int:
    """Gaussians that a training has removed because they were too close to a camera."""
    densification = read_checkpoint(last(folder))[CHECKPOINT_KEY]["densification"]
    if densification is not None:  # a first stage
        return int(densification["too_close"])
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    name = "densification/too_close"
    if name not in events.Tags()["scalars"]:
        return 0
    return round(sum(event.value for event in events.Scalars(name)))


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def compare(capture: str, stage: str, folders: tuple[Path, Path]) -> Comparison:
    """Two finished trainings of one stage: with clearance, and without."""
    with_, without = (
        {image["name"]: image["psnr"] for image in metrics(folder)["images"]} for folder in folders
    )
    psnr = {name: (with_[name], without[name]) for name in with_}
    return Comparison(capture, stage, removed(folders[0]), metrics(folders[0])["gaussians"], psnr)


def measure(capture: str, seed: int, options: argparse.Namespace) -> list[Comparison]:
    """Both stages of a capture."""
    root, (downscale, most) = options.data / capture, CAPTURES[capture]
    shared = [
        *("--data.downscale", str(downscale), "--data.test_every", str(options.test_every)),
        *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"),
        *("--model.lpips", "none", "--trainer.enable_progress_bar", "false", "--seed_everything", str(seed)),
    ]
    within = ("--model.clearance.share", f"{options.share:g}")
    stages = {"stage 1": [*("--model.reconstruction_steps", str(options.steps))]}
    stages["stage 1"] += ["--model.densification.max_gaussians", str(most)]
    if options.elastic_steps:
        stages["stage 2"] = ["--config", str(CONFIG), "--model.reconstruction_steps", "0"]
        stages["stage 2"] += ["--model.elastic_training.steps", str(options.elastic_steps)]
    comparisons: list[Comparison] = []
    starts: tuple[Path, Path] | None = None
    for stage, own in stages.items():
        folders: list[Path] = []
        for kind, extra in ((f"with-{options.share:g}", within), ("without", WITHOUT)):
            if kind == "without" and removed(folders[0]) == 0 and (starts is None or starts[0] == starts[1]):
                folders.append(folders[0])
                continue
            name = f"{capture}-{options.test_every}-{seed}-{kind}-{stage.replace(' ', '')}"
            start = [] if starts is None else ["--start_from", str(last(starts[len(folders)]))]
            run = SceneRun(name, root, options.runs)
            folders.append(finished(run, [*own, *shared, *start, *extra]))
        starts = folders[0], folders[1]
        comparisons.append(compare(f"{capture}, seed {seed}", stage, starts))
    return comparisons


@torch.no_grad()
def cut(checkpoint: Path, ratio: float) -> Comparison:
    """A finished model at a ratio, with what lies too close taken out, and without."""
    model = load(checkpoint)
    data = {name: model.data[name] for name in ("root", "downscale", "test_every")}
    capture = read_colmap(**data)
    space = clear_space(capture, CameraClearance())
    splats = model.at(ratio)
    inside = torch.zeros(len(splats), dtype=torch.bool) if space is None else space.contains(splats.means)
    cleared = splats[~inside]
    found: dict[str, tuple[float, float]] = {}
    for view in capture.test_views:
        photo = torch.from_numpy(view.source.read()[None, ..., :3].astype(np.float32) / 255)
        renders = [
            rasterize(
                some, view.camera, background=model.background, antialiased=model.antialiased
            ).image.clamp(0, 1)
            for some in (cleared, splats)
        ]
        with_, without = (float(psnr(render, photo)) for render in renders)
        found[view.name] = with_, without
    stage = f"step {model.iteration:,}, {100 * ratio:g} %"
    return Comparison(capture.name, stage, int(inside.sum()), len(splats), found)


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def write(comparisons: list[Comparison], folder: Path) -> str:
    """The report so far."""
    text = "\n".join([HEADER, *(comparison.row() for comparison in comparisons)])
    everything = [vars(comparison) for comparison in comparisons]
    with atomic_path(folder / "clearance.md") as path:
        path.write_text(text + "\n")
    with atomic_path(folder / "clearance.json") as path:
        path.write_text(json.dumps(everything, indent=2) + "\n")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--data", type=Path, required=True, help="folder of the captures")
    train.add_argument("--captures", default=",".join(CAPTURES), help=f"some of {', '.join(CAPTURES)}")
    train.add_argument("--runs", type=Path, default=Path("runs/clearance"))
    train.add_argument("--steps", type=int, default=2_000)
    train.add_argument("--elastic_steps", type=int, default=0, help="length of the second stage")
    train.add_argument("--test_every", type=int, default=8)
    train.add_argument("--share", type=float, default=CameraClearance().share, help="of the nearest distance")
    train.add_argument("--seeds", default="42", help="like 42,43: what differs between trainings anyway")
    cutting = commands.add_parser("cut")
    cutting.add_argument("--ckpts", type=Path, nargs="+", required=True)
    cutting.add_argument("--ratios", default="1", help="sizes to draw at, like 0.05,1; the first stage has 1")
    options = parser.parse_args()
    if options.command == "cut":
        print(HEADER)
        for checkpoint in options.ckpts:
            for ratio in map(float, options.ratios.split(",")):
                print(cut(checkpoint, ratio).row(), flush=True)
        return
    comparisons: list[Comparison] = []
    for capture in options.captures.split(","):
        for seed in map(int, options.seeds.split(",")):
            comparisons += measure(capture, seed, options)
            print(write(comparisons, options.runs), flush=True)


if __name__ == "__main__":
    main()
