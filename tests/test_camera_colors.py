"""Colours of cameras: what each makes of a scene is learned beside it, and the scene is the mean camera's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from film import NAMES, write_film

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.protocol import ImageMetrics
from flexgs_lightning.metrics.psnr import color_corrected, psnr
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.training.camera_colors import CameraColors
from flexgs_lightning.training.module import FlexGSModule


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film")


@pytest.fixture
def capture(film: Path) -> Capture:
    return read_capture(film, downscale=4)


def views_of(capture: Capture, camera: str) -> list[int]:
    return [i for i, view in enumerate(capture.train_views) if view.filmed_by == camera]


def test_colours_are_left_alone_until_something_is_learned(capture: Capture) -> None:
    image = torch.rand(3, 4, 5, 3)
    assert torch.equal(CameraColors(capture)(image, torch.tensor([0, 13, 30])), image)


def test_the_mean_camera_leaves_colours_alone(capture: Capture) -> None:
    torch.manual_seed(0)
    colors = CameraColors(capture)
    torch.nn.init.normal_(colors.log_gains)
    torch.nn.init.normal_(colors.offsets)
    cameras = torch.tensor([views_of(capture, name)[2] for name in NAMES[:3]])
    black = colors(torch.zeros(3, 1, 1, 3), cameras).flatten(1)
    gains = colors(torch.ones(3, 1, 1, 3), cameras).flatten(1) - black
    torch.testing.assert_close(black.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(gains.prod(dim=0), torch.ones(3), atol=1e-5, rtol=0)
    same = torch.tensor(views_of(capture, "cam01"))
    seen = colors(torch.rand(1, 2, 2, 3).expand(len(same), -1, -1, -1), same)
    assert (seen == seen[:1]).all(), "one camera has one colour at all times"


def test_gains_and_offsets_are_found(capture: Capture) -> None:
    """Photos of one picture by three cameras; gains relative to their geometric mean, offsets to the mean."""
    random = np.random.default_rng(0)
    gains = torch.tensor(random.uniform(0.8, 1.2, (3, 3)), dtype=torch.float32)
    gains /= gains.log().mean(dim=0).exp()
    offsets = torch.tensor(random.uniform(-0.1, 0.1, (3, 3)), dtype=torch.float32)
    offsets -= offsets.mean(dim=0)
    picture = torch.rand(1, 8, 8, 3)
    colors = CameraColors(capture)
    optimizer = torch.optim.Adam(colors.parameters(), 1e-2)
    cameras = torch.tensor([views_of(capture, name)[0] for name in NAMES[:3]])
    photos = picture * gains[:, None, None] + offsets[:, None, None]
    for _ in range(600):
        optimizer.zero_grad()
        (colors(picture.expand(3, -1, -1, -1), cameras) - photos).square().mean().backward()
        optimizer.step()
    found = colors(picture.expand(3, -1, -1, -1), cameras)
    assert psnr(found, photos, clamp=False).min() > 50
    black = colors(torch.zeros(3, 1, 1, 3), cameras).flatten(1)
    torch.testing.assert_close(black, offsets, atol=0.01, rtol=0)
    white = colors(torch.ones(3, 1, 1, 3), cameras).flatten(1)
    torch.testing.assert_close(white - black, gains, atol=0.01, rtol=0)


def test_photos_of_still_captures_are_cameras_of_their_own(capture: Capture) -> None:
    photos = tuple(replace(view, filmed_by=None) for view in capture.views[:3])
    still = Capture("still", photos, capture.points, "", test_every=0)
    assert CameraColors(still).log_gains.shape == (3, 3)
    with pytest.raises(InputError, match=r"model.camera_colors: expected several cameras, found 1 in one"):
        CameraColors(Capture("one", capture.views[:1], capture.points, "", test_every=0))


def trainer(folder: Path) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
    )


def module(steps: int, **options: bool) -> FlexGSModule:
    return FlexGSModule(reconstruction_steps=steps, sh_degree=0, lpips="none", **options)  # type: ignore[arg-type]


def test_they_are_trained_saved_and_resumed(film: Path, tmp_path: Path) -> None:
    def data() -> CaptureDataModule:
        return CaptureDataModule(str(film), downscale=4)

    whole = module(12, camera_colors=True)
    run = trainer(tmp_path / "whole")
    run.fit(whole, datamodule=data())
    assert whole.camera_colors is not None
    assert whole.camera_colors.log_gains.abs().min() > 0, "every camera has learned"
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)

    tested = run.test(module(12, camera_colors=True), datamodule=data(), ckpt_path=str(path), verbose=False)
    assert "test/psnr_color_corrected" in tested[0]
    plain = trainer(tmp_path / "plain").test(
        module(12), datamodule=data(), ckpt_path=str(path), verbose=False
    )
    assert plain[0]["test/psnr"] == tested[0]["test/psnr"], (
        "held-out cameras get the mean, which is the scene"
    )
    assert len(load(path)) == len(whole.scene)

    with pytest.raises(InputError, match=r"model.camera_colors"):
        trainer(tmp_path / "without").fit(module(20), datamodule=data(), ckpt_path=str(path))


# Metrics after a fit of colours


def test_colour_correction_undoes_an_affine_map() -> None:
    torch.manual_seed(0)
    photo = torch.rand(2, 16, 16, 3)
    mixing = torch.eye(3) + 0.1 * torch.randn(3, 3)
    render = ((photo - 0.5) @ mixing.T * 0.5 + 0.45).clamp(0, 1)
    assert psnr(render, photo).max() < 20
    assert psnr(color_corrected(render, photo), photo).min() > 60


def test_colour_correction_is_least_squares() -> None:
    torch.manual_seed(1)
    photo, render = torch.rand(1, 9, 7, 3) * 0.5 + 0.25, torch.rand(1, 9, 7, 3)
    design = np.concatenate([render[0].reshape(-1, 3).numpy(), np.ones((63, 1))], axis=1).astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, photo[0].reshape(-1, 3).numpy().astype(np.float64), rcond=None)
    expected = (design @ solution).clip(0, 1).reshape(9, 7, 3)
    np.testing.assert_allclose(color_corrected(render, photo)[0], expected, atol=1e-5)


def test_an_image_of_one_colour_becomes_the_mean() -> None:
    photo = torch.rand(1, 8, 8, 3)
    found = color_corrected(torch.full((1, 8, 8, 3), 0.3), photo)
    torch.testing.assert_close(found[0, 0, 0], photo.mean(dim=(0, 1, 2)), atol=1e-5, rtol=0)


def test_the_corrected_metric_is_named_and_averaged() -> None:
    metrics = ImageMetrics(lpips="none", correct_colors=True)
    photo = torch.rand(2, 16, 16, 3)
    values = metrics.update(photo * 0.5 + 0.2, photo)
    assert values["psnr_color_corrected"].min() > 60 > values["psnr"].max()
    assert metrics.like().update(photo, photo).keys() == values.keys()
    assert float(metrics.compute()["psnr_color_corrected"]) == pytest.approx(
        values["psnr_color_corrected"].mean().item(), rel=1e-5
    )
    assert "affine" in metrics.protocol()["psnr_color_corrected"]
    assert "psnr_color_corrected" not in ImageMetrics(lpips="none").protocol()
