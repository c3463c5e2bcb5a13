"""The demo film: the demo scene with what moves in it, filmed by cameras on an arc, with a table of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from flexgs_lightning.demo.capture import (
    FOCAL,
    WORLD_FROM_SCENE,
    find_tracks,
    look_at,
    require_empty,
    world_to_camera,
)
from flexgs_lightning.demo.garden import playing_garden
from flexgs_lightning.demo.photography import FixedCamera, Photo
from flexgs_lightning.demo.ray_tracer import Pinhole
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path

logger = logging.getLogger(__name__)

LEAST_CAMERAS = 4
"""One is held out, and points need three."""
POINTS_EVERY = 10
"""Frames from one that has points to the next."""
ARC = np.radians(40.0)
"""Between the outermost cameras, as seen from the table."""


def write_demo_film(
    root: Path,
    *,
    frames: int = 60,
    cameras: int = 9,
    width: int = 240,
    height: int = 136,
    fps: float = 30.0,
    points_per_view: int = 60,
    seed: int = 0,
) -> None:
    """Write the demo film: ``cameras.json``, ``frames/camNN/NNNN.png`` and ``points/NNNN.npy``.

    The camera in the middle is cam00, which is held out. The folder appears complete or not at all. The same
    arguments give the same files.

    Args:
        root: folder to create; it must not exist, or be empty.
        frames: of each camera.
        cameras: number of them, at least 4.
        width: of a frame in pixels.
        height: of a frame in pixels.
        fps: frames a second.
        points_per_view: keypoints looked for in each photo of every tenth moment.
        seed: seed of textures, plants and the noise.

    Raises:
        InputError: ``root`` holds files already, or cannot be written; too few cameras, frames or pixels.
    """
    require_empty(root)
    if cameras < LEAST_CAMERAS or frames < 1 or min(width, height) < 16 or not fps > 0:
        raise InputError(
            f"demo film: expected at least {LEAST_CAMERAS} cameras of at least 16x16 pixels and 1 frame, "
            f"found {cameras} of {width}x{height} and {frames} at {fps:g} a second."
        )
    rng, (still, moving) = np.random.default_rng(seed), playing_garden(seed)
    rig = arc(cameras, width, height)
    with atomic_path(root) as folder:
        for name in rig:
            (folder / "frames" / name).mkdir(parents=True)
        (folder / "points").mkdir()
        filming = {name: FixedCamera(camera, still) for name, camera in rig.items()}
        for number in tqdm(range(frames), desc="Filming the demo scene", unit="moment"):
            moment = moving(number / fps)
            photos = {name: camera.photograph(moment) for name, camera in filming.items()}
            for name, photo in photos.items():
                Image.fromarray(photo.image).save(folder / "frames" / name / f"{number:04d}.png")
            if number % POINTS_EVERY == 0:
                points = _points(rng, list(rig.values()), list(photos.values()), points_per_view)
                np.save(folder / "points" / f"{number:04d}.npy", points)
        table = {"fps": fps, "frames": frames, "cameras": [_entry(*camera) for camera in rig.items()]}
        (folder / "cameras.json").write_text(json.dumps(table, indent=1) + "\n")
    logger.info("Demo film: %d cameras, %d frames in %s", cameras, frames, root)


def arc(count: int, width: int, height: int) -> dict[str, Pinhole]:
    """Cameras by name, alternately high and low on an arc around the table; cam00 in the middle of it."""
    angles = ARC * (np.arange(count) / (count - 1) - 0.5)
    nearest_first = np.argsort(np.abs(angles), kind="stable")
    rig: dict[str, Pinhole] = {}
    for place in sorted(range(count), key=lambda i: (i != nearest_first[0], i)):
        azimuth, eye = np.radians(-70.0) + angles[place], 1.35 + 0.25 * (-1) ** place
        center = np.array([2.7 * np.cos(azimuth), 2.7 * np.sin(azimuth), eye])
        rotation = look_at(center, np.array([0.0, 0.0, 0.95]))
        rig[f"cam{len(rig):02d}"] = Pinhole(rotation, center, FOCAL * width, width, height)
    return rig


def _points(
    rng: np.random.Generator, cameras: Sequence[Pinhole], photos: Sequence[Photo], points_per_view: int
) -> np.ndarray:
    """[P, 6] positions and colours of a moment's points."""
    tracks = find_tracks(rng, cameras, photos, points_per_view)
    return np.column_stack([(WORLD_FROM_SCENE @ tracks.points).T, tracks.colors]).astype(np.float32)


def _entry(name: str, camera: Pinhole) -> dict[str, object]:
    return {
        "name": name,
        "width": camera.width,
        "height": camera.height,
        "fx": camera.focal,
        "fy": camera.focal,
        "cx": camera.width / 2,
        "cy": camera.height / 2,
        "w2c": world_to_camera(camera).tolist(),
        "split": "test" if name == "cam00" else "train",
    }
