"""Files for viewers that draw otherwise than we do, in emulations of these viewers written a second time."""

import json
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small_scene import around
from viewer_reference import seen_in

from flexgs_lightning.cli import main
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.dialects.distillation import distilled
from flexgs_lightning.deploy.dialects.table import DIALECTS, Dialect, find_dialect
from flexgs_lightning.deploy.formats.registry import read_splats
from flexgs_lightning.deploy.render import read_photo
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats

VIEWERS = ("spark", "playcanvas", "supersplat")


def cloud(count: int = 400) -> Splats:
    """Gaussians of a fraction of a pixel to a few pixels around the origin, thin ones among them."""
    random = torch.Generator().manual_seed(3)
    return Splats(
        means=0.6 * torch.randn(count, 3, generator=random),
        quats=torch.randn(count, 4, generator=random),
        scales=0.01 * torch.exp(1.2 * torch.randn(count, 3, generator=random)),
        opacities=torch.sigmoid(2.0 * torch.randn(count, generator=random)),
        sh=0.5 * torch.randn(count, 1, 3, generator=random),
    )


def shell(count: int = 1000) -> Splats:
    """A dented, striped surface of small Gaussians, many on top of each other."""
    random = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=1)
    stripes = 1.2 * torch.sin(5 * directions + torch.tensor([0.0, 1.0, 2.0]))
    return Splats(
        means=directions * (1 + 0.3 * torch.sin(4 * directions[:, :1])),
        quats=torch.randn(count, 4, generator=random),
        scales=0.03 * torch.exp(0.8 * torch.randn(count, 3, generator=random)),
        opacities=torch.sigmoid(1 + 2 * torch.randn(count, generator=random)),
        sh=torch.cat([stripes[:, None], 0.15 * torch.randn(count, 3, 3, generator=random)], dim=1),
    )


def dialect_of(viewer: str) -> Dialect:
    dialect = find_dialect(viewer)
    assert dialect is not None
    return dialect


@pytest.mark.parametrize("viewer", VIEWERS)
def test_the_emulation_draws_what_the_viewer_draws(viewer: str) -> None:
    random = torch.Generator().manual_seed(4)
    near = cloud(400)  # around the cameras too, and so large that PlayCanvas caps them
    wide = replace(near, means=2 * near.means, scales=3 * near.scales)
    splats = replace(wide, sh=0.4 * torch.randn(400, 16, 3, generator=random))
    for i in range(2):
        camera = around(2, 64, 48)[i]
        found, expected = dialect_of(viewer).emulation(splats, camera), seen_in(viewer, splats, camera)
        expected = expected[None].clamp(0, 1)
        assert psnr(found[None], expected) > 60
        assert psnr(rasterize(splats, camera).image, expected) < 40


def test_gradients_through_an_emulation() -> None:
    """PlayCanvas's, which rounds nothing: against autograd in float64."""
    splats, camera = cloud(60), around(1, 32, 24)[0]
    weights = torch.randn(24, 32, 3, generator=torch.Generator().manual_seed(1))
    gradients = []
    for draw in (dialect_of("playcanvas").emulation, partial(seen_in, "playcanvas")):
        own = Splats(**{f.name: getattr(splats, f.name).clone().requires_grad_() for f in fields(splats)})
        (draw(own, camera) * weights).sum().backward()
        gradients.append(
            [getattr(own, name).grad for name in ("means", "quats", "scales", "opacities", "sh")]
        )
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("viewer", "antialiased", "more_by_adapting", "more_by_fitting"),
    [
        ("spark", False, 7, 2),
        ("spark", True, 0, -0.5),
        ("playcanvas", False, 10, 0.8),
        ("playcanvas", True, 7, 0.8),
    ],
)
def test_files_look_there_as_here_adapted_and_more_so_fitted(
    viewer: str, antialiased: bool, more_by_adapting: float, more_by_fitting: float
) -> None:
    """Decibels on cameras between those that the file is made for."""
    splats, dialect = shell(), dialect_of(viewer)
    own, others = around(10, 64, 48), around(20, 64, 48)[torch.tensor([1, 5, 9, 13, 17])]
    cameras = [own[i] for i in range(10)]
    ours = rasterize(splats, others, antialiased=antialiased).image.clamp(0, 1)

    def agreement(file: Splats) -> float:
        theirs = torch.stack([dialect.emulation(file, others[i]) for i in range(5)])
        return float(psnr(theirs, ours).mean())

    adapted = distilled(splats, antialiased, dialect, cameras, steps=0)
    if more_by_adapting == 0:
        assert adapted is splats, "the same filter"
    fitted = distilled(splats, antialiased, dialect, cameras, steps=100)
    found = agreement(splats), agreement(adapted), agreement(fitted)
    assert found[1] >= found[0] + more_by_adapting, found
    assert found[2] > found[1] + more_by_fitting, found


def test_a_fit_is_reproducible() -> None:
    cameras = [around(3, 40, 30)[i] for i in range(3)]
    one, two = (distilled(cloud(100), False, dialect_of("spark"), cameras, steps=8) for _ in range(2))
    assert all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))


def test_what_no_camera_sees_stays_as_it_is() -> None:
    splats = cloud(50)
    away = replace(splats, means=splats.means + torch.tensor([0.0, 500.0, 0.0]))
    for steps in (0, 3):
        file = distilled(away, False, dialect_of("playcanvas"), [around(2)[0]], steps)
        for f in fields(file):
            if f.name != "quats":  # of any length
                torch.testing.assert_close(getattr(file, f.name), getattr(away, f.name))


def test_our_own_dialect_changes_nothing_and_others_have_names() -> None:
    assert find_dialect("gsplat") is None
    with pytest.raises(InputError, match=r"--for: expected one of gsplat, spark.* found 'unreal'"):
        find_dialect("unreal")
    assert set(DIALECTS) == {"gsplat", *VIEWERS}


def test_export_for_a_viewer(
    small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = ["--model.reconstruction_steps=5", "--model.elastic_training.steps=1"]
    options = ["--model.lpips=none", "--trainer.accelerator=cpu", "--test_after_fit=false", *steps]
    assert main(["fit", "--data.root", str(small_capture), "--name", "s", *options]) == 0
    ckpt = "runs/s/version_0/checkpoints/last.ckpt"
    quick = ["--distillation-steps", "2"]
    assert main(["export", "--ckpt", ckpt, "--output", "plain.ply"]) == 0
    assert main(["export", "--ckpt", ckpt, "--output", "spark.ply", "--for", "spark", *quick]) == 0
    plain, spark = read_splats(Path("plain.ply")), read_splats(Path("spark.ply"))
    assert spark.antialiased
    assert not plain.antialiased
    assert (spark.splats.opacities >= plain.splats.opacities - 0.02).float().mean() > 0.9

    budgets = ["--for", "supersplat", "--max-gaussians", "50", "100", "--format", "sog", *quick]
    assert main(["export", "--ckpt", ckpt, "--output", "sizes", *budgets]) == 0
    capture = read_capture(root=small_capture)
    for entry in json.loads(Path("sizes/index.json").read_text()):
        file = read_splats(Path("sizes") / entry["file"])
        assert (entry["for"], entry["gaussians"]) == ("supersplat", len(file.splats))
        values = [
            psnr(seen_in("supersplat", file.splats, view.camera)[None], read_photo(view.source)[None])
            for view in capture.test_views
        ]
        assert entry["psnr"] == pytest.approx(float(torch.cat(values).mean()), abs=0.01)

    megabytes = ["--for", "spark", "--max-megabytes", "0.02", *quick]
    assert main(["export", "--ckpt", ckpt, "--output", "fits.sog", *megabytes]) == 0
    assert 10_000 < Path("fits.sog").stat().st_size <= 20_000

    assert main(["export", "--ckpt", ckpt, "--output", "x.ply", "--for", "unreal"]) == 1
    assert "--for: expected one of" in capsys.readouterr().err
    options = ["--for", "spark", "--distillation-steps", "-1"]
    assert main(["export", "--ckpt", ckpt, "--output", "x.ply", *options]) == 1
    assert "--distillation-steps -1: expected 0 or more" in capsys.readouterr().err
    shutil.move(small_capture, away := tmp_path / "away")
    assert main(["export", "--ckpt", ckpt, "--output", "x.ply", "--for", "spark"]) == 1
    shutil.move(away, small_capture)
    assert "--for spark: needs the capture of the training" in capsys.readouterr().err
    assert not Path("x.ply").exists()
