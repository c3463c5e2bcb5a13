"""Gaussians: the learnable raw parameters of a scene."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.spatial import cKDTree
from torch import Tensor, nn

from flexgs_lightning.model.attributes import ATTRIBUTES, Attribute, table_with
from flexgs_lightning.splats import MAX_SH_DEGREE, NONE, SH_C0, Splats

FEATURES = "features"
"""Under this name a part hands on what is drawn in place of spherical harmonics."""
Chosen = int | Int[Tensor, " M"]
"""Some Gaussians of a scene: the first M as they are stored, or those at M places."""


class Gaussians(nn.Module):
    """N Gaussians as unconstrained parameters.

    ``params`` holds every attribute of the scene's table by name: ``means`` [N, 3] in world units, ``quats``
    [N, 4] (w, x, y, z, any length), ``scales`` [N, 3] as logarithms, ``opacities`` [N] as logits, ``sh``
    [N, K, 3], and what the scene's parts bring. N may change in training (``model.surgery``), and
    ``load_state_dict`` takes over the N of the state.

    Attributes:
        attributes: the scene's table: ``ATTRIBUTES`` and what was added.
    """

    def __init__(self, parameters: Mapping[str, Tensor], added: Iterable[Attribute] = ()) -> None:
        """Take raw values by name; see ``from_splats`` and ``from_points`` for the usual ways in.

        Attributes that are not drawn may be left out and start as the table says.

        Args:
            parameters: raw values.
            added: attributes beside those that every Gaussian has.

        Raises:
            KeyError: a drawn attribute is missing.
            ValueError: an attribute that is not in the table, or two of one name.
        """
        super().__init__()
        self.attributes = table_with(added)
        unknown = set(parameters) - set(self.attributes)
        if unknown:
            raise ValueError(f"Gaussians: no such attributes: {', '.join(sorted(unknown))}.")
        count, sh_degree = len(parameters["means"]), math.isqrt(parameters["sh"].shape[1]) - 1
        self.params = nn.ParameterDict()
        for name, attribute in self.attributes.items():
            given = name in parameters or attribute.drawn
            values = parameters[name] if given else attribute.fresh(count, sh_degree).to(parameters["means"])
            self.params[name] = nn.Parameter(values.detach().clone().float().contiguous())

    def __len__(self) -> int:
        return self.params["means"].shape[0]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics held."""
        return math.isqrt(self.params["sh"].shape[1]) - 1

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.params["means"].device

    def own(self) -> dict[str, nn.Parameter]:
        """Parameters with a row for each Gaussian, by name."""
        return {name: value for name, value in self.params.items() if self.attributes[name].per_gaussian}

    def like(self, rows: Mapping[str, Tensor]) -> Gaussians:
        """Gaussians of the same table with other rows; what a scene has once stays."""
        return Gaussians({**self.params, **rows}, self.attributes.values())

    def with_sh_degree(self, degree: int) -> Gaussians:
        """The same with spherical harmonics cut to, or filled up with zeros to, another degree."""
        sh, wanted = self.params["sh"].detach(), (degree + 1) ** 2
        missing = max(wanted - sh.shape[1], 0)
        return self.like({"sh": torch.cat([sh, sh.new_zeros(len(sh), missing, 3)], dim=1)[:, :wanted]})

    def extended(self, added: Iterable[Attribute]) -> Gaussians:
        """With further attributes, as the table lets them start; itself where it has them all."""
        wanted = [*self.attributes.values(), *added]
        if table_with(wanted) == self.attributes:
            return self
        return Gaussians(dict(self.params.items()), wanted)

    def rows(self, chosen: Chosen) -> dict[str, Tensor]:
        """Raw parameters of some Gaussians, by name; differentiable."""
        if isinstance(chosen, int) and chosen == len(self):
            return dict(self.params.items())
        if not isinstance(chosen, int):
            return self.taken(dict(self.params.items()), chosen)
        return {
            name: value[:chosen] if self.attributes[name].per_gaussian else value
            for name, value in self.params.items()
        }

    def taken(self, parameters: Mapping[str, Tensor], places: Int[Tensor, " M"]) -> dict[str, Tensor]:
        """Those at M places of some Gaussians with these raw parameters, and with what parts have added."""
        shared = {name for name, attribute in self.attributes.items() if not attribute.per_gaussian}
        return {
            name: value if name in shared else value.index_select(0, places)
            for name, value in parameters.items()
        }

    def splats(self) -> Splats:
        """Activate the parameters; differentiable."""
        return activate(dict(self.params.items()))

    def first_non_finite(self) -> str | None:
        """Name of the first parameter that holds NaN or infinity; None if all are finite."""
        broken = (str(name) for name, value in self.params.items() if not torch.isfinite(value).all())
        return next(broken, None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Resize to the Gaussians of the state before the values are copied."""
        resize_to_state(self.params.items(), state_dict, f"{prefix}params.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @staticmethod
    def empty(sh_degree: int = MAX_SH_DEGREE) -> Gaussians:
        """No Gaussians yet: to be replaced, or filled by ``load_state_dict``."""
        return Gaussians({name: attribute.fresh(0, sh_degree) for name, attribute in ATTRIBUTES.items()})

    @staticmethod
    def from_splats(splats: Splats) -> Gaussians:
        """The inverse of ``splats()``, up to rounding."""
        drawn = (attribute for attribute in ATTRIBUTES.values() if attribute.drawn)
        return Gaussians({a.name: a.inverse(getattr(splats, a.name)) for a in drawn})

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
        low: Float[Tensor, " 3"],
        high: Float[Tensor, " 3"],
        *,
        count: int,
        sh_degree: int = 3,
        opacity: float = 0.1,
    ) -> Gaussians:
        """``count`` grey Gaussians, uniform in the box between two corners, in world units.

        For captures without SfM points. Draws from torch's global generator.
        """
        positions = low + (high - low) * torch.rand(count, 3)
        colors = torch.full((count, 3), 128, dtype=torch.uint8)
        return Gaussians.from_points(positions, colors, sh_degree=sh_degree, opacity=opacity)


def activate(parameters: Mapping[str, Tensor]) -> Splats:
    """Raw parameters, named and shaped as in ``Gaussians.params``, to splats; differentiable.

    Where a part has added ``features`` [M, F], they are drawn in place of the spherical harmonics.
    """
    drawn = {a.name: a.activation(parameters[a.name]) for a in ATTRIBUTES.values() if a.drawn}
    if FEATURES in parameters:
        return Splats(**{**drawn, "sh": NONE, FEATURES: parameters[FEATURES]})
    return Splats(**drawn)


def resize_to_state(
    parameters: Iterable[tuple[str, Tensor]], state: Mapping[str, Tensor], prefix: str
) -> None:
    """Give parameters the shapes of those in a state, before ``load_state_dict`` copies the values."""
    for name, parameter in parameters:
        saved = state.get(prefix + name)
        if saved is not None and saved.shape != parameter.shape:
            parameter.data = parameter.data.new_empty(saved.shape)


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
