"""A ball that flies over still blobs, filmed by cameras all around: the smallest moving capture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from small_scene import around

from flexgs_lightning.data import datamodule
from flexgs_lightning.data.capture import Capture, Points, View
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import SH_C0, Splats

FRAMES, CAMERAS = 8, 8
STILL, BALL = 40, 20
HELD_OUT = 3
"""The camera that is."""


@dataclass(frozen=True)
class Pixels:
    """An image that is there already."""

    pixels: np.ndarray
    has_alpha: bool = False

    def read(self) -> np.ndarray:
        return self.pixels


def place(time: float) -> torch.Tensor:
    """Where the ball's centre is: it is thrown across, up (y points down) and comes down again."""
    return torch.tensor([0.9 * time - 0.4, 1.2 * (time - 0.5) ** 2 - 0.6, 0.2 - 0.3 * time])


@cache
def truth() -> Splats:
    """The still blobs, then the ball's at the origin."""
    g = torch.Generator().manual_seed(5)
    count = STILL + BALL
    floor = torch.rand(STILL, 3, generator=g) * torch.tensor([2.0, 0.3, 2.0]) - torch.tensor([1.0, -0.5, 1.0])
    means = torch.cat([floor, torch.randn(BALL, 3, generator=g) * 0.15])
    colors = torch.cat(
        [0.4 * torch.rand(STILL, 3, generator=g), torch.tensor([1.0, 0.7, 0.1]).expand(BALL, 3)]
    )
    quats = torch.randn(count, 4, generator=g)
    scales = torch.cat([torch.full((STILL, 3), 0.15), torch.full((BALL, 3), 0.12)])
    return Splats(means, quats, scales, torch.full((count,), 0.9), ((colors - 0.5) / SH_C0)[:, None])


def at(time: float) -> Splats:
    """The scene at a time."""
    splats = truth()
    means = splats.means.clone()
    means[STILL:] += place(time)
    return replace(splats, means=means)


@cache
def capture() -> Capture:
    """All views, those of one camera held out; points of the first frame."""
    cameras, views = around(CAMERAS, 56, 42), []
    for i in range(CAMERAS):
        for frame in range(FRAMES):
            time = frame / FRAMES
            image = rasterize(at(time), cameras[i]).image[0].clamp(0, 1)
            pixels = Pixels((255 * image).round().byte().numpy())
            views.append(View(f"cam{i}/{frame}.png", cameras[i], pixels, time=time))
    held_out = frozenset(view.name for view in views if view.name.startswith(f"cam{HELD_OUT}/"))
    first = at(0.0)
    colors = (255 * (SH_C0 * first.sh[:, 0] + 0.5)).byte()
    return Capture("ball", tuple(views), Points(first.means, colors), "made", 8, held_out)


def use_capture(rank: int = 0) -> None:
    """Let every training of this process be one of the ball."""
    datamodule.read_capture = lambda **options: capture()  # type: ignore[assignment]


@pytest.fixture
def ball_capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Trainings of this test see the ball."""
    monkeypatch.setattr(datamodule, "read_capture", lambda **options: capture())
    return capture()


def options(runs: object, *extra: str) -> list[str]:
    """A short training of the ball."""
    return [
        "fit",
        "--data.root=ball",
        f"--runs={runs}",
        "--model.sh_degree=0",
        "--model.lpips=none",
        "--model.motion.path=polynomial",
        "--model.motion.opacity=varying",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.num_sanity_val_steps=0",
        *extra,
    ]
