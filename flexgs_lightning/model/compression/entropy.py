"""Entropy models: how many bits numbers take once they are rounded to steps, learned with them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

LEAST_PROBABILITY = 1e-6
"""What no model falls below: about 20 bits a number."""
EntropyName = Literal["factorized", "hash_grid"]
"""Models by name: ``FactorizedDensity`` and ``hash_grid.HashGridGaussian``."""


class EntropyModel(nn.Module, ABC):
    """A density of each of C channels, from which the bits of a rounded number follow.

    Args:
        channels: C.
    """

    center: Float[Tensor, " C"]
    width: Float[Tensor, " C"]
    spanned: ClassVar[float]
    """How many units of ``width`` a new density's deviation is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("width", torch.ones(channels))

    @abstractmethod
    def probability(
        self,
        values: Float[Tensor, "M C"],
        steps: Tensor | float,
        means: Float[Tensor, "M 3"],
    ) -> Float[Tensor, "M C"]:
        """P(v) = F(v + Q/2) - F(v - Q/2), F the cumulative distribution.

        Args:
            values: [M, C], rounded or with noise.
            steps: Q, of a shape that broadcasts to [M, C].
            means: [M, 3] where the Gaussians lie, in world units.
        """

    def bits(
        self,
        values: Float[Tensor, "M C"],
        steps: Tensor | float,
        means: Float[Tensor, "M 3"],
    ) -> Float[Tensor, "M C"]:
        """Bits of each number, -log2 P(v); differentiable. See ``probability`` for the arguments."""
        return -at_least(self.probability(values, steps, means), LEAST_PROBABILITY).log2()

    @abstractmethod
    def as_plain(self) -> dict[str, Any]:
        """Arguments of the constructor, but for data that comes with the state."""

    @torch.no_grad()
    def fit(self, values: Float[Tensor, "M C"]) -> None:
        """Take the channels' places and widths from data, so that training starts near the truth."""
        self.center.copy_(values.mean(dim=0))
        self.width.copy_(values.std(dim=0, correction=0).clamp_min(1e-6) / self.spanned)


class FactorizedDensity(EntropyModel):
    """A density for each channel alone: the derivative of a small monotone network.

    F is a composition of layers with positive matrices and the non-linearity x + tanh(a) tanh(x), and a
    sigmoid at its end (Ballé et al. 2018, "Variational image compression with a scale hyperprior",
    appendix 6.1).
    """

    spanned = 10.0

    def __init__(self, channels: int, filters: Sequence[int] = (3, 3), init_scale: float = 10.0) -> None:
        """Start as a wide density around 0.

        Args:
            channels: C.
            filters: widths of the network's hidden layers.
            init_scale: how many units of ``width`` the density first spans.
        """
        super().__init__(channels)
        self.filters = tuple(filters)
        sizes = (1, *filters, 1)
        scale = init_scale ** (1 / (len(sizes) - 1))
        self.matrices, self.biases, self.factors = (nn.ParameterList() for _ in range(3))
        for before, after in itertools.pairwise(sizes):
            start = float(np.log(np.expm1(1 / scale / after)))
            self.matrices.append(torch.full((channels, after, before), start))
            self.biases.append(torch.rand(channels, after, 1) - 0.5)
        for size in filters:
            self.factors.append(torch.zeros(channels, size, 1))

    def cumulative_logits(self, values: Float[Tensor, "M C"]) -> Float[Tensor, "M C"]:
        """Logits of F at values; rises with each."""
        hidden = ((values - self.center) / self.width).T[:, None]
        for place, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            hidden = functional.softplus(matrix) @ hidden + bias
            if place < len(self.factors):
                hidden = hidden + self.factors[place].tanh() * hidden.tanh()
        return hidden[:, 0].T

    def probability(
        self,
        values: Float[Tensor, "M C"],
        steps: Tensor | float,
        means: Float[Tensor, "M 3"] | None = None,
    ) -> Float[Tensor, "M C"]:
        """See ``EntropyModel``; places play no part."""
        lower = self.cumulative_logits(values - 0.5 * steps)
        upper = self.cumulative_logits(values + 0.5 * steps)
        side = -(lower + upper).detach().sign()  # differences of small numbers, not of numbers near 1
        return ((side * upper).sigmoid() - (side * lower).sigmoid()).abs()

    def as_plain(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"channels": self.channels, "filters": list(self.filters)}


class _AtLeast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, least: float) -> Tensor:
        ctx.save_for_backward(values < least)
        return values.clamp_min(least)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return gradient.masked_fill(below & (gradient > 0), 0.0), None


def at_least(values: Tensor, least: float) -> Tensor:
    """The larger of each value and ``least``; values below still learn to rise (descent's direction)."""
    return _AtLeast.apply(values, least)
