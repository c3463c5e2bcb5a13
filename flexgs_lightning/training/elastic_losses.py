"""Losses on the selection of Gaussians (FlexGS, Liu et al. 2025)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.selector import prefix_mask
from flexgs_lightning.processes import ALONE, Shards


def importance_loss(
    mask: Float[Tensor, " n"], order: Int[Tensor, " N"], ratio: float, shards: Shards = ALONE
) -> Float[Tensor, ""]:
    """mean |M - M_GI| (Eq. 11): M_GI marks the floor(e N) Gaussians of highest importance.

    Args:
        mask: [n] the sampled mask, hard with a straight-through gradient, of the Gaussians that are here.
        order: [N] ranking of all by importance (``selector.rank``). Importance changes only when it is
            refreshed, so the ranking, not the importance, is passed: sorting costs more than all the rest.
        ratio: e in (0, 1].
        shards: who holds the Gaussians.

    Raises:
        InputError: the ratio is out of range or marks no Gaussian.
    """
    target = shards.mine(prefix_mask(order, count_at(ratio, len(order))))
    return shards.mean((mask - target.to(mask)).abs())


def sparsity_loss(mask: Float[Tensor, " n"], ratio: float, shards: Shards = ALONE) -> Float[Tensor, ""]:
    """|e - mean M| (Eq. 15): the mask must hold the share of Gaussians that was asked for.

    Args:
        mask: as for ``importance_loss``.
        ratio: e in (0, 1].
        shards: who holds the Gaussians.
    """
    return (shards.mean(mask) - ratio).abs()
