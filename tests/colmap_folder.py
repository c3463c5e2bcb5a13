"""Small COLMAP folders with known geometry: white blobs drawn where the camera model says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

POINTS = np.array([[x, y, 4.0 + 0.3 * x * y] for x in (-1.2, 0.0, 1.2) for y in (-0.8, 0.0, 0.8)])
"""World points, 9, spread over the view of every camera."""

MODELS = {
    "SIMPLE_PINHOLE": [150, 82, 58],
    "PINHOLE": [150, 155, 82, 58],
    "SIMPLE_RADIAL": [150, 82, 58, -0.12],
    "RADIAL": [150, 82, 58, 0.1, 0.03],
    "OPENCV": [150, 155, 82, 58, -0.1, 0.02, 0.004, -0.003],
    "FULL_OPENCV": [150, 155, 82, 58, -0.1, 0.02, 0.004, -0.003, 0.01, 0.02, 0.01, 0.0],
    "OPENCV_FISHEYE": [150, 155, 82, 58, 0.03, -0.01, 0.002, 0.001],
    "SIMPLE_RADIAL_FISHEYE": [150, 82, 58, 0.0],
    "RADIAL_FISHEYE": [150, 82, 58, 0.04, -0.01],
    "FOV": [150, 155, 82, 58, 0.8],
    "DIVISION": [150, 155, 82, 58, -0.1],
    "EUCM": [150, 155, 82, 58, 0.6, 1.0],
    "THIN_PRISM_FISHEYE": [150, 155, 82, 58, 0.03, -0.01, 0.002, -0.002, 0.001, 0.0, 0.002, -0.001],
}
"""Parameters for a photo of 161x121 pixels, principal point off the centre."""
MODELS = {name: MODELS[name] for name in MODELS if name in pycolmap.CameraModelId.__members__}


@dataclass
class Folder:
    """A capture on disk and what was drawn into it."""

    root: Path
    model: pycolmap.Reconstruction
    names: list[str]

    @property
    def sparse(self) -> Path:
        return self.root / "sparse" / "0"

    def image(self, name: str) -> Path:
        return self.root / "images" / name


def write_capture(
    root: Path,
    camera_model: str = "PINHOLE",
    *,
    size: tuple[int, int] = (161, 121),
    count: int = 4,
    binary: bool = True,
    names: list[str] | None = None,
    points: bool = True,
) -> Folder:
    """Write ``images/`` and ``sparse/0`` for cameras on a short arc that look along +z."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        camera_id=1, model=camera_model, width=size[0], height=size[1], params=MODELS[camera_model]
    )
    model.add_camera_with_trivial_rig(camera)
    names = names or [f"photo_{i:02d}.png" for i in range(count)]
    for i, name in enumerate(names):
        image = pycolmap.Image(name=name, camera_id=1, image_id=i + 1)
        rotation = pycolmap.Rotation3d(np.array([0.0, 0.05 * (i - 1), 0.02 * i]))
        pose = pycolmap.Rigid3d(rotation, np.array([0.1 * i, -0.05 * i, 0.2]))
        model.add_image_with_trivial_frame(image, pose)
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = draw(camera, pose.matrix(), i)
        Image.fromarray(photo).save(path)
    if points:
        for i, xyz in enumerate(POINTS):
            model.add_point3D(xyz, pycolmap.Track(), np.array([10 * i, 20, 30], np.uint8))
    folder = Folder(root, model, sorted(names))
    folder.sparse.mkdir(parents=True, exist_ok=True)
    (model.write_binary if binary else model.write_text)(str(folder.sparse))
    return folder


def draw(camera: pycolmap.Camera, pose: np.ndarray, seed: int, sigma: float = 1.6) -> np.ndarray:
    """White blobs at the projections of ``POINTS`` on dark ground that differs by ``seed``."""
    ground = 10.0 + 5.0 * (seed % 4)
    projected = camera.img_from_cam(POINTS @ pose[:, :3].T + pose[:, 3])
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    photo = np.full(x.shape, ground)
    for u, v in projected:
        photo += (250 - ground) * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
    return np.repeat(np.clip(np.round(photo), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def blob_centre(image: np.ndarray, near: np.ndarray, radius: float = 6.0) -> np.ndarray:
    """Brightness-weighted centre (x, y) of the blob around ``near``, in pixels."""
    grey = image[..., :3].mean(axis=-1)
    x, y = np.meshgrid(np.arange(grey.shape[1]) + 0.5, np.arange(grey.shape[0]) + 0.5)
    weight = (grey - np.median(grey)).clip(0) * ((x - near[0]) ** 2 + (y - near[1]) ** 2 < radius**2)
    assert weight.sum() > 0, f"no blob near {near}"
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
