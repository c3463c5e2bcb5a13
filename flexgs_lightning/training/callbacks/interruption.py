"""A signal ends training after the iteration in progress, with a checkpoint."""

import logging
import os
import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from flexgs_lightning.signals import Stopped, close_progress_bars, handlers_kept, what_is_kept
from flexgs_lightning.training import slurm
from flexgs_lightning.training.callbacks.checkpointing import LAST, checkpoint_folder

log = logging.getLogger(__name__)

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
"""What training may take over; Windows has fewer."""


def signals_given_back() -> AbstractContextManager[None]:
    """Leave signals as they were found, also after a training that failed.

    Lightning puts back the handlers that it found when training began, and does so after ``on_exception``:
    those are ``GracefulInterruption``'s, which would then swallow the signals of whatever runs next.
    """
    return handlers_kept(SIGNALS)


class GracefulInterruption(Callback):
    """Turns the first signal into a stop at the end of the iteration; a second Ctrl-C stops at once.

    A signal may arrive between two optimizers' steps or in the middle of a densification: a checkpoint of
    that moment would not continue as the uninterrupted run does. ``Checkpointing`` writes the file. With
    several processes, a signal to any of them stops all after the same iteration.

    The signals are SIGINT (Ctrl-C), SIGTERM (``kill``, a container's or a cluster's shutdown) and, in a SLURM
    job, SIGUSR1 (``sbatch --signal=USR1@120``).

    Args:
        requeue: in a SLURM job, SIGTERM and SIGUSR1 also put the job back into the queue, unless it was
            cancelled.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self.signal: int | None = None  # that all processes stop for
        self._received: int | None = None  # by this one; a signal may come while the processes agree
        self._previous: dict[int, Any] = {}  # handlers
        self._installed = False

    @property
    def exit_status(self) -> int | None:
        """As shells have it after a signal; None if there was none."""
        return None if self.signal is None else 128 + self.signal

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over."""
        self.signal = self._received = None
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Again: Lightning has put handlers of its own before ours, which communicate in mid-iteration."""
        self._install()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for the stop; Lightning calls checkpoint callbacks after all others, so they see it."""
        self._agree(trainer)
        if self.signal is not None:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree once more: a signal in the last validation leaves out the test."""
        self._agree(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, say how to go on, and requeue."""
        self._restore()
        if self.signal is None:
            return
        trainer.strategy.checkpoint_io.teardown()  # what is said to be saved is
        if trainer.global_step < trainer.max_steps:
            close_progress_bars()
            log.warning(
                "Interrupted after step %d of %d. %s",
                trainer.global_step,
                trainer.max_steps,
                what_is_kept(f"Saved {checkpoint_folder(trainer) / LAST}, which a fit can go on from."),
            )
        self._requeue(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which would talk to the other processes in mid-collective."""
        self.signal = self._received = None
        self._install()

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave the test: it is not worth a checkpoint, but a cluster's job must run again."""
        self.signal = self._received
        if self.signal is not None:
            self._requeue(trainer)
            raise Stopped(self.signal)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before a test, where it is not a training's."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_start(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """As in a test, where it is not a training's."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_batch_end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after a test, where it is not a training's."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._installed:  # Lightning has put us back after a training that failed
            _hand_on(number, frame, self._previous[number])
            return
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                raise Stopped(number)
            log.warning("Stopping after this iteration; Ctrl-C again stops at once, without a checkpoint.")
        self._received = number

    def _agree(self, trainer: Trainer) -> None:
        self.signal = self._received
        if trainer.world_size > 1:
            number = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(number, reduce_op="max")) or None

    def _requeue(self, trainer: Trainer) -> None:
        if self.requeue and self.signal != signal.SIGINT and trainer.is_global_zero and slurm.in_job():
            slurm.requeue()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # only the main thread may
            return
        numbers = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGUSR1] if slurm.in_job() else [])
        for number in numbers:
            handler = signal.signal(number, self._on_signal)
            if not self._installed and handler != self._on_signal:
                self._previous[number] = handler
        self._installed = True

    def _restore(self) -> None:
        if self._installed:
            self._installed = False
            for number, handler in self._previous.items():
                signal.signal(number, handler)


def _hand_on(number: int, frame: FrameType | None, handler: Any) -> None:
    """Do what another handler would have done."""
    if callable(handler):
        handler(number, frame)
    elif handler == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
