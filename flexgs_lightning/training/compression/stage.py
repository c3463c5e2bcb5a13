"""The third stage: how it begins, what an iteration does, and what learns at which rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flexgs_lightning.codec.views import Judged, evenly, read_views
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.mask import Mask
from flexgs_lightning.model.compression.motion_mask import MotionMask
from flexgs_lightning.model.compression.quantization import Quantization
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import Selection
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.adam import GaussianAdam
from flexgs_lightning.training.compression.bits import bits_each
from flexgs_lightning.training.compression.options import Compression, CompressionTraining
from flexgs_lightning.training.compression.parts import MOTION_MASK, SH_MASK, make_small, quantization_of
from flexgs_lightning.training.elastic import ElasticTraining
from flexgs_lightning.training.elastic.stage import Iteration, descend
from flexgs_lightning.training.losses import Parts, photometric_loss
from flexgs_lightning.training.moments import everyone_at, shader_of
from flexgs_lightning.training.optimization import LearningRates, falling, gaussian_optimizers
from flexgs_lightning.training.scene_module import SceneModule

_ADDED = ("motion", "omega", "time_centers", "time_scales", "coefficients", "appearance")
"""Learning rates of what parts bring to Gaussians."""


def begin_compression(module: SceneModule) -> None:
    """Begin the third stage of a module's training: make its scene small."""
    background = module.evaluation_background
    red, green, blue = background.tolist()
    degree = module.gaussians.sh_degree

    def loss(splats: Splats, view: Judged) -> Tensor:
        image = rasterize(
            splats,
            view.camera.to(module.device),
            background=background,
            antialiased=module.antialiased,
            shader=shader_of(module.scene),
        ).image
        return photometric_loss(image, view.photo.to(module.device), module.ssim_weight)

    with module.new_stage():
        model = Model(module.scene, degree, module.antialiased, background, {}, module.iteration)
        views = read_views(evenly(module.capture.train_views), (red, green, blue))
        frame = SceneFrame.from_cameras(torch.cat([view.camera.positions for view in module.capture.views]))
        make_small(model, module.compression, views, frame, loss)


def compress_step(
    scene: Scene,
    elastic: ElasticTraining,
    options: Compression,
    training: CompressionTraining,
    iteration: Iteration,
) -> tuple[Tensor, Parts]:
    """Draw the rounded scene at several ratios and count its bits, each followed by its backward pass.

    A scene that is not elastic is drawn whole. Returns as ``elastic.stage.descend``.
    """
    masks = [part for part in scene.each_part() if isinstance(part, Mask)]
    for mask in masks:
        mask.anneal(iteration.step / training.steps)
    if scene.elastic:
        total, parts = descend(scene, elastic, iteration)
    else:
        loss = iteration.photometric(everyone_at(scene, iteration.moments))
        iteration.backward(loss)
        total, parts = loss.detach(), Parts(full_loss=loss.detach())
    for mask in masks:
        if mask.learned:
            of_motion = isinstance(mask, MotionMask)
            target = options.motion_target if of_motion else options.mask_target
            loss = mask.loss(target, training.mask_sparsity, training.mask_divergence)
            name = "motion_mask" if of_motion else "mask"
            parts |= {f"{name}_loss": loss.detach(), f"{name}_share": mask.share()}
            total = total + loss.detach()
            iteration.backward(loss)
    quantization = quantization_of(scene)
    if quantization is not None and quantization.models():
        bits = bits_each(scene, quantization, training.rate_rows)
        loss = training.rate_weight * torch.stack(list(bits.values())).sum()
        parts["rate_loss"] = loss.detach()
        parts |= {f"bits_{name}": value.detach() for name, value in bits.items()}
        total = total + loss.detach()
        iteration.backward(loss)
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
        **{name: getattr(rates, name) * share for name in _ADDED},
    )
    own = gaussian_optimizers(scene.gaussians, slower, extent, training.rate_decay)
    before = {"rows": elastic.residual_rate, "planes": elastic.grid_rate, "layers": elastic.network_rate}
    new = {"steps": training.step_rate, **dict.fromkeys((SH_MASK, MOTION_MASK), training.mask_rate)}
    groups: list[dict[str, Any]] = []
    owners: list[Selection | Part] = [scene.selection, *scene.each_part()]
    for owner in owners:
        for group in owner.groups():
            learned = [parameter for parameter in group.parameters if parameter.requires_grad]
            if isinstance(owner, (Quantization, Mask)):
                rate = new.get(group.name, training.entropy_rate)
                schedule = falling(rate, 0.01 if group.name == "hash_grid" else 1.0)
            else:
                rate = before[group.kind] if group.rate is None else group.rate
                schedule = falling(
                    rate * share * (extent if group.times_extent else 1.0), training.rate_decay
                )
            if learned:
                named = {"params": learned, "name": group.name, "per_gaussian": group.kind == "rows"}
                groups.append(named | schedule)
    added = [GaussianAdam(groups)] if groups else []
    return [*own.values(), *added]
