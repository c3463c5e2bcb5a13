"""Pictures in TensorBoard."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.images import side_by_side


class ValidationImages(Callback):
    """Logs render, photo and error side by side for some held-out views at every validation.

    Args:
        views: number of views, spread evenly over the held-out ones.
    """

    def __init__(self, views: int = 4) -> None:
        self.views = views

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ViewBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log the view if it is one of the chosen."""
        if trainer.sanity_checking or not isinstance(trainer.logger, TensorBoardLogger):
            return
        for render, photo, index, name in zip(
            outputs["render"], outputs["photo"], batch.indices.tolist(), batch.names, strict=True
        ):
            if index in self._chosen(len(trainer.datamodule.capture.test_views)):  # type: ignore[attr-defined]
                panel = torch.from_numpy(side_by_side(render, photo))
                trainer.logger.experiment.add_image(
                    f"val/{name}", panel, global_step=trainer.global_step, dataformats="HWC"
                )

    def _chosen(self, count: int) -> set[int]:
        views = min(self.views, count)
        return {i * count // views for i in range(views)}
