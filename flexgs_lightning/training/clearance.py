"""Camera clearance: space around the training cameras that holds nothing, as the SfM points tell.

A Gaussian just in front of a camera covers its whole image, and so training removes it; unless the camera is
one that training does not know. Such a camera stands *beside* training cameras, and what lies a hand's
breadth in front of it is in no training image, or at the edge of a few that can live with it. Hence clear
space is a whole ball around a training camera, not only what lies inside its image.

Where a capture states a near plane, it says that nothing stands between it and the cameras: these pyramids
are clear, too. A dome's cameras stand in its wall, of which no large ball may be taken away.
"""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from flexgs_lightning.cameras import NEAR_PLANE, Cameras
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.errors import InputError

SURFACE_POINTS = 10
"""So many SfM points near a camera are a surface, in whatever direction; fewer may be mismatches."""
MARGIN = 0.15
"""Pyramids are wider than the image by this part of its width on each side, as rasterizers' view limits are:
Gaussians reach farther than their centres."""
TOO_CLOSE = "nearer to a training camera than model.clearance allows"
"""Why Gaussians go."""
PAIRS_AT_ONCE = 2**24
"""Most distances between Gaussians and cameras that are held at a time (64 MiB)."""


@dataclass(frozen=True)
class CameraClearance:
    """How near to the training cameras Gaussians may lie; no limit for captures without SfM points.

    Args:
        share: no Gaussian's centre stays nearer to a training camera than this share of the distance at which
            training cameras observe their nearest SfM points; 0 for no limit.
        quantile: share of the points that a camera observes which may be nearer than its nearest ones,
            because they are mismatches.
        held_out: keep clear around held-out cameras, too, where their places are known from calibration, as
            those of a rig are. Of them nothing but their poses is used; say so beside figures.
    """

    share: float = 0.8
    quantile: float = 0.01
    held_out: bool = False

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("quantile", self.quantile)):
            if not 0 <= value < 1:
                raise InputError(
                    f"model.clearance.{name}: expected a number of at least 0 and below 1, found {value}."
                )


@dataclass(frozen=True)
class ClearSpace:
    """Balls around the training cameras, and pyramids in front of them, that hold no Gaussian's centre.

    Attributes:
        centers: [C, 3] camera centres in world space, on the CPU.
        radii: [C] in world units.
        pyramids: cameras in front of which all is clear up to their near planes, one each, on the CPU.
    """

    centers: Float[Tensor, "C 3"]
    radii: Float[Tensor, " C"]
    pyramids: tuple[Cameras, ...] = ()

    def contains(self, means: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
        """Which of N Gaussians lie inside, by their centres; none that is not finite.

        A Gaussian's extent does not count: the ground under the photographer, or a bare wall of few and large
        Gaussians, may well reach into a ball, and it is a centre in front of a camera that covers its image.
        """
        means = means.detach()
        if means.device.type != "cpu":
            return self._compare(means)
        inside = torch.zeros(len(means), dtype=torch.bool)
        near = self._near_some_camera(means)
        inside[near] = self._compare(means[near])
        return inside

    def _compare(self, means: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
        inside = self._in_balls(means)
        for camera in self.pyramids:
            inside |= _in_pyramid(camera.to(means.device), means)
        return inside

    def _in_balls(self, means: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
        """Compare every Gaussian with every camera, some Gaussians at a time."""
        centers, radii = self.centers.to(means), self.radii.to(means)
        # Not by matrix products: far from the world's origin these lose what is near a camera.
        return torch.cat(
            [
                (torch.cdist(some, centers, compute_mode="donot_use_mm_for_euclid_dist") - radii).amin(dim=1)
                < 0
                for some in means.split(max(1, PAIRS_AT_ONCE // len(centers)))
            ]
        )

    def _near_some_camera(self, means: Float[Tensor, "N 3"]) -> Int[Tensor, " M"]:
        """The few Gaussians that can be inside at all."""
        rows = means.isfinite().all(dim=1).nonzero().squeeze(1)
        reach = 1.001 * max(self.radii.max().item(), *map(_length, self.pyramids), 0.0)
        distances, _ = self._tree.query(means[rows].numpy(), distance_upper_bound=reach)
        return rows[torch.from_numpy(distances < math.inf)]

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.centers.numpy())


def clear_space(capture: Capture, options: CameraClearance) -> ClearSpace | None:
    """The space that a capture's training cameras have around them; None where there is no limit.

    Every radius is ``share`` of the nearest observed distance of the capture, or of the distance to the
    camera's own nearest SfM points, seen or behind it, where these are nearer. Pyramids need a near plane
    that somebody has stated.
    """
    if options.share == 0 or not len(capture.points):
        return None
    nearest = nearest_observed(capture, options.quantile)
    views = capture.views if options.held_out else capture.train_views
    cameras = _places(views)
    centers = torch.cat([camera.positions for camera in cameras])
    distances, _ = KDTree(capture.points.positions.numpy()).query(centers.numpy(), k=[SURFACE_POINTS])
    surfaces = torch.as_tensor(distances).flatten().float()  # infinite if there are not as many points
    radii = options.share * surfaces.clamp_max(nearest)
    if not radii.isfinite().all():
        return None
    return ClearSpace(centers, radii, tuple(cameras) if capture.near_plane > NEAR_PLANE else ())


def _places(views: Sequence[View]) -> list[Cameras]:
    """The cameras of these views; one that films counts once."""
    return list({id(view.camera): view.camera for view in views}.values())


def _in_pyramid(camera: Cameras, means: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
    """Which of N points one camera would see, were they not before its near plane."""
    points = means @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
    depths = points[:, 2]
    pixels = (points @ camera.Ks[0].T)[:, :2]
    size = points.new_tensor([camera.width, camera.height])
    low, high = -MARGIN * size, (1 + MARGIN) * size
    seen = (pixels >= low * depths[:, None]) & (pixels <= high * depths[:, None])
    return (depths > 0) & (depths < camera.near_plane) & seen.all(dim=1)


def _length(camera: Cameras) -> float:
    """From the tip of a camera's pyramid to the farthest corner of its base."""
    corners = camera.Ks.new_tensor([[x, y, 1.0] for x in (0, 1) for y in (0, 1)])
    corners[:, :2] = (corners[:, :2] * (1 + 2 * MARGIN) - MARGIN) * camera.Ks.new_tensor(
        [camera.width, camera.height]
    )
    rays = torch.linalg.solve(camera.Ks[0].double(), corners.double().T)
    return camera.near_plane * rays.norm(dim=0).max().item()


def nearest_observed(capture: Capture, quantile: float) -> float:
    """Distance to the nearest SfM points that any training camera observes; infinite if none does.

    Points before the near plane, such as those on a camera's own housing, are not observed.

    The minimum, over the cameras, of a low quantile of the distances of what each observes: over all together
    a single close-up among a thousand photos would count for nothing.
    """
    nearest = math.inf
    for view in capture.train_views:
        seen = capture.points_seen(view)
        distances = (seen - view.camera.positions).norm(dim=1)
        distances = distances[distances >= view.camera.near_plane]
        if len(distances):
            nearest = min(nearest, torch.quantile(distances, quantile).item())
    return nearest
