"""Mask: which Gaussians need something at all, learned with the scene or decided once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.part import ParameterGroup, Part
from flexgs_lightning.processes import Shards

FIRST_LOGIT = 1.0
DECIDED = 100.0
"""Magnitude of a logit that is not learned."""


class Mask(Part):
    """One logit a Gaussian. (GSCodec Studio, Li et al. 2025, "adaptive masks".)

    In training what is masked is multiplied by sigmoid(logit / temperature), which an annealed temperature
    drives to 0 or 1. Otherwise a Gaussian keeps it or, if its logit is negative, does not.
    """

    temperature: Float[Tensor, ""]

    def __init__(self, gaussians: int, learned: bool = True) -> None:
        """Start with everything kept.

        Args:
            gaussians: N.
            learned: False if the mask is decided once (``keep_only``).
        """
        super().__init__()
        self.learned = learned
        logits = torch.full((gaussians,), FIRST_LOGIT if learned else DECIDED)
        self.logits = nn.Parameter(logits, requires_grad=learned)
        self.register_buffer("temperature", torch.ones(()))

    def factors(self, chosen: Chosen) -> Float[Tensor, " M"]:
        """What is multiplied with what is masked, of some Gaussians."""
        logits = self.logits[:chosen] if isinstance(chosen, int) else self.logits[chosen]
        soft = self.training and self.learned
        return (logits / self.temperature).sigmoid() if soft else (logits >= 0).to(logits)

    def loss(self, target: float, sparsity: float, divergence: float) -> Float[Tensor, ""]:
        """sparsity mean(m) + divergence KL(target || mean(m)), m the mask.

        Args:
            target: share of Gaussians that should keep what is masked, in (0, 1).
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
        """Share of the Gaussians that keep what is masked."""
        return float((self.logits >= 0).float().mean())

    def groups(self) -> list[ParameterGroup]:
        """The logits."""
        return [ParameterGroup(self.kind, [self.logits], "rows")]

    def as_plain(self) -> dict[str, Any]:
        """See ``Part``."""
        return {"learned": self.learned}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> Mask:
        """See ``Part``."""
        return cls(gaussians, **values)


def kept_by_gradient(gradients: Float[Tensor, "N ..."], threshold: float) -> Bool[Tensor, " N"]:
    """Gaussians that keep what the images still ask for: the gradient's norm is above a threshold.

    Args:
        gradients: of the loss by what is masked, summed as magnitudes over views.
        threshold: in units of the mean norm over all Gaussians, so that it fits every loss and capture.
    """
    norms = gradients.reshape(len(gradients), -1).norm(dim=1)
    return norms > threshold * norms.mean()
