"""Gaussians: the learnable raw parameters of a scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.spatial import cKDTree
from torch import Tensor, nn

from flexgs_lightning.splats import SH_C0, Splats

PARAMETERS = ("means", "quats", "scales", "opacities", "sh0", "shN")
"""Names of the parameters, those of gsplat's densification strategies."""


class Gaussians(nn.Module):
    """N Gaussians as unconstrained parameters.

    ``params`` holds ``means`` [N, 3] in world units, ``quats`` [N, 4] (w, x, y, z, any length), ``scales``
    [N, 3] as logarithms, ``opacities`` [N] as logits, ``sh0`` [N, 1, 3] and ``shN`` [N, K - 1, 3]. N may
    change in training, and ``load_state_dict`` takes over the N of the state.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Take raw values by name; see ``from_splats`` and ``from_points`` for the usual ways in."""
        super().__init__()
        self.params = nn.ParameterDict(
            {
                name: nn.Parameter(parameters[name].detach().clone().float().contiguous())
                for name in PARAMETERS
            }
        )

    def __len__(self) -> int:
        return self.params["means"].shape[0]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics held."""
        return int((1 + self.params["shN"].shape[1]) ** 0.5) - 1

    def splats(self) -> Splats:
        """Activate the parameters; differentiable."""
        return activate(dict(self.params.items()))

    def first_non_finite(self) -> str | None:
        """Name of the first parameter that holds NaN or infinity; None if all are finite."""
        for name, value in self.params.items():
            if not torch.isfinite(value).all():
                return str(name)
        return None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Resize to the Gaussians of the state before the values are copied."""
        for name, parameter in self.params.items():
            saved = state_dict.get(f"{prefix}params.{name}")
            if saved is not None and saved.shape != parameter.shape:
                parameter.data = parameter.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @staticmethod
    def empty(sh_degree: int) -> Gaussians:
        """No Gaussians yet: to be replaced, or filled by ``load_state_dict``."""
        bases = (sh_degree + 1) ** 2
        shapes = {"means": (0, 3), "quats": (0, 4), "scales": (0, 3), "opacities": (0,)}
        shapes |= {"sh0": (0, 1, 3), "shN": (0, bases - 1, 3)}
        return Gaussians({name: torch.zeros(shape) for name, shape in shapes.items()})

    @staticmethod
    def from_splats(splats: Splats) -> Gaussians:
        """The inverse of ``splats()``, up to rounding."""
        info = torch.finfo(torch.float32)
        return Gaussians(
            {
                "means": splats.means,
                "quats": splats.quats,
                "scales": splats.scales.clamp_min(info.tiny).log(),
                "opacities": splats.opacities.clamp(info.eps, 1 - info.eps).logit(),
                "sh0": splats.sh[:, :1],
                "shN": splats.sh[:, 1:],
            }
        )

    @staticmethod
    def from_points(
        positions: Float[Tensor, "P 3"],
        colors: UInt8[Tensor, "P 3"],
        *,
        sh_degree: int = 3,
        opacity: float = 0.1,
    ) -> Gaussians:
        """One isotropic Gaussian for each SfM point (Kerbl et al. 2023, section 5.1).

        The scale is the root mean square distance to the three nearest neighbours.
        """
        count = len(positions)
        quats = torch.zeros(count, 4)
        quats[:, 0] = 1.0
        sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
        sh[:, 0] = (colors.float() / 255.0 - 0.5) / SH_C0
        scales = neighbour_distances(positions)[:, None].repeat(1, 3)
        return Gaussians.from_splats(Splats(positions, quats, scales, torch.full((count,), opacity), sh))

    @staticmethod
    def random(
        camera_positions: Float[Tensor, "C 3"],
        extent: float,
        *,
        count: int,
        sh_degree: int = 3,
        opacity: float = 0.1,
    ) -> Gaussians:
        """``count`` grey Gaussians, uniform in the cameras' bounding box grown by ``extent`` on each side.

        For captures without SfM points. Draws from torch's global generator.
        """
        low = camera_positions.amin(dim=0) - extent
        high = camera_positions.amax(dim=0) + extent
        positions = low + (high - low) * torch.rand(count, 3)
        colors = torch.full((count, 3), 128, dtype=torch.uint8)
        return Gaussians.from_points(positions, colors, sh_degree=sh_degree, opacity=opacity)


def activate(parameters: Mapping[str, Tensor]) -> Splats:
    """Raw parameters, named and shaped as in ``Gaussians.params``, to splats; differentiable."""
    return Splats(
        means=parameters["means"],
        quats=parameters["quats"],
        scales=parameters["scales"].exp(),
        opacities=parameters["opacities"].sigmoid(),
        sh=torch.cat([parameters["sh0"], parameters["shN"]], dim=1),
    )


def neighbour_distances(positions: Float[Tensor, "P 3"], neighbours: int = 3) -> Float[Tensor, " P"]:
    """[P] root mean square distance to the nearest neighbours, in world units.

    Coincident points get the smallest positive distance of the set (1 if there is none), because a scale
    of zero can neither be drawn nor learned.
    """
    count = len(positions)
    if count < 2:
        return torch.ones(count)
    points = positions.detach().cpu().double().numpy()
    distances, _ = cKDTree(points).query(points, k=min(neighbours + 1, count))
    spacing = np.sqrt(np.mean(np.square(np.asarray(distances)[:, 1:]), axis=1))
    positive = spacing[spacing > 0]
    smallest = positive.min() if len(positive) else 1.0
    return torch.from_numpy(np.maximum(spacing, smallest)).to(positions)
