"""Views to judge a coded model by: cameras with photos, and what a model's renders lose against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.data.capture import View
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.rendering.rasterizer import rasterize

JUDGE_EVERY = 4
"""Every n-th training view judges the rate; the others tell what each number is worth."""
MOST_VIEWS = 32
"""Views of either kind that are used, evenly spread."""
MOST_MOMENTS = 96
"""The same of a capture that moves: what comes and goes must be seen while it is there."""


@dataclass(frozen=True)
class Judged:
    """One view: its camera, and its photo over the background.

    Attributes:
        camera: one camera.
        photo: [1, H, W, 3] in [0, 1].
        time: when it was taken, in [0, 1]; None in a capture that stands still.
    """

    camera: Cameras
    photo: Float[Tensor, "1 H W 3"]
    time: float | None = None


def split_views(views: Sequence[View]) -> tuple[list[View], list[View]]:
    """Training views to measure sensitivities on, and others to judge the rate by."""
    judging = list(views[::JUDGE_EVERY])
    measuring = [view for i, view in enumerate(views) if i % JUDGE_EVERY] or judging
    return evenly(measuring), evenly(judging)


def evenly(views: Sequence[View]) -> list[View]:
    """Some of the views, evenly spread."""
    most = MOST_MOMENTS if any(view.time is not None for view in views) else MOST_VIEWS
    if len(views) <= most:
        return list(views)
    return [views[round(i)] for i in np.linspace(0, len(views) - 1, most)]


def read_views(views: Sequence[View], background: tuple[float, float, float]) -> list[Judged]:
    """Decode the photos."""
    return [Judged(view.camera, _over(view.source.read(), background), view.time) for view in views]


def _over(
    pixels: UInt8[np.ndarray, "H W 3|4"], background: tuple[float, float, float]
) -> Float[Tensor, "1 H W 3"]:
    photo = torch.from_numpy(pixels).float() / 255.0
    if photo.shape[-1] == 4:
        alpha = photo[..., 3:]
        photo = photo[..., :3] * alpha + torch.tensor(background) * (1.0 - alpha)
    return photo[None]


@torch.no_grad()
def mean_psnr(
    arrays: ElasticModelArrays, ratio: float, views: Sequence[Judged], device: torch.device
) -> float:
    """Mean PSNR over views of the model at a ratio, in dB."""
    background = torch.tensor(arrays.background, device=device)
    still = None if arrays.movement.moves else arrays.at(ratio).to(device)
    values = []
    for view in views:
        splats = arrays.at(ratio, view.time).to(device) if still is None else still
        camera = view.camera.to(device)
        image = rasterize(splats, camera, background=background, antialiased=arrays.antialiased).image
        values.append(psnr(image, view.photo.to(device)).item())
    return float(np.mean(values))
