"""What happens beside the training step: saving, showing, reporting."""

from flexgs_lightning.training.callbacks.checkpointing import Checkpointing
from flexgs_lightning.training.callbacks.clock import TrainingClock
from flexgs_lightning.training.callbacks.elastic_schedule import ImportanceRefresh, TemperatureDecay
from flexgs_lightning.training.callbacks.elastic_validation import ElasticValidation
from flexgs_lightning.training.callbacks.interruption import GracefulInterruption
from flexgs_lightning.training.callbacks.progress import IterationAxis, ThroughputLogger, TrainingProgress
from flexgs_lightning.training.callbacks.replica_check import ReplicaCheck
from flexgs_lightning.training.callbacks.tensorboard import TensorBoardPages
from flexgs_lightning.training.callbacks.test_report import TestReport
from flexgs_lightning.training.callbacks.validation_images import ValidationImages

__all__ = [
    "Checkpointing",
    "ElasticValidation",
    "GracefulInterruption",
    "ImportanceRefresh",
    "IterationAxis",
    "ReplicaCheck",
    "TemperatureDecay",
    "TensorBoardPages",
    "TestReport",
    "ThroughputLogger",
    "TrainingClock",
    "TrainingProgress",
    "ValidationImages",
]
