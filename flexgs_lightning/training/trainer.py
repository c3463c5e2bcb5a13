"""What ``FlexGSModule`` asks of the trainer that trains it.

``lightning.Trainer(max_epochs=-1).fit(FlexGSModule(…), datamodule=CaptureDataModule(…))`` is all it takes.
The module gives its trainer the callbacks, the number of steps and the safe checkpoints (``set_up``), and
refuses what would train something else than was asked for. The command line goes the same way.
"""

from __future__ import annotations

from typing import Any

from lightning import Callback, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from flexgs_lightning.errors import InputError
from flexgs_lightning.training.callbacks import DEFAULTS, Checkpointing, SafeCheckpointIO, TrainingProgress

UNLIMITED_EPOCHS = (-1, 1, 1000)
"""Values of ``max_epochs`` that leave the end to the number of steps; Lightning's default becomes 1000."""


def set_up(trainer: Trainer, steps: int) -> list[Callback]:
    """Prepare a trainer for a module, before anything is read or written.

    A callback that the user has given wins over the default of its kind. Lightning's own checkpoints and
    progress bar, which a trainer has by itself, give way to this package's; without them
    (``enable_checkpointing=False``, ``enable_progress_bar=False``) there are none here, either.

    Args:
        trainer: the trainer that is about to fit, validate or test.
        steps: iterations of all stages together.

    Returns:
        Callbacks to add.

    Raises:
        InputError: an option of the trainer contradicts the module.
    """
    if trainer.state.fn == TrainerFn.FITTING:
        _refuse_what_would_be_ignored(trainer)
        _set_length(trainer, steps)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not the user's choice
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
    replacements = _replaced(trainer)
    present: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    missing = (kind for kind in DEFAULTS if not any(isinstance(callback, kind) for callback in present))
    return [*replacements, *(kind() for kind in missing)]


def _refuse_what_would_be_ignored(trainer: Trainer) -> None:
    """Optimisation is manual here, and everything is computed in float32."""
    options: dict[str, tuple[Any, tuple[Any, ...], str]] = {
        "precision": (trainer.precision, ("32-true",), "rendering and its gradients need float32"),
        "gradient_clip_val": (trainer.gradient_clip_val, (None, 0), "gradients are not clipped"),
        "accumulate_grad_batches": (
            trainer.accumulate_grad_batches,
            (1,),
            "data.batch_size sets the views of an iteration",
        ),
        "overfit_batches": (trainer.overfit_batches, (0, 0.0), "a smaller capture does what it would"),  # type: ignore[attr-defined]
        "max_epochs": (trainer.max_epochs, UNLIMITED_EPOCHS, "the whole training is one epoch"),
    }
    for name in ("log_every_n_steps", "val_check_interval", "check_val_every_n_epoch"):
        value = getattr(trainer, name, None)
        if isinstance(value, (int, float)) and not value >= 0:
            raise InputError(f"trainer.{name}: expected 0 or more, found {value}.")
    for name, (found, possible, reason) in options.items():
        if found not in possible:
            raise InputError(f"trainer.{name}: expected {possible[0]}, found {found}: {reason}.")


def _set_length(trainer: Trainer, steps: int) -> None:
    """All stages, and nothing else."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    if trainer.max_steps not in (-1, steps):
        raise InputError(
            "trainer.max_steps: expected nothing, because model.reconstruction_steps, "
            "model.elastic_training.steps and model.compression_training.steps say how long a training is "
            f"({steps} steps here); found {trainer.max_steps}."
        )
    trainer.fit_loop.epoch_loop.max_steps = steps


def _replaced(trainer: Trainer) -> list[Callback]:
    """Take away what Lightning has put in by itself; returns what takes its place."""
    ours: dict[type[Callback], type[Callback]] = {
        ModelCheckpoint: Checkpointing,
        RichProgressBar: TrainingProgress,
        TQDMProgressBar: TrainingProgress,
    }
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    automatic = [callback for callback in callbacks if type(callback) in ours and _untouched(callback)]
    trainer.callbacks = [callback for callback in callbacks if callback not in automatic]  # type: ignore[attr-defined]
    return [ours[type(callback)]() for callback in automatic]


def _untouched(callback: Callback) -> bool:
    """Whether it has only default values, as what Lightning puts in has."""
    return _plain(callback) == _plain(type(callback)())


def _plain(callback: Callback) -> dict[str, Any]:
    values = vars(callback).items()
    return {name: value for name, value in values if isinstance(value, (bool, int, float, str, type(None)))}
