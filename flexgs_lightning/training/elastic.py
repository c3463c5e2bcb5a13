"""Stage 2: training a scene to draw at any ratio (FlexGS, Liu et al. 2025, section 3)."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.elastic import ElasticGaussians
from flexgs_lightning.model.selector import rank
from flexgs_lightning.model.transform_field import TransformField
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.elastic_losses import importance_loss, sparsity_loss
from flexgs_lightning.training.optimization import LearningRates, falling, own_seed
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
            "steps": (self.steps >= 0, "0 or more", self.steps),
            "ratio_range": (0 < low < high <= 1, "0 < lowest < highest <= 1", self.ratio_range),
            "ratios": (
                len(self.ratios) > 0 and all(0 < ratio <= 1 for ratio in self.ratios),
                "ratios in (0, 1]",
                self.ratios,
            ),
            "ratio_bias": (self.ratio_bias > 0, "a positive number", self.ratio_bias),
            "prefixes": (self.prefixes >= 1, "1 or more", self.prefixes),
            "rate_decay": (0 < self.rate_decay <= 1, "above 0, at most 1", self.rate_decay),
            "full_every": (self.full_every >= 1, "1 or more", self.full_every),
            "full_weight": (0 <= self.full_weight < 1, "0 to below 1", self.full_weight),
        }
        for name in ("plane_variation", "ratio_smoothness", "ratio_deviation"):
            checks[name] = (getattr(self, name) >= 0, "0 or more", getattr(self, name))
        for name, (good, expected, found) in checks.items():
            if not good:
                raise InputError(f"model.elastic_training.{name}: expected {expected}, found {found}.")

    def draw_ratios(self, step: int) -> list[float]:
        """Ratios of the stage's iteration ``step``; random draws come from torch's global generator."""
        if self.sampling == "list":
            return [self.ratios[(step * self.prefixes + i) % len(self.ratios)] for i in range(self.prefixes)]
        low, high = self.ratio_range
        draws = [(i + torch.rand(()).item()) / self.prefixes for i in range(self.prefixes)]
        return [high * (low / high) ** (1 - draw**self.ratio_bias) for draw in draws]

    @property
    def lowest_ratio(self) -> float:
        """Smallest ratio that is drawn."""
        return self.ratio_range[0] if self.sampling == "log_uniform" else min(self.ratios)

    def draws_full(self, step: int) -> bool:
        """Whether the stage's iteration ``step`` also renders the full model."""
        return self.full_weight > 0 and step % self.full_every == 0


def elastic_loss(
    model: ElasticGaussians,
    options: ElasticTraining,
    step: int,
    *,
    photometric: Callable[[Splats], Tensor],
    temperature: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Loss of one iteration (Eq. 16) and its parts, for the log.

    Args:
        model: what is trained.
        options: how.
        step: iterations of this stage so far.
        photometric: draws splats through the iteration's cameras and compares them with the photos.
        temperature: of the Gumbel-softmax (gsnet).
    """
    shards = model.shards
    parts: dict[str, Tensor] = {}
    ratios = options.draw_ratios(step)
    total = model.gaussians.params["means"].new_zeros(())
    prefixes = model.at_each(ratios) if model.selector is None else []
    for i, ratio in enumerate(ratios):
        if prefixes:
            splats = prefixes[i]
        else:
            splats, mask = masked(model, ratio, temperature)
            parts["importance_loss"] = importance_loss(mask, model.importance_order, ratio, shards)
            parts["sparsity_loss"] = sparsity_loss(mask, ratio, shards)
            total = total + (
                options.importance_weight * parts["importance_loss"]
                + options.sparsity_weight * parts["sparsity_loss"]
            ) / len(ratios)
        parts["subset_loss"] = photometric(splats)
        total = total + (1 - options.full_weight) / len(ratios) * parts["subset_loss"]
        parts["selected"] = total.new_tensor(len(splats) * shards.count / len(model))
        parts["ratio"] = total.new_tensor(ratio)
    if model.field is not None:
        total = total + field_regularization(model.field, options, parts)
    if options.draws_full(step):
        parts["full_loss"] = photometric(model.gaussians.splats())
        total = total + options.full_weight * parts["full_loss"]
    return total, parts


def field_regularization(
    field: TransformField, options: ElasticTraining, parts: dict[str, Tensor]
) -> Tensor | float:
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
            parts[f"field_{term.__name__}"] = value
            total = total + weight * value
    return total


def masked(model: ElasticGaussians, ratio: float, temperature: float) -> tuple[Splats, Float[Tensor, " N"]]:
    """A sampled subset (Eqs. 5-7): the splats whose mask is 1, and the mask [N] with its gradient.

    The mask multiplies opacities, which lets the image's gradient reach the selector. A Gaussian whose mask
    is 0 is below the rasterizer's opacity threshold and gets no gradient from the image, so leaving it out
    gives the same image and the same gradients at a fraction of the cost.

    A mask that selects nothing falls back to the one Gaussian that is most likely to be kept. If several
    processes hold the Gaussians, each samples its own, and nothing is nothing in all of them.
    """
    assert model.selector is not None
    params = model.gaussians.params
    logits = model.selector.logits(params["means"], params["scales"], params["quats"], ratio)
    generator = None
    if model.shards.several:
        generator = torch.Generator(logits.device).manual_seed(own_seed(model.shards))
    mask = model.selector.sample(logits, temperature, generator).mask
    chosen = mask.detach().nonzero().squeeze(-1)
    if model.shards.total(len(chosen), mask.device) == 0:
        preferred = rank(model.shards.joined(logits[:, 1] - logits[:, 0]))[:1]
        chosen = model.shards.own(preferred)
        mask = mask + torch.zeros_like(mask).index_fill(0, chosen, 1.0)
    splats = model.drawn(chosen, ratio)
    return Splats(splats.means, splats.quats, splats.scales, splats.opacities * mask[chosen], splats.sh), mask


def elastic_optimizer(
    model: ElasticGaussians, options: ElasticTraining, extent: float
) -> torch.optim.Optimizer | None:
    """Adam for everything but the Gaussians themselves; None if there is nothing."""
    groups: list[dict[str, Any]] = []
    factor = extent if options.rates_times_extent else 1.0
    grid_rate, network_rate = options.grid_rate * factor, options.network_rate * factor
    if model.residuals is not None:
        tables = {"params": model.residuals.parameters(), "name": "residuals", "per_gaussian": True}
        groups.append(tables | falling(options.residual_rate, options.rate_decay))
    if model.field is not None:
        planes = [*model.field.spatial_planes, *model.field.ratio_planes]
        layers = [*model.field.fuse.parameters(), *model.field.heads.parameters()]
        groups.append({"params": planes, "name": "field_planes"} | falling(grid_rate, 0.1))
        groups.append({"params": layers, "name": "field_layers"} | falling(network_rate, 0.1))
    if model.selector is not None:
        layers = list(model.selector.parameters())
        groups.append({"params": layers, "name": "selector"} | falling(network_rate, 0.1))
    return torch.optim.Adam(groups, eps=1e-15, fused=True) if groups else None


def residual_units(rates: LearningRates, extent: float) -> dict[str, float]:
    """One Adam step of each attribute, as ``RatioResiduals`` wants it."""
    names = ("quats", "scales", "opacities", "sh0")
    return {"means": rates.means * extent, **{name: getattr(rates, name) for name in names}}
