"""flexgs compare of a scene that moves: pruned, fine-tuned and elastic, measured at the views' times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from moving_scene import ball_capture, options  # noqa: F401  (a fixture)

from flexgs_lightning import load
from flexgs_lightning.cli import main
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.budget import count_at

METHODS = ("prune", "prune:random", "prune-finetune", "iterative", "flexgs")
RATIOS = (0.2, 1.0)
FAST = [
    *(f"--model.learning_rates.{name}" for name in ("opacities=0.1", "scales=0.02", "motion=0.005")),
    "--model.learning_rates.means=0.001",
]


@pytest.fixture
def first_stage(ball_capture: Capture, tmp_path: Path) -> Path:  # noqa: F811
    steps = ["--model.reconstruction_steps=150", "--model.densification.start_step=1000", *FAST]
    return FlexGSCLI(options(tmp_path / "runs", *steps)).run_folder / "checkpoints" / "last.ckpt"


def test_methods_are_compared_at_the_views_times(first_stage: Path, tmp_path: Path) -> None:
    output = tmp_path / "compare"
    asked = ["compare", "--ckpt", str(first_stage), "--output", str(output), "--steps", "40", "--device=cpu"]
    assert main([*asked, "--methods", *METHODS, "--ratios", *map(str, RATIOS)]) == 0
    report = json.loads((output / "comparison.json").read_text())
    cells: dict[tuple[str, float], Any] = {(r["method"], r["ratio"]): r for r in report["cells"]}
    total = len(load(first_stage))
    assert {key: cell["gaussians"] for key, cell in cells.items()} == {
        (method, ratio): count_at(ratio, total) for method in METHODS for ratio in RATIOS
    }
    psnr = {key: cell["psnr"] for key, cell in cells.items()}
    assert psnr["prune", 1.0] == psnr["prune:random", 1.0], "all of it, in whatever order"
    assert psnr["prune", 0.2] > psnr["prune:random", 0.2] + 0.5
    for method in ("prune-finetune", "iterative", "flexgs"):
        assert psnr[method, 0.2] > psnr["prune", 0.2] + 0.5, method
        assert psnr[method, 1.0] > psnr["prune", 1.0] - 0.5, method
    assert cells["prune-finetune", 0.2]["megabytes"] < 0.25 * cells["prune", 1.0]["megabytes"]

    refused = [*asked, "--methods", "prune:lightgaussian", "--ratios", "0.2"]
    assert main(refused) == 1
    reason = (output / "prune-lightgaussian" / "0.2" / "error.txt").read_text()
    assert "expected a score of scenes that move" in reason
