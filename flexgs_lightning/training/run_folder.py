"""The folder of a run: one process trains in it, and nothing appears in it before training does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lightning import Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import FileWriter, SummaryWriter

from flexgs_lightning.files import atomic_path, locked


class _DeferredWriter(SummaryWriter):
    """Opens its file for the first event: what is refused before that leaves none."""

    def __init__(self, log_dir: str, **options: Any) -> None:
        self._opened = False
        super().__init__(log_dir, **options)
        self._opened = True

    def _get_file_writer(self) -> FileWriter | None:
        return super()._get_file_writer() if self._opened else None


class RunLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard, for a run folder of this package.

    Attributes:
        silent: the folder is the run's all the same, but TensorBoard gets nothing.
    """

    silent = False

    @property
    def experiment(self) -> SummaryWriter:
        """TensorBoard's writer; nothing but a name in processes that do not log."""
        if self.silent:
            return cast(SummaryWriter, DummyExperiment())
        if getattr(rank_zero_only, "rank", 0) > 0:
            return super().experiment
        if self._experiment is None:
            self._experiment = _DeferredWriter(log_dir=self.log_dir, **self._kwargs)
        return self._experiment

    def save(self) -> None:
        """Write what is pending; ``hparams.yaml`` is left out, because config.yaml says more."""
        if self._experiment is not None:
            self._experiment.flush()

    def finalize(self, status: str) -> None:
        """Close the file. After a failure, that it cannot be is no second one."""
        with contextlib.suppress(*[OSError] if status == "failed" else []):
            super().finalize(status)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Train in the run folder, and nobody else: in a new one, or in that of the checkpoint.

        Raises:
            InputError: another process trains there, or the folder cannot be written.
        """
        fresh = self._version is None or isinstance(self._version, int)
        while True:
            with contextlib.ExitStack() as claim:
                try:
                    claim.enter_context(locked(Path(self.log_dir), new=fresh))
                except FileExistsError:  # another process has just made it
                    self._version = self._get_next_version()
                    continue
                yield
            return


class RunConfigCallback(SaveConfigCallback):
    """Claims the run folder of every training, and saves the full configuration there beside earlier ones."""

    _claim: contextlib.ExitStack | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Nothing yet: a training that is refused leaves no trace."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Claim the folder, and number the file when a run is resumed."""
        self._release()
        if trainer.is_global_zero and isinstance(trainer.logger, RunLogger):
            self._claim = contextlib.ExitStack()
            self._claim.enter_context(trainer.logger.claimed())
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning tells the other processes
        if trainer.is_global_zero:
            number = len(list(folder.glob("config*.yaml")))
            name = f"config.resumed_{number}.yaml" if number else "config.yaml"
            with atomic_path(folder / name) as temporary:
                self.parser.save(
                    self.config, str(temporary), skip_none=False, overwrite=True, multifile=False
                )

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Give the folder back."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Give the folder back."""
        self._release()

    def _release(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.close()
