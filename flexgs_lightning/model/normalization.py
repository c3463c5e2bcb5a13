"""What the networks see: a scene in its own units, and ratios on an axis.

World frames have no common size or origin, so raw metres would make every learning rate and every
initialisation depend on the capture. Nothing but normalised values enters a network.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flexgs_lightning.cameras import scene_extent
from flexgs_lightning.errors import InputError

CONTRACTED_RADIUS = 2.0
"""``SceneFrame.contract`` maps all of space into the ball of this radius."""
TYPICAL_SCALE = 0.01
"""A common standard deviation of a Gaussian, relative to the scene's scale."""

RatioAxis = Literal["log", "linear"]


class SceneFrame(nn.Module):
    """Where a scene lies in its world, and how large it is.

    The frame is data, not a parameter: it is stored with a checkpoint and never learned. Moving or scaling
    the world together with its frame changes nothing that the methods return.
    """

    center: Float[Tensor, " 3"]
    scale: Float[Tensor, ""]

    def __init__(self, center: Float[Tensor, " 3"], scale: float) -> None:
        """Set the frame.

        Args:
            center: [3] world coordinates of the scene's centre.
            scale: radius of the part that is seen from close by, in world units; positive.

        Raises:
            ValueError: wrong shape, or a scale that is not positive and finite.
        """
        super().__init__()
        if center.shape != (3,):
            raise ValueError(f"SceneFrame: center must be [3], found {tuple(center.shape)}.")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"SceneFrame: scale must be positive and finite, found {scale}.")
        self.register_buffer("center", center.detach().clone().float())
        self.register_buffer("scale", torch.tensor(float(scale)))

    @staticmethod
    def from_cameras(positions: Float[Tensor, "C 3"]) -> SceneFrame:
        """The cameras' centroid and the radius of the ball around it that holds them (``scene_extent``)."""
        return SceneFrame(positions.mean(dim=0), scene_extent(positions))

    def contract(self, means: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Unbounded space into a ball of radius 2 (Mip-NeRF 360, Barron et al. 2022, Eq. 10).

        In units of the scene's scale the unit ball around its centre stays as it is; a point at distance
        r > 1 moves to distance 2 - 1/r in the same direction.
        """
        points = (means - self.center) / self.scale
        radius = torch.linalg.vector_norm(points, dim=-1, keepdim=True).clamp_min(1.0)
        return points * ((2.0 - 1.0 / radius) / radius)

    def plane_coordinates(self, means: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Contracted positions divided by the ball's radius: [-1, 1] an axis."""
        return self.contract(means) / CONTRACTED_RADIUS

    def relative_scales(self, log_scales: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Natural log of standard deviations (world units) as decades above 1 % of the scene's scale.

        Most Gaussians then lie within -2 to 1.
        """
        return (log_scales - self.scale.log() - math.log(TYPICAL_SCALE)) / math.log(10.0)

    def attributes(
        self, means: Float[Tensor, "N 3"], log_scales: Float[Tensor, "N 3"], quats: Float[Tensor, "N 4"]
    ) -> Float[Tensor, "N 10"]:
        """xi = [X, s, q] of FlexGS's Eq. 5, normalised: contracted position, relative scale, rotation."""
        positions, scales = self.contract(means), self.relative_scales(log_scales)
        return torch.cat([positions, scales, canonical_quats(quats)], dim=-1)


def canonical_quats(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """One unit quaternion (w, x, y, z) for each rotation, because q and -q are the same rotation.

    w >= 0; where w is 0, the first of x, y, z that is not 0 is positive. The input may have any length;
    a zero quaternion stays zero.
    """
    units = functional.normalize(quats, dim=-1)
    sign = torch.zeros_like(units[..., 0])
    for component in units.detach().unbind(-1):
        sign = torch.where(sign == 0, component.sign(), sign)
    return units * sign[..., None]


def ratio_to_axis(ratio: float, lowest: float, axis: RatioAxis = "log") -> float:
    """Place a ratio on [-1, 1]: ``lowest`` and anything below it at -1, 1 at +1.

    On the log axis equal factors are equal distances, so 1 % and 5 % do not share a cell. The linear axis
    is there for comparison.

    Raises:
        InputError: ``ratio`` or ``lowest`` is out of range, or the axis is unknown.
    """
    if not 0.0 < ratio <= 1.0:
        raise InputError(f"ratio: expected a number in (0, 1], found {ratio}.")
    if not 0.0 < lowest < 1.0:
        raise InputError(f"lowest_ratio: expected a number in (0, 1), found {lowest}.")
    if axis == "log":
        share = 1.0 - math.log(ratio) / math.log(lowest)
    elif axis == "linear":
        share = (ratio - lowest) / (1.0 - lowest)
    else:
        raise InputError(f"ratio_axis: expected 'log' or 'linear', found '{axis}'.")
    return 2.0 * max(share, 0.0) - 1.0
