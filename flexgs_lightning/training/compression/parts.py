"""The third stage's parts of a scene: which it has, and how they come into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flexgs_lightning.codec.conversion import arrays_of, file_frames
from flexgs_lightning.codec.rate_search import plan_for
from flexgs_lightning.codec.trained_rule import rule_of
from flexgs_lightning.codec.views import Judged
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import ATTRIBUTES
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.entropy import EntropyModel
from flexgs_lightning.model.compression.mask import kept_by_gradient
from flexgs_lightning.model.compression.motion_mask import MotionMask
from flexgs_lightning.model.compression.quantization import (
    Coded,
    Quantization,
    UniformQuantization,
    entropy_model,
)
from flexgs_lightning.model.compression.rule_quantization import UPDATE, RuleQuantization
from flexgs_lightning.model.compression.sh_mask import ShMask
from flexgs_lightning.model.motion import MOBILITY
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import Conditions, Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import Ordered
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.compression.options import Compression

QUANTIZATION, SH_MASK, MOTION_MASK = "quantization", "sh_mask", "motion_mask"
"""Names of the stage's parts of a scene."""
Loss = Callable[[Splats, Judged], Tensor]
"""Of splats drawn through a view against its photo."""


def is_compressing(scene: Scene) -> bool:
    """Whether the scene has the stage's parts already."""
    return any(name in scene.parts for name in (QUANTIZATION, SH_MASK, MOTION_MASK))


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
    loss: Loss,
) -> None:
    """Give a scene the stage's parts; networks' weights are drawn from torch's global generator.

    They stand before the parts that read what they have brought to the Gaussians: motion, lives, features.

    Args:
        model: the scene, whose parts are added to.
        options: which.
        views: of training, to measure on.
        frame: where the scene lies.
        loss: for masks by gradient.
    """
    scene, device = model.scene, model.gaussians.device
    _check_trainable(scene, options)
    added: dict[str, Part] = {}
    if options.sh_mask != "none":
        added[SH_MASK] = _sh_mask(model, options, views, loss)
    if options.motion_mask != "none":
        added[MOTION_MASK] = _motion_mask(model, options, views, loss)
    if options.quantization == "uniform":
        added[QUANTIZATION] = _uniform(scene, options, frame)
    elif options.quantization == "elastic_file":
        added[QUANTIZATION] = _as_in_the_file(model, options, views, frame)
    named = list(zip(scene.parts.keys(), scene.each_part(), strict=True))
    readers = {name: part for name, part in named if part.attributes()}
    others = {name: part for name, part in named if name not in readers}
    scene.parts = nn.ModuleDict({**others, **{n: part.to(device) for n, part in added.items()}, **readers})
    quantization = quantization_of(scene)
    if quantization is not None:
        with torch.no_grad():
            quantization.fit(coded(scene, quantization, torch.arange(len(scene), device=device)))


def _check_trainable(scene: Scene, options: Compression) -> None:
    """Refuse scenes that the stage cannot train.

    Raises:
        InputError: one of several shards, one that does not have what is to be masked, or one that the
            elastic file does not hold, or whose order its steps cannot follow.
    """
    if scene.shards.several:
        raise InputError(
            "model.compression_training.steps: expected 0 with --trainer.strategy sharded; steps and bits "
            "are those of a whole scene."
        )
    of_motion = [a.name for a in scene.gaussians.attributes.values() if a.of_motion]
    if options.motion_mask != "none" and not of_motion:
        raise InputError(
            "model.compression.motion_mask: expected none for a scene whose Gaussians stay where they are, "
            f"found {options.motion_mask}."
        )
    if options.sh_mask != "none" and scene.gaussians.sh_degree <= options.mask_degree:
        raise InputError(
            f"model.compression.sh_mask: expected none for a scene with harmonics of degree "
            f"{scene.gaussians.sh_degree}, found {options.sh_mask} above degree {options.mask_degree}."
        )
    if options.quantization == "elastic_file" and scene.appearance is not None:
        raise InputError(
            "model.compression.quantization: expected uniform or none for a scene with features, of which "
            "the elastic file holds harmonics instead; found elastic_file."
        )
    if options.quantization == "elastic_file" and not isinstance(scene.selection, Ordered):
        raise InputError(
            "model.compression.quantization: expected uniform or none with gsnet selection, whose ranking is "
            "not the order of storage; found elastic_file."
        )


def _sh_mask(model: Model, options: Compression, views: list[Judged], loss: Loss) -> ShMask:
    mask = ShMask(len(model.scene), options.mask_degree, learned=options.sh_mask == "learned")
    if options.sh_mask == "gradient":
        rows = dict(model.gaussians.params.items())
        gradients = _gradients(model.scene, rows, "sh", views, loss)[:, (options.mask_degree + 1) ** 2 :]
        mask.keep_only(kept_by_gradient(gradients, options.mask_threshold))
    return mask


def _motion_mask(model: Model, options: Compression, views: list[Judged], loss: Loss) -> MotionMask:
    mask = MotionMask(len(model.scene), learned=options.motion_mask == "learned")
    if options.motion_mask == "gradient":
        everyone = model.gaussians.params["means"].new_ones(len(model.scene))
        rows = {**model.gaussians.params, MOBILITY: everyone}
        gradients = _gradients(model.scene, rows, MOBILITY, views, loss)
        mask.keep_only(kept_by_gradient(gradients, options.motion_threshold))
    return mask


def _uniform(scene: Scene, options: Compression, frame: SceneFrame) -> UniformQuantization:
    gaussians = scene.gaussians
    rest = 3 * (gaussians.params["sh"].shape[1] - 1)
    known = {"quats": 4, "scales": 3, "opacities": 1, "sh0": 3, "shN": rest}
    channels = {name: known[name] for name in options.attributes if known[name]}
    added = [a for a in gaussians.attributes.values() if a.name not in ATTRIBUTES and a.per_gaussian]
    channels |= {a.name: math.prod(a.shape_at(gaussians.sh_degree)) for a in added}
    return UniformQuantization(
        dict.fromkeys(channels, options.bits),
        options.rounding,
        options.learned_steps,
        _entropy(options, channels, frame),
        {a.name: _range(gaussians.params[a.name].detach(), options.bits) for a in added},
        [a.name for a in added if a.of_motion],
    )


def _range(values: Tensor, bits: int) -> tuple[float, float]:
    """Range that holds all values and has 0 among its 2^bits equal steps: to stand still is one of them."""
    low, high = (min(float(values.min()), 0.0), max(float(values.max()), 0.0)) if len(values) else (0.0, 0.0)
    steps = 2**bits - 1
    step = max(high - low, 1e-6) / max(steps - 1, 1)
    start = math.floor(low / step) * step
    return start, start + steps * step


def _as_in_the_file(
    model: Model, options: Compression, views: list[Judged], frame: SceneFrame
) -> RuleQuantization:
    _with_unit_quats(model.scene)
    arrays = arrays_of(model)
    layout = arrays.movement.layout
    losses = options.psnr_loss, options.prefix_psnr_loss
    plan = plan_for(arrays, views, model.gaussians.device, loss=losses[0], prefix_loss=losses[1])
    rule = rule_of(plan)
    channels = {field.name: len(field.columns) for field in layout.fields if field.name != "means"}
    if len(arrays.levels) > 1:
        channels |= {UPDATE + field.name: len(field.columns) for field in layout.moved}
    channels |= {"sh_rest": len(rule.basis)} if len(rule.basis) else {}
    flags = plan.flags(plan.rule) if options.motion_mask == "none" else arrays.flags
    return RuleQuantization(
        rule,
        [level.ratio for level in arrays.levels],
        file_frames(model.scene),
        options.rounding,
        options.sh_rounding,
        _entropy(options, channels, frame),
        torch.from_numpy(flags.copy()),
    )


@torch.no_grad()
def _with_unit_quats(scene: Scene) -> None:
    """Bring quaternions to length 1, and their change with them; changes no image of the full model.

    Small prefixes turn by the full model's change in the file, whatever the length of their quaternions.
    """
    params = scene.gaussians.params
    if "omega" in params:
        length = params["quats"].norm(dim=1, keepdim=True).clamp_min(1e-12)
        params["quats"] /= length
        params["omega"] /= length


def _entropy(options: Compression, channels: dict[str, int], frame: SceneFrame) -> dict[str, EntropyModel]:
    if options.entropy == "none":
        return {}
    return {name: entropy_model(options.entropy, count, frame) for name, count in channels.items()}


def _gradients(
    scene: Scene, rows: Mapping[str, Tensor], name: str, views: list[Judged], loss: Loss
) -> Float[Tensor, "N ..."]:
    """Magnitudes of the loss's gradient by a raw parameter of the full model, summed over views.

    Args:
        scene: it.
        rows: all raw parameters, and what parts read beside.
        name: that of them.
        views: which.
        loss: see ``make_small``.
    """
    leaf = rows[name].detach().clone().requires_grad_()
    total = torch.zeros_like(leaf)
    for view in views:
        conditions = Conditions(time=view.time if scene.moves else None)
        splats = scene.drawn(len(scene), conditions, {**rows, name: leaf})
        total += torch.autograd.grad(loss(splats, view), leaf)[0].abs()
    return total
