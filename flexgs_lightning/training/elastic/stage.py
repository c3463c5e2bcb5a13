"""The second stage: how it begins, what an iteration does, and what learns at which rate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import ParameterGroup, Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.model.transform_field import TransformField
from flexgs_lightning.rendering.types import Drawn
from flexgs_lightning.training.adam import GaussianAdam
from flexgs_lightning.training.clearance import TOO_CLOSE, ClearSpace
from flexgs_lightning.training.densification.checks import check_enough_left
from flexgs_lightning.training.elastic.losses import field_regularization, selection_loss
from flexgs_lightning.training.elastic.options import ElasticTraining
from flexgs_lightning.training.elastic.subset import Subset
from flexgs_lightning.training.losses import Parts
from flexgs_lightning.training.moments import Moments, everyone_at, times_of
from flexgs_lightning.training.optimization import falling, residual_units
from flexgs_lightning.training.ranking import rank_gaussians
from flexgs_lightning.training.scene_module import SceneModule
from flexgs_lightning.training.sharding import deal_out

logger = logging.getLogger(__name__)


def begin_elastic_stage(module: SceneModule) -> Tensor:
    """Begin the second stage of a module's training: make its scene elastic, and ``refresh_importance``."""
    with module.new_stage():
        units = residual_units(module.learning_rates, module.extent, module.gaussians.attributes)
        too_close = clear(module.scene, module.clear_space, module.iteration)
        if module.logger is not None:  # module.log would drop a value of an iteration that is not one to log
            module.logger.log_metrics({"densification/too_close": too_close}, module.iteration)
        scene = make_elastic(module.scene, module.capture, module.elastic_options, units)
        module.scene = scene.to(module.device)
    return refresh_importance(module)


def refresh_importance(module: SceneModule) -> Tensor:
    """Rank the Gaussians by their importance over all training views; returns it, [N], in rank order.

    With "ordered" selection they are stored in that order, together with their optimizers' moments.
    """
    options = module.elastic_training
    order, importance = rank_gaussians(
        module.scene,
        [view.camera for view in module.capture.train_views],
        options.importance,
        lowest_ratio=options.lowest_ratio,
        background=module.evaluation_background,
        antialiased=module.antialiased,
        times=times_of(module.scene, module.capture.train_views),
    )
    if module.scene.selection.takes_over(order):
        Surgery(module.scene, module.plain_optimizers()).permute(order)
    return importance


def make_elastic(
    scene: Scene, capture: Capture, options: ElasticOptions, units: Mapping[str, float]
) -> Scene:
    """What the second stage begins with; networks' weights come from torch's global generator.

    Args:
        scene: what the first stage ended with, or this process's share of it.
        capture: its cameras say where the scene lies.
        options: what makes the scene elastic.
        units: see ``RatioResiduals``.
    """
    frame = SceneFrame.from_cameras(torch.cat([view.camera.positions for view in capture.views]))
    gaussians = deal_out(scene.gaussians, scene.shards)
    parts = {name: part for name, part in scene.parts.items() if isinstance(part, Part)}
    return elastic_scene(gaussians, frame, options, units, parts=parts, shards=scene.shards, total=len(scene))


def clear(scene: Scene, space: ClearSpace | None, step: int) -> int:
    """Take what is too close to a training camera out of a scene of the first stage; returns how many.

    If several processes hold the Gaussians, all must call, and the number counts all.

    Raises:
        InputError: hardly any would be left.
    """
    if space is None:
        return 0
    inside = space.contains(scene.gaussians.params["means"])
    here = int(inside.sum())
    removed = scene.shards.total(here, inside.device)
    if removed:
        check_enough_left(len(scene), removed, step, TOO_CLOSE)
        logger.info("The second stage starts without %d Gaussians too close to a training camera.", removed)
        Surgery(scene).keep(~inside)
        scene.elsewhere -= removed - here
    return removed


@dataclass(frozen=True)
class Iteration:
    """An iteration of a later stage, as the module sees it.

    Attributes:
        step: iterations of the stage so far.
        photometric: draws splats through the iteration's cameras and compares them with the photos.
        backward: adds a loss's gradient to those of the parameters.
        temperature: of the Gumbel-softmax (gsnet).
        moments: when the iteration's cameras see a scene that moves.
    """

    step: int
    photometric: Callable[[Drawn], Tensor]
    backward: Callable[[Tensor], None]
    temperature: float = 1.0
    moments: Moments = None


def descend(scene: Scene, options: ElasticTraining, iteration: Iteration) -> tuple[Tensor, Parts]:
    """Draw the full model and some subsets, each followed at once by its backward pass (Eq. 16).

    Gradients add up where they belong; what a render needs for its gradient is gone before the next one.

    Returns:
        The iteration's loss, detached, and its parts.
    """
    total, parts = scene.gaussians.params["means"].new_zeros(()), Parts()

    def add(loss: Tensor) -> None:
        nonlocal total
        total = total + loss.detach()
        if loss.requires_grad:
            iteration.backward(loss)

    ratios = [max(ratio, 1 / len(scene)) for ratio in options.draw_ratios(iteration.step)]
    if options.draws_full(iteration.step):
        loss = iteration.photometric(everyone_at(scene, iteration.moments))
        parts["full_loss"] = loss.detach()
        add(options.full_weight * loss)
        del loss  # with the graph, before the next render
    for ratio in ratios:
        subset = Subset(scene, ratio, iteration.temperature, iteration.moments)
        loss = iteration.photometric(subset.splats)
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
    return GaussianAdam(groups) if groups else None
