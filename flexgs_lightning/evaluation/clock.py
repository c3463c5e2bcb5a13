"""TrainingClock: what a training cost in seconds, over interruptions."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class TrainingClock(Callback):
    """Counts the seconds spent in training and carries them in the checkpoint.

    Rankings and prunings count, start-up does not. What was trained after the last checkpoint before a crash
    is lost with the work itself.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return {"seconds": self._before + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an interrupted training's seconds."""
        self._before = state_dict["seconds"]


def seconds_of(checkpoint: dict[str, Any]) -> float:
    """What the training that wrote this checkpoint had cost by then."""
    return float(checkpoint["callbacks"][TrainingClock.__qualname__]["seconds"])
