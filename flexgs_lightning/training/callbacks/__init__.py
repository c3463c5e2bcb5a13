"""What happens beside the training step: saving, showing, reporting."""

from lightning import Callback

from flexgs_lightning.training.callbacks.checkpointing import Checkpointing, SafeCheckpointIO
from flexgs_lightning.training.callbacks.clock import TrainingClock
from flexgs_lightning.training.callbacks.elastic_schedule import ImportanceRefresh, TemperatureDecay
from flexgs_lightning.training.callbacks.elastic_validation import ElasticValidation
from flexgs_lightning.training.callbacks.interruption import GracefulInterruption
from flexgs_lightning.training.callbacks.progress import IterationAxis, ThroughputLogger, TrainingProgress
from flexgs_lightning.training.callbacks.rate_distortion import RateDistortion
from flexgs_lightning.training.callbacks.replica_check import ReplicaCheck
from flexgs_lightning.training.callbacks.tensorboard import TensorBoardPages
from flexgs_lightning.training.callbacks.test_report import TestReport
from flexgs_lightning.training.callbacks.validation_images import ValidationImages

WITH_OPTIONS: dict[str, type[Callback]] = {
    "validation_images": ValidationImages,
    "interruption": GracefulInterruption,
    "importance_refresh": ImportanceRefresh,
    "temperature": TemperatureDecay,
    "elastic_validation": ElasticValidation,
    "replica_check": ReplicaCheck,
    "checkpoint": Checkpointing,
}
"""Callbacks that have options, by the name of these in a config."""

DEFAULTS: tuple[type[Callback], ...] = (
    *(kind for kind in WITH_OPTIONS.values() if kind is not Checkpointing),
    IterationAxis,
    ThroughputLogger,
    TrainingClock,
    TestReport,
    TensorBoardPages,
    RateDistortion,
)
"""Of every training, beside ``Checkpointing`` and ``TrainingProgress``, which replace Lightning's own."""

__all__ = [
    "DEFAULTS",
    "WITH_OPTIONS",
    "Checkpointing",
    "ElasticValidation",
    "GracefulInterruption",
    "ImportanceRefresh",
    "IterationAxis",
    "RateDistortion",
    "ReplicaCheck",
    "SafeCheckpointIO",
    "TemperatureDecay",
    "TensorBoardPages",
    "TestReport",
    "ThroughputLogger",
    "TrainingClock",
    "TrainingProgress",
    "ValidationImages",
]
