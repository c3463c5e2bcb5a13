"""Pictures in TensorBoard."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.errors import InputError
from flexgs_lightning.images import side_by_side
from flexgs_lightning.processes import gather
from flexgs_lightning.training.scene_module import SceneModule


class ValidationImages(Callback):
    """Logs render, photo and error side by side for some held-out views at every validation.

    Args:
        views: number of views, spread evenly over the held-out ones.
    """

    def __init__(self, views: int = 4) -> None:
        if views < 0:
            raise InputError(f"validation_images.views: expected 0 or more, found {views}.")
        self.views = views
        self._panels: dict[str, UInt8[np.ndarray, "H W 3"]] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ViewBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the view's panel if it is one of the chosen."""
        if outputs is None or trainer.sanity_checking or not isinstance(trainer.logger, TensorBoardLogger):
            return
        for render, photo, index, name in zip(
            outputs["render"], outputs["photo"].image, batch.indices.tolist(), batch.names, strict=True
        ):
            if index in evenly_spread(self.views, len(trainer.datamodule.capture.test_views)):  # type: ignore[attr-defined]
                self._panels[name] = side_by_side(render, photo)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the panels of all processes."""
        assert isinstance(pl_module, SceneModule)
        for panels in gather(self._panels):
            for name, panel in panels.items():
                assert isinstance(trainer.logger, TensorBoardLogger)
                trainer.logger.experiment.add_image(
                    f"val/{name}", panel, global_step=pl_module.iterations_trained, dataformats="HWC"
                )
        self._panels = {}


def evenly_spread(views: int, count: int) -> set[int]:
    """Indices of at most ``views`` of ``count`` views."""
    views = min(views, count)
    return {i * count // views for i in range(views)}
