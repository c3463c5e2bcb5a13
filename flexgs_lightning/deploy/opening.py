"""Opening what the deploy commands draw: a checkpoint or a PLY file, its capture, and the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.ply import read_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.splats import Splats

_CAPTURE_OPTIONS = ("downscale", "test_every", "images", "masks")


class ElasticModel(Protocol):
    """What can be drawn at a ratio of its Gaussians; ``checkpoint.Model`` is one."""

    def __len__(self) -> int:
        """Gaussians in the full model."""
        ...

    @property
    def elastic(self) -> bool:
        """Whether ``at`` takes ratios below 1."""
        ...

    def at(self, ratio: float) -> Splats:
        """Exactly ``budget.count_at(ratio, len(self))`` Gaussians, ready to draw.

        Raises:
            InputError: the ratio lies outside (0, 1], or below 1 where the model is not elastic.
        """
        ...


@dataclass(frozen=True)
class OneSize:
    """Splats that were not trained to be drawn in part: a PLY file or a plain reconstruction."""

    splats: Splats

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.splats)

    @property
    def elastic(self) -> bool:
        """False."""
        return False

    def at(self, ratio: float) -> Splats:
        """All of them, at ratio 1."""
        if ratio != 1.0:
            raise InputError(f"ratio: expected 1, found {ratio}: the scene is not an elastic model.")
        return self.splats


@dataclass(frozen=True)
class Scene:
    """What is drawn, and what its file says about how.

    Attributes:
        name: short name for people.
        model: the Gaussians.
        background: [3] colour behind them.
        antialiased: see ``rasterize``.
        data: options of the capture that it was trained on (``root``, ``downscale``, …); empty for PLY files.
    """

    name: str
    model: ElasticModel
    background: Float[Tensor, " 3"]
    antialiased: bool
    data: dict[str, Any]


def open_scene(ckpt: Path | None, ply: Path | None) -> Scene:
    """Open a checkpoint or a PLY file.

    Raises:
        InputError: both or neither given; see ``load`` and ``read_ply``.
    """
    if ckpt is not None and ply is None:
        model = load(ckpt)
        name = Path(model.data["root"]).name if model.data.get("root") else ckpt.stem
        return Scene(name, model, model.background, model.antialiased, model.data)
    if ply is not None and ckpt is None:
        return Scene(ply.stem, OneSize(read_ply(ply)), grey(0.0), False, {})
    raise InputError(f"expected either --ckpt or --ply, found {'both' if ckpt else 'neither'}.")


def open_capture(data: dict[str, Any]) -> Capture:
    """Read the capture that ``Scene.data`` names.

    Raises:
        InputError: see ``read_colmap``.
    """
    return read_colmap(data["root"], **{name: data[name] for name in _CAPTURE_OPTIONS if name in data})


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
