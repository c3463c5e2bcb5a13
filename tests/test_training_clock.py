"""The seconds that a training cost."""

from types import SimpleNamespace
from typing import Any

import pytest

from flexgs_lightning.training.callbacks import clock as room
from flexgs_lightning.training.callbacks.clock import TrainingClock, seconds_of

NOBODY: Any = None


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A time that passes when the test says so."""
    time = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(room.time, "perf_counter", lambda: time.seconds)
    return time


def test_seconds_of_training_count_over_interruptions_and_validation_does_not(now: SimpleNamespace) -> None:
    clock = TrainingClock()
    now.seconds += 50  # start-up
    clock.on_train_start(NOBODY, NOBODY)
    now.seconds += 10
    clock.on_validation_start(NOBODY, NOBODY)
    now.seconds += 1000
    clock.on_validation_end(NOBODY, NOBODY)
    now.seconds += 2
    checkpoint = {"callbacks": {"TrainingClock": clock.state_dict()}}
    assert seconds_of(checkpoint) == 12
    now.seconds += 5  # lost

    resumed = TrainingClock()
    resumed.load_state_dict(checkpoint["callbacks"]["TrainingClock"])
    resumed.on_train_start(NOBODY, NOBODY)
    now.seconds += 3
    resumed.on_train_end(NOBODY, NOBODY)
    now.seconds += 7
    assert resumed.state_dict() == {"seconds": 15}


def test_validation_alone_starts_no_clock(now: SimpleNamespace) -> None:
    clock = TrainingClock()
    clock.on_validation_start(NOBODY, NOBODY)
    clock.on_validation_end(NOBODY, NOBODY)
    now.seconds += 9
    assert clock.state_dict() == {"seconds": 0}


def test_a_checkpoint_without_a_clock_says_nothing() -> None:
    assert seconds_of({"callbacks": {}}) is None
