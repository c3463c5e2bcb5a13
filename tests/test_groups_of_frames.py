"""Checkpoints of groups of frames, each trained by itself, as one film."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from film import write_film

from flexgs_lightning.cli import main
from flexgs_lightning.codec.film import read_film
from flexgs_lightning.deploy.groups import open_groups
from flexgs_lightning.deploy.opening import load_any
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.model.sequence import SceneSequence

GROUPS = ((0, 5), (5, 12))
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--model.lpips=none"]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of four cameras."""
    return write_film(tmp_path_factory.mktemp("capture") / "film")


def fit(capture: Path, runs: Path, frames: tuple[int, int] | None, *extra: str) -> Path:
    """Train a group, or all frames, for a moment; returns its checkpoint."""
    name = f"{frames[0]:03d}" if frames else "all"
    options = [f"--data.root={capture}", f"--runs={runs}", f"--name={name}"]
    options += [f"--data.frames={list(frames)}"] if frames else []
    options += ["--data.downscale=2", "--model.reconstruction_steps=3", "--model.sh_degree=0"]
    options += ["--model.motion.path=polynomial", "--model.motion.opacity=varying", *CPU, *extra]
    assert main(["fit", *options]) == 0
    return runs / name / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def runs(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups, whose colours come from features: each group has a network of its own."""
    folder = tmp_path_factory.mktemp("groups") / "runs"
    for frames in GROUPS:
        fit(capture, folder, frames, "--model.appearance=features")
    return folder


def metrics(folder: Path) -> dict:
    report: dict = json.loads((folder / "version_0" / "metrics.json").read_text())
    return report


def test_a_folder_of_groups_is_measured_as_one_film(
    capture: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every frame is what the group by itself, measured after its training, made of it."""
    options = [f"--data.root={capture}", f"--runs={tmp_path}", "--data.downscale=2", *CPU]
    assert main(["test", f"--ckpt_path={runs}", *options]) == 0
    found = metrics(tmp_path / "film")
    expected = [frame for name in ("000", "005") for frame in metrics(runs / name)["over_time"]["frames"]]
    frames = found["over_time"]["frames"]
    assert [frame["frame"] for frame in frames] == list(range(12))
    for metric in ("psnr", "ssim"):
        one, other = ([frame[metric] for frame in some] for some in (frames, expected))
        assert one == pytest.approx(other, abs=1e-4)
        assert len({round(value, 3) for value in one}) > 6
    assert [group["frames"] for group in found["over_time"]["groups"]] == [list(group) for group in GROUPS]
    assert "flicker_between_groups" in found["over_time"]
    assert main(["test", f"--ckpt_path={runs}", *options, "--data.frames=[0, 5]"]) == 1
    assert f"--data.frames: {runs} has frames [0, 12], found [0, 5]" in capsys.readouterr().err


def test_a_folder_opens_wherever_a_checkpoint_does(capture: Path, runs: Path, tmp_path: Path) -> None:
    model, second = load_any(runs), load(runs / "005" / "version_0" / "checkpoints" / "last.ckpt")
    assert isinstance(model.scene, SceneSequence)
    assert (model.frames, model.seconds, model.data["frames"]) == (12, pytest.approx(0.4), [0, 12])
    for frame in (5, 8, 11):
        one, other = model.splats(frame / 12), second.splats((frame - 5) / 7)
        torch.testing.assert_close(one.means, other.means, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.opacities, other.opacities, atol=1e-5, rtol=1e-4)
    output = tmp_path / "film.egs"
    options = ["--psnr-loss", "3", "--refine-steps", "0", "--device", "cpu"]
    assert main(["compress", "--ckpt", str(runs), "--output", str(output), *options]) == 0
    assert read_film(output).bounds == pytest.approx((0, 5 / 12, 1))


def test_groups_that_make_no_film_are_refused(capture: Path, runs: Path, tmp_path: Path) -> None:
    first = runs / "000" / "version_0" / "checkpoints" / "last.ckpt"
    whole = fit(capture, tmp_path / "whole", (0, 12), "--test_after_fit=false")
    late = fit(capture, tmp_path / "late", (7, 12), "--test_after_fit=false")
    white = fit(capture, tmp_path / "white", (5, 12), "--test_after_fit=false", "--model.background=white")
    every = fit(capture, tmp_path / "every", None, "--test_after_fit=false")

    def refusal(*paths: Path) -> str:
        folder = tmp_path / "groups"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number, path in enumerate(paths):
            shutil.copy(path, folder / f"{number}.ckpt")
        with pytest.raises(InputError) as error:
            open_groups(folder)
        return str(error.value).replace(f"{folder}/", "")

    assert refusal().endswith("found none.")
    assert (
        "1.ckpt: its frames begin with 0, expected 5, where those of 0.ckpt end: frames 0 to 4 are in both"
        in (refusal(first, whole))
    )
    assert "frames 5 to 6 are in neither" in refusal(first, late)
    assert "1.ckpt: groups of a film need one background: 0.ckpt has [0.0" in refusal(first, white)
    assert "1.ckpt: expected a checkpoint of a group of frames (--data.frames)" in refusal(first, every)
