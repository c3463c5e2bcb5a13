"""A COLMAP model of cameras that stand still, with a folder of frames or a video for each of them.

The model has one image for each camera, of any moment: ``cam00.png`` or ``cam00/0000.png`` stands for camera
``cam00``, whose frames lie in ``frames/cam00/`` or ``videos/cam00.mp4`` (``sequences.find_frames``).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.colmap import read_points
from flexgs_lightning.data.colmap_files import find_model, read_model, registered_images
from flexgs_lightning.data.film import FilmCamera, film_capture
from flexgs_lightning.data.film_points import read_film_points
from flexgs_lightning.data.photos import ReadOptions
from flexgs_lightning.data.sequences import find_frames
from flexgs_lightning.errors import InputError

_SAME_POSE = 1e-3
"""Largest difference between two images of one camera that stands still, in entries of the pose."""


def read_colmap_film(root: Path, options: ReadOptions) -> Capture:
    """Read such a folder. The model's points are used unless there are points of frames.

    Args:
        root: the folder.
        options: frames are reduced by an area filter; every n-th camera by name is held out, starting with
            the first; folders of images and masks are not used.

    Raises:
        InputError: see ``read_colmap``; a camera that moves or has no usable frames.
    """
    every = options.test_every
    folder = find_model(root)
    model = read_model(folder)
    poses: dict[str, np.ndarray] = {}
    calibrated = {}
    for image in registered_images(model):
        camera, pose = _camera_name(image.name), np.asarray(image.cam_from_world().matrix())
        if np.abs(poses.setdefault(camera, pose) - pose).max() > _SAME_POSE:
            raise InputError(
                f"{folder}: camera {camera} moves (see {image.name}), expected one pose for each camera."
            )
        calibrated[camera] = model.cameras[image.camera_id]
    cameras = [
        FilmCamera.fit(
            camera,
            find_frames(root, camera),
            poses[camera],
            calibrated[camera],
            downscale=options.downscale,
            held_out=every > 0 and i % every == 0,
        )
        for i, camera in enumerate(sorted(poses))
    ]
    if not cameras:
        raise InputError(f"{folder}: found no registered images, expected one for each camera.")
    points = read_film_points(root, min(len(camera.frames) for camera in cameras))
    points = points if len(points) else read_points(model, folder)
    return film_capture(cameras, root=root, name=options.name_of(root), points=points)


def _camera_name(image: str) -> str:
    path = PurePosixPath(image)
    return path.parts[0] if len(path.parts) > 1 else path.stem
