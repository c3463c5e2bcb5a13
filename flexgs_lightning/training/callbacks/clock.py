"""TrainingClock: what a training cost in seconds, over interruptions."""

import time
from typing import Annotated, Any

from lightning import Callback, LightningModule, Trainer
from msgspec import Meta, Struct

from flexgs_lightning.records import parsed


class ClockState(Struct):
    """What the clock leaves in a checkpoint."""

    seconds: Annotated[float, Meta(ge=0, le=1e12)]


class TrainingClock(Callback):
    """Counts the seconds spent in training and carries them in the checkpoint.

    Rankings, densification and prunings count; start-up, validation and test do not. What was trained after
    the last checkpoint before a crash is lost with the work itself.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None
        self._paused = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it: measuring on the way is not a training's cost."""
        self._paused = self._since is not None
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where training does."""
        if self._paused:
            self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"seconds": self._before + self._running()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an interrupted training's seconds."""
        self._before = parsed("callbacks.TrainingClock", state_dict, ClockState).seconds

    def _running(self) -> float:
        return 0.0 if self._since is None else time.perf_counter() - self._since

    def _stop(self) -> None:
        self._before, self._since = self._before + self._running(), None


def seconds_of(checkpoint: dict[str, Any]) -> float | None:
    """What the training that wrote this checkpoint had cost by then; None if it had no clock."""
    state = checkpoint.get("callbacks", {}).get(TrainingClock.__qualname__)
    return None if state is None else parsed("callbacks.TrainingClock", state, ClockState).seconds
