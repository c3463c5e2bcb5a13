"""The third stage: how it begins, what an iteration does, and what learns at which rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flexgs_lightning.codec.views import Judged, evenly, read_views
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.quantization import Quantization
from flexgs_lightning.model.compression.sh_mask import ShMask
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import FULL, Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import Selection
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Drawn
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.compression.bits import bits_each
from flexgs_lightning.training.compression.options import Compression, CompressionTraining
from flexgs_lightning.training.compression.parts import make_small, quantization_of
from flexgs_lightning.training.elastic_stage import ElasticTraining, Parts, descend
from flexgs_lightning.training.losses import photometric_loss
from flexgs_lightning.training.optimization import (
    LearningRates,
    falling,
    gaussian_optimizers,
    seed_generators,
)
from flexgs_lightning.training.parallel import replicated, share_from_first

if TYPE_CHECKING:
    from flexgs_lightning.training.module import FlexGSModule


def begin_compression(module: FlexGSModule) -> None:
    """Begin the third stage of a module's training, with fresh optimizers."""
    module.trainer.strategy.optimizers = []  # the moments go before new ones come
    if not module.scene.elastic and module.reconstruction_steps > 0:
        module.densification.end()
    seed_generators(module.seed)  # networks start alike, also where a run is resumed just here
    background = module.evaluation_background
    colors = background.tolist()
    model = Model(
        module.scene, module.gaussians.sh_degree, module.antialiased, background, {}, module.iteration
    )
    views = read_views(evenly(module.capture.train_views), (colors[0], colors[1], colors[2]))
    positions = torch.cat([view.camera.positions for view in module.capture.views])

    def loss(splats: Splats, view: Judged) -> Tensor:
        camera = view.camera.to(module.device)
        image = rasterize(splats, camera, background=background, antialiased=module.antialiased).image
        return photometric_loss(image, view.photo.to(module.device), module.ssim_weight)

    make_small(model, module.compression, views, SceneFrame.from_cameras(positions), loss)
    share_from_first(replicated(module.scene, module.shards).values())
    module.trainer.strategy.optimizers = module.configure_optimizers()


def compress_step(
    scene: Scene,
    elastic: ElasticTraining,
    options: Compression,
    training: CompressionTraining,
    step: int,
    *,
    photometric: Callable[[Drawn], Tensor],
    backward: Callable[[Tensor], None],
    temperature: float,
) -> tuple[Tensor, Parts]:
    """Draw the rounded scene at several ratios and count its bits, each followed by its backward pass.

    Args and returns as ``elastic_stage.descend``; a scene that is not elastic is drawn whole.
    """
    masks = [part for part in scene.each_part() if isinstance(part, ShMask)]
    for mask in masks:
        mask.anneal(step / training.steps)
    if scene.elastic:
        total, parts = descend(
            scene, elastic, step, photometric=photometric, backward=backward, temperature=temperature
        )
    else:
        loss = photometric(scene.at(FULL))
        backward(loss)
        total, parts = loss.detach(), Parts(full_loss=loss.detach())
    for mask in masks:
        if mask.learned:
            loss = mask.loss(options.mask_target, training.mask_sparsity, training.mask_divergence)
            parts |= {"mask_loss": loss.detach(), "mask_share": mask.share()}
            total = total + loss.detach()
            backward(loss)
    quantization = quantization_of(scene)
    if quantization is not None and quantization.models():
        bits = bits_each(scene, quantization, training.rate_rows)
        loss = training.rate_weight * torch.stack(list(bits.values())).sum()
        parts["rate_loss"] = loss.detach()
        parts |= {f"bits_{name}": value.detach() for name, value in bits.items()}
        total = total + loss.detach()
        backward(loss)
    return total, parts


def compression_optimizers(
    scene: Scene,
    rates: LearningRates,
    elastic: ElasticTraining,
    training: CompressionTraining,
    extent: float,
) -> list[torch.optim.Optimizer]:
    """Fresh Adams for everything that the stage trains."""
    share = training.rate_share
    slower = replace(
        rates,
        means=rates.means_final * share * 10,
        means_final=rates.means_final * share,
        quats=rates.quats * share,
        scales=rates.scales * share,
        opacities=rates.opacities * share,
        sh0=rates.sh0 * share,
        shN=min(rates.shN * training.sh_rest_boost, rates.sh0) * share,
    )
    own = gaussian_optimizers(scene.gaussians, slower, extent, training.rate_decay)
    before = {"rows": elastic.residual_rate, "planes": elastic.grid_rate, "layers": elastic.network_rate}
    new = {"steps": training.step_rate, "sh_mask": training.mask_rate}
    groups: list[dict[str, Any]] = []
    owners: list[Selection | Part] = [scene.selection, *scene.each_part()]
    for owner in owners:
        for group in owner.groups():
            learned = [parameter for parameter in group.parameters if parameter.requires_grad]
            if isinstance(owner, (Quantization, ShMask)):
                rate = new.get(group.name, training.entropy_rate)
                schedule = falling(rate, 0.01 if group.name == "hash_grid" else 1.0)
            else:
                schedule = falling(before[group.kind] * share, training.rate_decay)
            if learned:
                named = {"params": learned, "name": group.name, "per_gaussian": group.kind == "rows"}
                groups.append(named | schedule)
    added = [torch.optim.Adam(groups, eps=1e-15, fused=True)] if groups else []
    return [*own.values(), *added]
