"""ShMask: which Gaussians need view-dependent colour at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.part import Conditions, ParameterGroup, Part
from flexgs_lightning.processes import Shards
from flexgs_lightning.records import shown
from flexgs_lightning.splats import MAX_SH_DEGREE

FIRST_LOGIT = 1.0
DECIDED = 100.0
"""Magnitude of a logit that is not learned."""


class ShMask(Part):
    """Takes the spherical harmonics above a degree from Gaussians that do without.

    One logit a Gaussian; in training their coefficients are multiplied by sigmoid(logit / temperature), which
    an annealed temperature drives to 0 or 1. Otherwise a Gaussian keeps all of them or, if its logit is
    negative, none. (GSCodec Studio, Li et al. 2025, "adaptive masks".)
    """

    kind = "sh_mask"
    temperature: Float[Tensor, ""]

    def __init__(self, gaussians: int, degree: int = 0, learned: bool = True) -> None:
        """Start with all coefficients kept.

        Args:
            gaussians: N.
            degree: harmonics of this degree and below are never masked.
            learned: False if the mask is decided once (``keep_only``).

        Raises:
            InputError: no such degree.
        """
        super().__init__()
        if degree not in range(MAX_SH_DEGREE + 1):
            raise InputError(f"degree: expected 0 to {MAX_SH_DEGREE}, found {shown(degree)}.")
        self.degree, self.learned = degree, learned
        logits = torch.full((gaussians,), FIRST_LOGIT if learned else DECIDED)
        self.logits = nn.Parameter(logits, requires_grad=learned)
        self.register_buffer("temperature", torch.ones(()))

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters with masked harmonics."""
        logits = self.logits[:chosen] if isinstance(chosen, int) else self.logits[chosen]
        soft = self.training and self.learned
        mask = (logits / self.temperature).sigmoid() if soft else (logits >= 0).to(logits)
        first = (self.degree + 1) ** 2
        sh = parameters["sh"]
        return parameters | {"sh": torch.cat([sh[:, :first], sh[:, first:] * mask[:, None, None]], dim=1)}

    def loss(self, target: float, sparsity: float, divergence: float) -> Float[Tensor, ""]:
        """sparsity mean(m) + divergence KL(target || mean(m)), m the mask.

        Args:
            target: share of Gaussians that should keep their harmonics, in (0, 1).
            sparsity: weight of the share that does.
            divergence: weight of the Kullback-Leibler divergence of both shares, in nats.
        """
        share = (self.logits / self.temperature).sigmoid().mean().clamp(1e-6, 1 - 1e-6)
        cross = target * (target / share).log() + (1 - target) * ((1 - target) / (1 - share)).log()
        return sparsity * share + divergence * cross

    @torch.no_grad()
    def anneal(self, progress: float, start: float = 5.0, end: float = 0.1) -> None:
        """Set the temperature of a share of the training: exponential from ``start`` to ``end``."""
        self.temperature.fill_(math.exp((1 - progress) * math.log(start) + progress * math.log(end)))

    @torch.no_grad()
    def keep_only(self, kept: Bool[Tensor, " N"]) -> None:
        """Decide the mask."""
        self.logits.copy_(torch.where(kept, DECIDED, -DECIDED))

    @torch.no_grad()
    def share(self) -> float:
        """Share of the Gaussians that keep their harmonics."""
        return float((self.logits >= 0).float().mean())

    def groups(self) -> list[ParameterGroup]:
        """The logits."""
        return [ParameterGroup(self.kind, [self.logits], "rows")]

    def as_plain(self) -> dict[str, Any]:
        """See ``Part``."""
        return {"degree": self.degree, "learned": self.learned}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> ShMask:
        """See ``Part``."""
        return cls(gaussians, values["degree"], values["learned"])


def kept_by_gradient(gradients: Float[Tensor, "N K 3"], threshold: float) -> Bool[Tensor, " N"]:
    """Gaussians whose harmonics the images still ask for: the gradient's norm is above a threshold.

    Args:
        gradients: of the loss by the masked coefficients, summed as magnitudes over views.
        threshold: in units of the mean norm over all Gaussians, so that it fits every loss and capture.
    """
    norms = gradients.flatten(1).norm(dim=1)
    return norms > threshold * norms.mean()
