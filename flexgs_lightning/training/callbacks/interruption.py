"""Ctrl-C ends training after the iteration in progress, with a checkpoint."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from flexgs_lightning.training.callbacks.checkpointing import LAST, checkpoint_folder

log = logging.getLogger(__name__)


class GracefulInterruption(Callback):
    """Turns the first SIGINT into a stop at the end of the iteration; a second one stops at once.

    A signal may arrive between two optimizers' steps or in the middle of a densification: a checkpoint of
    that moment would not continue as the uninterrupted run does. ``Checkpointing`` writes the file.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler; only the main thread may."""
        self.interrupted = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for the stop; Lightning calls checkpoint callbacks after all others, so they see it."""
        if self.interrupted:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signal back, and say how to go on."""
        self._restore()
        if self.interrupted and trainer.global_step < trainer.max_steps:
            log.warning(
                "Interrupted after step %d of %d; saved %s. The same command with --ckpt_path last goes on.",
                trainer.global_step,
                trainer.max_steps,
                checkpoint_folder(trainer) / LAST,
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signal back."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        log.warning("Stopping after this iteration; once more Ctrl-C stops at once, without a checkpoint.")

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
