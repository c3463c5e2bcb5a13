"""Stage 2: training a scene to draw at any ratio (FlexGS, Liu et al. 2025, section 3)."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.part import Conditions, ParameterGroup
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import GsNet
from flexgs_lightning.model.transform_field import TransformField
from flexgs_lightning.rendering.types import Drawn
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.elastic_losses import importance_loss, sparsity_loss
from flexgs_lightning.training.moments import Moments, at_each, everyone_at
from flexgs_lightning.training.optimization import LARGEST_RATE, MOST_STEPS, falling, own_seed
from flexgs_lightning.training.ranking import Importance

Parts = dict[str, Tensor | float]
"""What a loss is made of, by name, for the log."""


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
            "steps": (0 <= self.steps <= MOST_STEPS, f"0 to {MOST_STEPS:,}", self.steps),
            "ratio_range": (0 < low < high <= 1, "0 < lowest < highest <= 1", self.ratio_range),
            "ratios": (
                len(self.ratios) > 0 and all(0 < ratio <= 1 for ratio in self.ratios),
                "ratios in (0, 1]",
                self.ratios,
            ),
            "ratio_bias": (0 < self.ratio_bias < math.inf, "a positive number", self.ratio_bias),
            "prefixes": (1 <= self.prefixes <= 64, "1 to 64", self.prefixes),
            "rate_decay": (0 < self.rate_decay <= 1, "above 0, at most 1", self.rate_decay),
            "full_every": (self.full_every >= 1, "1 or more", self.full_every),
            "full_weight": (0 <= self.full_weight < 1, "0 to below 1", self.full_weight),
        }
        weights = ("importance_weight", "sparsity_weight", "residual_rate", "grid_rate", "network_rate")
        for name in (*weights, "plane_variation", "ratio_smoothness", "ratio_deviation"):
            checks[name] = (0 <= getattr(self, name) < LARGEST_RATE, "0 or more", getattr(self, name))
        for name, (good, expected, found) in checks.items():
            if not good:
                raise InputError(f"model.elastic_training.{name}: expected {expected}, found {found}.")

    def draw_ratios(self, step: int) -> list[float]:
        """Ratios of the stage's iteration ``step``; random draws come from torch's global generator."""
        if self.sampling == "list":
            return [self.ratios[(step * self.prefixes + i) % len(self.ratios)] for i in range(self.prefixes)]
        low, high = self.ratio_range
        draws = [(i + draw) / self.prefixes for i, draw in enumerate(torch.rand(self.prefixes).tolist())]
        return [high * (low / high) ** (1 - draw**self.ratio_bias) for draw in draws]

    @property
    def lowest_ratio(self) -> float:
        """Smallest ratio that is drawn."""
        return self.ratio_range[0] if self.sampling == "log_uniform" else min(self.ratios)

    def draws_full(self, step: int) -> bool:
        """Whether the stage's iteration ``step`` also renders the full model."""
        return self.full_weight > 0 and step % self.full_every == 0


def descend(
    scene: Scene,
    options: ElasticTraining,
    step: int,
    *,
    photometric: Callable[[Drawn], Tensor],
    backward: Callable[[Tensor], None],
    temperature: float,
    moments: Moments = None,
) -> tuple[Tensor, Parts]:
    """Draw the full model and some subsets, each followed at once by its backward pass (Eq. 16).

    Gradients add up where they belong; what a render needs for its gradient is gone before the next one.

    Args:
        scene: what is trained.
        options: how.
        step: iterations of this stage so far.
        photometric: draws splats through the iteration's cameras and compares them with the photos.
        backward: adds a loss's gradient to those of the parameters.
        temperature: of the Gumbel-softmax (gsnet).
        moments: when the iteration's cameras see a scene that moves.

    Returns:
        The iteration's loss, detached, and its parts.
    """
    total, parts = scene.gaussians.params["means"].new_zeros(()), Parts()

    def add(loss: Tensor) -> None:
        nonlocal total
        total = total + loss.detach()
        if loss.requires_grad:
            backward(loss)

    ratios = options.draw_ratios(step)
    if options.draws_full(step):
        loss = photometric(everyone_at(scene, moments))
        parts["full_loss"] = loss.detach()
        add(options.full_weight * loss)
        del loss  # with the graph, before the next render
    for ratio in ratios:
        subset = Subset(scene, ratio, temperature, moments)
        loss = photometric(subset.splats)
        parts["subset_loss"] = loss.detach()
        weighted = (1 - options.full_weight) / len(ratios) * loss
        if subset.mask is not None:
            weighted = weighted + selection_loss(scene, subset.mask, ratio, options, parts) / len(ratios)
        add(weighted)
        del loss, weighted
        subset.give_back()
        parts["selected"] = len(subset) * scene.shards.count / len(scene)
        parts["ratio"] = ratio
    for part in scene.each_part():
        if isinstance(part, TransformField):
            add(total.new_zeros(()) + field_regularization(part, options, parts))
    return total, parts


class Subset:
    """The Gaussians of a ratio, drawn for training.

    Attributes:
        splats: those that are drawn; for each camera, where they see a moving scene at different times.
        mask: [n] of all Gaussians here, where the selection samples (Eqs. 5-7), with its gradient. It
            multiplies opacities, which lets the image's gradient reach the selector. A Gaussian whose mask
            is 0 is below the rasterizer's opacity threshold and gets no gradient from the image, so leaving
            it out gives the same image and the same gradients at a fraction of the cost.
    """

    def __init__(self, scene: Scene, ratio: float, temperature: float, moments: Moments = None) -> None:
        self.mask: Tensor | None = None
        self._rows: dict[str, Tensor] = {}
        self._gaussians = scene.gaussians
        shards = scene.shards
        seed = own_seed(shards) if shards.several else None
        sampled = scene.selection.sampled(ratio, scene.gaussians, shards, temperature, seed)
        if sampled is not None:
            self.mask, weights = sampled.mask, sampled.mask[sampled.chosen]
            self.splats = at_each(
                moments, lambda time: _masked(scene.drawn(sampled.chosen, Conditions(ratio, time)), weights)
            )
            return
        chosen = scene.first(ratio)
        if isinstance(chosen, int) and chosen < len(scene.gaussians):
            self._rows = _own_leaves(scene.gaussians, chosen)
        rows = self._rows or None
        self.splats = at_each(moments, lambda time: scene.drawn(chosen, Conditions(ratio, time), rows))

    def __len__(self) -> int:
        return len(self.splats if isinstance(self.splats, Splats) else self.splats[0])

    def give_back(self) -> None:
        """Add the gradients of a prefix to those of its rows, when the backward pass is done.

        Slicing the parameters in the graph would fill up each gradient with zeros to all N Gaussians, which
        costs more than to draw a small prefix.
        """
        for name, leaf in self._rows.items():
            parameter = self._gaussians.params[name]
            if leaf is parameter or leaf.grad is None:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad[: len(leaf)] += leaf.grad


def _masked(splats: Splats, weights: Tensor) -> Splats:
    return replace(splats, opacities=splats.opacities * weights)


def _own_leaves(gaussians: Gaussians, count: int) -> dict[str, Tensor]:
    """The first rows of each parameter, with gradients of their own; what the scene has once stays itself."""
    return {
        name: values.detach()[:count].requires_grad_(values.requires_grad)
        if gaussians.attributes[name].per_gaussian
        else values
        for name, values in gaussians.params.items()
    }


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


def elastic_optimizer(scene: Scene, options: ElasticTraining, extent: float) -> torch.optim.Optimizer | None:
    """Adam for the selection and the parts of a scene; None if nothing of them is learned."""
    factor = extent if options.rates_times_extent else 1.0
    rates = {
        "rows": falling(options.residual_rate, options.rate_decay),
        "planes": falling(options.grid_rate * factor, 0.1),
        "layers": falling(options.network_rate * factor, 0.1),
    }

    def rate_of(group: ParameterGroup) -> dict[str, float]:
        if group.rate is None:
            return rates[group.kind]
        return falling(group.rate * (extent if group.times_extent else 1.0), options.rate_decay)

    groups: list[dict[str, Any]] = [
        {"params": group.parameters, "name": group.name, "per_gaussian": group.kind == "rows"}
        | rate_of(group)
        for group in (*scene.selection.groups(), *(g for part in scene.each_part() for g in part.groups()))
        if group.parameters
    ]
    return torch.optim.Adam(groups, eps=1e-15, fused=True) if groups else None
