"""Subset: the Gaussians of a ratio, drawn so that they learn at the cost of their number."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.moments import Moments, at_each
from flexgs_lightning.training.optimization import own_seed


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
