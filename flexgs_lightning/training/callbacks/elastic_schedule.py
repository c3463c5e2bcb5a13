"""What changes in the course of the elastic stage: the ranking and the temperature."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.selection import GsNet
from flexgs_lightning.training.elastic.stage import begin_elastic_stage, refresh_importance
from flexgs_lightning.training.optimization import exponential_decay
from flexgs_lightning.training.scene_module import SceneModule


class ImportanceRefresh(Callback):
    """Ranks the Gaussians anew by importance in regular intervals of the elastic stage.

    The stage begins with a ranking in any case. TensorBoard gets a histogram of each ranking's importance.

    Args:
        every_n_steps: iterations of the elastic stage from one refresh to the next.
        stop_after: share of the stage after which the ranking stays as it is.
    """

    def __init__(self, every_n_steps: int = 1_000, stop_after: float = 1.0) -> None:
        if every_n_steps < 1:
            raise InputError(f"importance_refresh.every_n_steps: expected at least 1, found {every_n_steps}.")
        if not 0 <= stop_after <= 1:
            raise InputError(
                f"importance_refresh.stop_after: expected a share from 0 to 1, found {stop_after}."
            )
        self.every_n_steps = every_n_steps
        self.stop_after = stop_after

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Refresh if it is time."""
        assert isinstance(pl_module, SceneModule)
        step = pl_module.elastic_step
        if step is None or step % self.every_n_steps:
            return
        if step == 0:
            importance = begin_elastic_stage(pl_module)
        elif step <= self.stop_after * pl_module.elastic_training.steps:
            importance = refresh_importance(pl_module)
        else:
            return
        if isinstance(trainer.logger, TensorBoardLogger):
            logarithms = (importance + 1e-3).log10()
            trainer.logger.experiment.add_histogram(
                "importance/log10", logarithms, global_step=trainer.global_step
            )


class TemperatureDecay(Callback):
    """Lowers the Gumbel-softmax temperature exponentially over the elastic stage.

    Args:
        start: temperature at the stage's begin; the published code holds it at 1.
        end: temperature at the stage's end.
    """

    def __init__(self, start: float = 1.0, end: float = 1.0) -> None:
        for name, value in (("start", start), ("end", end)):
            if not 0 < value < math.inf:
                raise InputError(f"temperature.{name}: expected a positive number, found {value}.")
        self.start, self.end = start, end

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the iteration's temperature."""
        assert isinstance(pl_module, SceneModule)
        step = pl_module.elastic_step
        if step is not None:
            total = pl_module.elastic_training.steps
            pl_module.temperature = exponential_decay(self.start, self.end, step, total)
            if isinstance(pl_module.scene.selection, GsNet):
                pl_module.log("train/temperature", pl_module.temperature)
