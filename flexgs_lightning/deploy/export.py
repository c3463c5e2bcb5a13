"""``flexgs export``: a trained scene as standard files, one for each budget."""

# The signature and docstring of `export` are the command line's help, so no lazy annotations here.
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from flexgs_lightning.deploy.budgets import Budget, parse_budgets
from flexgs_lightning.deploy.opening import load_any
from flexgs_lightning.deploy.ply import write_ply
from flexgs_lightning.deploy.render import require_free
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)

INDEX = "index.json"
EXPORTS = (".ply", ".json")
"""Endings of the files that a folder of exports holds."""


def export(
    ckpt: Path,
    output: Path,
    ratio: list[str] | None = None,
    max_gaussians: list[str] | None = None,
    max_megabytes: list[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint as standard 3DGS PLY files, in the capture's own world frame.

    What makes a scene elastic is baked in: any viewer draws the file as the model draws itself at that size.
    Without a budget the full model is written.

    Args:
        ckpt: Checkpoint of a training, or an elastic file (.egs).
        output: The .ply file to write; with several budgets a folder, which gets a file for each and an
            index.json: file, ratio (the one asked for, or else what the budget comes to), Gaussians, bytes,
            and PSNR where the run was tested at that ratio.
        ratio: Shares of the Gaussians in (0, 1], such as 0.05 or 0.01 0.05 0.2.
        max_gaussians: Numbers of Gaussians, such as 120000 or 50k 200k 1M.
        max_megabytes: File sizes in megabytes (1,000,000 bytes), such as 15 or 5 15.
        overwrite: Replace the files if they exist.
    """
    budgets = parse_budgets(ratio, max_gaussians, max_megabytes)
    require_free(output, overwrite, EXPORTS)
    model = load_any(ckpt)
    if len(budgets) == 1:
        if output.suffix.lower() != ".ply":
            raise InputError(f"{output}: expected the name of a .ply file.")
        splats = budgets[0].of(model)
        write_ply(splats, output)
        _tell(output, splats)
        return
    if output.suffix:
        raise InputError(f"{output}: {len(budgets)} budgets need a folder, found the name of a file.")
    scenes = [(budget, budget.of(model)) for budget in budgets]  # a bad one writes nothing
    with atomic_path(output) as temporary:
        temporary.mkdir()
        entries = []
        for budget, splats in scenes:
            path = temporary / f"{output.name}_{len(splats)}.ply"
            write_ply(splats, path)
            entries.append(_entry(path, len(splats), model, budget, ckpt))
        (temporary / INDEX).write_text(json.dumps(entries, indent=2) + "\n")
        if output.is_dir():  # a rename does not replace a folder with files in it
            shutil.rmtree(output)
    for (_, splats), entry in zip(scenes, entries, strict=True):
        _tell(output / entry["file"], splats)


def _tell(path: Path, splats: Splats) -> None:
    size = path.stat().st_size / 1e6
    log.info(f"{path}: {len(splats):,} Gaussians, SH degree {splats.sh_degree}, {size:.1f} MB")


def _entry(path: Path, count: int, model: Model, budget: Budget, ckpt: Path) -> dict[str, Any]:
    entry = {
        "file": path.name,
        "ratio": count / len(model) if budget.ratio is None else budget.ratio,
        "gaussians": count,
        "bytes": path.stat().st_size,
    }
    psnr = _measured_psnr(ckpt, model.iteration, budget.ratio)
    return entry if psnr is None else entry | {"psnr": psnr}


def _measured_psnr(ckpt: Path, iteration: int, ratio: float | None) -> float | None:
    """PSNR from the run's metrics.json, if this very checkpoint was tested at this very ratio."""
    report = ckpt.resolve().parents[1] / "metrics.json"
    if ratio is None or not report.is_file():
        return None
    metrics = json.loads(report.read_text())
    if metrics["iteration"] != iteration:
        return None
    if ratio == 1.0:
        return metrics["mean"].get("psnr")
    return metrics["ratios"].get(f"{ratio:g}", {}).get("psnr")
