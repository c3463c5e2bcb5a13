"""Opening what the deploy commands draw: a checkpoint or a splat file, its capture, and the device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import NEAR_PLANE, Cameras
from flexgs_lightning.codec.decoder import SUFFIX
from flexgs_lightning.codec.film import facts_of, read_film
from flexgs_lightning.codec.film_model import model_of_film
from flexgs_lightning.data.capture import TEST_EVERY, Capture, View
from flexgs_lightning.data.colmap import read_colmap_cameras
from flexgs_lightning.data.datamodule import INVENTED_VIEWS, VIEW_SIZE
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.data.transforms import has_transforms, read_transforms_cameras
from flexgs_lightning.deploy.formats.registry import is_splat_file, read_splats
from flexgs_lightning.deploy.groups import open_groups
from flexgs_lightning.deploy.path_file import read_path
from flexgs_lightning.deploy.trainer_cameras import FILE, is_trainer_cameras, read_trainer_cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model, load
from flexgs_lightning.teacher.capture import scene_capture
from flexgs_lightning.teacher.vantage_points import Lens, invent_cameras, of_size

_CAPTURE_OPTIONS = ("downscale", "test_every", "images", "masks", "frames", "near_plane")


def open_model(ckpt: Path | None, ply: Path | None) -> Model:
    """Open a checkpoint (or what ``load_any`` takes in its place) or a splat file.

    Raises:
        InputError: both or neither given; see ``load_any`` and ``read_splats``.
    """
    if ckpt is not None and ply is None:
        return load_any(ckpt)
    if ply is not None and ckpt is None:
        return _model_of_splats(ply)
    raise InputError(f"expected either --ckpt or --ply, found {'both' if ckpt else 'neither'}.")


def _model_of_splats(path: Path) -> Model:
    file = read_splats(path)
    return Model.of_splats(file.splats, path.stem, file.antialiased)


def open_model_file(path: Path) -> Model:
    """Open a splat file by its name's ending, or else a checkpoint or an elastic file.

    Raises:
        InputError: see ``load_any`` and ``read_splats``.
    """
    return _model_of_splats(path) if is_splat_file(path) else load_any(path)


def load_any(path: Path) -> Model:
    """Open a checkpoint, or an elastic file or a folder of groups of frames in its place.

    Raises:
        InputError: see ``load``, ``read_film`` and ``open_groups``.
    """
    if path.is_dir():
        return open_groups(path)
    if path.suffix.lower() != SUFFIX:
        return load(path)
    model = model_of_film(read_film(path), path.stem)
    near = facts_of(path).get("near_plane")
    if isinstance(near, float | int) and 0 < near < math.inf:
        return replace(model, data={"near_plane": float(near)})
    return model


def open_start(path: Path) -> Model:
    """What a training starts from: the full scene of a checkpoint, or of a splat file by its name's ending.

    Raises:
        InputError: see ``load`` and ``read_splats``; the scene moves and is not one checkpoint's of the first
            stage.
    """
    model = open_model_file(path)
    if not model.moves:
        return Model.of_splats(model.splats(), model.name, model.antialiased)
    if model.elastic or path.suffix.lower() == SUFFIX:
        raise InputError(
            f"{path}: expected a scene that stands still, or a moving one of the first stage, to start from, "
            "found an elastic one that moves. Its training goes on with --ckpt_path; flexgs export --time "
            "writes one moment of it."
        )
    return model


def given(**options: Any) -> dict[str, Any]:
    """Those options that are: the others stay as ``Model.data`` has them."""
    return {name: value for name, value in options.items() if value is not None}


def open_capture(data: dict[str, Any]) -> Capture:
    """Read the capture that ``Model.data`` names; a trained scene in place of photos takes its own.

    Raises:
        InputError: see ``read_capture``, ``open_model_file``, ``read_cameras`` and
            ``invent_cameras``; cameras that are all held out.
    """
    if Path(data["root"]).is_file():
        return _scene_capture(data)
    return read_capture(data["root"], **{name: data[name] for name in _CAPTURE_OPTIONS if name in data})


def _scene_capture(data: dict[str, Any]) -> Capture:
    """What a trained scene shows from given or invented cameras."""
    model, downscale = open_model_file(Path(data["root"])), data.get("downscale") or 1
    splats = model.splats().detach().to(choose_device("auto"))
    if data.get("cameras"):
        cameras = read_cameras(Path(data["cameras"]), downscale)
    else:
        lens = Lens.of_size(max(1, data.get("view_size", VIEW_SIZE) // downscale))
        invented = _kept_cameras(data, lens) or invent_cameras(
            splats, _invented_views(data), lens, antialiased=model.antialiased
        )
        cameras = [invented[i] for i in range(len(invented))]
    cameras = [replace(camera, near_plane=data.get("near_plane") or NEAR_PLANE) for camera in cameras]
    capture = scene_capture(
        splats,
        cameras,
        name=data.get("name") or model.name,
        antialiased=model.antialiased,
        test_every=data.get("test_every", TEST_EVERY),
    )
    if not capture.train_views:
        raise InputError(
            f"{data.get('cameras') or 'data.views'}: all {len(cameras)} cameras are held out by "
            f"data.test_every {capture.test_every}; expected one to train with."
        )
    return capture


def _invented_views(data: dict[str, Any]) -> int:
    return int(data.get("views", INVENTED_VIEWS))


def _kept_cameras(data: dict[str, Any], lens: Lens) -> Cameras | None:
    """Those that a training invented before, as many as are wanted, for pictures of the size wanted now."""
    kept = data.get("kept_cameras")
    if kept is None or not Path(kept).is_file():
        return None
    cameras = read_path(kept)
    return of_size(cameras, lens.width) if len(cameras) == _invented_views(data) else None


def read_cameras(path: Path, downscale: int = 1) -> list[Cameras]:
    """Cameras alone (C = 1 each): of a capture's or a 3DGS model's folder, whose photos need not be there, or
    of one file.

    Raises:
        InputError: neither; see ``read_colmap_cameras``, ``read_transforms_cameras``,
            ``read_trainer_cameras`` and ``read_path``.
    """
    if path.is_dir():
        if has_transforms(path):
            return read_transforms_cameras(path, downscale)
        if not ((path / FILE).is_file() and is_trainer_cameras(path / FILE)):
            return read_colmap_cameras(path, downscale)
        path = path / FILE
    if path.name.startswith("transforms"):
        return read_transforms_cameras(path, downscale)
    if is_trainer_cameras(path):
        cameras = read_trainer_cameras(path)
    else:
        frames = read_path(path)
        cameras = [frames[i] for i in range(len(frames))]
    sizes = [(max(1, each.width // downscale), max(1, each.height // downscale)) for each in cameras]
    return [each.resized(*size) for each, size in zip(cameras, sizes, strict=True)]


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
