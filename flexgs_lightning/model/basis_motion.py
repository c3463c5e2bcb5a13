"""Bases: a few trajectories that all Gaussians share, and each Gaussian's mixture of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import Attribute
from flexgs_lightning.model.gaussians import Chosen, Gaussians
from flexgs_lightning.model.motion import MOBILITY
from flexgs_lightning.model.part import Conditions, ParameterGroup, Part
from flexgs_lightning.processes import Shards

COEFFICIENTS_RATE = 1e-2
BASES_RATE = 1.6e-4
"""Learning rates of Shape of Motion's published code (Wang et al. 2024), translations' times the extent."""
LEAST_KNOTS = 4
"""Of a cubic spline."""
MOST_KNOTS, MOST_BASES = 1024, 256
"""Far beyond what trains: each Gaussian has a coefficient for each trajectory."""
_START = 0.1
"""Size of free trajectories at the start, in standard deviations of the Gaussians' places."""


class BasisMotion(Part):
    """J trajectories B_j(t), uniform cubic B-splines and so twice differentiable, and coefficients c_ij.

    Rigid (Wang et al. 2024, "Shape of Motion"): B_j in SE(3), a quaternion and a translation. Gaussian i
    moves by their mixture with the weights softmax(c_i), the quaternion normalised: mean(t) = R mean + T,
    quat(t) = R quat. Free (Kratimenos et al. 2024, "DynMF"): mean(t) = mean + sum_j c_ij B_j(t), and quat(t)
    likewise.

    A new scene stands still: rigid trajectories start at the identity, free ones with coefficients of zero.
    """

    kind = "bases"
    moves = True

    def __init__(
        self, count: int = 10, knots: int = 10, rigid: bool = True, rate: float = BASES_RATE
    ) -> None:
        """Bring coefficients, all zero, and trajectories that stay at the identity.

        Args:
            count: J.
            knots: control points of each trajectory over the group of frames.
            rigid: whether Gaussians move by rigid motions, or each part of the motion is free.
            rate: learning rate of the trajectories; translations' times the scene's extent.

        Raises:
            InputError: no trajectory or far too many, too few knots for a cubic spline, or no positive rate.
        """
        super().__init__()
        if not 1 <= count <= MOST_BASES:
            raise InputError(f"bases: expected 1 to {MOST_BASES} trajectories, found {count}.")
        if not LEAST_KNOTS <= knots <= MOST_KNOTS:
            raise InputError(f"knots: expected {LEAST_KNOTS} to {MOST_KNOTS} a trajectory, found {knots}.")
        if not (rate > 0 and math.isfinite(rate)):
            raise InputError(f"bases_rate: expected a positive number, found {rate}.")
        self.rigid, self.rate = rigid, rate
        self.translations = nn.Parameter(torch.zeros(knots, count, 3))
        self.rotations = nn.Parameter(torch.zeros(knots, count, 4))

    def attributes(self) -> tuple[Attribute, ...]:
        """The coefficients."""
        shape = (self.translations.shape[1],)
        return (Attribute("coefficients", shape, rate=COEFFICIENTS_RATE, of_motion=True),)

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Positions and rotations at the time."""
        translations, rotations = self.trajectories(conditions.moment)
        mixture = parameters["coefficients"]
        if self.rigid:
            mixture = mixture.softmax(dim=-1)
        moved, turned = mixture @ translations, mixture @ rotations
        means, quats = parameters["means"], parameters["quats"]
        if self.rigid:
            turn = functional.normalize(turned + turned.new_tensor([1.0, 0.0, 0.0, 0.0]), dim=-1)
            found = {"means": rotated(means, turn) + moved, "quats": product(turn, quats)}
        else:
            found = {"means": means + moved, "quats": quats + turned}
        if MOBILITY in parameters:
            share = parameters[MOBILITY][:, None]
            found = {name: parameters[name].lerp(there, share) for name, there in found.items()}
        return parameters | found

    def trajectories(self, time: float) -> tuple[Float[Tensor, "J 3"], Float[Tensor, "J 4"]]:
        """Translations, and quaternions less the identity, at a time in [0, 1]."""
        knots = len(self.translations)
        place = time * (knots - LEAST_KNOTS + 1)
        first = min(int(place), knots - LEAST_KNOTS)
        weights = self.translations.new_tensor(_cubic(place - first))
        window = slice(first, first + LEAST_KNOTS)
        return (
            torch.einsum("k,kjd->jd", weights, self.translations[window]),
            torch.einsum("k,kjd->jd", weights, self.rotations[window]),
        )

    @torch.no_grad()
    def begin(self, gaussians: Gaussians, times: Float[Tensor, " N"] | None) -> None:
        """Tell trajectories apart: by random coefficients, or where these are free by random paths."""
        if self.rigid:
            gaussians.params["coefficients"].normal_()
        else:
            spread = float(gaussians.params["means"].std(dim=0).norm())
            self.translations.normal_().mul_(_START * spread)
            self.rotations.normal_().mul_(_START)

    def groups(self) -> list[ParameterGroup]:
        """The trajectories."""
        return [
            ParameterGroup("bases_translations", [self.translations], "layers", self.rate, True),
            ParameterGroup("bases_rotations", [self.rotations], "layers", self.rate),
        ]

    def as_plain(self) -> dict[str, Any]:
        """The options."""
        knots, count, _ = self.translations.shape
        return {"count": count, "knots": knots, "rigid": self.rigid, "rate": self.rate}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> BasisMotion:
        """The same, standing still."""
        return cls(**values)


def _cubic(s: float) -> list[float]:
    """Weights of four neighbouring control points of a uniform cubic B-spline, s in [0, 1] between knots."""
    return [
        (1 - s) ** 3 / 6,
        (3 * s**3 - 6 * s**2 + 4) / 6,
        (-3 * s**3 + 3 * s**2 + 3 * s + 1) / 6,
        s**3 / 6,
    ]


def rotated(points: Float[Tensor, "M 3"], quats: Float[Tensor, "M 4"]) -> Float[Tensor, "M 3"]:
    """Points turned by unit quaternions (w, x, y, z)."""
    axes = quats[:, 1:]
    across = 2 * torch.linalg.cross(axes, points)
    return points + quats[:, :1] * across + torch.linalg.cross(axes, across)


def product(left: Float[Tensor, "M 4"], right: Float[Tensor, "M 4"]) -> Float[Tensor, "M 4"]:
    """Quaternions (w, x, y, z) multiplied: turn by the right one, then by the left one."""
    w, v, other, u = left[:, :1], left[:, 1:], right[:, :1], right[:, 1:]
    real = w * other - (v * u).sum(dim=-1, keepdim=True)
    return torch.cat([real, w * u + other * v + torch.linalg.cross(v, u)], dim=-1)
