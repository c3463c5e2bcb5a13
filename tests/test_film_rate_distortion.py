"""flexgs rd of a scene that moves: films at every cut, beside the same numbers uncoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_scene import capture, options

from flexgs_lightning import load
from flexgs_lightning.cli import main
from flexgs_lightning.codec.film import open_film, read_film
from flexgs_lightning.data import datamodule
from flexgs_lightning.evaluation.rate_distortion.report import markdown
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.attributes import floats_per_gaussian
from flexgs_lightning.model.budget import count_at

SYSTEMS = ("egs", "one-size", "float32", "float32.xz", "float16", "ply", "sog")
FAST = [
    *(f"--model.learning_rates.{name}" for name in ("opacities=0.1", "scales=0.02", "motion=0.005")),
    "--model.learning_rates.means=0.001",
    "--model.reconstruction_steps=40",
    "--model.elastic_training.steps=10",
    "--model.elastic_training.ratio_range=[0.1,1.0]",
    "--model.elastic.residual_anchors=[0.3]",
    "--model.densification.start_step=1000",
    "--trainer.limit_val_batches=0",
    "--test_after_fit=false",
]


def rd(checkpoint: Path, output: Path, *systems: str) -> int:
    asked = ["rd", "--ckpt", str(checkpoint), "--output", str(output), "--device=cpu", "--refine-steps=0"]
    return main([*asked, "--losses", "0.2", "1", "--ratios", "0.3", "1", "--systems", *systems])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short elastic training of the ball."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodule, "read_capture", lambda **options: capture())
        run = FlexGSCLI(options(tmp_path_factory.mktemp("runs"), *FAST))
    return run.run_folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def output(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodule, "read_capture", lambda **options: capture())
        assert rd(checkpoint, folder, *SYSTEMS) == 0
    return folder


@pytest.fixture(scope="module")
def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "rd.json").read_text())


def points(report: dict[str, Any], system: str, setting: str) -> list[dict[str, Any]]:
    (cell,) = (c for c in report["cells"] if (c["system"], c["setting"]) == (system, setting))
    return cell["points"]


def test_what_holds_motion_is_measured_and_the_rest_left_out_with_a_reason(
    output: Path, report: dict[str, Any]
) -> None:
    cells = {(cell["system"], cell["setting"]) for cell in report["cells"]}
    coded = {(name, loss) for name in ("egs", "one-size") for loss in ("0.2", "1")}
    uncoded = {(name, ratio) for name in ("float32", "float32.xz", "float16") for ratio in ("0.3", "1")}
    assert cells == coded | uncoded
    assert report["failed"] == []
    assert set(report["left_out"]) == {"ply", "sog"}
    assert "- ply: holds scenes that stand still" in (output / "rd.md").read_text()
    assert not (output / "ply").exists()


def test_uncoded_is_every_number_and_draws_what_the_model_draws(
    report: dict[str, Any], checkpoint: Path
) -> None:
    model = load(checkpoint)
    each = 4 * floats_per_gaussian(0, model.gaussians.attributes)
    (whole,), (part,) = (points(report, "float32", ratio) for ratio in ("1", "0.3"))
    for point, ratio in ((whole, 1.0), (part, 0.3)):
        assert point["gaussians"] == count_at(ratio, len(model))
        beside = point["bytes"] - each * point["gaussians"]
        assert 0 < beside < 6000, "names of arrays"
    (packed,), (halves,) = points(report, "float32.xz", "1"), points(report, "float16", "1")
    assert packed["psnr"] == whole["psnr"]
    assert halves["psnr"] == pytest.approx(whole["psnr"], abs=0.3)
    assert packed["bytes"] < whole["bytes"]
    assert halves["bytes"] < 0.8 * whole["bytes"]
    whole_file, small = (points(report, "egs", loss)[-1] for loss in ("0.2", "1"))
    assert abs(whole_file["psnr"] - whole["psnr"]) < 0.5
    assert small["bytes"] < whole_file["bytes"] < whole["bytes"]


def test_the_film_is_measured_at_every_cut(output: Path, report: dict[str, Any]) -> None:
    cuts, path = points(report, "egs", "0.2"), output / "egs" / "0.2" / "scene.egs"
    ends = open_film(path).front.indexed_lengths()
    assert cuts[-1]["bytes"] == path.stat().st_size
    assert [cut["bytes"] for cut in cuts] == list(ends)
    assert [cut["gaussians"] for cut in cuts] == sorted({cut["gaussians"] for cut in cuts})
    assert {"motion", "time_centers", "moves", "updates"} < cuts[-1]["attributes"].keys()
    assert all(sum(cut["attributes"].values()) == cut["bytes"] for cut in cuts)
    assert read_film(path).frames == 8
    assert points(report, "one-size", "0.2")[0]["bytes"] < cuts[-1]["bytes"]
    assert np.isfinite([cut["psnr"] for cut in cuts]).all()


def test_rates_stand_where_a_duration_is_known(output: Path, report: dict[str, Any], tmp_path: Path) -> None:
    assert report["model"]["seconds"] is None
    assert "Mbit/s" not in (output / "rd.md").read_text()
    page = markdown(report | {"model": report["model"] | {"seconds": 2.0}})
    size = points(report, "egs", "0.2")[-1]["bytes"]
    assert f"| {8e-6 * size / 2:.3f} |" in page
    assert page.count("Mbit/s") == 2, "of whole files and of cuts"


def test_only_still_systems_are_one_message(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodule, "read_capture", lambda **options: capture())
    assert rd(checkpoint, tmp_path / "rd", "ply", "cogs") == 1
    error = capsys.readouterr().err
    assert "--systems: expected any of egs, one-size, float32" in error
    assert "found ply cogs" in error
    assert not (tmp_path / "rd").exists()
