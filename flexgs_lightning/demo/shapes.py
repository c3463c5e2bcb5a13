"""Solids of the demo scene: canonical shapes met by rays in their own frames, and how they are posed.

Rays and points are [3, ...] arrays, one row a coordinate. Directions need not have unit length; distances
along a ray are in units of its direction, so a frame's rotation and scale leave them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Float

Vectors = Float[np.ndarray, "3 *batch"]
Scalars = Float[np.ndarray, "*batch"]
EPSILON = np.float32(1e-4)
"""Hits nearer than this, in units of the direction, are the surface that the ray starts on."""


def dot(a: Vectors, b: Vectors) -> Scalars:
    """Scalar products of columns; several times faster than numpy's sum over so short an axis."""
    return np.einsum("i...,i...->...", a, b)


class Shape(Protocol):
    """A solid inside the cube [-1, 1]^3."""

    def intersect(self, origin: Vectors, direction: Vectors) -> Scalars:
        """Distance to where the ray enters the solid; inf where it does not."""
        ...

    def reach(self, scale: Float[np.ndarray, " 3"]) -> float:
        """Radius of a ball about the centre that holds the solid scaled by ``scale``."""
        ...

    def normal(self, point: Vectors) -> Vectors:
        """Outward normal of any length."""
        ...

    def coordinates(self, point: Vectors, scale: Float[np.ndarray, " 3"]) -> tuple[Scalars, Scalars, float]:
        """Surface coordinates (u, v) in world units of a solid scaled by ``scale``.

        The third value is the length after which u closes on itself, or 0 where it does not.
        """
        ...


def _entry(near: Scalars, far: Scalars) -> Scalars:
    """First hit of a convex solid whose inside lies between ``near`` and ``far``."""
    return np.where((near < far) & (near > EPSILON), near, np.float32(np.inf))


def _slab(origin: Scalars, direction: Scalars, half: float = 1.0) -> tuple[Scalars, Scalars]:
    size = np.float32(half)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / direction
        a, b = (-size - origin) * inverse, (size - origin) * inverse
    return np.fmin(a, b), np.fmax(a, b)


def _round(origin: Vectors, direction: Vectors) -> tuple[Scalars, Scalars]:
    """Interval inside the unit ball (or, with two rows, the unit cylinder)."""
    a, c = dot(direction, direction), dot(origin, origin) - 1
    b = dot(np.broadcast_to(origin, direction.shape), direction)
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(b * b - a * c)  # NaN where missed, which compares false in _entry
        return (-b - root) / a, (-b + root) / a


class Ball:
    """The unit ball; an ellipsoid once scaled."""

    def intersect(self, origin: Vectors, direction: Vectors) -> Scalars:  # noqa: D102
        return _entry(*_round(origin, direction))

    def reach(self, scale: Float[np.ndarray, " 3"]) -> float:  # noqa: D102
        return float(scale.max())

    def normal(self, point: Vectors) -> Vectors:  # noqa: D102
        return point

    def coordinates(self, point: Vectors, scale: Float[np.ndarray, " 3"]) -> tuple[Scalars, Scalars, float]:  # noqa: D102
        radius = float(scale[:2].mean())
        polar = np.arccos(np.clip(point[2], -1, 1))
        return np.arctan2(point[1], point[0]) * radius, polar * scale[2], 2 * np.pi * radius


class Box:
    """The cube [-1, 1]^3."""

    def intersect(self, origin: Vectors, direction: Vectors) -> Scalars:  # noqa: D102
        slabs = [_slab(origin[axis], direction[axis]) for axis in range(3)]
        near = np.maximum(np.maximum(slabs[0][0], slabs[1][0]), slabs[2][0])
        far = np.minimum(np.minimum(slabs[0][1], slabs[1][1]), slabs[2][1])
        return _entry(near, far)

    def reach(self, scale: Float[np.ndarray, " 3"]) -> float:  # noqa: D102
        return float(np.linalg.norm(scale))

    def normal(self, point: Vectors) -> Vectors:  # noqa: D102
        size = np.abs(point)
        return np.where(size == size.max(axis=0), np.sign(point), np.float32(0))

    def coordinates(self, point: Vectors, scale: Float[np.ndarray, " 3"]) -> tuple[Scalars, Scalars, float]:  # noqa: D102
        x, y, z = point * scale[:, None]
        face = np.abs(point).argmax(axis=0)
        return np.where(face == 0, y, x), np.where(face == 2, y, z), 0.0


class Cylinder:
    """Unit radius about z, from z = -1 to 1, closed."""

    def intersect(self, origin: Vectors, direction: Vectors) -> Scalars:  # noqa: D102
        side, caps = _round(origin[:2], direction[:2]), _slab(origin[2], direction[2])
        near, far = np.maximum(side[0], caps[0]), np.minimum(side[1], caps[1])
        return _entry(near, far)

    def reach(self, scale: Float[np.ndarray, " 3"]) -> float:  # noqa: D102
        return float(np.hypot(scale[:2].max(), scale[2]))

    def normal(self, point: Vectors) -> Vectors:  # noqa: D102
        x, y, z = point
        cap = self._is_cap(point)
        zero = np.float32(0)
        return np.stack([np.where(cap, zero, x), np.where(cap, zero, y), np.where(cap, np.sign(z), zero)])

    def coordinates(self, point: Vectors, scale: Float[np.ndarray, " 3"]) -> tuple[Scalars, Scalars, float]:  # noqa: D102
        x, y, z = point
        cap = self._is_cap(point)
        radius = float(scale[:2].mean())
        u = np.where(cap, x * scale[0], np.arctan2(y, x) * radius)
        return u, np.where(cap, y * scale[1], z * scale[2]), 2 * np.pi * radius

    @staticmethod
    def _is_cap(point: Vectors) -> np.ndarray:
        return np.abs(point[2]) > np.hypot(point[0], point[1])


@dataclass(frozen=True)
class Revolved:
    """A solid of revolution about z, met by sphere tracing (Hart 1996).

    Attributes:
        distance: signed distance (or a lower bound of its size) as a function of the distance from the
            axis and of z, at most in the unit square.
        half_height: the solid lies within this |z|.
        steps: steps of a ray.
    """

    distance: Callable[[Scalars, Scalars], Scalars]
    half_height: float = 1.0
    steps: int = 40

    def intersect(self, origin: Vectors, direction: Vectors) -> Scalars:  # noqa: D102
        side = _round(origin[:2], direction[:2])
        caps = _slab(origin[2], direction[2], self.half_height)
        near, far = np.maximum(side[0], caps[0]), np.minimum(side[1], caps[1])
        shape = near.shape
        rays = np.flatnonzero((near < far) & (far > EPSILON))
        result = np.full(near.size, np.inf, np.float32)
        start = np.broadcast_to(origin, direction.shape).reshape(3, -1)[:, rays]
        way = direction.reshape(3, -1)[:, rays]
        t, end = np.maximum(near.reshape(-1)[rays], EPSILON), far.reshape(-1)[rays]
        speed = np.sqrt(dot(way, way))
        gap = np.zeros_like(t)
        for _ in range(self.steps):
            x, y, z = start + way * t
            gap = self.distance(np.sqrt(x * x + y * y), z)
            t = np.minimum(t + gap / speed, end)
        hit = (gap < 2e-3) & (t < end) & (t > 2 * EPSILON)
        result[rays[hit]] = t[hit]
        return result.reshape(shape)

    def reach(self, scale: Float[np.ndarray, " 3"]) -> float:  # noqa: D102
        return float(np.hypot(scale[:2].max(), scale[2] * self.half_height))

    def normal(self, point: Vectors) -> Vectors:  # noqa: D102
        x, y, z = point
        rho = np.hypot(x, y) + np.float32(1e-6)
        step = np.float32(2e-3)
        outward = (self.distance(rho + step, z) - self.distance(rho - step, z)) / rho
        upward = self.distance(rho, z + step) - self.distance(rho, z - step)
        return np.stack([outward * x, outward * y, upward])

    def coordinates(self, point: Vectors, scale: Float[np.ndarray, " 3"]) -> tuple[Scalars, Scalars, float]:  # noqa: D102
        radius = float(scale[:2].mean()) * 0.7
        return np.arctan2(point[1], point[0]) * radius, point[2] * scale[2], 2 * np.pi * radius


def torus(thickness: float) -> Revolved:
    """A ring about z; ``thickness`` is the tube's radius relative to the outer one."""
    middle, tube = np.float32(1 - thickness), np.float32(thickness)
    return Revolved(lambda rho, z: np.sqrt((rho - middle) ** 2 + z * z) - tube, half_height=thickness)


def vase() -> Revolved:
    """A bellied vase with a narrow neck and a flared lip."""

    def distance(rho: Scalars, z: Scalars) -> Scalars:
        radius = 0.40 + 0.24 * np.cos(2.3 * (z + 0.35)) + 0.16 * np.exp(-((z - 1) ** 2) / 0.02)
        radius = radius.astype(np.float32)
        # 0.55: the profile is as steep as 1.5, so a radial gap overstates the distance.
        return np.maximum(np.float32(0.55) * (rho - radius), np.abs(z) - np.float32(0.999))

    return Revolved(distance, steps=48)


@dataclass(frozen=True)
class Frame:
    """Where a solid stands: scale, then rotation, then translation."""

    center: Float[np.ndarray, " 3"]
    scale: Float[np.ndarray, " 3"]
    rotation: Float[np.ndarray, "3 3"]

    @cached_property
    def corners(self) -> Float[np.ndarray, "3 8"]:
        """World positions of the cube's corners."""
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
        return self.rotation @ (signs * self.scale[:, None]) + self.center[:, None]

    def vectors_to_local(self, vectors: Vectors) -> Vectors:
        """Express directions in the solid's own frame."""
        matrix = (self.rotation / self.scale).T.astype(np.float32)
        return (matrix @ vectors.reshape(3, -1)).reshape(vectors.shape)

    def points_to_local(self, points: Vectors) -> Vectors:
        """Express positions in the solid's own frame."""
        center = self.center.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
        return self.vectors_to_local(points - center)

    def normals_to_world(self, normals: Vectors) -> Vectors:
        """Unit world normals from local ones of any length (the inverse transpose)."""
        world = (self.rotation / self.scale).astype(np.float32) @ normals
        return world / np.sqrt(dot(world, world) + np.float32(1e-20))
