"""Elastic 3D Gaussian Splatting: train once, deploy at any size."""

import os
from typing import TYPE_CHECKING, Any

# GNU OpenMP threads spin at barriers by default; with torch's and numba's pools on shared cores that
# costs up to 35 times the work itself. It only has an effect before torch loads, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from flexgs_lightning.cameras import Cameras
    from flexgs_lightning.data.colmap import read_colmap
    from flexgs_lightning.data.datamodule import CaptureDataModule
    from flexgs_lightning.data.reading import read_capture
    from flexgs_lightning.model.checkpoint import Model, load
    from flexgs_lightning.model.elastic import ElasticOptions
    from flexgs_lightning.rendering.rasterizer import rasterize
    from flexgs_lightning.rendering.types import Outputs, Rendering
    from flexgs_lightning.splats import Splats
    from flexgs_lightning.training.compression import Compression, CompressionTraining
    from flexgs_lightning.training.densification import MCMC, AdaptiveDensityControl
    from flexgs_lightning.training.elastic import ElasticTraining
    from flexgs_lightning.training.module import FlexGSModule
    from flexgs_lightning.training.optimization import LearningRates
    from flexgs_lightning.training.parallel import ReplicaStrategy
    from flexgs_lightning.training.run import TrainingRun
    from flexgs_lightning.training.sharding import ShardStrategy

__all__ = [
    "MCMC",
    "AdaptiveDensityControl",
    "Cameras",
    "CaptureDataModule",
    "Compression",
    "CompressionTraining",
    "ElasticOptions",
    "ElasticTraining",
    "FlexGSModule",
    "LearningRates",
    "Model",
    "Outputs",
    "Rendering",
    "ReplicaStrategy",
    "ShardStrategy",
    "Splats",
    "TrainingRun",
    "load",
    "rasterize",
    "read_capture",
    "read_colmap",
]
_HOMES = {
    "MCMC": "training.densification",
    "AdaptiveDensityControl": "training.densification",
    "Cameras": "cameras",
    "CaptureDataModule": "data.datamodule",
    "Compression": "training.compression",
    "CompressionTraining": "training.compression",
    "ElasticOptions": "model.elastic",
    "ElasticTraining": "training.elastic",
    "FlexGSModule": "training.module",
    "LearningRates": "training.optimization",
    "Model": "model.checkpoint",
    "Outputs": "rendering.types",
    "Rendering": "rendering.types",
    "ReplicaStrategy": "training.parallel",
    "ShardStrategy": "training.sharding",
    "Splats": "splats",
    "TrainingRun": "training.run",
    "load": "model.checkpoint",
    "rasterize": "rendering.rasterizer",
    "read_capture": "data.reading",
    "read_colmap": "data.colmap",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    """Import public names when first used, so that ``import flexgs_lightning`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flexgs_lightning' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"flexgs_lightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """What completion in a notebook offers."""
    return sorted([*globals(), *__all__])
