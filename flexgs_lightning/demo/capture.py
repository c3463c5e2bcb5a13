"""The demo capture: a synthetic scene, photographed and written as an ordinary COLMAP folder.

It holds what structure from motion would have given: photos, cameras, and surface points with the noise of
triangulation and with tracks. Whoever reads the folder cannot tell, and need not know, that it is synthetic.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from tqdm import tqdm

from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.demo.garden import garden
from flexgs_lightning.demo.photography import Photo, photograph
from flexgs_lightning.demo.ray_tracer import SAMPLES, Pinhole
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path

logger = logging.getLogger(__name__)

WORLD_FROM_SCENE = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""The scene is built with z up; the capture's world has y down, as most COLMAP models nearly have."""
FOCAL = 0.85
"""Focal length relative to the image width: a horizontal field of view of 61 degrees."""
KEYPOINT_NOISE = 0.5
"""Standard deviation of a keypoint in pixels."""
BASELINE = 2.5
"""Distance in metres between views that see a point, typical of the walk: it sets the depth noise."""
MIN_TRACK = 3
"""Fewest views of a point."""
DETECTION_RATE = 0.7
"""How often a visible point is found in a view."""


def write_demo_capture(
    root: Path,
    *,
    views: int = 60,
    width: int = 320,
    height: int = 212,
    points_per_view: int = 160,
    seed: int = 0,
) -> None:
    """Write the demo capture: ``root/images/*.png`` and ``root/sparse/0`` in COLMAP's binary format.

    The folder appears complete or not at all. The same arguments give the same files.

    Args:
        root: folder to create; it must not exist, or be empty.
        views: number of photos, at least 3.
        width: image width in pixels.
        height: image height in pixels.
        points_per_view: keypoints looked for in each photo; most become points of the sparse model.
        seed: seed of textures, plants, the walk and the noise.

    Raises:
        InputError: ``root`` holds files already, or cannot be written; fewer than 3 views or no pixels.
    """
    require_empty(root)
    if views < MIN_TRACK or min(width, height) < 16:
        raise InputError(
            f"demo capture: expected at least {MIN_TRACK} views of at least 16x16 pixels, "
            f"found {views} of {width}x{height}."
        )
    rng = np.random.default_rng(seed)
    scene, cameras = garden(seed), walk(rng, views, width, height)
    with atomic_path(root) as folder:
        (folder / "images").mkdir(parents=True)
        photos = []
        for index, camera in enumerate(tqdm(cameras, desc="Photographing the demo scene", unit="view")):
            photos.append(photograph(scene, camera))
            Image.fromarray(photos[-1].image).save(folder / "images" / _name(index), compress_level=4)
        model = _sparse_model(rng, cameras, photos, points_per_view)
        (folder / "sparse" / "0").mkdir(parents=True)
        model.write_binary(folder / "sparse" / "0")
    logger.info("Demo capture: %d views, %d points in %s", views, model.num_points3D(), root)


def require_empty(root: Path) -> None:
    """Refuse to write over anything.

    Raises:
        InputError: ``root`` holds files already.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: expected a new or empty folder for the demo capture, found files in it.")


def _name(index: int) -> str:
    return f"{index:04d}.png"


def walk(rng: np.random.Generator, views: int, width: int, height: int) -> list[Pinhole]:
    """Two rounds about the table by hand: varying heights and distances, looking roughly at the centre."""
    cameras = []
    for progress in (np.arange(views) + 0.5) / views:
        azimuth = 2 * np.pi * (2 * progress + rng.normal(0, 0.006))
        distance = 2.5 + 0.45 * np.sin(2 * np.pi * 3 * progress + 1.0) + rng.normal(0, 0.06)
        eye_height = 1.42 + 0.40 * np.cos(2 * np.pi * 2.5 * progress) + rng.normal(0, 0.03)
        center = np.array([distance * np.cos(azimuth), distance * np.sin(azimuth), eye_height])
        target = np.array([0.0, 0.0, 0.72]) + rng.normal(0, 0.07, 3)
        rotation = look_at(center, target, roll=rng.normal(0, 0.02))
        cameras.append(Pinhole(rotation, center, FOCAL * width, width, height))
    return cameras


def look_at(
    center: Float[np.ndarray, " 3"], target: Float[np.ndarray, " 3"], roll: float = 0.0
) -> Float[np.ndarray, "3 3"]:
    """Scene-to-camera rotation with z towards ``target`` and y down, turned by ``roll`` radians."""
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward])


def world_to_camera(camera: Pinhole) -> Float[np.ndarray, "3 4"]:
    """Pose in the capture's world (OpenCV)."""
    return np.column_stack([camera.rotation @ WORLD_FROM_SCENE.T, -camera.rotation @ camera.center])


# --- points and tracks -------------------------------------------------------------------------------


def _sparse_model(
    rng: np.random.Generator, cameras: Sequence[Pinhole], photos: Sequence[Photo], points_per_view: int
) -> pycolmap.Reconstruction:
    """The points and their tracks as COLMAP has them."""
    tracks = find_tracks(rng, cameras, photos, points_per_view)
    return _reconstruction(cameras, tracks)


@dataclass(frozen=True)
class Tracks:
    """What structure from motion finds in V photos.

    Attributes:
        points: [3, P] positions in the scene, with the error of triangulation.
        colors: [P, 3] their mean colours.
        pixels: [V, 2, P] where each photo has them, with the error of a keypoint.
        found: [V, P] in which photos they were found.
    """

    points: Float[np.ndarray, "3 P"]
    colors: UInt8[np.ndarray, "P 3"]
    pixels: Float[np.ndarray, "V 2 P"]
    found: Bool[np.ndarray, "V P"]


def find_tracks(
    rng: np.random.Generator, cameras: Sequence[Pinhole], photos: Sequence[Photo], points_per_view: int
) -> Tracks:
    """Points and tracks as structure from motion finds them: on texture, in several views, with noise."""
    surface = np.concatenate(
        [_keypoints(rng, *pair, points_per_view) for pair in zip(cameras, photos, strict=True)], axis=1
    )
    found = np.stack([_visible(*pair, surface) for pair in zip(cameras, photos, strict=True)])
    found &= rng.random(found.shape) < DETECTION_RATE
    tracked = found.sum(axis=0) >= MIN_TRACK
    surface, found = surface[:, tracked], found[:, tracked]
    pixels = np.stack([np.stack(camera.project(surface)[:2]) for camera in cameras])  # [V, 2, P]
    pixels += rng.normal(0, KEYPOINT_NOISE, pixels.shape)
    triangulated = _triangulate(rng, cameras, surface, found)
    return Tracks(triangulated, _mean_colors(photos, pixels, found), pixels, found)


def _keypoints(
    rng: np.random.Generator, camera: Pinhole, photo: Photo, count: int
) -> Float[np.ndarray, "3 K"]:
    """Scene positions of samples of a photo, drawn where the picture has contrast."""
    luminance = photo.image.astype(np.float64).mean(axis=2)
    contrast = np.hypot(*np.gradient(luminance)) + 0.3
    likelihood = (contrast / contrast.sum()).ravel()
    chosen = rng.choice(contrast.size, min(count, contrast.size), replace=False, p=likelihood)
    row, column = np.divmod(chosen, camera.width)
    row = row * SAMPLES + rng.integers(0, SAMPLES, row.size)
    column = column * SAMPLES + rng.integers(0, SAMPLES, row.size)
    rays = camera.directions((column + 0.5) / SAMPLES, (row + 0.5) / SAMPLES)
    return camera.center[:, None] + rays.astype(np.float64) * photo.depth[row, column]


def _visible(camera: Pinhole, photo: Photo, points: Float[np.ndarray, "3 P"]) -> Bool[np.ndarray, " P"]:
    """Whether nothing lies between the camera and each point, by the photo's own depth."""
    x, y, z = camera.project(points)
    inside = (z > 0.1) & (x >= 2) & (x < camera.width - 2) & (y >= 2) & (y < camera.height - 2)
    row, column = (np.where(inside, c, 0) * SAMPLES for c in (y, x))
    depth = photo.depth[row.astype(int), column.astype(int)]
    return inside & (np.abs(depth - z) < 0.015 * z)


def _triangulate(
    rng: np.random.Generator,
    cameras: Sequence[Pinhole],
    surface: Float[np.ndarray, "3 P"],
    found: Bool[np.ndarray, "V P"],
) -> Float[np.ndarray, "3 P"]:
    """Add the error of triangulation: the keypoints' across the sight line, z / baseline times it along."""
    centers = np.stack([camera.center for camera in cameras], axis=1)  # [3, V]
    mean_center = (centers @ found) / found.sum(axis=0)
    sight = surface - mean_center
    distance = np.linalg.norm(sight, axis=0)
    across = KEYPOINT_NOISE * distance / cameras[0].focal / np.sqrt(found.sum(axis=0))
    along = across * np.maximum(distance / BASELINE, 1) * rng.normal(size=distance.shape)
    along = np.clip(along, -0.3 * distance, 0.3 * distance)
    return surface + across * rng.normal(size=surface.shape) + sight / distance * along


def _mean_colors(
    photos: Sequence[Photo], pixels: Float[np.ndarray, "V 2 P"], found: Bool[np.ndarray, "V P"]
) -> UInt8[np.ndarray, "P 3"]:
    """Average colour of the pixels that hold each point's keypoints."""
    total = np.zeros((found.shape[1], 3))
    for photo, (x, y), seen in zip(photos, pixels, found, strict=True):
        row, column = _pixel(y[seen], photo.image.shape[0]), _pixel(x[seen], photo.image.shape[1])
        total[seen] += photo.image[row, column]
    return np.rint(total / found.sum(axis=0)[:, None]).astype(np.uint8)


def _pixel(position: Float[np.ndarray, " K"], size: int) -> np.ndarray:
    return np.clip(position.astype(int), 0, size - 1)


# --- COLMAP ------------------------------------------------------------------------------------------


def _reconstruction(cameras: Sequence[Pinhole], tracks: Tracks) -> pycolmap.Reconstruction:
    """One shared PINHOLE camera, an image for each view, and the points with their tracks."""
    points, found = tracks.points, tracks.found
    model = pycolmap.Reconstruction()
    first = cameras[0]
    parameters = [first.focal, first.focal, first.width / 2, first.height / 2]
    camera = pycolmap.Camera(
        model="PINHOLE", width=first.width, height=first.height, params=parameters, camera_id=1
    )
    model.add_camera_with_trivial_rig(camera)
    for index, (view, seen) in enumerate(zip(cameras, found, strict=True)):
        keypoints = np.ascontiguousarray(tracks.pixels[index][:, seen].T)
        image = pycolmap.Image(name=_name(index), keypoints=keypoints, camera_id=1, image_id=index + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(world_to_camera(view)))
    keypoint_numbers = np.cumsum(found, axis=1) - 1  # [V, P]
    for point in range(points.shape[1]):
        views = np.flatnonzero(found[:, point])
        elements = [
            pycolmap.TrackElement(view + 1, number)
            for view, number in zip(views, keypoint_numbers[views, point], strict=True)
        ]
        model.add_point3D(WORLD_FROM_SCENE @ points[:, point], pycolmap.Track(elements), tracks.colors[point])
    model.update_point_3d_errors()
    return model
