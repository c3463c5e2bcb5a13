"""Options of the second stage, and the ratios that they draw."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import math
from dataclasses import dataclass
from typing import Literal

import torch

from flexgs_lightning.errors import require_fields
from flexgs_lightning.training.optimization import LARGEST_RATE, MOST_STEPS
from flexgs_lightning.training.ranking import Importance


@dataclass(frozen=True)
class ElasticTraining:
    """How the elastic stage trains.

    Args:
        steps: iterations of the stage; 0 leaves it out.
        sampling: "log_uniform" draws ratios from ``ratio_range``, "list" goes round ``ratios``.
        ratio_range: lowest and highest ratio of log-uniform sampling; the lowest should lie a little below
            the smallest ratio asked for, which is drawn too rarely otherwise. Ratios between the highest and
            1 follow from both ends, and the time is better spent on the full model.
        ratios: the list; the paper's by default.
        ratio_bias: exponent on the uniform draw of log-uniform sampling; below 1 favours large ratios.
        prefixes: ratios drawn in an iteration, stratified in log e.
        full_every: iterations from one render of the full model to the next.
        full_weight: weight of the full model's loss where it is drawn; the subsets weigh the rest of 1.
        importance: by what Gaussians are ranked: "removal" by what the images lose with them, measured in
            ever smaller prefixes; "blending" by their blending weight; "global" by the paper's Global
            Importance; "global_power" by the same with LightGaussian's volume factor.
        importance_weight: weight of mean |M - M_GI| (gsnet).
        sparsity_weight: weight of |e - mean M| (gsnet).
        rate_decay: share of their rates that the Gaussians' attributes and the residuals end with, falling
            exponentially over the stage (positions have their own schedule); 1 keeps them constant. Random
            prefixes make gradients noisy, and small last steps average that out.
        residual_rate: learning rate of the residuals, in steps of the attribute's own rate.
        grid_rate: learning rate of the field's planes; exponential to a tenth.
        network_rate: learning rate of the selector and the field's layers; exponential to a tenth.
        rates_times_extent: whether these two rates are multiplied by the scene's extent, as the published
            code does.
        plane_variation: weight of the total variation of the field's spatial planes.
        ratio_smoothness: weight of the differences of its ratio planes along the ratio; carries what
            a list of ratios teaches to the ratios between them.
        ratio_deviation: weight of the distance of its ratio planes from having no effect.
    """

    steps: int = 0
    sampling: Literal["log_uniform", "list"] = "log_uniform"
    ratio_range: tuple[float, float] = (0.006, 0.5)
    ratios: tuple[float, ...] = (0.01, 0.05, 0.10, 0.15)
    ratio_bias: float = 1.0
    prefixes: int = 2
    full_every: int = 1
    full_weight: float = 0.7
    importance: Importance = "removal"
    importance_weight: float = 1.0
    sparsity_weight: float = 0.01
    rate_decay: float = 0.1
    residual_rate: float = 2.0
    grid_rate: float = 1.6e-3
    network_rate: float = 1.6e-4
    rates_times_extent: bool = False
    plane_variation: float = 0.0
    ratio_smoothness: float = 0.0
    ratio_deviation: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.ratio_range
        checks = {
            "steps": (0 <= self.steps <= MOST_STEPS, f"0 to {MOST_STEPS:,}"),
            "ratio_range": (0 < low < high <= 1, "0 < lowest < highest <= 1"),
            "ratios": (
                len(self.ratios) > 0 and all(0 < ratio <= 1 for ratio in self.ratios),
                "ratios in (0, 1]",
            ),
            "ratio_bias": (0 < self.ratio_bias < math.inf, "a positive number"),
            "prefixes": (1 <= self.prefixes <= 64, "1 to 64"),
            "rate_decay": (0 < self.rate_decay <= 1, "above 0, at most 1"),
            "full_every": (self.full_every >= 1, "1 or more"),
            "full_weight": (0 <= self.full_weight < 1, "0 to below 1"),
        }
        weights = ("importance_weight", "sparsity_weight", "residual_rate", "grid_rate", "network_rate")
        for name in (*weights, "plane_variation", "ratio_smoothness", "ratio_deviation"):
            checks[name] = (0 <= getattr(self, name) < LARGEST_RATE, "0 or more")
        require_fields("model.elastic_training.", self, checks)

    def draw_ratios(self, step: int) -> list[float]:
        """Ratios of the stage's iteration ``step``; random draws come from torch's global generator."""
        if self.sampling == "list":
            return [self.ratios[(step * self.prefixes + i) % len(self.ratios)] for i in range(self.prefixes)]
        low, high = self.ratio_range
        draws = [(i + draw) / self.prefixes for i, draw in enumerate(torch.rand(self.prefixes).tolist())]
        return [high * (low / high) ** (1 - draw**self.ratio_bias) for draw in draws]

    @property
    def lowest_ratio(self) -> float:
        """Smallest ratio that is drawn."""
        return self.ratio_range[0] if self.sampling == "log_uniform" else min(self.ratios)

    def draws_full(self, step: int) -> bool:
        """Whether the stage's iteration ``step`` also renders the full model."""
        return self.full_weight > 0 and step % self.full_every == 0
