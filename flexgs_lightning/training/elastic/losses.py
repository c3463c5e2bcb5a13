"""Losses on the selection of Gaussians and on the field's planes (FlexGS, Liu et al. 2025)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import GsNet
from flexgs_lightning.model.selector import prefix_mask
from flexgs_lightning.model.transform_field import TransformField
from flexgs_lightning.processes import ALONE, Shards
from flexgs_lightning.training.elastic.options import ElasticTraining
from flexgs_lightning.training.losses import Parts


def selection_loss(
    scene: Scene, mask: Tensor, ratio: float, options: ElasticTraining, parts: Parts
) -> Tensor:
    """What a sampled mask should be like (Eqs. 11 and 15); adds both terms to ``parts``."""
    assert isinstance(scene.selection, GsNet)
    importance = importance_loss(mask, scene.selection.importance_order, ratio, scene.shards)
    sparsity = sparsity_loss(mask, ratio, scene.shards)
    parts["importance_loss"], parts["sparsity_loss"] = importance.detach(), sparsity.detach()
    return options.importance_weight * importance + options.sparsity_weight * sparsity


def field_regularization(field: TransformField, options: ElasticTraining, parts: Parts) -> Tensor | float:
    """Weighted sum of the field's regularisers that are in use; adds them to ``parts``."""
    weights = {
        field.total_variation: options.plane_variation,
        field.ratio_smoothness: options.ratio_smoothness,
        field.ratio_deviation: options.ratio_deviation,
    }
    total: Tensor | float = 0.0
    for term, weight in weights.items():
        if weight > 0:
            value = term()
            parts[f"field_{term.__name__}"] = value.detach()
            total = total + weight * value
    return total


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
