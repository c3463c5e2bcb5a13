"""Splats: activated Gaussians, ready to draw. The type that passes between the package's rooms."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

MAX_SH_DEGREE = 3
SH_C0 = 0.28209479177387814
"""The constant basis function 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 * sh[:, 0]."""


NONE = torch.empty(0)
"""Stands for the appearance that Gaussians do not carry."""


@dataclass(frozen=True)
class Splats:
    """N Gaussians with every activation applied. They carry spherical harmonics or feature vectors.

    Attributes:
        means: [N, 3] centres in world space.
        quats: [N, 4] rotations (w, x, y, z); the rasterizer normalises them.
        scales: [N, 3] standard deviations along the local axes, world units, positive.
        opacities: [N] in (0, 1).
        sh: [N, K, 3] spherical-harmonics coefficients of RGB in the 3DGS basis and order,
            K = (degree + 1)^2 for a degree of 0 to 3; colour = SH + 0.5, clamped at 0. K = 0 with features.
        features: [N, F] what a ``rendering.shading.Shader`` makes colours of; F = 0 with harmonics.
    """

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, " N"]
    sh: Float[Tensor, "N K 3"] = NONE
    features: Float[Tensor, "N F"] = NONE

    def __post_init__(self) -> None:
        count = self.means.shape[0]
        for name, nothing in {"sh": (count, 0, 3), "features": (count, 0)}.items():
            if getattr(self, name) is NONE:
                object.__setattr__(self, name, self.means.new_empty(nothing))
        expected = {"means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"Splats: {name} must have shape {shape}, found {found}.")
        bases = self.sh.shape[1] if self.sh.ndim == 3 else 0
        if self.sh.shape != (count, bases, 3) or bases not in (0, 1, 4, 9, 16):
            raise ValueError(
                f"Splats: sh must have shape ({count}, 1|4|9|16, 3), found {tuple(self.sh.shape)}."
            )
        if self.features.ndim != 2 or len(self.features) != count:
            raise ValueError(
                f"Splats: features must have shape ({count}, F), found {tuple(self.features.shape)}."
            )
        if (bases > 0) == self.has_features:
            raise ValueError(
                "Splats: expected spherical harmonics (sh) or features, one of them, "
                f"found {bases} coefficients and {self.features.shape[1]} features."
            )

    def __len__(self) -> int:
        return self.means.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Splats:
        """Select Gaussians by slice, index tensor or boolean mask."""
        return Splats(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.means.device

    @property
    def has_features(self) -> bool:
        """Whether they carry feature vectors rather than spherical harmonics."""
        return self.features.shape[1] > 0

    @property
    def sh_degree(self) -> int:
        """Degree of the stored spherical harmonics, 0 to 3.

        Raises:
            ValueError: there are none.
        """
        if self.has_features:
            raise ValueError("Splats: these Gaussians carry features, not spherical harmonics.")
        return math.isqrt(self.sh.shape[1]) - 1

    def to(self, device: torch.device | str) -> Splats:
        """Move to a device."""
        return Splats(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def detach(self) -> Splats:
        """The same values without gradient history."""
        return Splats(**{field.name: getattr(self, field.name).detach() for field in fields(self)})

    def with_sh_degree(self, degree: int) -> Splats:
        """The same with spherical harmonics cut to, or filled up with zeros to, another degree."""
        if not self.has_features and degree == self.sh_degree:  # nothing to copy
            return self
        missing = max((degree + 1) ** 2 - self.sh.shape[1], 0)
        sh = torch.cat([self.sh, self.sh.new_zeros(len(self), missing, 3)], dim=1)
        return replace(self, sh=sh[:, : (degree + 1) ** 2])
