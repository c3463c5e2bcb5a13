"""Small elastic models that move, and films of them: for tests of the elastic file's version 2."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from elastic_arrays import encoded, random_arrays

from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.codec.film import Film, write_film
from flexgs_lightning.codec.movement import Movement
from flexgs_lightning.model.compression.layout import MOVES, TURNS
from flexgs_lightning.model.compression.layout import Path as MotionPath

LEAST = float(np.float32(1 / 255))
"""Opacity below which nothing is drawn."""
SPREAD = {
    "time_scales": 1.0, "time_centers": 0.3, "real_parts": 1.0, "motion": 0.3, "omega": 0.1,
    "coefficients": 1.0,
}  # fmt: skip


def random_moving(
    path: MotionPath = "polynomial",
    varying: bool = True,
    total: int = 600,
    sh_degree: int = 1,
    elastic: bool = True,
    order: int = 3,
    seed: int = 0,
) -> ElasticModelArrays:
    """``random_arrays`` whose every number of motion is something, and of which some stand still."""
    rng = np.random.default_rng(seed + 100)
    knots = np.zeros((0, 0, 7), np.float32)
    if path in ("bases", "free_bases"):
        knots = rng.normal(0, 0.2, (6, order, 7)).astype(np.float32)
    order = 0 if path == "none" else order
    movement = Movement(path, order, varying, LEAST if varying else 0.0, knots)
    arrays = random_arrays(total, sh_degree, seed, elastic)
    flags = rng.choice(np.array([0, MOVES, TURNS, MOVES | TURNS], np.uint8), total)
    columns = []
    for field in movement.layout.motion:
        columns.append(rng.normal(0, SPREAD[field.name], (total, len(field.columns))))
        if field.name == "time_centers":
            columns[-1] += 0.5
        if field.name == "real_parts":
            columns[-1] = 1.0 + 0.1 * columns[-1]
        if field.flag:
            columns[-1] *= (flags & field.flag > 0)[:, None]
    motion = np.concatenate(columns, axis=1) if columns else np.zeros((total, 0))
    moved = sum(len(field.columns) for field in movement.layout.motion if field.moved)
    levels = []
    for level in arrays.levels:
        own = motion[: len(level.values)].copy()
        if level.ratio < 1:
            own[:, :moved] += rng.normal(0, 0.02, (len(own), moved))
        levels.append(Level(level.ratio, np.concatenate([level.values, own], axis=1).astype(np.float32)))
    return replace(arrays, levels=tuple(levels), movement=movement, flags=flags)


def three_groups() -> list[ElasticModelArrays]:
    """One of each path, of unequal sizes."""
    return [
        random_moving("polynomial", varying=False, total=300, order=2, seed=1),
        random_moving("bases", varying=True, total=420, order=4, seed=2),
        random_moving("free_bases", varying=True, total=260, order=5, seed=3, elastic=False),
    ]


def write_moving(path: Path, groups: list[ElasticModelArrays], harm: float = 3e-4) -> Film:
    """Write a film, and what it decodes to; each group lasts as long as it has Gaussians."""
    sizes = np.cumsum([0, *(len(group) for group in groups)])
    bounds = tuple((sizes / sizes[-1]).tolist())
    encodings = [encoded(group, harm) for group in groups]
    write_film(path, encodings, bounds=bounds, seconds=2.5, frames=75, facts={"psnr": {"1": 30.5}})
    return Film(tuple(encoding.decoded for encoding in encodings), bounds, 2.5, 75)


def film_digest(film: Film) -> str:
    """SHA-256 of every bit of a film: of each group its levels' values, other harmonics and flags."""
    hashed = hashlib.sha256()
    for group in film.groups:
        for level in group.levels:
            hashed.update(np.ascontiguousarray(level.values, dtype="<f4").tobytes())
        hashed.update(np.ascontiguousarray(group.sh_rest, dtype="<f4").tobytes())
        hashed.update(group.flags.tobytes())
    return hashed.hexdigest()
