"""MotionMask: which Gaussians move at all."""

from __future__ import annotations

from torch import Tensor

from flexgs_lightning.model.compression.mask import Mask
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.motion import MOBILITY
from flexgs_lightning.model.part import Conditions


class MotionMask(Mask):
    """Lets Gaussians stand still that show things that do; see ``Mask``.

    Their ``MOBILITY`` is the mask, and an entropy model counts the bits of motion in its proportion: so a
    price of bits asks each Gaussian whether its motion is worth them.
    """

    kind = "motion_mask"

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters with the share of its way that each Gaussian goes."""
        return parameters | {MOBILITY: self.factors(chosen)}
