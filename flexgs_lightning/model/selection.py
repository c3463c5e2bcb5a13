"""How a scene chooses the Gaussians of a ratio: by the order in which they are stored, or by a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flexgs_lightning.model.gaussians import Chosen, Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import ParameterGroup
from flexgs_lightning.model.selector import GaussianSelector, rank
from flexgs_lightning.processes import Shards


class Sampled(NamedTuple):
    """Gaussians drawn at random around a ratio, for training.

    Attributes:
        chosen: [M] where they are stored here.
        mask: [n] of all Gaussians here: 1 for the chosen, 0 for the others, with a gradient.
    """

    chosen: Int[Tensor, " M"]
    mask: Float[Tensor, " n"]


class Selection(nn.Module, ABC):
    """Chooses exactly the first M of one ranking, so a small ratio's Gaussians are among a large one's."""

    kind: ClassVar[str]

    @abstractmethod
    def ranking(self, gaussians: Gaussians, shards: Shards) -> Int[Tensor, " N"]:
        """[N] indices of all Gaussians, highest ranked first."""

    @abstractmethod
    def first(self, count: int, gaussians: Gaussians, shards: Shards) -> Chosen:
        """The ``count`` highest ranked Gaussians; those of them that are here."""

    def sampled(
        self, ratio: float, gaussians: Gaussians, shards: Shards, temperature: float, seed: int | None
    ) -> Sampled | None:
        """A random subset to train with; None where training draws the exact prefixes.

        Args:
            ratio: about this share.
            gaussians: those that are here.
            shards: who holds the others.
            temperature: how sharp the relaxed mask is.
            seed: of this process's own draws; None for torch's global generator.
        """
        return None

    def takes_over(self, order: Int[Tensor, " N"]) -> bool:
        """Whether Gaussians are to be stored in a new ranking by importance; otherwise it is kept here."""
        return True

    def follow(self, sources: Int[Tensor, " N"]) -> None:
        """New Gaussian i is the old one ``sources[i]``, or a new one where that is -1."""

    def groups(self) -> list[ParameterGroup]:
        """What is learned."""
        return []

    def as_plain(self) -> dict[str, Any]:
        """Plain values for ``selection_from_plain``."""
        return {"kind": self.kind}


class Ordered(Selection):
    """Gaussians are stored in the order of their ranking: every ratio is a prefix."""

    kind = "ordered"

    def ranking(self, gaussians: Gaussians, shards: Shards) -> Int[Tensor, " N"]:
        """As they are stored."""
        total = shards.total(len(gaussians), gaussians.device)
        return torch.arange(total, device=gaussians.device)

    def first(self, count: int, gaussians: Gaussians, shards: Shards) -> int:
        """A prefix in every process."""
        return shards.local(count)


class GsNet(Selection):
    """A network ranks (FlexGS, Liu et al. 2025); in training it samples masks (Eqs. 5-7)."""

    kind = "gsnet"
    importance_order: Int[Tensor, " N"]
    """Ranking by importance, which the network learns from."""

    def __init__(self, gaussians: int, frame: SceneFrame, **options: Any) -> None:
        """Draw initial weights from torch's global generator.

        Args:
            gaussians: N.
            frame: the scene's centre and scale.
            **options: of ``GaussianSelector``.
        """
        super().__init__()
        self.network = GaussianSelector(frame, **options)
        self._options = options
        self._order: Tensor | None = None
        self.register_buffer("importance_order", torch.arange(gaussians))

    @torch.no_grad()
    def ranking(self, gaussians: Gaussians, shards: Shards) -> Int[Tensor, " N"]:
        """By the network's noise-free scores; kept while the module is in ``eval`` mode."""
        if self._order is None or self.training:
            params = gaussians.params
            scores = self.network.scores(params["means"], params["scales"], params["quats"])
            self._order = rank(shards.joined(scores))
        return self._order

    def first(self, count: int, gaussians: Gaussians, shards: Shards) -> Int[Tensor, " M"]:
        """Where the highest ranked are stored."""
        return shards.own(self.ranking(gaussians, shards)[:count])

    def sampled(
        self, ratio: float, gaussians: Gaussians, shards: Shards, temperature: float, seed: int | None
    ) -> Sampled:
        """A Gumbel-softmax mask; one that selects nothing falls back to the Gaussian most likely to be kept.

        If several processes hold the Gaussians, each samples its own, and nothing is nothing in all of them.
        """
        params = gaussians.params
        logits = self.network.logits(params["means"], params["scales"], params["quats"], ratio)
        generator = None if seed is None else torch.Generator(logits.device).manual_seed(seed)
        mask = self.network.sample(logits, temperature, generator).mask
        chosen = mask.detach().nonzero().squeeze(-1)
        if shards.total(len(chosen), mask.device) == 0:
            preferred = rank(shards.joined(logits[:, 1] - logits[:, 0]))[:1]
            chosen = shards.own(preferred)
            mask = mask + torch.zeros_like(mask).index_fill(0, chosen, 1.0)
        return Sampled(chosen, mask)

    def takes_over(self, order: Int[Tensor, " N"]) -> bool:
        """Learns from the new ranking instead."""
        self.importance_order.copy_(order)
        return False

    def follow(self, sources: Int[Tensor, " N"]) -> None:
        """Number the importance's ranking anew; new Gaussians come last."""
        places = torch.arange(len(sources), device=sources.device)
        known = sources >= 0
        moved = torch.full_like(self.importance_order, -1)
        moved[sources[known]] = places[known]
        order = moved[self.importance_order]
        self.importance_order = torch.cat([order[order >= 0], places[~known]])
        self._order = None

    def groups(self) -> list[ParameterGroup]:
        """The network."""
        return [ParameterGroup("selector", list(self.network.parameters()), "layers")]

    def as_plain(self) -> dict[str, Any]:
        """With the network's options."""
        return {"kind": self.kind, **self._options}

    def train(self, mode: bool = True) -> GsNet:
        """Forget the kept ranking: training changes it."""
        self._order = None
        return super().train(mode)


def selection_from_plain(values: Mapping[str, Any], gaussians: int) -> Selection:
    """The inverse of ``as_plain``, to load a state into."""
    options = {name: value for name, value in values.items() if name != "kind"}
    if values["kind"] == GsNet.kind:
        return GsNet(gaussians, SceneFrame(torch.zeros(3), 1.0), **options)
    return Ordered()
