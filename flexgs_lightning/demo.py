"""The main job on an embedded default: a capture made on the spot, trained, measured and exported."""

import json
import sys
from pathlib import Path
from typing import Any

from flexgs_lightning.data.procedural import write_demo_capture
from flexgs_lightning.deploy.contact_sheet import contact_sheet_of
from flexgs_lightning.deploy.ply import write_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.checkpoint import load

SHEET_VIEWS = 4


def demo(
    config: Path = Path("configs/demo.yaml"), root: Path = Path("data/demo"), runs: Path = Path("runs")
) -> None:
    """Make a small capture, train on it, and show the result.

    Args:
        config: settings of the training.
        root: folder of the demo capture; made if it is not there.
        runs: folder of all runs.
    """
    if not config.is_file():
        raise InputError(f"--config {config}: no such file; run `flexgs demo` in a checkout of the project.")
    if not root.is_dir():
        write_demo_capture(root)
    cli = FlexGSCLI(["fit", "--config", str(config), "--data.root", str(root), "--runs", str(runs)])
    folder = cli.run_folder
    model = load(folder / "checkpoints" / "last.ckpt")
    splats = model.splats()
    write_ply(splats, folder / "scene.ply")
    views = cli.datamodule.capture.test_views
    contact_sheet_of(splats, views[:: max(1, len(views) // SHEET_VIEWS)], folder / "contact_sheet.png")
    sys.stdout.write(summary(folder))


def summary(folder: Path) -> str:
    """What a finished run holds, as text for a terminal."""
    report: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    means = report["mean"]
    rows = [(name.upper(), f"{value:.3f}") for name, value in means.items()]
    rows += [
        ("Gaussians", f"{report['gaussians']:,}"),
        ("megabytes", f"{report['megabytes']:.1f}"),
        ("ms per render", f"{report['milliseconds']:.1f}"),
    ]
    table = "\n".join(f"  {name:<14} {value:>10}" for name, value in rows)
    return (
        f"\nHeld-out views of {report['capture']} after {report['iteration']:,} steps\n{table}\n\n"
        f"  render beside photo   {folder / 'contact_sheet.png'}\n"
        f"  3DGS scene            {folder / 'scene.ply'}\n"
        f"  metrics of each view  {folder / 'metrics.json'}\n"
        f"  curves and images     tensorboard --logdir {folder.parents[1]}\n"
    )
