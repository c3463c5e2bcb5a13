"""Stages: how long each stage of a training is, and where an iteration lies in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stages:
    """Iterations of each stage, 0 for one that is left out; the iterations of a training count through all.

    Attributes:
        reconstruction: plain 3DGS, the first stage.
        elastic: the second stage, which makes the scene draw at any ratio.
        compression: the third stage, which makes it small.
    """

    reconstruction: int
    elastic: int
    compression: int

    @property
    def total(self) -> int:
        """Iterations of all stages together."""
        return self.reconstruction + self.elastic + self.compression

    def elastic_step(self, iteration: int) -> int | None:
        """Iterations of the second stage completed; None in other stages."""
        step = iteration - self.reconstruction
        in_stage = step >= 0 and self.elastic > 0 and self.compression_step(iteration) is None
        return step if in_stage else None

    def compression_step(self, iteration: int) -> int | None:
        """Iterations of the third stage completed; None in other stages."""
        step = iteration - self.reconstruction - self.elastic
        return step if step >= 0 and self.compression > 0 else None
