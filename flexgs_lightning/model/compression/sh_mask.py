"""ShMask: which Gaussians need view-dependent colour at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.compression.mask import Mask
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.records import shown
from flexgs_lightning.splats import MAX_SH_DEGREE


class ShMask(Mask):
    """Takes the spherical harmonics above a degree from Gaussians that do without; see ``Mask``."""

    kind = "sh_mask"

    def __init__(self, gaussians: int, degree: int = 0, learned: bool = True) -> None:
        """Start with all coefficients kept.

        Args:
            gaussians: N.
            degree: harmonics of this degree and below are never masked.
            learned: False if the mask is decided once (``keep_only``).

        Raises:
            InputError: no such degree.
        """
        super().__init__(gaussians, learned)
        if degree not in range(MAX_SH_DEGREE + 1):
            raise InputError(f"degree: expected 0 to {MAX_SH_DEGREE}, found {shown(degree)}.")
        self.degree = degree

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters with masked harmonics."""
        factors = self.factors(chosen)[:, None, None]
        first = (self.degree + 1) ** 2
        sh = parameters["sh"]
        return parameters | {"sh": torch.cat([sh[:, :first], sh[:, first:] * factors], dim=1)}

    def as_plain(self) -> dict[str, Any]:
        """See ``Part``."""
        return {"degree": self.degree, **super().as_plain()}
