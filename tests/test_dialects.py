"""Files for viewers that draw otherwise than we do, in emulations of these viewers written a second time."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_rasterizer import _colours, _screen_covariance
from small_scene import around
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.cli import main
from flexgs_lightning.deploy.dialects.closed_form import adapted
from flexgs_lightning.deploy.dialects.distillation import distilled
from flexgs_lightning.deploy.dialects.table import DIALECTS, find_dialect
from flexgs_lightning.deploy.formats.registry import read_splats
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats

VIEWERS = ("spark", "playcanvas")


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


def seen_in(viewer: str, splats: Splats, camera: Cameras) -> Tensor:
    """[H, W, 3] as the viewer draws it, in float64 and all pixels at once."""
    view, K = camera.viewmats[0].double(), camera.Ks[0].double()
    local = splats.means.double() @ view[:3, :3].T + view[:3, 3]
    plain = _screen_covariance(splats, local, view[:3, :3], K, camera.width, camera.height)
    low_pass = {"spark": 0.3, "playcanvas": 0.075}[viewer]
    covariance = plain + low_pass * torch.eye(2, dtype=torch.float64)
    opacities = splats.opacities.double()
    if viewer == "spark":
        opacities = opacities * (torch.linalg.det(plain) / torch.linalg.det(covariance)).clamp_min(0).sqrt()
    ys, xs = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    homogeneous = local @ K.T
    offset = (
        torch.stack([xs, ys], -1).reshape(1, -1, 2) + 0.5 - (homogeneous[:, :2] / homogeneous[:, 2:])[:, None]
    )
    sigma = 0.5 * torch.einsum("npi,nij,npj->np", offset, torch.linalg.inv(covariance), offset)
    value = torch.exp(-sigma)
    if viewer == "playcanvas":
        value = (value - math.exp(-4)) / (1 - math.exp(-4))
    alpha = opacities[:, None] * torch.where(sigma <= 4, value, 0.0)
    centre = -view[:3, :3].T @ view[:3, 3]
    by = (splats.means.double() - centre).norm(dim=1) if viewer == "spark" else local[:, 2]
    order = torch.argsort(by)
    alpha, colours = alpha[order], _colours(splats, centre, splats.sh_degree)[order]
    in_front = torch.cat([torch.ones_like(alpha[:1]), torch.cumprod(1 - alpha, 0)[:-1]])
    return ((alpha * in_front).T @ colours).view(camera.height, camera.width, 3).float()


def agreement(viewer: str, file: Splats, splats: Splats, antialiased: bool, cameras: Cameras) -> float:
    """PSNR in dB of what the viewer shows of ``file`` against our picture of ``splats``, over all cameras."""
    ours = rasterize(splats, cameras, antialiased=antialiased).image
    theirs = torch.stack([seen_in(viewer, file, cameras[i]) for i in range(len(cameras))])
    return float(psnr(theirs, ours).mean())


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("viewer", VIEWERS)
def test_an_adapted_file_looks_there_as_here(viewer: str, antialiased: bool) -> None:
    splats, cameras, others = cloud(), around(6, 64, 48), around(7, 64, 48)
    dialect = find_dialect(viewer)
    assert dialect is not None
    file = adapted(splats, antialiased, dialect, [cameras[i] for i in range(6)])
    before = agreement(viewer, splats, splats, antialiased, others)
    after = agreement(viewer, file, splats, antialiased, others)
    if viewer == "spark" and antialiased:
        assert file is splats
        assert before > 38
        return
    assert min(after - 5 - before, after - 30) > 0, f"{before:.1f} dB as it is, {after:.1f} dB adapted"


def test_what_no_camera_sees_stays_as_it_is() -> None:
    splats = cloud(50)
    away = replace(splats, means=splats.means + torch.tensor([0.0, 500.0, 0.0]))
    dialect = find_dialect("playcanvas")
    assert dialect is not None
    file = adapted(away, False, dialect, [around(2)[0]])
    assert torch.equal(file.scales, away.scales)
    assert torch.equal(file.opacities, away.opacities)


def test_our_own_dialect_changes_nothing_and_others_have_names() -> None:
    assert find_dialect("gsplat") is None
    with pytest.raises(InputError, match=r"--for: expected one of gsplat, spark.* found 'unreal'"):
        find_dialect("unreal")
    assert DIALECTS["supersplat"] == DIALECTS["playcanvas"]


def test_export_for_a_viewer(
    small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (
        "--model.reconstruction_steps=5 --model.lpips=none --trainer.accelerator=cpu --test_after_fit=false"
    )
    assert main(["fit", "--data.root", str(small_capture), "--name", "s", *options.split()]) == 0
    ckpt = "runs/s/version_0/checkpoints/last.ckpt"
    assert main(["export", "--ckpt", ckpt, "--output", "plain.ply"]) == 0
    assert main(["export", "--ckpt", ckpt, "--output", "spark.ply", "--for", "spark"]) == 0
    plain, spark = read_splats(Path("plain.ply")), read_splats(Path("spark.ply"))
    assert spark.antialiased
    assert not plain.antialiased
    assert (spark.splats.opacities >= plain.splats.opacities - 1e-6).float().mean() > 0.9
    assert main(["export", "--ckpt", ckpt, "--output", "x.ply", "--for", "unreal"]) == 1
    assert "--for: expected one of" in capsys.readouterr().err
    assert not Path("x.ply").exists()
