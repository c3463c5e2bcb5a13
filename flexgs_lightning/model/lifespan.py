"""Lifespan: opacity that comes and goes in time, so that a Gaussian need only be right for a while."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import Attribute
from flexgs_lightning.model.gaussians import Chosen, Gaussians
from flexgs_lightning.model.motion import CENTER, begin_centers
from flexgs_lightning.model.part import Conditions, Part, Sightings
from flexgs_lightning.processes import Shards

LEAST_OPACITY = 1 / 255
"""What is less opaque no rasterizer of this field draws: leaving it out gives the same image."""
WIDTH_RATE = 0.03
"""Learning rate of the widths' logarithms (Li et al. 2024, published code)."""
ALMOST_ONE = -1e-7
"""Logarithm of the highest opacity: of 1 there is no logit."""


class Lifespan(Part):
    """Opacity as a Gaussian of time (Li et al. 2024, "Spacetime Gaussian Feature Splatting").

    opacity(t) = opacity exp(-((t - mu) / s)^2) with mu the ``time_centers`` and s = exp(``time_scales``). A
    Gaussian lives while that is at least ``least_opacity``, hence for |t - mu| <= s sqrt(ln(opacity /
    least_opacity)), and is not drawn before and after.
    """

    kind = "lifespan"
    moves = True

    def __init__(self, width: float = 1.0, least_opacity: float = LEAST_OPACITY) -> None:
        """Bring centres and widths.

        Args:
            width: s of a new scene's Gaussians, in groups of frames.
            least_opacity: below this a Gaussian is not drawn.

        Raises:
            InputError: an option is out of range.
        """
        super().__init__()
        if not (width > 0 and math.isfinite(width)):
            raise InputError(f"width: expected a positive number, found {width}.")
        if not 0 < least_opacity < 1:
            raise InputError(f"least_opacity: expected a number between 0 and 1, found {least_opacity}.")
        self.width, self.least_opacity = width, least_opacity

    def attributes(self) -> tuple[Attribute, ...]:
        """Time centres and the logarithms of widths."""
        return CENTER, Attribute("time_scales", (), rate=WIDTH_RATE, residual=1, initial=math.log(self.width))

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Opacities at the time, as logits."""
        logs = _log_opacities(parameters, conditions.moment).clamp_max(ALMOST_ONE)
        return {**parameters, "opacities": logs - torch.log(-torch.expm1(logs))}

    @torch.no_grad()
    def alive(self, parameters: Mapping[str, Tensor], conditions: Conditions) -> Bool[Tensor, " M"]:
        """Which are opaque enough to be drawn."""
        return _log_opacities(parameters, conditions.moment) >= math.log(self.least_opacity)

    @torch.no_grad()
    def peaks(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, " M"]:
        """Opacity at the time of the group that is nearest to the Gaussian's own."""
        return _log_opacities(parameters, parameters[CENTER.name].clamp(0, 1)).exp()

    def begin(self, gaussians: Gaussians, times: Float[Tensor, " N"] | None) -> None:
        """Give each Gaussian its time."""
        begin_centers(gaussians, times)

    @torch.no_grad()
    def place(self, gaussians: Gaussians, sightings: Sightings) -> None:
        """Let each live around the moment at which it was seen."""
        begin_centers(gaussians, sightings.times)
        gaussians.params["time_scales"].fill_(math.log(sightings.span))

    def as_plain(self) -> dict[str, Any]:
        """The options."""
        return {"width": self.width, "least_opacity": self.least_opacity}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> Lifespan:
        """The same; what is learned is the Gaussians' own."""
        return cls(**values)


def _log_opacities(parameters: Mapping[str, Tensor], time: float | Tensor) -> Float[Tensor, " M"]:
    distance = (time - parameters[CENTER.name]) * torch.exp(-parameters["time_scales"])
    return functional.logsigmoid(parameters["opacities"]) - distance.square()
