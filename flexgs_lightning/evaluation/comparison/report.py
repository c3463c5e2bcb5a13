"""The report of a comparison: one JSON file, tables, curves and pictures made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flexgs_lightning.evaluation.comparison.cells import VIEW, Cell
from flexgs_lightning.evaluation.comparison.pictures import picture_grid
from flexgs_lightning.evaluation.curves import write_curves
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.evaluation.tables import markdown
from flexgs_lightning.files import atomic_path
from flexgs_lightning.metrics.protocol import worst_view
from flexgs_lightning.model.checkpoint import read_checkpoint
from flexgs_lightning.training.callbacks.clock import seconds_of
from flexgs_lightning.training.callbacks.test_report import LIBRARIES, device_name

Comparison = dict[str, Any]
JSON_NAME, MARKDOWN_NAME = "comparison.json", "comparison.md"


def comparison_of(study: Study, cells: Sequence[Cell]) -> Comparison:
    """Everything that is reported, as plain values: a function of the cells' folders alone."""
    done = [cell for cell in cells if cell.finished]
    results = [_of_all_images(cell.result()) for cell in done]
    methods = {cell.method.name: cell.method for cell in cells}
    return {
        "capture": study.capture.name,
        "first_stage": {
            "gaussians": len(study),
            "iterations": study.model.iteration,
            "seconds": seconds_of(read_checkpoint(study.checkpoint, mapped=True)),
            **study.facts,
        },
        "protocol": study.protocol(),
        "methods": {
            name: {
                "description": method.description,
                "cost": method.cost,
                **method.facts(study),
                **_cost([r["training"] for r in results if r["method"] == name], method.per_ratio),
            }
            for name, method in methods.items()
        },
        "cells": results,
        "failed": [
            {"method": cell.method.name, "ratio": cell.ratio, "error": cell.error}
            for cell in cells
            if not cell.finished and cell.error is not None
        ],
        "device": device_name(study.device),
        "versions": {library: version(library) for library in LIBRARIES},
    }


def write_report(study: Study, cells: Sequence[Cell], output: Path) -> Comparison:
    """Write ``comparison.json``, ``comparison.md``, curves and a picture grid for each ratio.

    Metrics of each image stay in the cells' own ``cell.json``.
    """
    comparison = comparison_of(study, cells)
    _write(output / JSON_NAME, json.dumps(comparison, indent=2) + "\n")
    pictures = {}
    for ratio in sorted({cell.ratio for cell in cells}):
        shown = {c.method.name: c.folder / VIEW for c in cells if c.ratio == ratio and c.finished}
        if shown:
            path = output / f"grid_{100 * ratio:g}pct.jpg"
            psnr = {r["method"]: r["psnr"] for r in comparison["cells"] if r["ratio"] == ratio}
            picture_grid(shown, psnr, study.picture_view, study.background.cpu(), path)
            pictures[ratio] = path.name
    curves = write_curves(comparison, output) if comparison["cells"] else []
    _write(output / MARKDOWN_NAME, markdown(comparison, [path.name for path in curves], pictures))
    return comparison


def _of_all_images(result: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's result without each image's, but with the worst."""
    rest = {key: value for key, value in result.items() if key != "images"}
    return {**rest, "worst": worst_view(result["images"])}


def _cost(trainings: Sequence[dict[str, Any] | None], per_ratio: bool) -> dict[str, Any]:
    """Trainings, steps and seconds for all ratios together; ratios of one elastic training share it."""
    done = [training for training in trainings if training is not None]
    counted = done if per_ratio else done[:1]
    return {
        "trainings": len(counted),
        "steps": sum(training["steps"] for training in counted),
        "seconds": sum(training["seconds"] for training in counted),
    }


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
