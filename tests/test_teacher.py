"""Training without photos: cameras where photographers would stand, and a scene that learns from itself."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colmap_folder import write_capture
from reference_rasterizer import spherical_harmonics
from small_scene import around
from transforms_folder import as_nerfstudio

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.cli import main
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.formats.registry import FORMATS, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.opening import open_capture, open_start, read_cameras
from flexgs_lightning.deploy.path_file import read_path, write_path
from flexgs_lightning.deploy.quality import psnr_on_test_views
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.rendering.importance import blending_importance
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import SH_C0, Splats
from flexgs_lightning.teacher.capture import scene_capture
from flexgs_lightning.teacher.vantage_points import Lens, invent_cameras

LENS = Lens.of_size(96)


def surface(means: torch.Tensor, size: float, seed: int = 0) -> Splats:
    """Opaque Gaussians of one size, whose colours wave through space."""
    g = torch.Generator().manual_seed(seed)
    colors = 0.5 + 0.45 * (6 * means).sin()
    return Splats(
        means=means,
        quats=torch.randn(len(means), 4, generator=g),
        scales=torch.full((len(means), 3), size),
        opacities=torch.full((len(means),), 0.95),
        sh=((colors - 0.5) / SH_C0)[:, None],
    )


def globe(count: int = 3000, radius: float = 1.0) -> Splats:
    """An object that one walks around."""
    g = torch.Generator().manual_seed(1)
    return surface(radius * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1), 0.03)


def picture_on_a_wall() -> Splats:
    """Fine in front (z < 0); behind, the large Gaussians that fill what no photo shows."""
    g = torch.Generator().manual_seed(2)
    front = surface(torch.cat([4 * torch.rand(4000, 2, generator=g) - 2, torch.zeros(4000, 1)], dim=1), 0.04)
    places = torch.cat(
        [4 * torch.rand(150, 2, generator=g) - 2, 0.5 + torch.rand(150, 1, generator=g)], dim=1
    )
    back = surface(places, 0.5)
    return Splats(
        *(
            torch.cat([getattr(front, n), getattr(back, n)])
            for n in ("means", "quats", "scales", "opacities", "sh")
        )
    )


def test_an_object_is_looked_at_from_all_around() -> None:
    cameras = invent_cameras(globe(), 24, LENS, antialiased=False)
    assert len(cameras) == 24
    distances = cameras.positions.norm(dim=1)
    assert (distances > 1.1).all(), "no camera stands inside"
    assert distances.median() < 1 / math.sin(math.radians(15)), "it fills more than half of a picture"
    assert (distances < 8).all()
    directions = cameras.positions / distances[:, None]
    assert directions.mean(dim=0).norm() < 0.45
    assert (torch.linalg.eigvalsh(directions.T @ directions / 24) > 0.1).all(), "in all dimensions"
    assert cameras.contain(torch.zeros(1, 3)).float().mean() > 0.7


def test_a_picture_is_looked_at_from_the_front() -> None:
    cameras = invent_cameras(picture_on_a_wall(), 16, LENS, antialiased=False)
    assert (cameras.positions[:, 2] < 0).float().mean() >= 0.9


def test_cameras_look_at_what_has_most_detail() -> None:
    """A small fine object stands in a corner of a large coarse room's floor."""
    g = torch.Generator().manual_seed(5)
    floor = torch.cat([8 * torch.rand(3000, 1, generator=g) - 4, torch.zeros(3000, 1)], dim=1)
    floor = torch.cat([floor, 8 * torch.rand(3000, 1, generator=g) - 4], dim=1)
    corner = torch.tensor([2.5, -0.5, 2.5])
    things = (surface(floor, 0.06), replace(globe(2000, 0.4), means=globe(2000, 0.4).means + corner))
    scene = Splats(*(torch.cat([getattr(thing, f.name) for thing in things]) for f in fields(Splats)[:5]))
    cameras = invent_cameras(scene, 16, LENS, antialiased=False)
    assert cameras.contain(corner[None]).float().mean() > 0.7


def test_harmonics_tell_where_photos_were_taken() -> None:
    """Gradient descent leaves sums of the harmonics of the photos' directions: here of one side."""
    thing = globe()
    seen_along = spherical_harmonics(torch.tensor([[-1.0, 0.0, 0.0]]), 2)[:, 1:, None].float()
    sh = torch.cat([thing.sh, 0.03 * seen_along.expand(len(thing), 8, 3)], dim=1)

    def side(sh: torch.Tensor) -> float:
        positions = invent_cameras(replace(thing, sh=sh), 16, LENS, antialiased=False).positions
        return torch.nn.functional.normalize(positions, dim=1)[:, 0].mean().item()

    assert side(sh) > side(thing.sh) + 0.5


def test_a_seed_gives_the_same_cameras() -> None:
    found = [invent_cameras(globe(500), 4, LENS, antialiased=False, seed=seed).viewmats for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_strays_do_not_matter() -> None:
    """A few floaters far away, and one with a broken extent of astronomical size."""
    thing = globe(2000)
    means = thing.means.clone()
    means[:20] *= 1e6
    cameras = invent_cameras(replace(thing, means=means), 8, LENS, antialiased=False)
    assert (cameras.positions.norm(dim=1) < 8).all()


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_photos_are_the_scene_on_any_background(level: float) -> None:
    thing, cameras = globe(), around(3, 48, 36)
    capture = scene_capture(thing, [cameras[i] for i in range(3)], name="globe", antialiased=False)
    background = torch.full((3,), level)
    for view in capture.views:
        photo = torch.from_numpy(view.source.read()) / 255.0
        over = photo[..., :3] * photo[..., 3:] + background * (1 - photo[..., 3:])
        drawn = rasterize(thing, view.camera, background=background).image[0].clamp(0, 1)
        assert (over - drawn).abs().max() < 2.1 / 255


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A globe that opens with opacities of exactly 0 and 1, as logits infinite."""
    thing = globe(1500)
    opacities = thing.opacities.numpy().copy()
    opacities[:300], opacities[300:330] = 1.0, 0.0
    path = tmp_path_factory.mktemp("scene") / "globe.ply"
    write_splats(SplatFile(thing, False), path)
    content = bytearray(path.read_bytes())
    start = content.index(b"end_header\n") + len(b"end_header\n")
    properties = [line.split()[-1] for line in content[:start].decode().splitlines() if "property" in line]
    rows = np.frombuffer(content, "<f4", offset=start).reshape(1500, -1).copy()
    with np.errstate(divide="ignore"):
        rows[:, properties.index("opacity")] = np.log(opacities / (1 - opacities))
    path.write_bytes(bytes(content[:start]) + rows.tobytes())
    return path


@pytest.fixture(scope="module")
def run_folder(scene_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training without photos."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = [
        *("fit", "--config", "flexgs", "--start_from", str(scene_file), f"--runs={runs}"),
        *("--data.views=10", "--data.view_size=48", "--model.elastic_training.steps=100"),
        *("--model.lpips=none", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
        *("--elastic_validation.ratios", "0.1", "--importance_refresh.every_n_steps=1000"),
    ]
    assert main(arguments) == 0
    return runs / "globe" / "version_0"


def test_a_scene_without_photos_becomes_elastic(scene_file: Path, run_folder: Path) -> None:
    """At a tenth it is 2 dB better than the Gaussians that cover most pixels, on views held out of both."""
    found = json.loads((run_folder / "metrics.json").read_text())
    assert found["protocol"]["images"] == "renders of the scene that training started from"
    assert found["mean"]["psnr"] > 30, "all of it still is the scene"

    model = load(run_folder / "checkpoints" / "last.ckpt")
    capture, scene = open_capture(model.data), open_start(scene_file).splats()
    weights = blending_importance(scene, [view.camera for view in capture.train_views])
    covering = scene[weights.argsort(descending=True)[:150]]
    assert found["ratios"]["0.1"]["psnr"] > mean_psnr(covering, capture) + 2
    assert found["ratios"]["0.1"]["psnr"] == pytest.approx(mean_psnr(model.at(0.1), capture), abs=0.05)


def test_invented_cameras_are_kept_with_the_run(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever opens, measures or goes on from its checkpoint looks through those of the file."""
    folder = shutil.copytree(run_folder, tmp_path / "globe" / "version_0")
    last, kept = folder / "checkpoints" / "last.ckpt", folder / "cameras.json"
    trained = open_capture(load(last).data)
    cameras = read_path(kept)
    torch.testing.assert_close(cameras.viewmats, torch.cat([v.camera.viewmats for v in trained.views]))
    torch.testing.assert_close(cameras.Ks, torch.cat([view.camera.Ks for view in trained.views]))
    larger = open_capture(load(last).data | {"view_size": 96})
    assert (larger.views[0].camera.width, larger.views[0].camera.height) == (96, 96)
    torch.testing.assert_close(larger.views[3].camera.viewmats, cameras.viewmats[3:4])

    away = torch.eye(4)
    away[2, 3] = -1e4  # the scene is behind: black pictures
    write_path(replace(cameras, viewmats=away @ cameras.viewmats), kept)
    measured = ["test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(last)]
    assert main(measured) == 0
    assert json.loads((folder / "metrics.json").read_text())["ratios"]["0.1"]["psnr"] > 80
    goes_on = ["fit", *measured[1:], "--model.elastic_training.steps=101", "--test_after_fit=false"]
    assert main(goes_on) == 0
    assert (folder / "config.resumed_1.yaml").is_file()
    assert torch.equal(read_path(kept).viewmats, away @ cameras.viewmats)
    kept.write_text("{}")
    capsys.readouterr()
    assert main(measured) == 1
    assert "cameras.json: " in capsys.readouterr().err


def mean_psnr(splats: Splats, capture: Capture) -> float:
    """On the held-out views, as an index of exported files states it."""
    return psnr_on_test_views(SplatFile(splats, False), capture, torch.zeros(3), torch.device("cpu"))


def write_cameras(kind: str, root: Path) -> tuple[Path, list[Cameras]]:
    """Cameras as each program leaves them, without photos."""
    folder = write_capture(root, count=5)
    expected = [view.camera for view in read_capture(root).views]
    if kind == "path":
        write_path(Cameras.stack(expected), root / "path.json")
        return root / "path.json", expected
    if kind != "colmap":
        as_nerfstudio(folder, np.eye(4))
    shutil.rmtree(root / "images")
    return (root / "transforms.json" if kind == "file" else root), expected


@pytest.mark.parametrize("kind", ["colmap", "folder", "file", "path"])
def test_given_cameras_are_looked_through(kind: str, scene_file: Path, tmp_path: Path) -> None:
    path, expected = write_cameras(kind, tmp_path)
    options = {"root": str(scene_file), "cameras": str(path), "downscale": 1, "test_every": 4}
    capture = open_capture(options)
    assert len(capture.test_views) == 2
    for view, camera in zip(capture.views, expected, strict=True):
        torch.testing.assert_close(view.camera.viewmats, camera.viewmats)
        torch.testing.assert_close(view.camera.Ks, camera.Ks)
        assert view.source.read().shape == (121, 161, 4)
    assert [camera.width for camera in read_cameras(path, 2)] == [80] * 5


@pytest.mark.parametrize("name", FORMATS)
def test_a_scene_of_any_format_is_a_teacher(name: str, tmp_path: Path) -> None:
    """It looks as the scene does, as far as the format keeps that."""
    thing, each = globe(600), FORMATS[name]
    path = tmp_path / (f"globe{each.suffix}" if each.suffix.startswith(".") else each.suffix)
    write_splats(SplatFile(thing, True), path, name)
    write_path(around(3, 48, 36), tmp_path / "path.json")
    capture = open_capture({"root": str(path), "cameras": str(tmp_path / "path.json")})
    exact = scene_capture(thing, [around(3, 48, 36)[1]], name="", antialiased=name != "splat")
    difference = capture.views[1].source.read().astype(float) - exact.views[0].source.read()
    assert np.abs(difference).mean() < 3


def test_what_cannot_be_is_refused(
    scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(*options: str) -> str:
        assert main(["fit", "--config", "flexgs", f"--runs={tmp_path / 'runs'}", *options]) == 1
        return capsys.readouterr().err

    start = ("--start_from", str(scene_file))
    assert "data.root: expected a capture's folder" in message()
    assert "nowhere" in message(*start, "--data.cameras", str(tmp_path / "nowhere"))
    assert "views: found 2, expected 3 or more" in message(*start, "--data.views=2")
    assert not (tmp_path / "runs").exists()
    faint = replace(globe(50), opacities=torch.full((50,), 0.01))
    with pytest.raises(InputError, match="found 0 Gaussians of opacity above"):
        invent_cameras(faint, 3, LENS, antialiased=False)
    point = replace(globe(50), means=torch.zeros(50, 3))
    with pytest.raises(InputError, match="all lie in one place"):
        invent_cameras(point, 3, LENS, antialiased=False)
