"""``flexgs export``: files for one or several budgets, and their index."""

import errno
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from flexgs_lightning import load
from flexgs_lightning.cli import main
from flexgs_lightning.deploy.ply import read_ply, write_ply
from flexgs_lightning.splats import Splats


@pytest.fixture(scope="module")
def checkpoint(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An elastic model of two steps, tested at 10 and 100 %."""
    runs = tmp_path_factory.mktemp("runs")
    steps = ["--model.reconstruction_steps=1", "--model.elastic_training.steps=1"]
    options = ["--model.lpips=none", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    measure = ["--elastic_validation.ratios=[0.1]"]
    assert main(["fit", f"--data.root={small_capture}", f"--runs={runs}", *steps, *options, *measure]) == 0
    return runs / "small" / "version_0" / "checkpoints" / "last.ckpt"


def test_export_writes_a_file_for_each_budget_and_an_index(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    command = ["export", "--ckpt", str(checkpoint), "--output"]
    assert main([*command, str(tmp_path / "small.ply"), "--ratio", "0.05"]) == 0
    read, expected = read_ply(tmp_path / "small.ply"), model.at(0.05)
    for field in fields(Splats):
        torch.testing.assert_close(
            getattr(read, field.name), getattr(expected, field.name), rtol=0, atol=1e-5
        )

    several = ["--ratio=0.1,1", "--max-gaussians", "0.2k", "--max-megabytes=0.1"]
    assert main([*command, str(tmp_path / "sizes"), *several]) == 0
    index = json.loads((tmp_path / "sizes" / "index.json").read_text())
    assert [entry["gaussians"] for entry in index][:3] == [len(model) // 10, len(model), 200]
    for entry in index:
        path = tmp_path / "sizes" / entry["file"]
        assert path.stat().st_size == entry["bytes"]
        assert len(read_ply(path)) == entry["gaussians"]
    assert len(model) % 10, "otherwise the next line tells nothing"
    assert [entry["ratio"] for entry in index] == [
        0.1,
        1.0,
        *(e["gaussians"] / len(model) for e in index[2:]),
    ]
    assert index[3]["bytes"] <= 100_000
    metrics = json.loads((checkpoint.parents[1] / "metrics.json").read_text())
    assert index[0]["psnr"] == metrics["ratios"]["0.1"]["psnr"]
    assert index[1]["psnr"] == metrics["mean"]["psnr"]


def test_export_replaces_a_folder_of_exports_whole_and_no_other(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sizes"
    command = ["export", f"--ckpt={checkpoint}", f"--output={output}"]
    assert main([*command, "--ratio=0.1,0.2"]) == 0
    assert main([*command, "--ratio=0.3,0.4"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--ratio=0.3,0.4", "--overwrite=true"]) == 0
    index = json.loads((output / "index.json").read_text())
    assert [entry["ratio"] for entry in index] == [0.3, 0.4]
    assert {path.name for path in output.iterdir()} == {"index.json", *(entry["file"] for entry in index)}
    (output / "thesis.txt").write_text("years of work")
    assert main([*command, "--ratio=0.1,0.2", "--overwrite=true"]) == 1
    assert "not replaced, because it holds more than .ply and .json ('thesis.txt')" in capsys.readouterr().err
    assert (output / "thesis.txt").exists()


def test_a_full_disk_leaves_no_half_of_an_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write_until_full(splats: Splats, path: Path) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write_ply(splats, path)

    monkeypatch.setattr("flexgs_lightning.deploy.export.write_ply", write_until_full)
    assert main(["export", f"--ckpt={checkpoint}", f"--output={tmp_path / 'x'}", "--ratio=0.1,0.2"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_index_takes_no_psnr_of_another_checkpoint_of_the_run(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parents[1], run)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"iteration": metrics["iteration"] - 1}))
    command = ["export", f"--ckpt={run / 'checkpoints' / 'last.ckpt'}", f"--output={tmp_path / 'sizes'}"]
    assert main([*command, "--ratio=0.1,1"]) == 0
    index = json.loads((tmp_path / "sizes" / "index.json").read_text())
    assert [entry["ratio"] for entry in index if "psnr" not in entry] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--ratio=1.5", "(0, 1]"),
        ("--ratio=half", "--ratio: expected numbers"),
        ("--ratio=", "--ratio: expected numbers"),
        ("--max-gaussians=inf", "--max_gaussians: expected numbers"),
        ("--max-gaussians=nan", "--max_gaussians: expected numbers"),
        ("--max-gaussians=0", "no Gaussian"),
        ("--max-megabytes=0.0001", "no Gaussian"),
        ("--ratio=0.1,0.2", "folder"),
    ],
)
def test_export_refuses_impossible_budgets_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert main(["export", f"--ckpt={checkpoint}", f"--output={tmp_path / 'out.ply'}", option]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
