"""How far training is, and how fast."""

import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from flexgs_lightning.training.scene_module import SceneModule


class TrainingProgress(TQDMProgressBar):
    """One bar over all iterations with loss, PSNR, number of Gaussians and time left."""

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    def __init__(self) -> None:
        """Refresh for people; in the log file of a cluster's job, every now and then is enough."""
        super().__init__(refresh_rate=10 if sys.stdout.isatty() else 250)

    def init_train_tqdm(self) -> Tqdm:
        """Name what is counted: there are no epochs here."""
        bar = super().init_train_tqdm()
        bar.unit = "step"
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Count from the iteration that a resumed run goes on from, so that rate and time left are right."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.initial = self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.set_description("Training")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Figures of the last logged iteration: Lightning would read its own from the device in every one."""
        assert isinstance(pl_module, SceneModule)
        shown: dict[str, Any] = {name: f"{value:.4g}" for name, value in pl_module.progress.items()}
        if "gaussians" in shown:
            shown["gaussians"] = f"{pl_module.progress['gaussians']:,.0f}"
        return shown


class IterationAxis(Callback):
    """Lets curves count iterations completed, as pictures and checkpoints do.

    Lightning's own counter is one behind in training, and 0 where a checkpoint is only evaluated; a metric
    named "step" takes its place.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Date what is logged now."""
        assert isinstance(pl_module, SceneModule)
        if pl_module.is_time_to_log:
            self._date(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Date the metrics."""
        self._date(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Date the metrics."""
        self._date(pl_module)

    def _date(self, module: LightningModule) -> None:
        assert isinstance(module, SceneModule)
        module.log("step", float(module.iterations_trained))


class ThroughputLogger(Callback):
    """Logs iterations per second, validation excluded."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._steps = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean rate since the last log."""
        now = time.perf_counter()
        if self._since is None:  # the first iteration compiles and loads: not the rate of the others
            self._since = now
            return
        self._steps += 1
        assert isinstance(pl_module, SceneModule)
        if pl_module.is_time_to_log:
            pl_module.log("train/steps_per_second", self._steps / (now - self._since))
            self._since, self._steps = now, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock after validation."""
        self._since, self._steps = None, 0
