"""Checkpoints: when they are written, and how."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.files import LOCK, atomic_path, remove_leftovers
from flexgs_lightning.model.checkpoint import read_checkpoint
from flexgs_lightning.model.checkpoint_record import sealed

LAST = "last.ckpt"
FOLDER = "checkpoints"
BESIDE_TRAINING = {"wait": False}
"""Storage options that let training go on while ``SafeCheckpointIO`` writes."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes whole files or none, beside training; reads tensors and plain values only, with clear messages.

    Training pauses for as long as a copy in memory takes. One file is written at a time, and training does
    not end before the last is complete. ``trainer.save_checkpoint``, which others call, returns when its file
    is complete.
    """

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Take a copy and write it; with ``BESIDE_TRAINING`` as ``storage_options`` only begin to.

        Raises:
            InputError: this checkpoint, or the one before it, could not be written.
        """
        self.teardown()
        self._writing = self._writer.submit(_write, apply_to_collection(checkpoint, Tensor, _copy), path)
        if storage_options != BESIDE_TRAINING:
            self.teardown()

    def teardown(self) -> None:
        """Wait for the file being written; Lightning calls this when training ends or fails.

        Raises:
            InputError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As ``read_checkpoint``."""
        return read_checkpoint(path)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _write(checkpoint: dict[str, Any], path: Any) -> None:
    """Write under a temporary name, then rename; a full disk leaves the earlier file in place."""
    checkpoint = sealed(checkpoint)
    with atomic_path(path) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            raise OSError(f"is the disk full? {error}") from error


class Checkpointing(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` in the run folder regularly and after the last iteration.

    Args:
        every_n_steps: iterations between two checkpoints.
        keep: also keep every checkpoint, as ``step_<n>.ckpt``.
    """

    def __init__(self, every_n_steps: int = 1_000, keep: bool = False) -> None:
        if every_n_steps < 1:
            raise InputError(f"checkpoint.every_n_steps: expected at least 1, found {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.keep = keep

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a process left that was killed while it wrote."""
        folder = checkpoint_folder(trainer)  # asked for by all processes, which are told the first one's
        if trainer.is_global_zero:
            for run in folder.resolve().parents[1].glob("*/"):  # also of runs that are not gone on with
                remove_leftovers(run)
                remove_leftovers(run / FOLDER)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or if this was the last iteration (also when an interruption asked to stop).

        Only here is an iteration complete and Lightning's own bookkeeping in a state that it can resume.
        """
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop:
            self._save(trainer, LAST)
            if self.keep:
                self._save(trainer, f"step_{step}.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        safe = isinstance(trainer.strategy.checkpoint_io, SafeCheckpointIO)
        path, options = checkpoint_folder(trainer) / name, BESIDE_TRAINING if safe else None
        trainer.save_checkpoint(path, weights_only=False, storage_options=options)


def checkpoint_folder(trainer: Trainer) -> Path:
    """Folder of a run's checkpoints."""
    return Path(trainer.log_dir or trainer.default_root_dir) / FOLDER


def newest_checkpoint(runs: Path) -> Path:
    """``last.ckpt`` of the training below ``runs`` that was started last.

    Raises:
        InputError: there is none, or that training ended before its first checkpoint; starting afresh or
            going on with an older one in silence would waste the run to be resumed.
    """
    signs = [
        *runs.glob(f"**/version_*/{LOCK}"),
        *runs.glob("**/config*.yaml"),
    ]  # the lock of one killed at once
    started = {path.parent: path.stat().st_mtime for path in _oldest_first(signs)}
    found = {path.parents[1]: path for path in _oldest_first(runs.glob(f"**/{FOLDER}/{LAST}"))}
    if not found:
        raise InputError(f"--ckpt_path last: no {FOLDER}/{LAST} below {runs}; there is no run to resume.")
    times = {run: path.stat().st_mtime for run, path in found.items()} | started
    newest = max(times, key=lambda run: times[run])
    if newest not in found:
        raise InputError(
            f"--ckpt_path last: the newest run, {newest}, ended before its first checkpoint. Start it again "
            f"without --ckpt_path, or go on with an older run: --ckpt_path {list(found.values())[-1]}"
        )
    return found[newest]


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime)
