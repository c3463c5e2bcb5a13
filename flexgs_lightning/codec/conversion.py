"""Models to and from ``ElasticModelArrays``: where the elastic file meets the model's classes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.coordinates import PLACES, frames_of, logit_of, to_coordinates
from flexgs_lightning.model.compression.quantization import Quantization
from flexgs_lightning.model.compression.sh_mask import ShMask
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import Splats

FIELD_ANCHORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Levels of a model whose displacements are no tables (a transform field): it is sampled at these."""


def arrays_of(model: Model) -> ElasticModelArrays:
    """A trained model as arrays, not quantised: exact where residual tables (or nothing) make it elastic."""
    model = replace(model, scene=model.scene.without(Quantization))
    sizes = [(anchor, model.at(anchor)) for anchor in _anchors(model)]
    background = tuple(float(level) for level in model.background)
    return _arrays(sizes, model.splats(), (background[0], background[1], background[2]), model.antialiased)


def arrays_of_splats(splats: Splats) -> ElasticModelArrays:
    """A scene of one size, such as a PLY file's, as arrays."""
    return _arrays([], splats, (0.0, 0.0, 0.0), False)


def _anchors(model: Model) -> tuple[float, ...]:
    """Ratios below 1 at which levels are taken; each holds a Gaussian, and each more than the one before."""
    parts = [part for part in model.scene.each_part() if not isinstance(part, ShMask)]
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
    frames = frames_of(full.quats.detach().double(), full.scales.detach())
    levels = [Level(ratio, _values(splats, frames[: len(splats)])) for ratio, splats in [*sizes, (1.0, full)]]
    sh_rest = full.sh[:, 1:].detach().cpu().numpy().astype(np.float32)
    return ElasticModelArrays(len(full), tuple(levels), sh_rest, background, antialiased)


def _values(splats: Splats, frames: UInt8[Tensor, " M"]) -> Float[np.ndarray, "M 13"]:
    """[M, 13] columns of a level; see there."""
    tiny = torch.finfo(torch.float32).tiny
    quats, scales, means, opacities, sh0 = (
        values.detach().double()
        for values in (splats.quats, splats.scales, splats.means, splats.opacities, splats.sh[:, 0])
    )
    values = to_coordinates(quats, scales.clamp_min(tiny).log(), means, opacities, sh0, frames)
    return values.float().cpu().numpy()


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
    rest = base[: len(values), PLACES["rotations"]].astype(np.float64)
    length = np.sqrt(1.0 + np.square(rest).sum(axis=1, keepdims=True))
    parts = {
        "means": part["means"],
        "quats": np.concatenate([np.ones((len(values), 1)), part["rotations"]], axis=1) / length,
        "scales": part["scales"],
        "opacities": logit_of(torch.from_numpy(part["opacities"])).numpy(),
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
