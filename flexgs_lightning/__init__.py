"""Elastic 3D Gaussian Splatting: train once, deploy at any size."""

import os
from typing import TYPE_CHECKING, Any

# GNU OpenMP threads spin at barriers by default; with torch's and numba's pools on shared cores that
# costs up to 35 times the work itself. It only has an effect before torch loads, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from flexgs_lightning.model.checkpoint import Model, load
    from flexgs_lightning.rendering.rasterizer import rasterize
    from flexgs_lightning.rendering.types import Outputs, Rendering

__all__ = ["Model", "Outputs", "Rendering", "load", "rasterize"]
_HOMES = {
    "Model": "flexgs_lightning.model.checkpoint",
    "load": "flexgs_lightning.model.checkpoint",
    "Outputs": "flexgs_lightning.rendering.types",
    "Rendering": "flexgs_lightning.rendering.types",
    "rasterize": "flexgs_lightning.rendering.rasterizer",
}


def __getattr__(name: str) -> Any:
    """Import public names when first used, so that ``import flexgs_lightning`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flexgs_lightning' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
