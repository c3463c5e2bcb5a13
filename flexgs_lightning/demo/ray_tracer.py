"""Ray-casting of the demo scene: what a camera sees, lit by a soft sun and the sky.

Arrays of vectors are [3, ...], one row a coordinate. World coordinates: metres, +z up, ground at z = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from flexgs_lightning.demo.shapes import Frame, Scalars, Shape, Vectors, dot
from flexgs_lightning.demo.textures import HAZE, Texture, rgb, smoothstep

GROUND, SKY = -1, -2
"""Surface numbers of what is no solid."""
HORIZON = 60.0
"""Radius in metres of the sphere that carries the panorama."""
SUNLIGHT = rgb("fff1d8") * 2.3
SKYLIGHT = rgb("b9d0ea") * 0.75
BOUNCE = rgb("a3997f") * 0.30
SHADE_RANGE = 14.0
"""Solids farther than this from the centre neither cast nor receive shadows."""
SAMPLES = 2
"""Camera rays along each side of a pixel."""
SUN_SAMPLES = 2
"""Shadow rays of each camera ray."""
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        texture: colours.
        period: metres after which the texture repeats.
        gloss: reflectance at normal incidence; 0 is matte.
        shininess: Blinn-Phong exponent of the sun's highlight.
    """

    texture: Texture
    period: float
    gloss: float = 0.0
    shininess: float = 60.0


@dataclass(frozen=True)
class Solid:
    """A posed shape of one material."""

    shape: Shape
    frame: Frame
    material: Material


@dataclass(frozen=True)
class Pinhole:
    """One view: OpenCV axes, square pixels.

    Attributes:
        rotation: [3, 3] scene-to-camera.
        center: [3] position in the scene.
        focal: focal length in pixels.
        width: image width in pixels.
        height: image height in pixels.
    """

    rotation: Float[np.ndarray, "3 3"]
    center: Float[np.ndarray, " 3"]
    focal: float
    width: int
    height: int

    def project(self, points: Vectors) -> tuple[Scalars, Scalars, Scalars]:
        """Pixel x, pixel y and depth of scene points [3, N]."""
        x, y, z = self.rotation @ (points - self.center[:, None])
        with np.errstate(divide="ignore", invalid="ignore"):
            return x / z * self.focal + self.width / 2, y / z * self.focal + self.height / 2, z

    def directions(self, x: Scalars, y: Scalars) -> Vectors:
        """Rays through pixel positions, of unit depth: a distance along one is a camera-space z."""
        x, y = np.broadcast_arrays((x - self.width / 2) / self.focal, (y - self.height / 2) / self.focal)
        rays = np.stack([x, y, np.ones_like(x)]).astype(np.float32)
        return (self.rotation.T.astype(np.float32) @ rays.reshape(3, -1)).reshape(rays.shape)


@dataclass(frozen=True)
class Hits:
    """Nearest surfaces: distance [...] along each ray and surface number [...] (a solid's, or below 0)."""

    distance: Scalars
    surface: Int[np.ndarray, "*batch"]

    def meet(self, solid: Solid, number: int, origin: Vectors, direction: Vectors, window: Window) -> None:
        """Let rays [3, H, W] end at a solid, where it is nearer; it can be seen in the window alone."""
        every = (slice(None), *window)
        rays = direction[every]
        if rays.size == 0:
            return
        start = origin if origin.shape[1:] == (1, 1) else origin[every]
        t = solid.shape.intersect(solid.frame.points_to_local(start), solid.frame.vectors_to_local(rays))
        nearest = self.distance[window]
        closer = t < nearest
        np.copyto(nearest, t, where=closer)
        np.copyto(self.surface[window], number, where=closer)


@dataclass(frozen=True)
class World:
    """Solids on a round terrace in a lawn, under a panorama.

    Attributes:
        solids: everything that stands there.
        terrace: inner ground, up to ``terrace_radius``.
        lawn: ground beyond.
        panorama: equirectangular picture of the distance, see ``textures.panorama``.
        sun: unit vector towards the sun.
        sun_radius: the sun's apparent radius in radians (larger than life: a hazy day's soft shadows).
        terrace_radius: metres.
    """

    solids: Sequence[Solid]
    terrace: Material
    lawn: Material
    panorama: Texture
    sun: Float[np.ndarray, " 3"]
    sun_radius: float = 0.035
    terrace_radius: float = 3.4

    # --- geometry -------------------------------------------------------------------------------------

    def cast(self, origin: Vectors, direction: Vectors, windows: Sequence[Window] | None = None) -> Hits:
        """Nearest hits of rays [3, H, W]; ``windows`` bounds where each solid can be seen."""
        hits = Hits(*self._cast_surroundings(origin, direction))
        for number, solid in enumerate(self.solids):
            window = windows[number] if windows is not None else (slice(None), slice(None))
            hits.meet(solid, number, origin, direction, window)
        return hits

    @staticmethod
    def window(camera: Pinhole, frame: Frame) -> Window:
        """Rectangle of a view's samples (see ``photograph``) outside of which a solid cannot be seen."""
        x, y, z = camera.project(frame.corners)
        if z.max() <= 0:
            return slice(0, 0), slice(0, 0)
        if z.min() <= 0:
            return slice(None), slice(None)
        low = [max(int(np.floor(c.min() * SAMPLES)), 0) for c in (y, x)]
        high = [max(int(np.ceil(c.max() * SAMPLES)) + 2, 0) for c in (y, x)]
        return slice(low[0], high[0]), slice(low[1], high[1])

    @staticmethod
    def _cast_surroundings(origin: Vectors, direction: Vectors) -> tuple[Scalars, Int[np.ndarray, "H W"]]:
        a, c = dot(direction, direction), dot(origin, origin) - np.float32(HORIZON**2)
        b = dot(np.broadcast_to(origin, direction.shape), direction)
        far = (-b + np.sqrt(b * b - a * c)) / a
        with np.errstate(divide="ignore", invalid="ignore"):
            ground = -origin[2] / direction[2]
        on_ground = (direction[2] < 0) & (ground < far) & (ground > 0)
        distance = np.where(on_ground, ground, far).astype(np.float32)
        return distance, np.where(on_ground, GROUND, SKY).astype(np.int32)

    # --- light ----------------------------------------------------------------------------------------

    @cached_property
    def _blockers(self) -> list[Solid]:
        return [s for s in self.solids if np.linalg.norm(s.frame.center[:2]) < SHADE_RANGE]

    def sunlit(self, points: Vectors, suns: Float[np.ndarray, "S 3 N"]) -> Float[np.ndarray, " N"]:
        """Share of the S directions in which [3, N] points see the sun past the solids."""
        lit = np.ones((len(suns), points.shape[1]), np.float32)
        shadow = self._across @ points
        for solid in self._blockers:
            near = np.flatnonzero(self._may_shadow(solid, shadow))
            if near.size == 0:
                continue
            frame = solid.frame
            start = frame.points_to_local(points[:, near])
            for row, towards in zip(lit, suns, strict=True):
                t = solid.shape.intersect(start, frame.vectors_to_local(towards[:, near]))
                row[near[np.isfinite(t)]] = 0
        return lit.mean(axis=0)

    @cached_property
    def _across(self) -> Float[np.ndarray, "2 3"]:
        """Two axes across the light."""
        return np.linalg.svd(self.sun[None])[2][1:].astype(np.float32)

    def _may_shadow(self, solid: Solid, shadow: Float[np.ndarray, "2 N"]) -> Bool[np.ndarray, " N"]:
        """Whether a solid can stand between the sun and points, by where these lie across the light."""
        frame, reach = solid.frame, solid.shape.reach(solid.frame.scale)
        spread = 2 * self.sun_radius * (frame.center[2] + reach)  # how far the sun's edge moves it
        x, y = self._across @ frame.center.astype(np.float32)
        found: np.ndarray = (shadow[0] - x) ** 2 + (shadow[1] - y) ** 2 < np.float32((reach + spread) ** 2)
        return found

    def may_shade(self, solid: Solid, points: Vectors) -> Bool[np.ndarray, " N"]:
        """Whether a solid can keep light of the sun or of the sky from [3, N] points."""
        return self._may_shadow(solid, self._across @ points) | _in_sky(solid, points, dot(points, points))

    def openness(self, points: Vectors, normals: Vectors) -> Float[np.ndarray, " N"]:
        """Share of the sky that [3, N] points see past the solids, each taken as a ball."""
        share = np.ones(points.shape[1], np.float32)
        norms = dot(points, points)
        for solid in self._blockers:
            near = np.flatnonzero(_in_sky(solid, points, norms))
            if near.size:
                center, radius = solid.frame.center.astype(np.float32), np.float32(solid.frame.scale.min())
                way = center[:, None] - points[:, near]
                squared = np.maximum(dot(way, way), 1e-8)
                facing = np.clip(dot(normals[:, near], way) / np.sqrt(squared), 0, 1)
                share[near] *= 1 - np.float32(0.8) * facing * np.minimum(radius**2 / squared, 1)
        return share

    def sun_samples(self, shape: tuple[int, int]) -> Float[np.ndarray, "S 3 H W"]:
        """Directions to points of the sun's disc: ``SUN_SAMPLES`` a ray, in a 2x2 pattern over the rays.

        The tent filter weighs the four phases of such a pattern alike, so that each pixel averages the
        whole disc and a penumbra has 4 ``SUN_SAMPLES`` + 1 even steps.
        """
        count = 4 * SUN_SAMPLES
        order = np.arange(count).reshape(2, 2, SUN_SAMPLES).transpose(2, 0, 1)
        radius = self.sun_radius * np.sqrt((order + 0.5) / count)
        angle = order * np.pi * (3 - np.sqrt(5))  # a sunflower's spiral covers the disc evenly
        across = np.linalg.svd(self.sun[None])[2][1:]
        offset = np.einsum("kc,kshw->schw", across, np.stack([np.cos(angle), np.sin(angle)]) * radius)
        pattern = (self.sun[:, None, None] + offset).astype(np.float32)
        height, width = shape
        return np.tile(pattern, (1, 1, height // 2 + 1, width // 2 + 1))[:, :, :height, :width]

    # --- colour ---------------------------------------------------------------------------------------

    def shade(
        self,
        hits: Hits,
        center: Float[np.ndarray, " 3"],
        direction: Vectors,
        pixel: float,
        suns: Float[np.ndarray, "S 3 H W"],
    ) -> Float[np.ndarray, "3 H W"]:
        """Linear RGB that comes back along rays from ``center``; ``pixel`` the size of one at unit depth."""
        shape = hits.distance.shape
        rays, distance, surface = direction.reshape(3, -1), hits.distance.ravel(), hits.surface.ravel()
        points = center.astype(np.float32)[:, None] + rays * distance
        footprint = distance * np.float32(pixel)
        color = np.empty_like(points)
        sky = np.flatnonzero(surface == SKY)
        color[:, sky] = self._distance(points[:, sky], footprint[sky] / np.float32(np.pi * HORIZON))
        solid = np.flatnonzero(surface != SKY)
        color[:, solid] = self._lit(
            points[:, solid],
            rays[:, solid],
            surface[solid],
            footprint[solid],
            suns.reshape(len(suns), 3, -1)[:, :, solid],
        )
        return color.reshape(3, *shape)

    def _distance(self, directions: Vectors, footprint: Scalars) -> Float[np.ndarray, "3 N"]:
        x, y, z = directions / np.sqrt(dot(directions, directions))
        u = np.arctan2(y, x) / np.float32(2 * np.pi)
        return self.panorama.sample(u, np.arccos(np.clip(z, -1, 1)) / np.float32(np.pi), footprint)

    def _lit(
        self,
        points: Vectors,
        rays: Vectors,
        surface: Int[np.ndarray, " N"],
        footprint: Scalars,
        suns: Float[np.ndarray, "S 3 N"],
    ) -> Float[np.ndarray, "3 N"]:
        view = -rays / np.sqrt(dot(rays, rays))
        albedo, normals, gloss, shininess = self._surfaces(points, view, surface, footprint)
        facing = np.maximum(self.sun.astype(np.float32) @ normals, 0)
        sunlit, open_sky = (facing > 0).astype(np.float32), np.ones_like(facing)
        near = np.flatnonzero(points[0] ** 2 + points[1] ** 2 < SHADE_RANGE**2)
        open_sky[near] = self.openness(points[:, near], normals[:, near])
        near = near[facing[near] > 0]
        start = points[:, near] + normals[:, near] * np.float32(1e-3)
        sunlit[near] = self.sunlit(start, suns[:, :, near])
        sunshine = SUNLIGHT[:, None] * sunlit
        light = sunshine * facing + SKYLIGHT[:, None] * (0.5 + 0.5 * normals[2]) * open_sky
        color = albedo * (light + BOUNCE[:, None] * (0.5 - 0.5 * normals[2]))
        shiny = np.flatnonzero(gloss > 0)
        finish = gloss[shiny], shininess[shiny]
        sheen = self._gloss(view[:, shiny], normals[:, shiny], sunshine[:, shiny], finish)
        color[:, shiny] += sheen * (0.4 + 0.6 * open_sky[shiny])
        air = 1 - np.exp(-dot(points, points) / np.float32(75.0**2))
        return (color + (HAZE[:, None] - color) * air).astype(np.float32)

    def _gloss(
        self, view: Vectors, normals: Vectors, sunshine: Vectors, finish: tuple[Scalars, Scalars]
    ) -> Float[np.ndarray, "3 N"]:
        """Mirrored surroundings, blurred, and the sun's highlight, with Schlick's Fresnel term."""
        gloss, shininess = finish
        cosine = np.clip(dot(view, normals), 0, 1)
        fresnel = gloss + (1 - gloss) * (1 - cosine) ** 5 * np.minimum(gloss * 12, 1)
        mirrored = 2 * cosine * normals - view
        surroundings = self._distance(mirrored, 1.5 / np.sqrt(shininess))
        half = view + self.sun.astype(np.float32)[:, None]
        half /= np.sqrt(dot(half, half))
        lobe = np.clip(dot(half, normals), 0, 1) ** shininess * (shininess + 2) / 8
        return fresnel * (surroundings + lobe * sunshine)

    def _surfaces(
        self, points: Vectors, view: Vectors, surface: Int[np.ndarray, " N"], footprint: Scalars
    ) -> tuple[Vectors, Vectors, Scalars, Scalars]:
        """Albedo, unit normal, gloss and shininess at the hits."""
        albedo, normals = np.empty_like(points), np.empty_like(points)
        gloss, shininess = np.zeros_like(footprint), np.ones_like(footprint)
        order = np.argsort(surface, kind="stable")
        numbers, starts = np.unique(surface[order], return_index=True)
        for number, index in zip(numbers, np.split(order, starts[1:]), strict=True):
            at, size = points[:, index], footprint[index]
            if number == GROUND:
                normals[:, index] = np.array([[0], [0], [1]], np.float32)
                slant = np.sqrt(np.maximum(view[2, index], 0.02))
                albedo[:, index] = self._ground(at, size / slant)
                continue
            solid = self.solids[number]
            local = solid.frame.points_to_local(at)
            normal = solid.frame.normals_to_world(solid.shape.normal(local))
            slant = np.sqrt(np.clip(dot(normal, view[:, index]), 0.1, 1))
            normals[:, index] = normal
            albedo[:, index] = _painted(solid, local, size / slant)
            gloss[index], shininess[index] = solid.material.gloss, solid.material.shininess
        return albedo, normals, gloss, shininess

    def _ground(self, points: Vectors, footprint: Scalars) -> Float[np.ndarray, "3 N"]:
        radius = np.hypot(points[0], points[1])
        grown = smoothstep(-0.5, 0.5, (radius - self.terrace_radius) / np.maximum(footprint, 0.02))
        color = np.empty_like(points)
        for material, used in ((self.terrace, grown < 1), (self.lawn, grown >= 1)):
            period = np.float32(material.period)
            x, y = points[0, used] / period, points[1, used] / period
            color[:, used] = material.texture.sample(x, y, footprint[used] / period)
        edge = np.flatnonzero((grown > 0) & (grown < 1))
        period = np.float32(self.lawn.period)
        x, y = points[0, edge] / period, points[1, edge] / period
        lawn = self.lawn.texture.sample(x, y, footprint[edge] / period)
        color[:, edge] += (lawn - color[:, edge]) * grown[edge]
        return color


def _in_sky(solid: Solid, points: Vectors, norms: Scalars) -> Bool[np.ndarray, " N"]:
    """Whether a solid is a part of the sky that counts, from [3, N] points with these squared norms."""
    center, radius = solid.frame.center.astype(np.float32), np.float32(solid.frame.scale.min())
    if radius < 0.04:
        return np.zeros(len(norms), bool)
    found: np.ndarray = norms - (2 * center) @ points < 25 * radius**2 - center @ center  # |p - c| < 5 r
    return found


def _painted(solid: Solid, local: Vectors, footprint: Scalars) -> Float[np.ndarray, "3 N"]:
    """Texture colours at local surface points; around the axis the texture closes without a seam."""
    u, v, around = solid.shape.coordinates(local, solid.frame.scale.astype(np.float32))
    period = solid.material.period
    period_u = around / max(1, round(around / period)) if around else period
    texture = solid.material.texture
    return texture.sample(u / np.float32(period_u), v / np.float32(period), footprint / np.float32(period))
