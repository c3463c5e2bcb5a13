"""Models to and from ``ElasticModelArrays``: where the elastic file meets the model's classes."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from flexgs_lightning.codec.arrays import PLACES, ElasticModelArrays, Level
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import Splats

FIELD_ANCHORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Levels of a model whose displacements are no tables (a transform field): it is sampled at these."""
_LEAST_REAL_PART = 0.05
"""A level's quaternion is divided by its real part, which a displacement must not bring to 0."""
_LEAST_T = 2.0**-12
"""Opacities of decoded models lie this far from 0 and 1 in t, where a logit is finite."""


def arrays_of(model: Model) -> ElasticModelArrays:
    """A trained model as arrays: exact where residual tables (or nothing) make it elastic."""
    sizes = [(anchor, model.at(anchor)) for anchor in _anchors(model)]
    background = tuple(float(level) for level in model.background)
    return _arrays(sizes, model.splats(), (background[0], background[1], background[2]), model.antialiased)


def arrays_of_splats(splats: Splats) -> ElasticModelArrays:
    """A scene of one size, such as a PLY file's, as arrays."""
    return _arrays([], splats, (0.0, 0.0, 0.0), False)


def _anchors(model: Model) -> tuple[float, ...]:
    """Ratios below 1 at which levels are taken; each holds a Gaussian, and each more than the one before."""
    parts = model.scene.each_part()
    if not model.elastic or not parts:
        return ()
    tables = [part.anchors for part in parts if isinstance(part, RatioResiduals)]
    wanted = tables[0] if len(tables) == len(parts) else FIELD_ANCHORS
    counts = {count_at(anchor, len(model)): anchor for anchor in wanted if anchor * len(model) >= 1}
    return tuple(anchor for count, anchor in sorted(counts.items()) if count < len(model))


def _arrays(
    sizes: list[tuple[float, Splats]],
    full: Splats,
    background: tuple[float, float, float],
    antialiased: bool,
) -> ElasticModelArrays:
    order, turns = canonical_frames(_double(full.quats), _double(full.scales))
    levels = [
        Level(ratio, _values(splats, order[: len(splats)], turns[: len(splats)]))
        for ratio, splats in [*sizes, (1.0, full)]
    ]
    sh_rest = full.sh[:, 1:].detach().cpu().numpy().astype(np.float32)
    return ElasticModelArrays(len(full), tuple(levels), sh_rest, background, antialiased)


def _values(
    splats: Splats, order: Int[np.ndarray, "M 3"], turns: Float[np.ndarray, "M 4"]
) -> Float[np.ndarray, "M 13"]:
    """[M, 13] columns of a level; see there."""
    tiny = np.finfo(np.float32).tiny
    t = 0.5 - np.sin(np.arcsin(1.0 - 2.0 * _double(splats.opacities)) / 3.0)  # inverse of t^2 (3 - 2 t)
    scales = np.take_along_axis(_double(splats.scales), order, axis=1)
    quats = quaternion_product(_unit(_double(splats.quats)), turns)
    real = np.maximum(quats[:, :1], _LEAST_REAL_PART)
    columns = [
        t[:, None],
        np.log(np.maximum(scales, tiny)),
        _double(splats.means),
        quats[:, 1:] / real,
        _double(splats.sh[:, 0]),
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)


def canonical_frames(
    quats: Float[np.ndarray, "N 4"], scales: Float[np.ndarray, "N 3"]
) -> tuple[Int[np.ndarray, "N 3"], Float[np.ndarray, "N 4"]]:
    """Of the 24 ways to name a Gaussian's axes, the one with descending scales and the least rotation.

    Returns:
        [N, 3] the old axis that each new one is, and [N, 4] the quaternions to multiply rotations by from
        the right. The result's real part is its largest part, and positive.
    """
    order = np.argsort(-scales, axis=1, kind="stable")
    turns = _turns()[order[:, 0] * 3 + order[:, 1]]  # [N, 4, 4]
    candidates = quaternion_product(_unit(quats)[:, None], turns)
    best = np.abs(candidates[..., 0]).argmax(axis=1)
    rows = np.arange(len(quats))
    sign = np.where(candidates[rows, best, 0] < 0, -1.0, 1.0)
    return order, turns[rows, best] * sign[:, None]


@functools.cache
def _turns() -> Float[np.ndarray, "9 4 4"]:
    """Four quaternions for each order of axes (a, b, c), at place 3 a + b: half turns apart."""
    turns = np.zeros((9, 4, 4))
    for order in itertools.permutations(range(3)):
        matrix = np.zeros((3, 3))
        matrix[list(order), range(3)] = 1.0
        matrix[:, 2] *= np.linalg.det(matrix)
        first = Rotation.from_matrix(matrix).as_quat()[[3, 0, 1, 2]]
        turns[order[0] * 3 + order[1]] = quaternion_product(first, np.eye(4))
    return turns


def quaternion_product(
    left: Float[np.ndarray, "... 4"], right: Float[np.ndarray, "... 4"]
) -> Float[np.ndarray, "... 4"]:
    """Hamilton product of quaternions (w, x, y, z)."""
    w, x, y, z = np.moveaxis(left, -1, 0)
    a, b, c, d = np.moveaxis(right, -1, 0)
    return np.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        axis=-1,
    )


def _unit(quats: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    return quats / np.linalg.norm(quats, axis=-1, keepdims=True)


def _double(values: torch.Tensor) -> Float[np.ndarray, ...]:
    return values.detach().cpu().double().numpy()


def model_of(arrays: ElasticModelArrays, name: str = "scene") -> Model:
    """What is at hand of a decoded file, as a checkpoint would hold it.

    Ratios are then shares of the Gaussians at hand. Draws as ``arrays`` do: exactly at levels, and between
    them up to opacities, whose logits are interpolated in place of t.
    """
    count = len(arrays)
    top = arrays.values_at(arrays.largest_ratio)
    levels = [
        (len(level.values), raw_rows(level.values, top))
        for level in arrays.levels
        if len(level.values) < count
    ]
    levels.append((count, raw_rows(top, top)))
    tables = [rows - after[: len(rows)] for (_, rows), (_, after) in itertools.pairwise(levels)]
    gaussians = _gaussians(levels[-1][1], arrays.sh_rest)
    return Model(
        scene=_scene(gaussians, tables),
        sh_degree=arrays.sh_degree,
        antialiased=arrays.antialiased,
        background=torch.tensor(arrays.background),
        data={},
        iteration=0,
        name=name,
    )


def raw_rows(values: Float[np.ndarray, "M 13"], base: Float[np.ndarray, "N 13"]) -> Float[np.ndarray, "M 14"]:
    """[M, 14] raw parameters in the columns of a residual table.

    Quaternions are in units of the length of ``base``'s, so that those of ``base`` have length 1 and
    displacements may be added to them.
    """
    part = {name: values[:, place].astype(np.float64) for name, place in PLACES.items()}
    t = np.clip(part["opacities"], _LEAST_T, 1 - _LEAST_T)
    alpha = t * t * (3.0 - 2.0 * t)
    rest = base[: len(values), PLACES["rotations"]].astype(np.float64)
    length = np.sqrt(1.0 + np.square(rest).sum(axis=1, keepdims=True))
    parts = {
        "means": part["means"],
        "quats": np.concatenate([np.ones((len(values), 1)), part["rotations"]], axis=1) / length,
        "scales": part["scales"],
        "opacities": np.log(alpha / (1.0 - alpha)),
        "sh": part["sh0"],
    }
    return np.concatenate([parts[name] for name in residual_columns()], axis=1)


def _gaussians(rows: Float[np.ndarray, "N 14"], sh_rest: Float[np.ndarray, "N K 3"]) -> Gaussians:
    names, widths = zip(*residual_columns().items(), strict=True)
    columns = np.split(rows.astype(np.float32), np.cumsum(widths)[:-1], axis=1)
    raw = {name: torch.from_numpy(values.copy()) for name, values in zip(names, columns, strict=True)}
    raw["opacities"] = raw["opacities"].squeeze(1)
    raw["sh"] = torch.cat([raw["sh"][:, None], torch.from_numpy(sh_rest.copy())], dim=1)
    return Gaussians(raw)


def _scene(gaussians: Gaussians, tables: list[Float[np.ndarray, "M 14"]]) -> Scene:
    if not tables:
        return Scene(gaussians, elastic=True).eval()
    anchors = [len(table) / len(gaussians) for table in tables]
    part = RatioResiduals(len(gaussians), anchors, dict.fromkeys(residual_columns(), 1.0))
    for parameter, table in zip(part.tables, tables, strict=True):
        parameter.data.copy_(torch.from_numpy(table))
    return Scene(gaussians, parts={part.kind: part}, elastic=True).eval()
