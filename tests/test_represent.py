"""flexgs represent: what a scene that moves can be made of, trained, made small and written side by side."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from moving_scene import CAMERAS, FRAMES, HELD_OUT, capture
from PIL import Image

from flexgs_lightning import load
from flexgs_lightning.cli import main
from flexgs_lightning.codec.film import read_film
from flexgs_lightning.data import datamodule
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.evaluation.representations.representation import in_steps, representation_names
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.settings import CONFIGS
from flexgs_lightning.training.module import FlexGSModule

STEPS, ELASTIC_STEPS, RATIO = 160, 20, 0.5
CONFIG: dict[str, Any] = {
    "model": {
        "reconstruction_steps": 160,
        "sh_degree": 0,
        "lpips": "none",
        "motion": {"path": "polynomial", "opacity": "varying"},
        "learning_rates": {"opacities": 0.1, "scales": 0.02, "motion": 0.005, "means": 0.001},
        "densification": {"class_path": "AdaptiveDensityControl", "init_args": {"start_step": 1000}},
        "elastic_training": {"steps": 20},
    },
    "importance_refresh": {"every_n_steps": 20},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ball as a folder of frames, with the points of its first one."""
    folder = tmp_path_factory.mktemp("captures") / "ball"
    film, cameras = capture(), []
    for i in range(CAMERAS):
        views = film.views[i * FRAMES : (i + 1) * FRAMES]
        (folder / "frames" / f"cam{i}").mkdir(parents=True)
        for frame, view in enumerate(views):
            Image.fromarray(view.source.read()).save(folder / "frames" / f"cam{i}" / f"{frame:04d}.png")
        camera = views[0].camera
        (fx, _, cx), (_, fy, cy), _ = camera.Ks[0].tolist()
        cameras.append(
            {
                **{"name": f"cam{i}", "width": camera.width, "height": camera.height, "distortion": []},
                **{"fx": fx, "fy": fy, "cx": cx, "cy": cy, "w2c": camera.viewmats[0, :3].tolist()},
                "split": "test" if i == HELD_OUT else "train",
            }
        )
    (folder / "cameras.json").write_text(json.dumps({"fps": 4, "cameras": cameras}))
    np.save(folder / "points.npy", film.points.positions.numpy())
    np.save(folder / "points_rgb.npy", film.points.colors.numpy())
    return folder


def command(root: Path, output: Path, *more: str) -> list[str]:
    """A short report."""
    config = output.parent / "throw.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(CONFIG))
    return [
        *("represent", "--root", str(root), "--config", str(config), "--output", str(output), "--device=cpu"),
        *(f"--steps={STEPS}", f"--elastic_steps={ELASTIC_STEPS}", f"--ratios={RATIO}", "--refine_steps=0"),
        *("--frame_stride=7", "--representations", "static", "frames", *more),
    ]


@pytest.fixture(scope="module")
def output(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report."""
    folder = tmp_path_factory.mktemp("represent") / "ball"
    assert main(command(root, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> dict[str, Any]:
    """What it says of each representation in each form."""
    forms: dict[str, Any] = json.loads((output / "representations.json").read_text())["representations"]
    return forms


def checkpoint(folder: Path) -> Path:
    (path,) = folder.glob("training/version_*/checkpoints/last.ckpt")
    return path


def test_what_moves_is_worth_its_motion(found: dict[str, Any]) -> None:
    assert list(found) == ["throw", "static", "frames"]
    moving, static, frames = (found[name]["whole"] for name in found)
    assert moving["psnr"] > static["psnr"] + 1.0
    assert moving["psnr"] > frames["psnr"] + 1.0, "a frame's model has a frame's share of the steps"
    assert {form["training"]["steps"] for form in (moving, static, frames)} == {STEPS}
    assert frames["flicker"] < moving["flicker"], "each frame is wrong in its own way"
    assert frames["trained"] == 3
    assert [point["frame"] for point in frames["frames"]] == [0, 1, 7]
    assert frames["gaussians"] == FRAMES * frames["living"]
    assert moving["living"] <= moving["gaussians"]
    assert static["living"] == static["gaussians"]
    assert moving["worst"]["psnr"] < moving["psnr"]


@torch.no_grad()
def test_figures_are_those_of_the_models(root: Path, output: Path, found: dict[str, Any]) -> None:
    model = load(checkpoint(output / "static" / "whole"))
    views = read_capture(root=str(root)).test_views
    errors = []
    for view in views:
        image = rasterize(model.splats(), view.camera).image
        photo = torch.from_numpy(view.source.read())[None] / 255
        errors.append(psnr(image, photo).item())
    assert len(views) == FRAMES
    assert found["static"]["whole"]["psnr"] == pytest.approx(sum(errors) / len(errors), abs=0.01)
    assert found["static"]["whole"]["worst"]["psnr"] == pytest.approx(min(errors), abs=0.01)


@torch.no_grad()
def test_models_of_single_frames_are_compared_with_the_next_frames(
    root: Path, output: Path, found: dict[str, Any]
) -> None:
    views, errors = read_capture(root=str(root)).test_views, []
    for frame in (0, 1):  # of those trained only these two follow each other
        model = load(checkpoint(output / "frames" / "whole" / f"{frame:04d}"))
        image = rasterize(model.splats(), views[frame].camera).image.clamp(0, 1)
        errors.append(image - torch.from_numpy(views[frame].source.read())[None] / 255)
    flicker = -10 * (errors[1] - errors[0]).square().mean().log10().item()
    assert found["frames"]["whole"]["flicker"] == pytest.approx(flicker, abs=0.01)


def test_small_forms(output: Path, found: dict[str, Any]) -> None:
    for name in ("throw", "static"):
        assert load(checkpoint(output / name / "elastic")).elastic
        at = found[name]["elastic"]["ratios"][f"{RATIO:g}"]
        assert at["gaussians"] == found[name]["whole"]["gaussians"] // 2
        assert 10 < at["psnr"] < found[name]["elastic"]["psnr"] + 1
        coded = found[name]["coded"]
        assert coded["ssim"] == pytest.approx(found[name]["whole"]["ssim"], abs=0.1)
        assert coded["bytes"] == (output / name / "coded" / "scene.egs").stat().st_size
        assert abs(coded["lost"]) < 1.5
        assert coded["psnr"] + coded["lost"] == pytest.approx(found[name]["whole"]["psnr"])
    assert read_film(output / "throw" / "coded" / "scene.egs").groups[0].movement.moves
    files = sorted((output / "frames" / "coded").glob("*.egs"))
    assert [path.stem for path in files] == ["0000", "0001", "0007"]
    sizes = sum(path.stat().st_size for path in files)
    assert found["frames"]["coded"]["bytes"] == round(FRAMES * sizes / 3)
    assert "elastic" not in found["frames"]


def test_the_page_has_the_tables_and_curves(output: Path) -> None:
    page = (output / "representations.md").read_text()
    assert "| whole | PSNR | SSIM | worst view | flicker | Gaussians | living | steps | seconds |" in page
    assert "| small | PSNR at 50 % |" in page
    assert "bytes | Mbit/s | PSNR of the file | dB lost |" in page
    assert "| SSIM, small | at 50 % | elastic, 100 % | of the file |" in page
    assert "LPIPS" not in page.partition("## Protocol")[0]
    assert "`frames` is an estimate: 3 of 8 frames were trained." in page
    for name in ("psnr_frames.png", "psnr_gaussians.png"):
        assert f"![]({name})" in page
        assert Image.open(output / name).width > 500


def test_lpips_is_measured_in_every_form_where_the_config_has_it(
    root: Path, tmp_path: Path, shared_data: Path
) -> None:
    lpips, output = tmp_path / "lpips.yaml", tmp_path / "ball"
    weights = str(shared_data / "lpips_squeeze")
    lpips.write_text(yaml.safe_dump({"model": {"lpips": "squeeze", "lpips_weights": weights}}))
    short = ["--steps=8", "--elastic_steps=2", "--representations", "[]"]
    once = command(root, output)[: -len(["--representations", "static", "frames"])]
    assert main([*once, *short, "--config", str(tmp_path / "throw.yaml"), str(lpips)]) == 0
    (forms,) = json.loads((output / "representations.json").read_text())["representations"].values()
    at = forms["elastic"]["ratios"][f"{RATIO:g}"]
    for found in (forms["whole"], forms["elastic"], at, forms["coded"]):
        assert 0 < found["lpips"] < 1
        assert 0 < found["ssim"] < 1
    page = (output / "representations.md").read_text()
    assert "| whole | PSNR | SSIM | LPIPS | worst view |" in page
    row = next(line for line in page.split("| LPIPS, small |")[1].splitlines() if "throw" in line)
    expected = (at["lpips"], forms["elastic"]["lpips"], forms["coded"]["lpips"])
    assert row == f"| throw | {' | '.join(f'{value:.3f}' for value in expected)} |"


def test_what_is_finished_is_not_run_again_and_what_is_lost_is(
    root: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "ball"
    shutil.copytree(output, again)
    (again / "static" / "coded" / "cell.json").unlink()
    monkeypatch.setattr(FlexGSModule, "training_step", None)
    assert main(command(root, again)) == 0
    before, after = (json.loads((path / "representations.json").read_text()) for path in (output, again))
    assert before == after


def test_other_settings_are_refused(
    root: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(root, output), f"--steps={STEPS + 8}"]) == 1
    error = capsys.readouterr().err
    assert f"holds results of steps {STEPS}, but now it is {STEPS + 8}" in error.replace(
        "settings.model.", ""
    )


def test_a_failure_stops_no_other(
    root: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "ball"
    shutil.copytree(output, again)
    (again / "throw" / "elastic" / "cell.json").unlink()
    path = checkpoint(again / "throw" / "elastic")
    path.write_bytes(path.read_bytes()[:1000])
    assert main(command(root, again)) == 1
    assert "1 of 8 cells failed" in capsys.readouterr().err
    page = (again / "representations.md").read_text()
    assert "- throw, elastic: " in page
    assert "| static | " in page


BROKEN: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown": (["nonsense"], ("--representations", "polynomial_varying", "nonsense")),
    "twice": (["static"], ("--representations", "different ones", "static")),
    "ratio": (["--ratios=1.0"], ("--ratios", "between 0 and 1", "1.0")),
    "fewer steps than frames": (["--steps=7"], ("--steps", "8 frames", "7")),
    "no loss": (["--psnr_loss=0"], ("--psnr_loss", "0")),
    "no frames": (["--frames", "0", "90"], ("data.frames", "8 frames", "0 90")),
    "seed": (["--seed=-1"], ("--seed", "-1")),
    "no such config": (["--config", "nonsense"], ("nonsense", "no such config")),
    "settings that go together with nothing": (["--config", "GUIDED"], ("guided_sampling", "free_bases")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_one_message_and_leaves_nothing(
    case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, words = BROKEN[case]
    guided = tmp_path / "guided.yaml"
    model = {"motion": {"path": "free_bases"}, "guided_sampling": {"every": 5}}
    guided.write_text(yaml.safe_dump({"model": model}))
    more = [str(guided) if word == "GUIDED" else word for word in more]
    assert main(command(root, tmp_path / "out" / "ball", *more)) == 1
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("flexgs: error: ")
    assert all(word in error.splitlines()[-1] for word in words), error
    assert not (tmp_path / "out" / "ball").exists()


def test_a_capture_that_stands_still_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    still = replace(capture(), views=tuple(replace(view, time=None) for view in capture().views))
    monkeypatch.setattr(datamodule, "read_capture", lambda **options: still)
    assert main(command(tmp_path, tmp_path / "out" / "still")) == 1
    assert "expected a capture that moves" in capsys.readouterr().err


def test_every_overlay_says_how_it_moves_and_what_it_looks_like() -> None:
    names = representation_names(CONFIGS)
    assert {"static", "fading", "polynomial", "bases", "free_bases", "features", "frames"} <= set(names)
    for name in names:
        if name != "frames":
            model = yaml.safe_load((CONFIGS / "representations" / f"{name}.yaml").read_text())["model"]
            assert {"motion", "appearance", "guided_sampling"} <= set(model), name
            assert set(model["motion"]) == {"path", "opacity"}, name


def scaled(model: dict[str, Any], steps: int) -> dict[str, Any]:
    result: dict[str, Any] = in_steps({"model": model}, steps)["model"]
    return result


def test_what_is_counted_in_iterations_keeps_its_share() -> None:
    model = {
        "reconstruction_steps": 8000,
        "guided_sampling": {"every": 1500, "stop_step": None, "rays": 64},
        "densification": {
            "class_path": "AdaptiveDensityControl",
            "init_args": {"start_step": 400, "stop_step": 5000, "reset_every": 0, "max_gaussians": 35000},
        },
    }
    short = scaled(model, 80)
    assert short["reconstruction_steps"] == 80
    assert short["sh_degree_interval"] == 10
    assert short["guided_sampling"] == {"every": 15, "stop_step": None, "rays": 64}
    assert short["densification"]["init_args"] == {
        **{"start_step": 4, "stop_step": 50, "every": 1, "reset_every": 0, "max_gaussians": 35000}
    }
    assert scaled(model, 8000) == model
    default = scaled({}, 1500)["densification"]
    assert default["init_args"] == {"start_step": 50, "stop_step": None, "every": 10, "reset_every": 300}
    assert scaled({"densification": "MCMC"}, 1500)["densification"]["class_path"] == "MCMC"


@pytest.mark.parametrize(
    "broken", [{"reconstruction_steps": 0}, {"densification": 3}, {"guided_sampling": 1}]
)
def test_settings_without_names_are_refused(
    broken: dict[str, Any], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text(yaml.safe_dump({"model": broken}))
    assert main([*command(root, tmp_path / "out"), "--config", str(config)]) == 1
    assert next(iter(broken)) in capsys.readouterr().err
