"""Camera clearance: space around the training cameras that holds nothing, as the SfM points tell.

A Gaussian just in front of a camera covers its whole image, and so training removes it; unless the camera is
one that training does not know. Such a camera stands *beside* training cameras, and what lies a hand's
breadth in front of it is in no training image, or at the edge of a few that can live with it. Hence clear
space is a whole ball around a training camera, not only what lies inside its image.
"""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.errors import InputError

SURFACE_POINTS = 10
"""So many SfM points near a camera are a surface, in whatever direction; fewer may be mismatches."""
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
    """

    share: float = 0.5
    quantile: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("quantile", self.quantile)):
            if not 0 <= value < 1:
                raise InputError(
                    f"model.clearance.{name}: expected a number of at least 0 and below 1, found {value}."
                )


@dataclass(frozen=True)
class ClearSpace:
    """Balls around the training cameras that hold no Gaussian's centre.

    Attributes:
        centers: [C, 3] camera centres in world space, on the CPU.
        radii: [C] in world units.
    """

    centers: Float[Tensor, "C 3"]
    radii: Float[Tensor, " C"]

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
        reach = 1.001 * self.radii.max().item()
        distances, _ = self._tree.query(means[rows].numpy(), distance_upper_bound=reach)
        return rows[torch.from_numpy(distances < math.inf)]

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.centers.numpy())


def clear_space(capture: Capture, options: CameraClearance) -> ClearSpace | None:
    """The space that a capture's training cameras have around them; None where there is no limit.

    Every radius is ``share`` of the nearest observed distance of the capture, or of the distance to the
    camera's own nearest SfM points, seen or behind it, where these are nearer.
    """
    if options.share == 0 or not len(capture.points):
        return None
    nearest = nearest_observed(capture, options.quantile)
    centers = torch.cat([view.camera.positions for view in capture.train_views])
    distances, _ = KDTree(capture.points.positions.numpy()).query(centers.numpy(), k=[SURFACE_POINTS])
    surfaces = torch.as_tensor(distances).flatten().float()  # infinite if there are not as many points
    radii = options.share * surfaces.clamp_max(nearest)
    return ClearSpace(centers, radii) if radii.isfinite().all() else None


def nearest_observed(capture: Capture, quantile: float) -> float:
    """Distance to the nearest SfM points that any training camera observes; infinite if none does.

    The minimum, over the cameras, of a low quantile of the distances of what each observes: over all together
    a single close-up among a thousand photos would count for nothing.
    """
    nearest = math.inf
    for view in capture.train_views:
        seen = capture.points_seen(view)
        if len(seen):
            distances = (seen - view.camera.positions).norm(dim=1)
            nearest = min(nearest, torch.quantile(distances, quantile).item())
    return nearest
