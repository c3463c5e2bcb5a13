"""Tuning: training plain Gaussians on as they will be stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.codec.recipes.columns import Columns, to_columns, to_splats
from flexgs_lightning.codec.views import JUDGE_EVERY
from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.data.ordering import training_batches
from flexgs_lightning.data.streaming import ImageCache, ViewDataset
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.files import atomic_path
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.model.gaussians import Chosen, Gaussians
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.losses import photometric_loss
from flexgs_lightning.training.optimization import LearningRates, gaussian_optimizers, set_rates

Rounding = Callable[[dict[str, Tensor]], Columns]
"""Raw parameters of some Gaussians, named as in ``Gaussians.params``, as a file will hold them."""
Penalty = Callable[[Gaussians], Tensor]
"""Something else to keep small."""


def start_of(study: Study, checkpoint: Path | None) -> Splats:
    """The full scene of a checkpoint, or else of the study's own.

    Raises:
        InputError: see ``load``; it was trained on another capture.
    """
    if checkpoint is None:
        return study.splats
    model = load(checkpoint)
    if model.name != study.model.name:
        raise InputError(
            f"--start {checkpoint}: expected a checkpoint of '{study.model.name}', "
            f"found one of '{model.name}'."
        )
    return model.splats().to(study.device)


class Tuning:
    """A scene of one size that is trained on, every number rounded before it is drawn.

    Views are seen pass after pass in an order that the seed decides; a step's view follows from its number,
    so what was saved goes on as if it had never stopped. Positions keep the rate that they end a training
    with, the other attributes their own.
    """

    def __init__(self, splats: Splats, study: Study, rounding: Rounding = to_columns) -> None:
        """Take what is trained.

        Args:
            splats: where it starts.
            study: capture, loss and device.
            rounding: what happens to raw parameters between the optimizer and the renderer.
        """
        self.study, self.rounding = study, rounding
        self.scene = Scene(Gaussians.from_splats(splats)).to(study.device)
        rates = LearningRates(**study.settings["model"].get("learning_rates", {}))
        optimizers = gaussian_optimizers(self.gaussians, rates, study.capture.extent)
        self._optimizers = list(optimizers.values())
        set_rates(self._optimizers, 1, 1)
        self._ssim_weight = float(study.settings["model"].get("ssim_weight", 0.2))
        views = study.capture.train_views
        cache = ImageCache(views, study.data.cache_megabytes * 2**20)
        self._dataset = ViewDataset(views, cache)
        self._order = _Order(self._dataset.sizes, study.seed)
        self.step = 0

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def gaussians(self) -> Gaussians:
        """What is trained, before rounding."""
        return self.scene.gaussians

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let what else the rounding learns be trained, saved and loaded with the scene."""
        self._optimizers.append(optimizer)

    def splats(self, chosen: Chosen | None = None) -> Splats:
        """Some Gaussians as they are drawn, all by default; differentiable."""
        return to_splats(self.rounding(self.gaussians.rows(len(self) if chosen is None else chosen)))

    def train(
        self, steps: int, draw: Callable[[int], Chosen] | None = None, penalty: Penalty | None = None
    ) -> None:
        """So many steps more.

        Args:
            steps: iterations, a view each.
            draw: the Gaussians that a step draws, by its number; all by default.
            penalty: is added to the loss.
        """
        for _ in range(steps):
            batch = self._batch(self._order[self.step])
            loss = self._loss(batch, None if draw is None else draw(self.step))
            if penalty is not None:
                loss = loss + penalty(self.gaussians)
            if not torch.isfinite(loss):
                raise InputError(f"step {self.step}: the loss is {float(loss)}; expected a finite number.")
            loss.backward()
            for optimizer in self._optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1

    def gradient_scores(self, chosen: Chosen | None = None) -> Float[Tensor, " M"]:
        """[M] sum over attributes of the norm of the loss's gradient, added up over all training views.

        Gradients of raw parameters before rounding; the loss is that of a step. They are added with their
        signs, as an optimizer that steps once a pass would see them.

        Args:
            chosen: the Gaussians that are drawn and scored, all by default.
        """
        norms = [
            rows.reshape(len(rows), math.prod(rows.shape[1:])).norm(dim=1)
            for rows in self.gradients(chosen).values()
        ]
        return torch.stack(norms).sum(dim=0)

    def gradients(self, chosen: Chosen | None = None) -> dict[str, Float[Tensor, "M ..."]]:
        """By attribute the loss's gradient, added up over all training views; see ``gradient_scores``."""
        chosen = len(self) if chosen is None else chosen
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        for i in range(len(self._dataset)):
            self._loss(self._batch([i]), chosen).backward()
        index = slice(0, chosen) if isinstance(chosen, int) else chosen
        found = {}
        for name, parameter in self.gaussians.own().items():
            if parameter.grad is not None:
                found[name] = parameter.grad[index]
                parameter.grad = None
        return found

    @torch.no_grad()
    def judged_psnr(self) -> float:
        """Mean PSNR of the training views that rates are judged by: every ``JUDGE_EVERY``-th."""
        splats, values = self.splats(), []
        for i in range(0, len(self._dataset), JUDGE_EVERY):
            batch = self._batch([i])
            image = self._draw(splats, batch)
            values.append(psnr(image.clamp(0, 1), batch.targets(self.study.background)).mean().item())
        return sum(values) / len(values)

    def keep(self, mask: Tensor) -> None:
        """Let go of the Gaussians whose mask is False."""
        Surgery(self.scene, self._optimizers).keep(mask)

    def permute(self, order: Tensor) -> None:
        """Store the Gaussians in another order."""
        Surgery(self.scene, self._optimizers).permute(order)

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write all that ``load`` needs to go on, and facts of the caller's."""
        state = {
            "scene": self.scene.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "step": self.step,
            "facts": facts,
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> dict[str, Any]:
        """Go on where ``save`` was; returns the facts."""
        state = torch.load(path, map_location=self.gaussians.device, weights_only=True)
        self.scene.load_state_dict(state["scene"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        facts: dict[str, Any] = state["facts"]
        return facts

    def _loss(self, batch: ViewBatch, chosen: Chosen | None) -> Tensor:
        image = self._draw(self.splats(chosen), batch)
        return photometric_loss(image, batch.targets(self.study.background), self._ssim_weight)

    def _draw(self, splats: Splats, batch: ViewBatch) -> Tensor:
        return rasterize(
            splats, batch.cameras, background=self.study.background, antialiased=self.study.antialiased
        ).image

    def _batch(self, indices: list[int]) -> ViewBatch:
        item = self._dataset[indices]
        if isinstance(item, InputError):
            raise item
        return item.to(self.study.device)


class _Order:
    """The views of each step, by its number."""

    def __init__(self, sizes: Sequence[tuple[int, int]], seed: int) -> None:
        self._batches: Iterator[list[int]] = training_batches(sizes, 1, seed)
        self._known: list[list[int]] = []

    def __getitem__(self, step: int) -> list[int]:
        while len(self._known) <= step:
            self._known.append(next(self._batches))
        return self._known[step]
