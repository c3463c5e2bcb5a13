"""Opening what the deploy commands draw: a checkpoint or a splat file, its capture, and the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.codec.conversion import model_of
from flexgs_lightning.codec.decoder import SUFFIX, read_elastic
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.formats.registry import is_splat_file, read_splats
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model, load
from flexgs_lightning.splats import Splats

_CAPTURE_OPTIONS = ("downscale", "test_every", "images", "masks", "frames")


def open_model(ckpt: Path | None, ply: Path | None) -> Model:
    """Open a checkpoint (or an elastic file in its place) or a splat file.

    Raises:
        InputError: both or neither given; see ``load_any`` and ``read_splats``.
    """
    if ckpt is not None and ply is None:
        return load_any(ckpt)
    if ply is not None and ckpt is None:
        file = read_splats(ply)
        return Model.of_splats(file.splats, ply.stem, file.antialiased)
    raise InputError(f"expected either --ckpt or --ply, found {'both' if ckpt else 'neither'}.")


def load_any(path: Path) -> Model:
    """Open a checkpoint, or an elastic file in its place.

    Raises:
        InputError: see ``load`` and ``read_elastic``.
    """
    return model_of(read_elastic(path), path.stem) if path.suffix.lower() == SUFFIX else load(path)


def open_splats(path: Path) -> Splats:
    """The full scene of a checkpoint, or of a splat file by its name's ending.

    Raises:
        InputError: see ``load`` and ``read_splats``.
    """
    return read_splats(path).splats if is_splat_file(path) else load_any(path).splats()


def open_capture(data: dict[str, Any]) -> Capture:
    """Read the capture that ``Model.data`` names.

    Raises:
        InputError: see ``read_capture``.
    """
    return read_capture(data["root"], **{name: data[name] for name in _CAPTURE_OPTIONS if name in data})


def one_size(views: Sequence[View]) -> Cameras:
    """All cameras as one batch, at the size that most of them have."""
    sizes = Counter((view.camera.width, view.camera.height) for view in views)
    (width, height), _ = sizes.most_common(1)[0]
    return Cameras.stack([view.camera.resized(width, height) for view in views])


def grey(level: float) -> Float[Tensor, " 3"]:
    """A colour without hue: 0 is black, 1 white."""
    return torch.full((3,), float(level))


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is a device.

    Raises:
        InputError: ``cuda`` where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device that torch can use.")
    return torch.device(name)
