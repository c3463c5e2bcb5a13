"""A small scene, cameras around it, and readers of what is rendered: for tests of files and commands."""

import math
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.splats import Splats


def ball() -> Splats:
    """A ball of colours at the origin."""
    g = torch.Generator().manual_seed(0)
    count = 400
    return Splats(
        means=torch.randn(count, 3, generator=g) * 0.5,
        quats=torch.randn(count, 4, generator=g),
        scales=torch.full((count, 3), 0.1),
        opacities=torch.full((count,), 0.8),
        sh=torch.randn(count, 4, 3, generator=g),
    )


def around(count: int, width: int = 40, height: int = 30) -> Cameras:
    """Level cameras on a circle of radius 4 about the origin, y down."""
    viewmats = torch.eye(4).repeat(count, 1, 1)
    for i, angle in enumerate(torch.arange(count) * (2 * math.pi / count)):
        c, s = angle.cos(), angle.sin()
        viewmats[i, :3, :3] = torch.stack(
            [torch.stack([c, 0 * c, s]), torch.tensor([0.0, 1, 0]), torch.stack([-s, 0 * c, c])]
        )
        viewmats[i, 2, 3] = 4.0
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
    return Cameras(viewmats, K.repeat(count, 1, 1), width, height)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def video_frames(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
