"""Motion: where Gaussians are at a time, each on a polynomial of its own around its own time centre."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import ATTRIBUTES, Attribute
from flexgs_lightning.model.gaussians import Chosen, Gaussians
from flexgs_lightning.model.part import Conditions, Part, Sightings
from flexgs_lightning.processes import Shards

MAX_DEGREE = 6
"""Highest power of time that can be asked for; beyond it float32 cannot tell the terms apart."""
CENTER = Attribute("time_centers", (), rate=1e-4, residual=1, initial=0.5)
"""A Gaussian's own time over the group of frames: when it lies at ``means``, and is most opaque."""
OMEGA = Attribute("omega", (4,), rate=1e-4, of_motion=True)
"""Change of the quaternion per unit of time."""
MOBILITY = "mobility"
"""Under this name a part hands on [M] how much of its way each Gaussian goes, and turns, in [0, 1]; all of it
where no part does."""
MOTION_RATE = 0.5 * 3.5
"""Learning rate of the motion in those of the positions (Li et al. 2024, published code)."""


def motion_attribute(degree: int) -> Attribute:
    """The polynomial's coefficients [degree, 3]: world units per unit of time, of its square and so on."""
    rate = MOTION_RATE * ATTRIBUTES["means"].rate
    return Attribute("motion", (degree, 3), rate=rate, times_extent=True, of_motion=True)


class PolynomialMotion(Part):
    """Each Gaussian on a polynomial in time (Li et al. 2024, "Spacetime Gaussian Feature Splatting").

    With d = t - mu, the distance of the time from the Gaussian's own, mean(t) = mean + sum_k motion_k d^k and
    quat(t) = quat + omega d. No gradient flows through d: a Gaussian's time is learned from its opacity
    alone, as published. In a scene without ``time_centers`` mu is 1/2.
    """

    kind = "polynomial"
    moves = True

    def __init__(self, degree: int = 3, centered: bool = True) -> None:
        """Bring the coefficients, all zero: a new scene stands still.

        Args:
            degree: highest power of d.
            centered: whether each Gaussian has its own time centre.

        Raises:
            InputError: a degree out of range.
        """
        super().__init__()
        if not 1 <= degree <= MAX_DEGREE:
            raise InputError(f"degree: expected 1 to {MAX_DEGREE}, found {degree}.")
        self.degree, self.centered = degree, centered

    def attributes(self) -> tuple[Attribute, ...]:
        """Coefficients and, unless all share one, the time centre."""
        return (motion_attribute(self.degree), OMEGA, *((CENTER,) if self.centered else ()))

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Positions and rotations at the time."""
        distance = self._distance(parameters, conditions)
        reach = distance * parameters[MOBILITY][:, None] if MOBILITY in parameters else distance
        *lower, slope = parameters["motion"].unbind(dim=1)
        for coefficient in reversed(lower):  # Horner's rule
            slope = torch.addcmul(coefficient, slope, distance)
        return {
            **parameters,
            "means": torch.addcmul(parameters["means"], slope, reach),
            "quats": torch.addcmul(parameters["quats"], parameters["omega"], reach),
        }

    def begin(self, gaussians: Gaussians, times: Float[Tensor, " N"] | None) -> None:
        """Give each Gaussian its time."""
        if self.centered:
            begin_centers(gaussians, times)

    @torch.no_grad()
    def place(self, gaussians: Gaussians, sightings: Sightings) -> None:
        """Let each pass at the moment at which it was seen, as fast as it was."""
        if self.centered:
            begin_centers(gaussians, sightings.times)
            gaussians.params["motion"][:, 0] = sightings.velocities

    def as_plain(self) -> dict[str, Any]:
        """Degree, and whether there are centres."""
        return {"degree": self.degree, "centered": self.centered}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> PolynomialMotion:
        """The same; what is learned is the Gaussians' own."""
        return cls(**values)

    def _distance(self, parameters: Mapping[str, Tensor], conditions: Conditions) -> Float[Tensor, "M 1"]:
        time = conditions.moment
        if not self.centered:
            means = parameters["means"]
            return means.new_full((len(means), 1), time - CENTER.initial)
        return (time - parameters[CENTER.name].detach()).unsqueeze(-1)


@torch.no_grad()
def begin_centers(gaussians: Gaussians, times: Float[Tensor, " N"] | None) -> None:
    """Put time centres at the times of the frames that Gaussians come from, or else anywhere in [0, 1).

    What is random comes from torch's global generator.
    """
    centers = gaussians.params[CENTER.name]
    centers.copy_(torch.rand(len(gaussians)) if times is None else times)
