"""Scores by which a trained scene is pruned: the higher, the longer a Gaussian is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.model.selector import rank
from flexgs_lightning.rendering.importance import blending_importance, global_importance, hit_counts
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.ranking import rank_by_removal

Score = Literal["removal", "blending", "importance", "lightgaussian", "opacity", "random"]
LOWEST_RATIO = 0.005
"""Smallest prefix that "removal" measures."""


@torch.no_grad()
def pruning_order(
    splats: Splats,
    cameras: Sequence[Cameras],
    score: Score,
    *,
    background: Float[Tensor, " 3"],
    antialiased: bool,
    seed: int,
) -> Int[Tensor, " N"]:
    """[N] indices of a scene's Gaussians, from the first to keep to the first to prune.

    Args:
        splats: the scene.
        cameras: those of the training views.
        score: "removal" is what the images lose with a Gaussian, as ``flexgs`` ranks; the others see
            ``pruning_scores``.
        background: colour behind the scene.
        antialiased: as the scene is rendered.
        seed: of "random".
    """
    if score == "removal":
        draw = lambda chosen, conditions: splats[chosen]  # noqa: E731
        return rank_by_removal(
            draw, len(splats), cameras, LOWEST_RATIO, background=background, antialiased=antialiased
        ).order
    return rank(pruning_scores(splats, cameras, score, antialiased=antialiased, seed=seed))


@torch.no_grad()
def pruning_scores(
    splats: Splats, cameras: Sequence[Cameras], score: Score, *, antialiased: bool, seed: int
) -> Float[Tensor, " N"]:
    """[N] float64 scores of a scene's Gaussians over a set of views.

    "blending" is sum alpha_i T_i over all pixels; "importance" the same times the volume factor
    min(V / V90, 1) (Global Importance; Liu et al. 2025); "lightgaussian" is the number of pixels hit times
    opacity times (V / V90)^0.1 (Fan et al. 2024); "opacity" is the opacity alone; "random" is the yardstick
    that every score has to beat. Arguments as for ``pruning_order``.
    """
    if score == "opacity":
        return splats.opacities.double()
    if score == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(splats), generator=generator, dtype=torch.float64).to(splats.device)
    if score == "lightgaussian":
        hits = hit_counts(splats, cameras, antialiased=antialiased)
        return global_importance(hits * splats.opacities.double(), splats.scales, "power")
    weights = blending_importance(splats, cameras, antialiased=antialiased)
    return global_importance(weights, splats.scales, "clamped" if score == "importance" else "none")
