"""Stage 3: training for bytes. The scene learns to be small, and to look well after rounding at any ratio."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from flexgs_lightning.codec.conversion import arrays_of
from flexgs_lightning.codec.rate_search import plan_for
from flexgs_lightning.codec.trained_rule import rule_of
from flexgs_lightning.codec.views import Judged, evenly, read_views
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.coordinates import COLUMNS, frames_of
from flexgs_lightning.model.compression.entropy import EntropyModel
from flexgs_lightning.model.compression.quantization import (
    Coded,
    Quantization,
    UniformQuantization,
    entropy_model,
)
from flexgs_lightning.model.compression.rounding import Rounding
from flexgs_lightning.model.compression.rule_quantization import UPDATE, RuleQuantization
from flexgs_lightning.model.compression.sh_mask import ShMask, kept_by_gradient
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import FULL, Conditions, Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import Ordered, Selection
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Drawn
from flexgs_lightning.splats import Splats
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

QUANTIZATION, SH_MASK = "quantization", "sh_mask"
"""Names of the stage's parts of a scene."""
_PIECE = 1 << 16
"""Gaussians whose bits are counted at a time."""


@dataclass(frozen=True)
class Compression:
    """What makes a scene small in the third stage; modules combine freely.

    Args:
        quantization: "elastic_file" rounds as the elastic file does, to steps that follow what an error in
            each number costs, and ``flexgs compress`` takes over these steps; "uniform" rounds each
            attribute to equal steps over a range, as GSCodec Studio does.
        rounding: what stands in for rounding in training: "noise" or "straight_through".
        sh_rounding: the same for the spherical harmonics above the constant one ("elastic_file").
        psnr_loss: decibels that the steps of "elastic_file" are predicted to lose before training; larger
            steps make smaller files.
        attributes: what "uniform" quantises, of quats, scales, opacities, sh0 and shN.
        bits: of each of these: 2^bits values over its range.
        learned_steps: whether training moves the steps of "uniform".
        entropy: model of what numbers cost: "factorized" (a density a channel), "hash_grid" (a normal
            density whose mean and deviation follow the place), or "none".
        sh_mask: "learned" masks of the spherical harmonics above ``mask_degree``, by a logit a Gaussian; by
            "gradient", decided once by what the images ask of them; or "none".
        mask_degree: harmonics of this degree and below are never masked.
        mask_target: share of the Gaussians that should keep their harmonics ("learned").
        mask_threshold: gradient norm, as a share of the mean, from which harmonics are kept ("gradient").
    """

    quantization: Literal["elastic_file", "uniform", "none"] = "elastic_file"
    rounding: Rounding = "noise"
    sh_rounding: Rounding = "straight_through"
    psnr_loss: float = 0.3
    attributes: tuple[str, ...] = ("quats", "scales", "opacities", "sh0")
    bits: int = 8
    learned_steps: bool = False
    entropy: Literal["factorized", "hash_grid", "none"] = "factorized"
    sh_mask: Literal["learned", "gradient", "none"] = "none"
    mask_degree: int = 0
    mask_target: float = 0.2
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        checks = {
            "psnr_loss": (self.psnr_loss > 0, "a positive number of dB", self.psnr_loss),
            "mask_degree": (0 <= self.mask_degree <= 2, "0 to 2", self.mask_degree),
            "mask_target": (0 < self.mask_target < 1, "above 0, below 1", self.mask_target),
            "mask_threshold": (self.mask_threshold >= 0, "0 or more", self.mask_threshold),
        }
        _check("compression", checks)
        UniformQuantization(dict.fromkeys(self.attributes, self.bits))  # refuses what it cannot do


@dataclass(frozen=True)
class CompressionTraining:
    """How the third stage trains. Ratios are drawn as in the elastic stage, and the full model each time.

    Args:
        steps: iterations of the stage; 0 leaves it out.
        rate_weight: lambda of the loss L + lambda R, R the bits a Gaussian of everything that has an entropy
            model.
        rate_rows: Gaussians, drawn at random, whose bits an iteration counts.
        rate_share: rates of the Gaussians' attributes and the residuals, as a share of those that the stages
            before began with.
        rate_decay: share of these that the stage ends with, falling exponentially.
        sh_rest_boost: factor on the rate of the spherical harmonics above the constant one, which is too
            slow for a stage of hundreds of iterations.
        entropy_rate: learning rate of the entropy models; that of a hash grid falls to a hundredth.
        step_rate: learning rate of learned steps, in logarithms.
        mask_rate: learning rate of learned masks.
        mask_sparsity: weight of the share of Gaussians that keep their harmonics.
        mask_divergence: weight of the divergence of that share from its target.
    """

    steps: int = 0
    rate_weight: float = 1.5e-5
    rate_rows: int = 8192
    rate_share: float = 0.2
    rate_decay: float = 0.1
    sh_rest_boost: float = 8.0
    entropy_rate: float = 5e-3
    step_rate: float = 1e-3
    mask_rate: float = 0.01
    mask_sparsity: float = 0.01
    mask_divergence: float = 0.1

    def __post_init__(self) -> None:
        names = ("rate_weight", "entropy_rate", "step_rate", "mask_rate", "mask_sparsity", "mask_divergence")
        checks: dict[str, tuple[bool, str, Any]] = {
            name: (getattr(self, name) >= 0, "0 or more", getattr(self, name)) for name in names
        }
        checks |= {
            "steps": (self.steps >= 0, "0 or more", self.steps),
            "rate_rows": (self.rate_rows >= 1, "1 or more", self.rate_rows),
            "rate_share": (self.rate_share > 0, "a positive number", self.rate_share),
            "rate_decay": (0 < self.rate_decay <= 1, "above 0, at most 1", self.rate_decay),
            "sh_rest_boost": (self.sh_rest_boost > 0, "a positive number", self.sh_rest_boost),
        }
        _check("compression_training", checks)


def _check(group: str, checks: dict[str, tuple[bool, str, Any]]) -> None:
    for name, (good, expected, found) in checks.items():
        if not good:
            raise InputError(f"model.{group}.{name}: expected {expected}, found {found}.")


# -- the stage begins ----------------------------------------------------------------------------------


def is_compressing(scene: Scene) -> bool:
    """Whether the scene has the stage's parts already."""
    return QUANTIZATION in scene.parts or SH_MASK in scene.parts


def begin_compression(module: "FlexGSModule") -> None:
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
    added: dict[str, Part] = {}
    if options.sh_mask != "none":
        mask = ShMask(len(scene), options.mask_degree, learned=options.sh_mask == "learned")
        if options.sh_mask == "gradient":
            gradients = _sh_gradients(model, views, loss)[:, (options.mask_degree + 1) ** 2 :]
            mask.keep_only(kept_by_gradient(gradients, options.mask_threshold))
        added[SH_MASK] = mask
    if options.quantization == "uniform":
        channels = _uniform_channels(scene, options)
        entropy = _entropy(options, channels, frame)
        added[QUANTIZATION] = UniformQuantization(
            dict.fromkeys(channels, options.bits), options.rounding, options.learned_steps, entropy
        )
    elif options.quantization == "elastic_file":
        added[QUANTIZATION] = _as_in_the_file(model, options, views, frame)
    for name, part in added.items():
        scene.parts[name] = part.to(device)
    quantization = quantization_of(scene)
    if quantization is not None:
        with torch.no_grad():
            quantization.fit(coded(scene, quantization, torch.arange(len(scene), device=device)))


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


def _uniform_channels(scene: Scene, options: Compression) -> dict[str, int]:
    rest = 3 * (scene.gaussians.params["sh"].shape[1] - 1)
    known = {"quats": 4, "scales": 3, "opacities": 1, "sh0": 3, "shN": rest}
    return {name: known[name] for name in options.attributes if known[name]}


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


# -- the stage trains ----------------------------------------------------------------------------------


def quantization_of(scene: Scene) -> Quantization | None:
    """The scene's quantisation, if it has one."""
    return next((part for part in scene.each_part() if isinstance(part, Quantization)), None)


def coded(scene: Scene, quantization: Quantization, chosen: Int[Tensor, " M"]) -> dict[str, Coded]:
    """What a coder codes of some Gaussians of a scene."""
    return quantization.coded_in(
        lambda rows, ratio: scene.raw(rows, Conditions(ratio), before=quantization), chosen
    )


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
        bits = _bits_each(scene, quantization, training.rate_rows)
        loss = training.rate_weight * torch.stack(list(bits.values())).sum()
        parts["rate_loss"] = loss.detach()
        parts |= {f"bits_{name}": value.detach() for name, value in bits.items()}
        total = total + loss.detach()
        backward(loss)
    return total, parts


def _bits_each(scene: Scene, quantization: Quantization, rows: int) -> dict[str, Tensor]:
    """Bits a Gaussian of each attribute, from Gaussians drawn at random; differentiable."""
    total = len(scene)
    device = scene.gaussians.device
    chosen = torch.randperm(total)[:rows].sort().values.to(device)
    bits = quantization.bits(coded(scene, quantization, chosen))
    return {name: values.sum() / len(chosen) for name, values in bits.items()}


@torch.no_grad()
def bits_at(scene: Scene, ratio: float) -> dict[str, float]:
    """Bits of the Gaussians up to a ratio by attribute, as the entropy models count them."""
    quantization = quantization_of(scene)
    if quantization is None:
        return {}
    in_training = quantization.training
    quantization.eval()
    found: Counter[str] = Counter()
    for chosen in torch.arange(count_at(ratio, len(scene)), device=scene.gaussians.device).split(_PIECE):
        bits = quantization.bits(coded(scene, quantization, chosen))
        found.update({name: float(values.sum()) for name, values in bits.items()})
    quantization.train(in_training)
    return dict(found)


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
