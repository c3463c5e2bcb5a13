"""Measuring a scene on held-out views: quality, and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.streaming import ViewLoader
from flexgs_lightning.evaluation.subject import Subject
from flexgs_lightning.metrics.protocol import ImageMetrics
from flexgs_lightning.rendering.rasterizer import rasterize

SWITCHES = 7
"""Switches that are timed; the first one, which warms caches, does not count."""


@torch.no_grad()
def measure(
    subject: Subject,
    data: CaptureDataModule,
    metrics: ImageMetrics,
    background: Float[Tensor, " 3"],
    *,
    antialiased: bool,
) -> dict[str, Any]:
    """Metrics of a scene on the capture's held-out views, each at its time.

    Returns:
        "psnr" (dB), "ssim", "lpips" (where there is one): means over images; "milliseconds": median of one
        render, the second of each view, with a moving scene's way to its time; "images": name and metrics of
        each.
    """

    def draw(batch: ViewBatch) -> Tensor:
        splats = subject.at(None if batch.times is None else float(batch.times[0]))
        return rasterize(splats, batch.cameras, background=background, antialiased=antialiased).image

    device = background.device
    metrics = metrics.like().to(device)
    images, times = [], []
    for view in cast(ViewLoader, data.test_dataloader()):
        batch = view.to(device)
        values = metrics.update(draw(batch), batch.targets(background))
        times.append(_milliseconds(partial(draw, batch), device) / len(batch))
        for i, name in enumerate(batch.names):
            images.append({"name": name, **{key: value[i].item() for key, value in values.items()}})
    means = {key: statistics.fmean(image[key] for image in images) for key in images[0] if key != "name"}
    return {**means, "milliseconds": statistics.median(times), "images": images}


@torch.no_grad()
def switch_milliseconds(switch: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of one switch."""
    times = [_milliseconds(switch, device) for _ in range(SWITCHES)]
    return statistics.median(times[1:])


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes, the device's part of it included."""
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
