"""IterativePruning: a few Gaussians at a time, by the gradient, with fine-tuning in between."""

import math
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.ordering import HeldOutOrder
from flexgs_lightning.data.streaming import ImageCache, ViewDataset, ViewLoader
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.training.elastic.stage import begin_elastic_stage
from flexgs_lightning.training.losses import photometric_loss
from flexgs_lightning.training.moments import everyone_at
from flexgs_lightning.training.scene_module import SceneModule

FRACTION = 0.05
"""Share of the remaining Gaussians that one pruning removes (COGS 2025 runner-up)."""


def rounds_needed(start: int, keep: int, fraction: float = FRACTION) -> int:
    """Prunings from ``start`` Gaussians down to ``keep``."""
    count, rounds = start, 0
    while count > keep:
        count, rounds = next_count(count, keep, fraction), rounds + 1
    return rounds


def next_count(count: int, keep: int, fraction: float = FRACTION) -> int:
    """Gaussians after one more pruning: at least one fewer, and never fewer than ``keep``."""
    return max(keep, min(math.ceil((1 - fraction) * count), count - 1))


class IterativePruning(Callback):
    """Prunes by the accumulated norm of the gradient (the runner-up of COGS 2025; Di Sario et al.).

    In regular intervals of the elastic stage, beginning with its first iteration, the Gaussians of least
    score are removed until ``keep`` are left. A score is the sum of the norms of the gradients of all raw
    parameters over one pass through the training views, so each pruning follows from the scene alone and a
    resumed run goes on as if it had never stopped.

    Args:
        keep: number of Gaussians to end with; null for no pruning.
        every: iterations from one pruning to the next.
        fraction: share of the remaining Gaussians that one pruning removes.
    """

    def __init__(self, keep: int | None = None, every: int = 1_000, fraction: float = FRACTION) -> None:
        if (keep is not None and keep < 1) or every < 1 or not 0 < fraction < 1:
            raise InputError(
                "iterative_pruning: expected keep and every of at least 1 and fraction in (0, 1), "
                f"found {keep}, {every} and {fraction}."
            )
        self.keep, self.every, self.fraction = keep, every, fraction
        self._views: ViewLoader | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Prune if it is time."""
        assert isinstance(pl_module, SceneModule)
        step = pl_module.elastic_step
        if self.keep is None or step is None or step % self.every:
            return
        if pl_module.shards.several:
            raise InputError("iterative_pruning: expected one process or replicas, found sharded Gaussians.")
        if not pl_module.scene.elastic:
            begin_elastic_stage(pl_module)
        count = len(pl_module.scene)
        if count <= self.keep:
            return
        scores = gradient_scores(pl_module, self._training_views(trainer))
        left = next_count(count, self.keep, self.fraction)
        kept = torch.zeros(count, dtype=torch.bool, device=scores.device)
        kept[scores.topk(left).indices] = True
        Surgery(pl_module.scene, trainer.optimizers).keep(kept)

    def _training_views(self, trainer: Trainer) -> ViewLoader:
        """All training views in order, with a cache of the data module's size and its own."""
        if self._views is None:
            data: CaptureDataModule = trainer.datamodule  # type: ignore[attr-defined]
            views = data.capture.train_views
            cache = ImageCache(views, data.cache_megabytes * 2**20)
            self._views = ViewLoader(ViewDataset(views, cache), HeldOutOrder(len(views)))
        return self._views


def gradient_scores(module: SceneModule, views: ViewLoader) -> Float[Tensor, " N"]:
    """[N] sum over views and raw parameters of the norm of the gradient of a view's photometric loss."""
    parameters = list(module.gaussians.own().values())
    total = parameters[0].new_zeros(len(module.gaussians))
    for view in views:
        batch = view.to(module.device)
        background = module.evaluation_background
        with torch.enable_grad():
            everyone = everyone_at(module.scene, module.moments(batch))
            image = module.draw(everyone, batch, background).image
            loss = photometric_loss(image, batch.targets(background), module.ssim_weight)
        for gradient in torch.autograd.grad(loss, parameters, allow_unused=True):
            if gradient is None:  # an attribute that is not drawn
                continue
            total += gradient.reshape(len(total), math.prod(gradient.shape[1:])).norm(dim=1)
    return total
