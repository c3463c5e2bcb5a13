"""Features in place of spherical harmonics: few numbers a Gaussian, made colours of after blending."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import Attribute
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.motion import CENTER
from flexgs_lightning.model.part import Conditions, ParameterGroup, Part
from flexgs_lightning.processes import Shards
from flexgs_lightning.splats import SH_C0

FEATURES_RATE = 2.5e-3
NETWORK_RATE = 1e-4
"""Learning rates of Spacetime Gaussians' published code (Li et al. 2024)."""
BASE, VIEW, TIME = 3, 3, 3
"""Numbers of a Gaussian: its colour, and what the network reads, as it is and times the time's distance."""


class FeatureAppearance(Part):
    """Blended features and a small network in place of harmonics (Spacetime Gaussians, Li et al. 2024).

    A Gaussian has a base colour, its constant ``sh``, and features: three for the view and, in a scene with
    time centres, three that are multiplied by t - mu. All are blended; with F what comes of the features at a
    pixel, alpha its coverage and r its ray, the image is base + network([F, alpha r]), clamped at 0.

    The network has no biases, as published, and ReLU, so that network(alpha x) = alpha network(x): the image
    is the colour times its coverage without another word, and one Gaussian's colour by itself is that of its
    features. Of the published six channels of a ray, the three of its origin are left out: a colour that
    depends on where one stands could not be baked.
    """

    kind = "features"

    def __init__(self, hidden: int = 6, in_time: bool = False) -> None:
        """Draw initial weights from torch's global generator; at first the network gives nothing.

        Args:
            hidden: width of the network.
            in_time: whether there are features of time, in scenes with ``time_centers``.

        Raises:
            InputError: no width.
        """
        super().__init__()
        if hidden < 1:
            raise InputError(f"width of the features' network: expected 1 or more, found {hidden}.")
        self.hidden, self.in_time = hidden, in_time
        self.moves = in_time
        last = nn.Linear(hidden, 3, bias=False)
        nn.init.zeros_(last.weight)
        first = nn.Linear(VIEW + TIME * in_time + 3, hidden, bias=False)
        self.network = nn.Sequential(first, nn.ReLU(), last)

    def attributes(self) -> tuple[Attribute, ...]:
        """The features, and the time centres where they know time."""
        shape = (VIEW + TIME * self.in_time,)
        features = Attribute("appearance", shape, rate=FEATURES_RATE)
        return (features, CENTER) if self.in_time else (features,)

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """With ``features`` [M, F] to draw in place of ``sh``."""
        base = SH_C0 * parameters["sh"][:, 0] + 0.5
        features = parameters["appearance"]
        if self.in_time:
            distance = (conditions.moment - parameters[CENTER.name].detach()).unsqueeze(-1)
            features = torch.cat([features[:, :VIEW], features[:, VIEW:] * distance], dim=1)
        return {**parameters, "features": torch.cat([base, features], dim=1)}

    def at_own_time(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, "M F"]:
        """[M, F] features of Gaussians as each is at its own time: nothing of what time adds."""
        features = parameters["appearance"].clone()
        features[:, VIEW:] = 0.0
        return torch.cat([SH_C0 * parameters["sh"][:, 0] + 0.5, features], dim=1)

    def shade(self, features: Float[Tensor, "... F"], rays: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        """Colours of features along rays, both times their coverage."""
        added: Tensor = self.network(torch.cat([features[..., BASE:], rays], dim=-1))
        return (features[..., :BASE] + added).clamp_min(0.0)

    def groups(self) -> list[ParameterGroup]:
        """The network."""
        return [ParameterGroup("features_network", list(self.network.parameters()), "layers", NETWORK_RATE)]

    def as_plain(self) -> dict[str, Any]:
        """The options."""
        return {"hidden": self.hidden, "in_time": self.in_time}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> FeatureAppearance:
        """The same with weights to load."""
        return cls(**values)
