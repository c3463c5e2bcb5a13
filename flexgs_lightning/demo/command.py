"""The main job on an embedded default: a capture made on the spot, trained, measured and exported."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from flexgs_lightning.data.capture import View
from flexgs_lightning.demo.capture import write_demo_capture
from flexgs_lightning.demo.film import write_demo_film
from flexgs_lightning.deploy.contact_sheet import contact_sheet_of
from flexgs_lightning.deploy.elastic_pictures import rate_quality_curve, ratio_strip
from flexgs_lightning.deploy.export import export
from flexgs_lightning.deploy.formats.registry import write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.render_command import render
from flexgs_lightning.evaluation.benchmark.report import scene_row
from flexgs_lightning.evaluation.records import read_metrics
from flexgs_lightning.model.checkpoint import Model, load
from flexgs_lightning.settings import find_config
from flexgs_lightning.signals import keeping
from flexgs_lightning.training.run import TrainingRun

SHEET_VIEWS = 4
RATIOS = (0.01, 0.05, 0.1, 0.3, 1.0)
FILES = {
    "contact_sheet.png": "renders beside photos",
    "ratios.png": "one view at five sizes",
    "rate_quality.png": "quality against size",
    "scene.ply": "3DGS scene",
    "sizes": "3DGS scene at five sizes",
    "held_out.mp4": "held-out film, render | photo",
    "frozen.mp4": "a moment from all sides",
    "metrics.json": "metrics of each view",
}
FROZEN, FLIGHT = 0.45, 90
"""Moment of the film that is shown from all sides, from 0 to 1, and frames of the flight."""


def demo(
    config: str | None = None, root: Path | None = None, runs: Path = Path("runs"), moving: bool = False
) -> None:
    """Make a small capture, train on it, and show the result.

    Args:
        config: settings of the training: a YAML file, or the name of a config that is shipped; by default
            demo, or demo_moving.
        root: folder of the demo capture; made if it is not there. By default data/demo, or data/demo_moving.
        runs: folder of all runs.
        moving: film a scene that moves with nine cameras, instead of taking photos of one that does not.
    """
    name = "demo_moving" if moving else "demo"
    config, root = config or name, root or Path("data") / name
    find_config(config)  # before the capture is made
    if not root.is_dir():
        (write_demo_film if moving else write_demo_capture)(root)
    options = ["--config", config, "--data.root", str(root), "--runs", str(runs)]
    run = None

    def kept() -> str:
        if run is None or not run.last_checkpoint.is_file():
            return f"The capture is kept in {root}; the same command goes on with it."
        return f"{run.last_checkpoint} is kept; flexgs fit {shlex.join(options)} --ckpt_path last goes on."

    with keeping(kept):
        run = TrainingRun(options)
        run.train()
        _show(run)


def _show(run: TrainingRun) -> None:
    """Pictures, files and a summary of a finished training."""
    folder = run.run_folder
    checkpoint = folder / "checkpoints" / "last.ckpt"
    model = load(checkpoint)
    if model.moves:
        seconds = model.seconds or 1.0
        render(folder / "held_out.mp4", checkpoint, photos=True, overwrite=True)
        moment = f"{FROZEN * seconds:g}"
        render(folder / "frozen.mp4", checkpoint, path="train", frames=FLIGHT, time=moment, overwrite=True)
        sys.stdout.write(summary(folder))
        return
    views = run.datamodule.capture.test_views
    sheet_views = views[:: max(1, len(views) // SHEET_VIEWS)]
    contact_sheet_of(model.splats(), sheet_views, folder / "contact_sheet.png")
    write_splats(SplatFile(model.splats(), model.antialiased), folder / "scene.ply")
    if model.elastic:
        _write_elastic(model, views[0], folder)
    sys.stdout.write(summary(folder))


def _write_elastic(model: Model, view: View, folder: Path) -> None:
    """The same view at several ratios, quality against size, and a file for each of the smaller ratios."""
    ratio_strip(model, view, RATIOS, folder / "ratios.png")
    measured = read_metrics(folder / "metrics.json")
    psnr = {int(result["gaussians"]): result["psnr"] for result in scene_row(measured).values()}
    rate_quality_curve(psnr, folder / "rate_quality.png", "One model, drawn at any size")
    budgets = [f"{ratio:g}" for ratio in RATIOS]
    export(folder / "checkpoints" / "last.ckpt", folder / "sizes", ratio=budgets)


def summary(folder: Path) -> str:
    """What a finished run holds, as text for a terminal."""
    report = read_metrics(folder / "metrics.json")
    names = list(report["mean"])
    lines = ["".join(f"{title:>12}" for title in ("ratio", "Gaussians", *(name.upper() for name in names)))]
    lines[0] += "  worst view"
    for ratio, result in scene_row(report).items():
        values = "".join(f"{result[name]:>12.3f}" for name in names)
        worst = result.get("worst")
        view = "–" if worst is None else f"{worst['psnr']:.3f} dB, {worst['name']}"
        lines.append(f"{f'{100 * ratio:g} %':>12}{result['gaussians']:>12,}{values}  {view}")
    table = "\n".join(lines)
    files = {name: folder / name for name in FILES if (folder / name).exists()}
    shown = "\n".join(f"  {FILES[name]:<24} {path}" for name, path in files.items())
    flexgs, site = _program("flexgs"), folder / "site"
    commands = {
        "curves and images": f"{_program('tensorboard')} --logdir {folder.parents[1]}",
        "a page for browsers": f"{flexgs} publish --ckpt {folder}/checkpoints/last.ckpt --output {site}",
        "… seen on this machine": f"{flexgs} serve {site}",
    }
    typed = "\n".join(f"  {what:<24} {command}" for what, command in commands.items())
    return (
        f"\nHeld-out views of {report['capture']} after {report['iteration']:,} steps, "
        f"{report['milliseconds']:.1f} ms for a full render\n{table}\n\n{shown}\n{typed}\n"
    )


def _program(name: str) -> str:
    """How to call a program of this environment: `make demo` runs without it activated."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))
