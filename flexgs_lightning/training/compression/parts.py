"""The third stage's parts of a scene: which it has, and how they come into it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from flexgs_lightning.codec.conversion import arrays_of
from flexgs_lightning.codec.rate_search import plan_for
from flexgs_lightning.codec.trained_rule import rule_of
from flexgs_lightning.codec.views import Judged
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.coordinates import COLUMNS, frames_of
from flexgs_lightning.model.compression.entropy import EntropyModel
from flexgs_lightning.model.compression.quantization import (
    Coded,
    Quantization,
    UniformQuantization,
    entropy_model,
)
from flexgs_lightning.model.compression.rule_quantization import UPDATE, RuleQuantization
from flexgs_lightning.model.compression.sh_mask import ShMask, kept_by_gradient
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import Conditions, Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import Ordered
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.compression.options import Compression

QUANTIZATION, SH_MASK = "quantization", "sh_mask"
"""Names of the stage's parts of a scene."""


def is_compressing(scene: Scene) -> bool:
    """Whether the scene has the stage's parts already."""
    return QUANTIZATION in scene.parts or SH_MASK in scene.parts


def quantization_of(scene: Scene) -> Quantization | None:
    """The scene's quantisation, if it has one."""
    return next((part for part in scene.each_part() if isinstance(part, Quantization)), None)


def coded(scene: Scene, quantization: Quantization, chosen: Int[Tensor, " M"]) -> dict[str, Coded]:
    """What a coder codes of some Gaussians of a scene."""
    return quantization.coded_in(
        lambda rows, ratio: scene.raw(rows, Conditions(ratio), before=quantization), chosen
    )


def make_small(
    model: Model,
    options: Compression,
    views: list[Judged],
    frame: SceneFrame,
    loss: Callable[[Splats, Judged], Tensor],
) -> None:
    """Give a scene the stage's parts; networks' weights are drawn from torch's global generator.

    Args:
        model: the scene, whose parts are added to.
        options: which.
        views: of training, to measure on.
        frame: where the scene lies.
        loss: of splats drawn through a view against its photo, for masks by gradient.
    """
    scene, device = model.scene, model.gaussians.device
    _check_trainable(scene, options)
    added: dict[str, Part] = {}
    if options.sh_mask != "none":
        added[SH_MASK] = _mask(model, options, views, loss)
    if options.quantization == "uniform":
        added[QUANTIZATION] = _uniform(scene, options, frame)
    elif options.quantization == "elastic_file":
        added[QUANTIZATION] = _as_in_the_file(model, options, views, frame)
    for name, part in added.items():
        scene.parts[name] = part.to(device)
    quantization = quantization_of(scene)
    if quantization is not None:
        with torch.no_grad():
            quantization.fit(coded(scene, quantization, torch.arange(len(scene), device=device)))


def _check_trainable(scene: Scene, options: Compression) -> None:
    """Refuse scenes that the stage cannot train.

    Raises:
        InputError: one of several shards, one that moves, or one whose order the file's steps cannot follow.
    """
    if scene.shards.several:
        raise InputError(
            "model.compression_training.steps: expected 0 with --trainer.strategy sharded; steps and bits "
            "are those of a whole scene."
        )
    if scene.moves:
        raise InputError("model.compression_training.steps: expected 0 for a scene that moves.")
    if options.quantization == "elastic_file" and not isinstance(scene.selection, Ordered):
        raise InputError(
            "model.compression.quantization: expected uniform or none with gsnet selection, whose ranking is "
            "not the order of storage; found elastic_file."
        )


def _mask(
    model: Model, options: Compression, views: list[Judged], loss: Callable[[Splats, Judged], Tensor]
) -> ShMask:
    mask = ShMask(len(model.scene), options.mask_degree, learned=options.sh_mask == "learned")
    if options.sh_mask == "gradient":
        gradients = _sh_gradients(model, views, loss)[:, (options.mask_degree + 1) ** 2 :]
        mask.keep_only(kept_by_gradient(gradients, options.mask_threshold))
    return mask


def _uniform(scene: Scene, options: Compression, frame: SceneFrame) -> UniformQuantization:
    rest = 3 * (scene.gaussians.params["sh"].shape[1] - 1)
    known = {"quats": 4, "scales": 3, "opacities": 1, "sh0": 3, "shN": rest}
    channels = {name: known[name] for name in options.attributes if known[name]}
    bits = dict.fromkeys(channels, options.bits)
    return UniformQuantization(
        bits, options.rounding, options.learned_steps, _entropy(options, channels, frame)
    )


def _as_in_the_file(
    model: Model, options: Compression, views: list[Judged], frame: SceneFrame
) -> RuleQuantization:
    arrays = arrays_of(model)
    plan = plan_for(arrays, views, model.gaussians.device, loss=options.psnr_loss)
    rule = rule_of(plan)
    splats = model.splats()
    channels = {**COLUMNS, "sh_rest": len(rule.basis)}
    channels |= {UPDATE + name: count for name, count in COLUMNS.items()} if len(arrays.levels) > 1 else {}
    del channels["means"]
    return RuleQuantization(
        rule,
        [level.ratio for level in arrays.levels],
        frames_of(splats.quats.double(), splats.scales),
        options.rounding,
        options.sh_rounding,
        _entropy(options, {name: count for name, count in channels.items() if count}, frame),
    )


def _entropy(options: Compression, channels: dict[str, int], frame: SceneFrame) -> dict[str, EntropyModel]:
    if options.entropy == "none":
        return {}
    return {name: entropy_model(options.entropy, count, frame) for name, count in channels.items()}


def _sh_gradients(model: Model, views: list[Judged], loss: Callable[[Splats, Judged], Tensor]) -> Tensor:
    """[N, K, 3] magnitudes of the loss's gradient by the full model's harmonics, summed over views."""
    splats = model.scene.at().detach()
    splats.sh.requires_grad_()
    total = torch.zeros_like(splats.sh)
    for view in views:
        total += torch.autograd.grad(loss(splats, view), splats.sh)[0].abs()
    return total
