"""A small COLMAP folder rewritten as the producers of ``transforms.json`` write theirs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from colmap_folder import Folder, write_capture
from PIL import Image

DISTORTION = {
    "PINHOLE": (),
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}
"""Names of the parameters after the pinhole's."""
WORLD = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
"""How nerfstudio turns COLMAP's world: its ``applied_transform``."""


def camera_fields(camera: pycolmap.Camera) -> dict[str, Any]:
    names = ("fl_x", "fl_y", "cx", "cy", *DISTORTION[camera.model_name])
    params = dict(zip(names, camera.params.tolist(), strict=False))
    return {"camera_model": camera.model_name, "w": camera.width, "h": camera.height, **params}


def frames(folder: Folder, world: np.ndarray) -> list[dict[str, Any]]:
    """Each photo with its camera-to-world matrix, OpenGL's axes."""
    found = []
    for name in folder.names:
        image = folder.model.find_image_with_name(name)
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        matrix = world @ pose @ np.diag([1.0, -1, -1, 1])
        found.append({"file_path": f"images/{name}", "transform_matrix": matrix.tolist()})
    return found


def as_nerfstudio(folder: Folder, world: np.ndarray = WORLD) -> dict[str, Any]:
    """Replace the model by ``transforms.json`` and ``sparse_pc.ply``; returns the content."""
    content = camera_fields(folder.model.cameras[1]) | {
        "frames": frames(folder, world),
        "applied_transform": world[:3].tolist(),
        "ply_file_path": "sparse_pc.ply",
    }
    points = [point for _, point in sorted(folder.model.points3D.items())]
    lines = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uint8 {color}" for color in ("red", "green", "blue")] + ["end_header"]
    for point in points:
        place = world[:3, :3] @ point.xyz
        lines.append(" ".join(map(str, [*place.tolist(), *point.color.tolist()])))
    (folder.root / "sparse_pc.ply").write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder.root / "sparse")
    return save(folder.root, content)


def save(root: Path, content: dict[str, Any], name: str = "transforms.json") -> dict[str, Any]:
    (root / name).write_text(json.dumps(content))
    return content


def write_blender(root: Path, splits: dict[str, int], *, times: bool = False) -> Folder:
    """Photos with alpha in a folder for each split, named without their ending."""
    folder = write_capture(root, count=sum(splits.values()))
    everything, taken = frames(folder, np.eye(4)), 0
    for split, count in splits.items():
        (root / split).mkdir()
        chosen = everything[taken : taken + count]
        taken += count
        for i, frame in enumerate(chosen):
            photo = Image.open(root / frame["file_path"]).convert("RGBA")
            photo.putalpha(Image.linear_gradient("L").resize(photo.size))
            photo.save(root / split / f"r_{i:03d}.png")
            frame |= {"file_path": f"./{split}/r_{i:03d}", "rotation": 0.01}
            frame |= {"time": i / max(count - 1, 1)} if times else {}
        angle = 2 * math.atan(161 / 300)
        save(root, {"camera_angle_x": angle, "frames": chosen}, f"transforms_{split}.json")
    shutil.rmtree(root / "sparse")
    shutil.rmtree(root / "images")
    return folder
