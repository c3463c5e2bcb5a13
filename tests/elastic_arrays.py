"""Small elastic models without a training, and files of them: for tests of the elastic file."""

import dataclasses
import hashlib

import numpy as np

from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.codec.encoder import Encoding, encode, make_plan
from flexgs_lightning.codec.sensitivity import Sensitivity
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.compression.coordinates import PLACES


def random_arrays(
    total: int = 2000, sh_degree: int = 1, seed: int = 0, elastic: bool = True
) -> ElasticModelArrays:
    """Gaussians of all sizes in two clouds, with levels at 10 and 30 % if elastic."""
    rng = np.random.default_rng(seed)
    values = np.empty((total, 13), dtype=np.float32)
    values[:, 0] = rng.uniform(0.05, 0.95, total)
    values[:, PLACES["scales"]] = np.sort(rng.normal(-4, 1, (total, 3)), axis=1)[:, ::-1]
    values[:, PLACES["means"]] = (
        rng.normal(0, 1, (total, 3)) * np.where(rng.random(total) < 0.2, 20, 1)[:, None]
    )
    values[:, PLACES["rotations"]] = rng.uniform(-0.4, 0.4, (total, 3))
    values[:, PLACES["sh0"]] = rng.normal(0, 0.6, (total, 1)) + rng.normal(0, 0.2, (total, 3))
    ratios = [0.1, 0.3, 1.0] if elastic else [1.0]
    levels = [Level(1.0, values)]
    for ratio in reversed(ratios[:-1]):
        count = count_at(ratio, total)
        moved = levels[0].values[:count] + rng.normal(0, 0.02, (count, 13)).astype(np.float32)
        levels.insert(0, Level(ratio, moved.astype(np.float32)))
    sh_rest = rng.laplace(0, 0.1, (total, (sh_degree + 1) ** 2 - 1, 3)).astype(np.float32)
    return ElasticModelArrays(total, tuple(levels), sh_rest, (0.1, 0.2, 0.3), True)


def random_sensitivities(arrays: ElasticModelArrays, seed: int = 1) -> list[Sensitivity]:
    """Second derivatives that fall with the rank and rise with opacity, as measured ones do."""
    rng = np.random.default_rng(seed)
    found = []
    for level in arrays.levels:
        count = len(level.values)
        worth = level.values[:, :1] ** 2 / (np.arange(count) + 10.0)[:, None]
        values = worth * rng.exponential(1.0, level.values.shape)
        rest = worth[..., None] * rng.exponential(1.0, (count, *arrays.sh_rest.shape[1:]))
        found.append(Sensitivity(values, rest, np.repeat(worth, 2, axis=1)))
    return found


def encoded(arrays: ElasticModelArrays, harm: float = 3e-4) -> Encoding:
    """The arrays as a file in memory."""
    plan = make_plan(arrays, random_sensitivities(arrays), (harm,) * len(arrays.levels))
    return encode(plan, plan.rule)


def digest(arrays: ElasticModelArrays) -> str:
    """SHA-256 of every bit of a model."""
    hashed = hashlib.sha256()
    for level in arrays.levels:
        hashed.update(np.ascontiguousarray(level.values, dtype="<f4").tobytes())
    hashed.update(np.ascontiguousarray(arrays.sh_rest, dtype="<f4").tobytes())
    return hashed.hexdigest()


def same(one: ElasticModelArrays, other: ElasticModelArrays) -> bool:
    """Whether two models are equal to the bit, background and all."""
    plain = [
        (m.total, m.background, m.antialiased, [level.ratio for level in m.levels]) for m in (one, other)
    ]
    return plain[0] == plain[1] and digest(one) == digest(other)


def one_size(arrays: ElasticModelArrays) -> ElasticModelArrays:
    """The full model alone."""
    return dataclasses.replace(arrays, levels=arrays.levels[-1:])
