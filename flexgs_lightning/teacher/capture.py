"""The scene's own renders as the photos of a capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import UInt8

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import TEST_EVERY, Capture, Points, View
from flexgs_lightning.images import to_uint8
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats


@dataclass(frozen=True)
class RenderedImage:
    """An ``ImageSource`` that draws: in this process, since a worker would need the kernels and the scene.

    Attributes:
        splats: the scene, on the device to draw on.
        camera: one camera, on the CPU.
        antialiased: how to draw.
    """

    splats: Splats = field(repr=False)
    camera: Cameras
    antialiased: bool

    @property
    def has_alpha(self) -> bool:
        """Where the scene ends, the background of training shows."""
        return True

    @torch.no_grad()
    def read(self) -> UInt8[np.ndarray, "H W 4"]:
        """Draw to uint8 RGBA, straight alpha."""
        drawn = rasterize(self.splats, self.camera.to(self.splats.device), antialiased=self.antialiased)
        image, alpha = drawn.image[0], drawn.alpha[0]
        return to_uint8(torch.cat([image / alpha.clamp_min(1 / 255), alpha], dim=-1))


def scene_capture(
    splats: Splats,
    cameras: Sequence[Cameras],
    *,
    name: str,
    antialiased: bool,
    test_every: int = TEST_EVERY,
) -> Capture:
    """What a scene shows through ``cameras``, as a capture without points.

    Args:
        splats: the scene, on the device to draw on.
        cameras: one camera each (C = 1).
        name: short name for reports.
        antialiased: how the scene is drawn.
        test_every: every n-th view is held out; 0 holds out none.
    """
    views = tuple(
        View(f"view_{i:04d}", camera, RenderedImage(splats, camera, antialiased))
        for i, camera in enumerate(cameras)
    )
    nothing = Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))
    return Capture(name, views, nothing, "renders of the scene that training started from", test_every)
