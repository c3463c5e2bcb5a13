"""Tiny videos and filmed captures with known pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pycolmap
from PIL import Image

SIZE = (96, 64)
"""Width and height of a frame."""


def numbered_frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that tells its number: eight vertical bars, bright where a bit is set, and a moving edge."""
    width, height = size
    frame = np.full((height, width, 3), (60, 90, 120), np.uint8)
    for bit in range(8):
        left, right = bit * width // 8, (bit + 1) * width // 8
        frame[: height // 2, left:right] = 230 if number >> bit & 1 else 20
    frame[height // 2 :, : 2 + 2 * number % width] = (200, 60, 40)
    return frame


def number_in(frame: np.ndarray) -> int:
    """What ``numbered_frame`` wrote, however badly it was compressed."""
    height, width = frame.shape[:2]
    bars = [frame[height // 4, (2 * bit + 1) * width // 16].mean() > 125 for bit in range(8)]
    return sum(int(bright) << bit for bit, bright in enumerate(bars))


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: int = 30,
    group: int = 8,
    codec: str = "libx264",
    timestamps: Sequence[int] | None = None,
    **options: str,
) -> Path:
    """Encode frames; ``timestamps`` are in frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = group
        stream.codec_context.thread_count = 1
        stream.options = options
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = i if timestamps is None else timestamps[i]
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


NAMES = ("cam00", "cam01", "cam02", "cam03")
FRAMES = 12
FOCAL = 80.0


def pose_of(index: int) -> np.ndarray:
    """[3, 4] world-to-camera of a camera on an arc around the origin, three units away, level."""
    angle = 0.4 * (index - 1.5)
    right = np.array([np.cos(angle), 0.0, np.sin(angle)])
    forward = np.array([-np.sin(angle), 0.0, np.cos(angle)])
    rotation = np.stack([right, [0.0, 1.0, 0.0], forward])
    return np.concatenate([rotation, [[0.0], [0.0], [3.0]]], axis=1)


def write_images(folder: Path, frames: Sequence[np.ndarray], first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / f"{number:04d}.png")


def write_table(root: Path, names: Sequence[str] = NAMES, **fields: Any) -> dict[str, Any]:
    """``cameras.json`` with the last camera as test camera; returns what it holds."""
    width, height = SIZE
    cameras = [
        {
            "name": name,
            "width": width,
            "height": height,
            "fx": FOCAL,
            "fy": FOCAL,
            "cx": width / 2 + 1,
            "cy": height / 2 - 1,
            "distortion": [],
            "w2c": pose_of(i).tolist(),
            "split": "test" if i == len(names) - 1 else "train",
        }
        for i, name in enumerate(names)
    ]
    table = {"fps": 30, "cameras": cameras, **fields}
    root.mkdir(parents=True, exist_ok=True)
    (root / "cameras.json").write_text(json.dumps(table))
    return table


def write_film(root: Path, *, video: bool = False, count: int = FRAMES) -> Path:
    """A filmed capture with ``cameras.json``: camera i's frame k tells the number 16 i + k."""
    write_table(root)
    for i, name in enumerate(NAMES):
        frames = [numbered_frame(16 * i + k) for k in range(count)]
        if video:
            write_video(root / "videos" / f"{name}.mp4", frames)
        else:
            write_images(root / "frames" / name, frames)
    points = np.random.default_rng(0).normal(0, 0.4, (50, 3)).astype(np.float32)
    np.save(root / "points.npy", points)
    np.save(root / "points_rgb.npy", np.full((50, 3), 99, np.uint8))
    return root


def write_colmap_film(root: Path, names: dict[str, int]) -> None:
    """A COLMAP model with an image of each camera, and three points."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        model="PINHOLE", width=SIZE[0], height=SIZE[1], params=[FOCAL, FOCAL, 48, 32], camera_id=1
    )
    model.add_camera_with_trivial_rig(camera)
    for number, (name, index) in enumerate(names.items(), 1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose_of(index)))
    for x in range(3):
        model.add_point3D([x, 0, 0], pycolmap.Track(), [10, 20, 30])
    (root / "sparse" / "0").mkdir(parents=True)
    model.write(root / "sparse" / "0")
    for i, name in enumerate(NAMES):
        write_images(root / "frames" / name, [numbered_frame(16 * i + k) for k in range(4)], first=100)


def llff_rows() -> np.ndarray:
    """[4, 17] of ``poses_bounds.npy``, as its authors state them."""
    rows = []
    for i in range(len(NAMES)):
        pose = pose_of(i)
        right, down, forward = pose[:, :3]
        centre = -pose[:, :3].T @ pose[:, 3]
        columns = np.stack([down, right, -forward, centre, [SIZE[1], SIZE[0], FOCAL]], axis=1)
        rows.append([*columns.ravel(), 1.0, 9.0])
    return np.array(rows)
