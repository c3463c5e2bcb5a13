"""The demo scene: a still life on a garden table, planters and a fence around it, hills far away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from flexgs_lightning.demo import textures
from flexgs_lightning.demo.ray_tracer import Material, Solid, World
from flexgs_lightning.demo.shapes import Ball, Box, Cylinder, Frame, Shape, torus, vase
from flexgs_lightning.demo.textures import Texture

SUN_AZIMUTH, SUN_ELEVATION = math.radians(215.0), math.radians(42.0)
TABLE = 0.74
"""Height of the table's top in metres."""
STOOL = 0.45
"""Height of the stools."""
GRAVITY = 9.81
TOSS, ROUND = 0.9, 10.0
"""Seconds that a ball flies from stool to stool, and that a train takes around the table."""


def garden(seed: int) -> World:
    """The scene; ``seed`` changes its textures, the plants and the clouds, not the arrangement."""
    return _still(seed)[0]


def playing_garden(seed: int) -> tuple[World, Callable[[float], list[Solid]]]:
    """The scene, and what moves in it at any second: a ball over the table, and a train around it."""
    still, materials = _still(seed)
    return still, lambda seconds: [_tossed_ball(seconds, materials), *_train(seconds, materials)]


def _still(seed: int) -> tuple[World, dict[str, Material]]:
    rng = np.random.default_rng(seed)
    sun = np.array(
        [
            math.cos(SUN_ELEVATION) * math.cos(SUN_AZIMUTH),
            math.cos(SUN_ELEVATION) * math.sin(SUN_AZIMUTH),
            math.sin(SUN_ELEVATION),
        ]
    )
    materials = _materials(rng)
    solids = [
        *_table(materials),
        *_still_life(materials),
        *_flowers(rng, materials),
        *_terrace(materials),
        *_surroundings(rng, materials),
    ]
    panorama = Texture(textures.panorama(rng, sun))
    return World(solids, materials["paving"], materials["lawn"], panorama, sun), materials


def _materials(rng: np.random.Generator) -> dict[str, Material]:
    def painted(color: str, period: float, **finish: float) -> Material:
        return Material(Texture(textures.plain(rng, color)), period, **finish)

    return {
        "paving": Material(Texture(textures.paving(rng)), 1.6),
        "lawn": Material(Texture(textures.grass(rng)), 2.6),
        "wood": Material(Texture(textures.wood(rng)), 0.8, gloss=0.02, shininess=40),
        "brick": Material(Texture(textures.brick(rng)), 0.9),
        "marble": Material(Texture(textures.marble(rng)), 0.9, gloss=0.04, shininess=300),
        "terrazzo": Material(Texture(textures.terrazzo(rng)), 0.40, gloss=0.03, shininess=120),
        "porcelain": Material(Texture(textures.stripes(rng)), 0.36, gloss=0.04, shininess=200),
        "gingham": Material(Texture(textures.gingham(rng)), 0.20),
        "checker": Material(Texture(textures.checker(rng)), 0.21, gloss=0.02, shininess=60),
        "leaves": Material(Texture(textures.leaves(rng)), 1.6),
        "foliage": Material(Texture(textures.leaves(rng)), 4.0),
        "bark": painted("6a5442", 0.5),
        "iron": painted("2f3336", 0.5, gloss=0.04, shininess=50),
        "white": painted("e4e0d6", 0.9),
        "stem": painted("4d7336", 0.2),
        "poppy": painted("d1402f", 0.1),
        "saffron": painted("e9a825", 0.1),
        "lilac": painted("8d6bb8", 0.1),
        "terracotta": painted("b4623f", 0.5),
        "ochre": painted("c99a3b", 0.3),
        "teal": painted("2a6f73", 0.3, gloss=0.05, shininess=150),
    }


def place(
    shape: Shape,
    material: Material,
    center: tuple[float, float, float],
    size: tuple[float, float, float],
    turn: float = 0.0,
    tilt: float = 0.0,
) -> Solid:
    """A solid at ``center`` with half sizes ``size``, tilted about x, then turned about z, in degrees."""
    a, b = math.radians(turn), math.radians(tilt)
    about_z = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    return Solid(shape, Frame(np.array(center), np.array(size), about_z @ about_x), material)


def rod(material: Material, start: np.ndarray, end: np.ndarray, radius: float) -> Solid:
    """A cylinder from ``start`` to ``end``."""
    along = end - start
    length = float(np.linalg.norm(along))
    axis = along / length
    across = np.linalg.svd(axis[None])[2][1:]
    rotation = np.stack([across[0], np.cross(axis, across[0]), axis], axis=1)
    return Solid(
        Cylinder(), Frame((start + end) / 2, np.array([radius, radius, length / 2]), rotation), material
    )


def _ring(count: int, radius: float, phase: float = 0.0) -> Iterator[np.ndarray]:
    for k in range(count):
        angle = 2 * math.pi * k / count + phase
        yield np.array([radius * math.cos(angle), radius * math.sin(angle), 0.0])


def _table(m: dict[str, Material]) -> Iterator[Solid]:
    yield place(Cylinder(), m["wood"], (0, 0, TABLE - 0.025), (0.86, 0.86, 0.025), turn=20)
    yield place(torus(0.03), m["iron"], (0, 0, 0.25), (0.48, 0.48, 0.48))
    up = np.array([0, 0, 1.0])
    for foot in _ring(4, 0.62, phase=0.5):
        yield rod(m["iron"], foot, foot * 0.68 + up * (TABLE - 0.05), 0.022)


def _still_life(m: dict[str, Material]) -> Iterator[Solid]:
    yield place(vase(), m["porcelain"], (0.10, 0.06, TABLE + 0.20), (0.20, 0.20, 0.20))
    yield place(Ball(), m["marble"], (-0.36, 0.22, TABLE + 0.14), (0.14, 0.14, 0.14), turn=40, tilt=35)
    yield place(Box(), m["checker"], (0.47, -0.22, TABLE + 0.105), (0.105, 0.105, 0.105), turn=28)
    yield place(torus(0.30), m["terrazzo"], (-0.12, -0.40, TABLE + 0.063), (0.21, 0.21, 0.21))
    yield place(Cylinder(), m["gingham"], (0.36, 0.44, TABLE + 0.09), (0.075, 0.075, 0.09))
    yield place(Box(), m["teal"], (-0.52, -0.22, TABLE + 0.022), (0.15, 0.10, 0.022), turn=-35)
    yield place(Box(), m["ochre"], (-0.51, -0.21, TABLE + 0.062), (0.13, 0.09, 0.018), turn=-20)
    yield place(Ball(), m["poppy"], (-0.49, -0.21, TABLE + 0.125), (0.05, 0.05, 0.045))
    yield place(Ball(), m["saffron"], (0.66, 0.12, TABLE + 0.05), (0.05, 0.05, 0.05))
    yield place(Ball(), m["saffron"], (0.58, 0.19, TABLE + 0.05), (0.052, 0.052, 0.05))


def _flowers(rng: np.random.Generator, m: dict[str, Material]) -> Iterator[Solid]:
    mouth = np.array([0.10, 0.06, TABLE + 0.38])
    blossoms = [m["poppy"], m["saffron"], m["lilac"], m["poppy"], m["lilac"], m["saffron"], m["poppy"]]
    for tip, blossom in zip(_ring(7, 0.17, phase=0.3), blossoms, strict=True):
        lean = rng.uniform(0.5, 1.15)
        head = mouth + tip * lean + np.array([0, 0, rng.uniform(0.16, 0.36)])
        yield rod(m["stem"], mouth + 0.2 * tip * lean, head, 0.007)
        yield place(Ball(), blossom, tuple(head), (0.055, 0.055, 0.04), turn=rng.uniform(0, 360), tilt=25)
        leaf = mouth + 0.62 * (head - mouth)
        yield place(Ball(), m["stem"], tuple(leaf), (0.06, 0.02, 0.008), turn=rng.uniform(0, 360), tilt=20)


def _terrace(m: dict[str, Material]) -> Iterator[Solid]:
    """What stands on the paving: stools, a crate and a ball beside the table."""
    for x, y, turn in ((1.05, 0.75, 30.0), (-1.15, -0.62, 70.0)):
        yield place(Cylinder(), m["wood"], (x, y, 0.43), (0.19, 0.19, 0.02), turn=turn)
        for leg in _ring(3, 0.15, phase=turn):
            base = np.array([x, y, 0]) + leg
            yield rod(m["iron"], base, base - 0.35 * leg + np.array([0, 0, 0.41]), 0.014)
    yield place(Box(), m["wood"], (-0.85, 1.15, 0.20), (0.28, 0.20, 0.20), turn=15)
    yield place(Box(), m["brick"], (0.95, -1.12, 0.16), (0.30, 0.16, 0.16), turn=-25)
    yield place(Ball(), m["gingham"], (0.93, -1.12, 0.32 + 0.13), (0.13, 0.13, 0.13), turn=10, tilt=40)


def _tossed_ball(seconds: float, m: dict[str, Material]) -> Solid:
    """From stool to stool over the flowers and back; it falls as all things do, turns, and bounces off."""
    flights, share = divmod(seconds / TOSS, 1.0)
    ends = np.array([1.05, 0.75]), np.array([-1.15, -0.62])
    start, end = ends if flights % 2 == 0 else ends[::-1]
    x, y = start + (end - start) * share
    radius, along = 0.12, math.degrees(math.atan2(*(ends[1] - ends[0])[::-1]))
    height = STOOL + radius + GRAVITY / 2 * TOSS**2 * share * (1 - share)
    turned = 150 * (share if flights % 2 == 0 else 1 - share)
    return place(Ball(), m["ochre"], (x, y, height), (radius,) * 3, turn=along, tilt=turned)


def _train(seconds: float, m: dict[str, Material]) -> Iterator[Solid]:
    """An engine and two wagons, once around the rim of the table in ``ROUND`` seconds."""
    for wagon, paint in enumerate(("poppy", "saffron", "teal")):
        angle = 2 * math.pi * seconds / ROUND - 0.175 * wagon
        x, y = 0.785 * math.cos(angle), 0.785 * math.sin(angle)
        heading = math.degrees(angle) + 90
        yield place(Box(), m[paint], (x, y, TABLE + 0.045), (0.055, 0.032, 0.035), turn=heading)
        if wagon == 0:
            yield place(Cylinder(), m["iron"], (x, y, TABLE + 0.10), (0.018, 0.018, 0.03))


def _surroundings(rng: np.random.Generator, m: dict[str, Material]) -> Iterator[Solid]:
    """Planters at the terrace's edge, lamp posts, a fence, bushes and trees."""
    for base in _ring(5, 4.7, phase=0.35):
        x, y, _ = base
        yield place(Cylinder(), m["terracotta"], (x, y, 0.26), (0.36, 0.36, 0.26))
        yield place(torus(0.12), m["terracotta"], (x, y, 0.50), (0.41, 0.41, 0.41))
        yield place(Ball(), m["leaves"], (x, y, 0.88), (0.48, 0.48, 0.50), turn=rng.uniform(0, 360))
    for base in _ring(5, 5.6, phase=0.98):
        x, y, _ = base
        yield rod(m["iron"], base, base + np.array([0, 0, 2.4]), 0.03)
        yield place(Ball(), m["white"], (x, y, 2.52), (0.16, 0.16, 0.16))
    yield from _fence(m["white"])
    for base in _ring(9, 14.0, phase=0.2):
        x, y, _ = base * rng.uniform(0.95, 1.5)
        height, crown = rng.uniform(1.6, 2.4), rng.uniform(1.2, 1.8)
        yield place(Cylinder(), m["bark"], (x, y, height / 2), (0.16, 0.16, height / 2))
        for lobe in _ring(3, 0.45 * crown, phase=rng.uniform(0, 6)):
            center = np.array([x, y, height + rng.uniform(0.4, 1.1) * crown]) + lobe
            size = crown * rng.uniform(0.65, 0.85)
            yield place(Ball(), m["foliage"], tuple(center), (size, size, size), turn=rng.uniform(0, 360))


def _fence(material: Material) -> Iterator[Solid]:
    posts = list(_ring(24, 8.5))
    for post, following in zip(posts, posts[1:] + posts[:1], strict=True):
        yield rod(material, post, post + np.array([0, 0, 1.05]), 0.038)
        for height in (0.45, 0.85):
            up = np.array([0, 0, height])
            yield rod(material, post + up, following + up, 0.028)
