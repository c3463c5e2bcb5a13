"""Losses on the selection of Gaussians (FlexGS, Liu et al. 2025)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.selector import prefix_mask


def importance_loss(mask: Float[Tensor, " N"], order: Int[Tensor, " N"], ratio: float) -> Float[Tensor, ""]:
    """mean |M - M_GI| (Eq. 11): M_GI marks the floor(e N) Gaussians of highest importance.

    Args:
        mask: [N] the sampled mask, hard with a straight-through gradient.
        order: [N] ranking by importance (``selector.rank``). Importance changes only when it is refreshed,
            so the ranking, not the importance, is passed: sorting costs more than all the rest.
        ratio: e in (0, 1].

    Raises:
        InputError: the ratio is out of range or marks no Gaussian.
    """
    target = prefix_mask(order, count_at(ratio, len(order)))
    return (mask - target.to(mask)).abs().mean()


def sparsity_loss(mask: Float[Tensor, " N"], ratio: float) -> Float[Tensor, ""]:
    """|e - mean M| (Eq. 15): the mask must hold the share of Gaussians that was asked for."""
    return (mask.mean() - ratio).abs()
