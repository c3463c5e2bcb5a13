"""Where a viewer stands at first: which way is up, what to turn around, from where to look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import Cameras, focus_point
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.deploy.opening import one_size
from flexgs_lightning.deploy.trajectory import orbit, up_direction
from flexgs_lightning.errors import InputError
from flexgs_lightning.splats import Splats

_COLMAP_UP = (0.0, -1.0, 0.0)
"""Up in a world whose axes are those of a level first camera, as COLMAP often leaves it."""
_NEAREST = 0.1
"""Least distance of the turning point from a camera, relative to the scene's extent."""


@dataclass(frozen=True)
class Vantage:
    """A place to look from.

    Attributes:
        camera: one camera (C = 1, on the CPU).
        up: [3] unit vector.
        focus: [3] the point of interest; None if there is none that all photos share.
        unit: a length of the order of the scene's size, in world units.
    """

    camera: Cameras
    up: Float[Tensor, " 3"]
    focus: Float[Tensor, " 3"] | None
    unit: float

    def turning_point(self, camera: Cameras) -> Float[Tensor, " 3"]:
        """[3] the point straight ahead of ``camera`` that is as far away as the point of interest."""
        forward, position = camera.viewmats[0, 2, :3], camera.positions[0]
        ahead = self.unit if self.focus is None else ((self.focus - position) @ forward).item()
        return position + max(ahead, _NEAREST * self.unit) * forward


def vantage_of_capture(capture: Capture) -> Vantage:
    """The first test view; without test views the orbit's first pose, or else the first photo's."""
    cameras = one_size(capture.views)
    up = up_direction(cameras).float()
    return Vantage(_first_camera(capture, cameras), up, focus_point(cameras), capture.extent)


def vantage_of_splats(splats: Splats) -> Vantage:
    """In front of the bulk of the Gaussians, for a file without a capture."""
    means = splats.means.cpu()
    centre = means.median(dim=0).values
    radius = max((means - centre).norm(dim=-1).median().item(), 1e-6)
    viewmat = torch.eye(4)
    viewmat[:3, 3] = torch.tensor([0.0, 0.0, 3.0 * radius]) - centre
    K = torch.tensor([[900.0, 0.0, 640.0], [0.0, 900.0, 360.0], [0.0, 0.0, 1.0]])
    camera = Cameras(viewmat[None], K[None], 1280, 720)
    return Vantage(camera, torch.tensor(_COLMAP_UP), centre, radius)


def _first_camera(capture: Capture, cameras: Cameras) -> Cameras:
    if capture.test_views:
        return capture.test_views[0].camera
    try:
        return orbit(cameras, frames=1)
    except InputError:
        return cameras[0]
