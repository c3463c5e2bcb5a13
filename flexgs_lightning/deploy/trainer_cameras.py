"""``cameras.json`` as the original 3DGS writes it beside its models, and most trainers since.

A list with an entry for each photo, also of those that training did not see::

    [{"id": 0, "img_name": "DSC07956", "width": 1280, "height": 853, "position": [x, y, z],
      "rotation": [[…], […], […]], "fy": 1040.0, "fx": 1040.0}, …]

``position`` is the camera's centre in the world, ``rotation`` [3, 3] maps its axes (OpenCV's, as in
``cameras``) to the world's, and focal lengths are in pixels. The format has no principal point: cameras look
through the middle of the image. Source: ``camera_to_JSON`` of the code published with Kerbl et al. 2023; its
models are folders with ``cameras.json`` and ``point_cloud/iteration_30000/point_cloud.ply``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import View
from flexgs_lightning.data.photos import MIN_VIEWS
from flexgs_lightning.deploy.path_file import LARGEST_NUMBER, LARGEST_SIDE, ORTHONORMAL_WITHIN
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import read_json, shown

FILE = "cameras.json"
WIDEST = 1600
"""Pixels: to this width the original 3DGS reduces wider photos before it trains on them."""

_Side = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIDE)]
_Focal = Annotated[float, msgspec.Meta(ge=1e-3, le=LARGEST_NUMBER)]
_Coordinate = Annotated[float, msgspec.Meta(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
_Cosine = Annotated[float, msgspec.Meta(ge=-1 - ORTHONORMAL_WITHIN, le=1 + ORTHONORMAL_WITHIN)]
_Row = tuple[_Cosine, _Cosine, _Cosine]


class _Entry(msgspec.Struct):
    """One camera; see this module's description."""

    width: _Side
    height: _Side
    position: tuple[_Coordinate, _Coordinate, _Coordinate]
    rotation: tuple[_Row, _Row, _Row]
    fx: _Focal
    fy: _Focal
    img_name: str

    def camera(self) -> Cameras:
        """One camera (C = 1), on the CPU."""
        world_to_camera = np.array(self.rotation).T
        viewmat = np.eye(4)
        viewmat[:3, :3] = world_to_camera
        viewmat[:3, 3] = -world_to_camera @ np.array(self.position)
        K = [[self.fx, 0.0, self.width / 2], [0.0, self.fy, self.height / 2], [0.0, 0.0, 1.0]]
        matrices = (torch.from_numpy(viewmat).float()[None], torch.tensor([K]))
        return Cameras(*matrices, self.width, self.height)


def is_trainer_cameras(path: Path) -> bool:
    """Whether a JSON file is a list of such entries: others of its name are camera paths and tables of films.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    content = read_json(path, Any)
    keys = ("position", "rotation")
    return isinstance(content, list) and any(
        isinstance(entry, dict) and all(key in entry for key in keys) for entry in content
    )


def cameras_beside(splats: Path) -> Path | None:
    """The file that a trainer left with a splat file: in its folder, or at the top of a 3DGS model's.

    Raises:
        InputError: there is a file of this name that cannot be read, or is no JSON.
    """
    folder = splats.absolute().parent  # of a link its own, not that of what it leads to
    is_iteration = folder.name.startswith("iteration_") and folder.parent.name == "point_cloud"
    for place in (folder, folder.parents[1]) if is_iteration else (folder,):
        path = place / FILE
        if path.is_file() and is_trainer_cameras(path):
            return path
    return None


def read_trainer_cameras(path: Path) -> list[Cameras]:
    """The cameras (C = 1 each, on the CPU) by the photos' names: so 3DGS counts to hold out every eighth.

    Raises:
        InputError: it cannot be read, or is no JSON; an entry (which is named) lacks a field, has one of
            another type or a number that no camera has, or no rotation; too few cameras to train with.
    """
    entries = read_json(path, list[_Entry])
    rotations = np.array([entry.rotation for entry in entries]).reshape(-1, 3, 3)
    skews = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    for i in np.flatnonzero((skews > ORTHONORMAL_WITHIN) | (np.linalg.det(rotations) < 0)):
        raise InputError(
            f"{path}: [{i}].rotation: expected a rotation, found {shown(rotations[i].tolist())}."
        )
    if len(entries) < MIN_VIEWS:
        raise InputError(f"{path}: found {len(entries)} cameras, expected at least {MIN_VIEWS}.")
    return [entry.camera() for entry in sorted(entries, key=lambda entry: entry.img_name)]


def write_trainer_cameras(views: Sequence[View], path: Path) -> None:
    """Write the cameras of ``views``; principal points off the image's middle have no place in the file.

    Raises:
        InputError: the file cannot be written.
    """
    entries = []
    for i, view in enumerate(views):
        viewmat, K = view.camera.viewmats[0].double(), view.camera.Ks[0].tolist()
        rotation = viewmat[:3, :3].T
        entries.append(
            {
                "id": i,
                "img_name": view.name,
                "width": view.camera.width,
                "height": view.camera.height,
                "position": (-rotation @ viewmat[:3, 3]).tolist(),
                "rotation": rotation.tolist(),
                "fy": K[1][1],
                "fx": K[0][0],
            }
        )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(entries), encoding="utf-8")
