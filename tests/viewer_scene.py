"""An elastic model for the viewer's tests, whose every ratio is a prefix of fixed Gaussians."""

from dataclasses import dataclass, field

import torch

from flexgs_lightning.model.budget import count_at
from flexgs_lightning.splats import Splats


@dataclass
class Prefixes:
    """A model whose every ratio is a prefix; it notes what it was asked for."""

    splats: Splats
    asked: list[float] = field(default_factory=list)
    elastic = True
    moves = False
    seconds = None
    name = "ball"
    antialiased: bool = True
    near_plane = 0.01
    background: torch.Tensor = field(default_factory=lambda: torch.full((3,), 0.3))

    def __len__(self) -> int:
        return len(self.splats)

    def to(self, device: object) -> "Prefixes":
        return self

    def at(self, ratio: float, time: float | None = None) -> Splats:
        self.asked.append(ratio)
        return self.splats[: count_at(ratio, len(self))]


def big_ball(count: int = 5_000) -> Splats:
    """Coloured Gaussians near the origin."""
    g = torch.Generator().manual_seed(1)
    return Splats(
        means=torch.randn(count, 3, generator=g) * 0.6,
        quats=torch.randn(count, 4, generator=g),
        scales=torch.full((count, 3), 0.05),
        opacities=torch.full((count,), 0.7),
        sh=torch.randn(count, 1, 3, generator=g),
    )
