"""``flexgs export``: files for one or several budgets, and their index."""

import errno
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from splat_files import SINGLE_FILES

from flexgs_lightning import load
from flexgs_lightning.cli import main
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.formats import ply
from flexgs_lightning.deploy.formats.ply import read_ply
from flexgs_lightning.deploy.formats.registry import FORMATS, read_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.rendering.rasterizer import rasterize
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

    several = ["--ratio=0.1,0.07,1", "--max-gaussians", "0.2k", "--max-megabytes=0.1"]
    assert main([*command, str(tmp_path / "sizes"), *several]) == 0
    index = json.loads((tmp_path / "sizes" / "index.json").read_text())
    small = 7 * len(model) // 100
    assert [entry["gaussians"] for entry in index][:4] == [len(model) // 10, small, len(model), 200]
    for entry in index:
        path = tmp_path / "sizes" / entry["file"]
        assert path.stat().st_size == entry["bytes"]
        assert len(read_ply(path)) == entry["gaussians"]
    assert small / len(model) != 0.07, "otherwise the next line tells nothing"
    assert [entry["ratio"] for entry in index] == [
        0.1,
        0.07,
        1.0,
        *(e["gaussians"] / len(model) for e in index[3:]),
    ]
    assert index[4]["bytes"] <= 100_000
    metrics = json.loads((checkpoint.parents[1] / "metrics.json").read_text())  # a PLY loses nothing
    assert index[0]["psnr"] == pytest.approx(metrics["ratios"]["0.1"]["psnr"], abs=1e-3)
    assert index[2]["psnr"] == pytest.approx(metrics["mean"]["psnr"], abs=1e-3)


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
    assert "not replaced, because it holds more than .glb and .json and .ply and" in capsys.readouterr().err
    assert (output / "thesis.txt").exists()


def test_a_full_disk_leaves_no_half_of_an_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, encode = [], ply._encode

    def encode_until_full(splats: Splats) -> bytes:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(splats))
        return encode(splats)

    monkeypatch.setattr(ply, "_encode", encode_until_full)
    assert main(["export", f"--ckpt={checkpoint}", f"--output={tmp_path / 'x'}", "--ratio=0.1,0.2"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_index_states_the_psnr_of_the_file_as_read_back(checkpoint: Path, tmp_path: Path) -> None:
    """Of a lossy file, measured here step by step; and none where it is not asked for."""
    command = ["export", f"--ckpt={checkpoint}", "--ratio=0.5,1"]
    assert main([*command, f"--output={tmp_path / 'splat'}", "--format=splat"]) == 0
    model = load(checkpoint)
    views = read_colmap(**{key: model.data[key] for key in ("root", "downscale", "test_every")}).test_views
    for entry in json.loads((tmp_path / "splat" / "index.json").read_text()):
        assert entry["format"] == "splat"
        read = read_splats(tmp_path / "splat" / entry["file"]).splats
        assert read.sh_degree == 0
        errors = []
        for view in views:
            image = rasterize(read, view.camera, background=model.background).image[0].clamp(0, 1)
            errors.append((image - torch.from_numpy(view.source.read()) / 255).square().mean())
        expected = -10 * torch.stack(errors).log10().mean()
        assert entry["psnr"] == pytest.approx(expected.item(), abs=1e-4)
    assert main([*command, f"--output={tmp_path / 'unmeasured'}", "--measure=false"]) == 0
    index = json.loads((tmp_path / "unmeasured" / "index.json").read_text())
    assert [entry["format"] for entry in index if "psnr" not in entry] == ["ply", "ply"]


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_megabytes_are_those_of_the_format_and_never_exceeded(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    model = load(checkpoint)
    path = tmp_path / f"scene{FORMATS[name].suffix}"
    FORMATS[name].write(SplatFile(model.splats()), path)
    for share in (0.5, 0.7, 1.5):  # an empty SOG takes a third of this one
        budget = path.stat().st_size * share
        output = tmp_path / f"{share}{path.name}"
        arguments = [f"--output={output}", f"--max-megabytes={budget / 1e6:.6f}", f"--format={name}"]
        assert main(["export", f"--ckpt={checkpoint}", *arguments]) == 0
        assert 0.95 * min(share, 1.0) * path.stat().st_size <= output.stat().st_size <= budget + 1
        count = len(read_splats(output).splats)
        FORMATS[name].write(SplatFile(model.at(max_gaussians=count)), tmp_path / "again" / path.name)
        assert (tmp_path / "again" / path.name).read_bytes() == output.read_bytes()
    assert {each.name for each in tmp_path.iterdir() if each.name.startswith(("trial", "."))} == set()


def test_ratios_become_levels_of_a_streamed_scene(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(checkpoint)
    command = ["export", f"--ckpt={checkpoint}", "--format=streamed-sog", f"--output={tmp_path / 'new'}"]
    assert main([*command, "--max-megabytes=1"]) == 1
    assert "--max_megabytes: not for streamed-sog" in capsys.readouterr().err
    assert main([*command, "--ratio=0.1,1", "--max-gaussians=700"]) == 0
    meta = json.loads((tmp_path / "new" / "lod-meta.json").read_text())
    assert meta["counts"] == [len(model), 700, len(model) // 10]
    assert len(read_splats(tmp_path / "new" / "lod-meta.json").splats) == len(model)


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
