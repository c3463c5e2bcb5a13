"""Photos of the demo scene, and films of it, of which only what moves is traced for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from flexgs_lightning.demo.ray_tracer import SAMPLES, Hits, Pinhole, Solid, World
from flexgs_lightning.demo.shapes import Vectors

EXPOSURE = 0.62


@dataclass(frozen=True)
class Photo:
    """A picture and what it was taken of.

    Attributes:
        image: [H, W, 3] 8-bit sRGB.
        depth: [2 H, 2 W] camera-space z at the centres of the pixels' quarters, in metres.
    """

    image: UInt8[np.ndarray, "H W 3"]
    depth: Float[np.ndarray, "2*H 2*W"]


def photograph(scene: World, camera: Pinhole) -> Photo:
    """What ``camera`` records: four samples a pixel, a tent filter two pixels wide, a filmic curve, sRGB."""
    direction = sample_rays(camera)
    windows = [scene.window(camera, solid.frame) for solid in scene.solids]
    origin = camera.center.astype(np.float32).reshape(3, 1, 1)
    hits = scene.cast(origin, direction, windows)
    suns = scene.sun_samples(hits.distance.shape)
    return exposed(scene.shade(hits, camera.center, direction, 1 / camera.focal, suns), hits)


class FixedCamera:
    """Takes the pictures that ``photograph`` would, of a world with other solids in it each time."""

    def __init__(self, camera: Pinhole, still: World) -> None:
        """Trace what stays.

        Args:
            camera: stands still.
            still: the world without what moves.
        """
        self._camera, self._still = camera, still
        self._rays = sample_rays(camera)
        self._origin = camera.center.astype(np.float32).reshape(3, 1, 1)
        windows = [still.window(camera, solid.frame) for solid in still.solids]
        self._hits = still.cast(self._origin, self._rays, windows)
        self._suns = still.sun_samples(self._hits.distance.shape)
        self._radiance = still.shade(self._hits, camera.center, self._rays, 1 / camera.focal, self._suns)
        self._points = self._origin + self._rays * self._hits.distance

    def photograph(self, moving: Sequence[Solid]) -> Photo:
        """The picture with these solids in the world; only what they hide or may shade is traced again."""
        still, camera = self._still, self._camera
        world = replace(still, solids=[*still.solids, *moving])
        hits = Hits(self._hits.distance.copy(), self._hits.surface.copy())
        changed = np.zeros(hits.distance.size, bool)
        for number, solid in enumerate(moving, len(still.solids)):
            hits.meet(solid, number, self._origin, self._rays, world.window(camera, solid.frame))
            changed |= still.may_shade(solid, self._points.reshape(3, -1))
        again = np.flatnonzero(changed | (hits.surface.ravel() >= len(still.solids)))
        some = Hits(hits.distance.ravel()[again], hits.surface.ravel()[again])
        rays, suns = self._rays.reshape(3, -1), self._suns.reshape(len(self._suns), 3, -1)
        pixel, radiance = 1 / camera.focal, self._radiance.copy()
        shaded = world.shade(some, camera.center, rays[:, again], pixel, suns[:, :, again])
        radiance.reshape(3, -1)[:, again] = shaded
        return exposed(radiance, hits)


def sample_rays(camera: Pinhole) -> Vectors:
    """Rays [3, 2 H + 2, 2 W + 2] through a picture's samples, and one sample beyond each edge."""
    rows = (np.arange(camera.height * SAMPLES + 2) - 0.5) / SAMPLES
    columns = (np.arange(camera.width * SAMPLES + 2) - 0.5) / SAMPLES
    return camera.directions(columns[None, :], rows[:, None])


def exposed(radiance: Float[np.ndarray, "3 N M"], hits: Hits) -> Photo:
    """The photo of what comes back along ``sample_rays``."""
    filtered = _tent(_tent(np.minimum(radiance, 3.0)).swapaxes(1, 2)).swapaxes(1, 2)
    return Photo(develop(filtered).transpose(1, 2, 0), hits.distance[1:-1, 1:-1])


def _tent(samples: Float[np.ndarray, "3 N M"]) -> Float[np.ndarray, "3 K M"]:
    """Halve the first image axis with weights 1, 3, 3, 1; one sample of margin at either end."""
    outer, inner = samples[:, :-3:2] + samples[:, 3::2], samples[:, 1:-2:2] + samples[:, 2:-1:2]
    return (outer + 3 * inner) / 8


def develop(radiance: Float[np.ndarray, " *shape"]) -> UInt8[np.ndarray, " *shape"]:
    """Linear light to 8-bit sRGB through Narkowicz's fit (2015) of the ACES film curve."""
    x = radiance * np.float32(EXPOSURE)
    film = np.clip(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), 0, 1)
    srgb = np.where(film <= 0.0031308, 12.92 * film, 1.055 * np.maximum(film, 1e-6) ** (1 / 2.4) - 0.055)
    return (srgb * 255 + 0.5).astype(np.uint8)
