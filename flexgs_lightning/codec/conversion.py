"""Models to and from ``ElasticModelArrays``: where the elastic file meets the model's classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.codec.drawing import basis_motion
from flexgs_lightning.codec.movement import MOST_BASES, MOST_KNOTS, Movement
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.baking import with_harmonics
from flexgs_lightning.model.basis_motion import BasisMotion
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.columns import motion_columns
from flexgs_lightning.model.compression.coordinates import (
    OWN_FRAME,
    PLACES,
    frames_of,
    logit_of,
    to_coordinates,
)
from flexgs_lightning.model.compression.layout import MOVES, TURNS
from flexgs_lightning.model.compression.mask import Mask
from flexgs_lightning.model.compression.quantization import Quantization
from flexgs_lightning.model.compression.rule_quantization import RuleQuantization
from flexgs_lightning.model.gaussians import Gaussians, activate
from flexgs_lightning.model.lifespan import Lifespan
from flexgs_lightning.model.motion import MOBILITY, PolynomialMotion
from flexgs_lightning.model.part import Conditions, Part
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene, brought_by
from flexgs_lightning.splats import MAX_SH_DEGREE, Splats

FIELD_ANCHORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Levels of a model whose displacements are no tables (a transform field): it is sampled at these."""
_FAR = 1e4
"""Coefficient beside which the others' share in a mixture of bases is 0."""


def trained_quantization(scene: Scene) -> RuleQuantization | None:
    """The quantisation of a scene that was trained for the elastic file."""
    return next((part for part in scene.each_part() if isinstance(part, RuleQuantization)), None)


def arrays_of(model: Model) -> ElasticModelArrays:
    """A trained model as arrays, not quantised: exact where residual tables (or nothing) make it elastic.

    Features are baked to harmonics, with the loss in the log; of scenes that move, once for all times. Of a
    scene that was trained for bytes those move whose motion training has kept.
    Small sizes of a scene that moves turn as the full one does, up to the length of its quaternions.

    Raises:
        InputError: a scene that moves in a way that files do not hold.
    """
    trained = trained_quantization(model.scene)
    model = replace(model, scene=model.scene.without(Quantization))
    background = tuple(float(level) for level in model.background)
    colors = (background[0], background[1], background[2])
    if model.moves and model.scene.appearance is not None:
        model = replace(model, scene=with_harmonics(model.scene), sh_degree=MAX_SH_DEGREE)
    if model.moves:
        arrays = _moving_arrays(model, colors)
        if trained is not None:
            arrays = arrays.moving_only(arrays.flags & trained.flags.detach().cpu().numpy())
        return arrays
    sizes = [(anchor, model.at(anchor)) for anchor in _anchors(model)]
    return _arrays(sizes, model.splats(), colors, model.antialiased)


def arrays_of_splats(splats: Splats) -> ElasticModelArrays:
    """A scene of one size, such as a PLY file's, as arrays."""
    return _arrays([], splats, (0.0, 0.0, 0.0), False)


def _anchors(model: Model) -> tuple[float, ...]:
    """Ratios below 1 at which levels are taken; each holds a Gaussian, and each more than the one before."""
    parts = [part for part in model.scene.each_part() if not (isinstance(part, Mask) or part.moves)]
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


# -- scenes that move ----------------------------------------------------------------------------------


@torch.no_grad()
def _moving_arrays(model: Model, background: tuple[float, float, float]) -> ElasticModelArrays:
    movement = movement_of(model.scene)
    full = _before_motion(model.scene, 1.0)
    frames = _frames(movement, full)
    levels = []
    for ratio in (*_anchors(model), 1.0):
        parameters = _before_motion(model.scene, ratio)
        count = len(parameters["means"])
        still = _values(activate(parameters), frames[:count])
        constant = {name: values[:count] for name, values in full.items()}
        moving = motion_columns(movement.layout, parameters, constant, frames[:count]).cpu().numpy()
        if movement.path == "free_bases":
            still[:, PLACES["rotations"]] = parameters["quats"][:, 1:].cpu().numpy()
        levels.append(Level(ratio, np.concatenate([still, moving], axis=1)))
    sh = full["sh"][:, 1 : (model.sh_degree + 1) ** 2].cpu().numpy().astype(np.float32)
    flags = np.full(len(model), MOVES | TURNS, np.uint8)
    if MOBILITY in full:
        flags[full[MOBILITY].cpu().numpy() == 0] = 0
    arrays = ElasticModelArrays(len(model), tuple(levels), sh, background, model.antialiased, movement, flags)
    return arrays.moving_only(flags)


@torch.no_grad()
def file_frames(scene: Scene) -> UInt8[Tensor, " N"]:
    """Of each Gaussian the frame in which the file has its rotation and scales."""
    return _frames(movement_of(scene), _before_motion(scene, 1.0))


def _frames(movement: Movement, full: Mapping[str, Tensor]) -> UInt8[Tensor, " N"]:
    if movement.path == "free_bases":  # whose rotations are added to quaternions as they are
        return torch.full((len(full["quats"]),), OWN_FRAME, dtype=torch.uint8, device=full["quats"].device)
    return frames_of(full["quats"].double(), full["scales"])


def movement_of(scene: Scene) -> Movement:
    """How a scene moves.

    Raises:
        InputError: in a way that files do not hold.
    """
    parts = [part for part in scene.each_part() if part.moves and part is not scene.appearance]
    lives = [part for part in parts if isinstance(part, Lifespan)]
    polynomials = [part for part in parts if isinstance(part, PolynomialMotion)]
    bases = [part for part in parts if isinstance(part, BasisMotion)]
    unknown = len(lives) + len(polynomials) + len(bases) != len(parts)
    if unknown or max(len(lives), len(polynomials) + len(bases)) > 1:
        kinds = ", ".join(part.kind for part in parts)
        raise InputError(f"elastic file: expected one motion and one kind of lives, found {kinds}.")
    least = float(np.float32(lives[0].least_opacity)) if lives else 0.0
    if polynomials:
        if polynomials[0].centered != bool(lives):
            raise InputError("elastic file: expected time centres where opacity varies, and only there.")
        return Movement("polynomial", polynomials[0].degree, bool(lives), least)
    if not bases:
        return Movement("none", 0, bool(lives), least)
    knots = torch.cat([bases[0].translations, bases[0].rotations], dim=-1).detach().cpu().numpy()
    for name, found, most in (("bases", knots.shape[1], MOST_BASES), ("knots", len(knots), MOST_KNOTS)):
        if found > most:
            raise InputError(f"elastic file: expected at most {most} {name}, found {found}.")
    path: Literal["bases", "free_bases"] = "bases" if bases[0].rigid else "free_bases"
    return Movement(path, knots.shape[1], bool(lives), least, knots.astype(np.float32))


def _before_motion(scene: Scene, ratio: float) -> dict[str, Tensor]:
    """Raw parameters at a ratio, as they are whatever the time."""
    chosen = scene.first(ratio)
    parameters = scene.gaussians.rows(chosen)
    for part in scene.each_part():
        if not part.moves:
            parameters = part(parameters, chosen, Conditions(ratio))
    return {name: values.detach() for name, values in parameters.items()}


# -- back to models ------------------------------------------------------------------------------------


def model_of(arrays: ElasticModelArrays, name: str = "scene", seconds: float | None = None) -> Model:
    """What is at hand of a decoded file, as a checkpoint would hold it.

    Ratios are then shares of the Gaussians at hand. Draws as ``arrays`` do: exactly at levels, and between
    them up to opacities, whose logits are interpolated in place of t.
    """
    count, movement = len(arrays), arrays.movement
    top = arrays.values_at(arrays.largest_ratio)
    parts = _moving_parts(arrays)
    table = Gaussians.empty().extended(brought_by(parts)).attributes
    columns = residual_columns(table)
    full = _raw(top, top, movement)
    tables = []
    after = full | {"quats": full["quats"] / np.linalg.norm(full["quats"], axis=1, keepdims=True)}
    for level in reversed(arrays.levels):
        rows = len(level.values)
        if rows < count:
            raw = _raw(level.values, top, movement)
            tables.append(np.concatenate([raw[key] - after[key][:rows] for key in columns], axis=1))
            after = raw
    gaussians = _gaussians(full, arrays, parts)
    return Model(
        scene=_scene(gaussians, tables[::-1], columns, parts),
        sh_degree=arrays.sh_degree,
        antialiased=arrays.antialiased,
        background=torch.tensor(arrays.background),
        data={},
        iteration=0,
        name=name,
        seconds=seconds,
    )


def _raw(
    values: Float[np.ndarray, "M V"], base: Float[np.ndarray, "N V"], movement: Movement
) -> dict[str, Float[np.ndarray, "M C"]]:
    """Raw parameters of a level, [M, C] each.

    Quaternions are in units of the length of ``base``'s, so that those of ``base`` have length 1 and
    displacements may be added to them; but for free bases, whose turns are added to quaternions as they are.
    """
    part = {name: values[:, place].astype(np.float64) for name, place in PLACES.items()}
    part |= {field.name: values[:, field.values].astype(np.float64) for field in movement.layout.motion}
    rest = base[: len(values), PLACES["rotations"]].astype(np.float64)
    length = np.sqrt(1.0 + np.square(rest).sum(axis=1, keepdims=True))
    real = np.ones((len(values), 1))
    if "real_parts" in part:
        real, length = part.pop("real_parts"), real
    if "omega" in part:
        part["omega"] = part["omega"] / length
    sh0, rotations = part.pop("sh0"), part.pop("rotations")
    opacities = logit_of(torch.from_numpy(part["opacities"])).numpy()
    quats = np.concatenate([real, rotations], axis=1) / length
    return part | {"quats": quats, "opacities": opacities, "sh": sh0}


def _moving_parts(arrays: ElasticModelArrays) -> dict[str, Part]:
    """Parts that move a scene as a file says."""
    movement = arrays.movement
    parts: dict[str, Part] = {}
    if movement.varying:
        parts["lifespan"] = Lifespan(least_opacity=movement.least_opacity)
    if movement.path == "polynomial":
        parts["motion"] = PolynomialMotion(movement.order, centered=movement.varying)
    elif movement.path != "none":
        parts["motion"] = basis_motion(movement, still=_has_still(arrays))
    return parts


def _has_still(arrays: ElasticModelArrays) -> bool:
    """Whether some stand still among others that bases move rigidly."""
    return arrays.movement.path == "bases" and bool((arrays.flags & MOVES == 0).any())


def _gaussians(
    raw: Mapping[str, Float[np.ndarray, "N C"]], arrays: ElasticModelArrays, parts: Mapping[str, Part]
) -> Gaussians:
    given = {name: torch.from_numpy(values.astype(np.float32)) for name, values in raw.items()}
    given["sh"] = torch.cat([given["sh"][:, None], torch.from_numpy(arrays.sh_rest.copy())], dim=1)
    if _has_still(arrays):  # one more base, which moves nothing, and is all that these follow
        still = torch.from_numpy(arrays.flags & MOVES == 0)[:, None]
        own = torch.where(still, 0.0, given["coefficients"])
        given["coefficients"] = torch.cat([own, torch.where(still, _FAR, -_FAR)], dim=1)
    added = brought_by(parts)
    table = Gaussians.empty().extended(added).attributes
    degree = arrays.sh_degree
    shaped = {name: v.view(len(v), *table[name].shape_at(degree)) for name, v in given.items()}
    return Gaussians(shaped, added)


def _scene(
    gaussians: Gaussians,
    tables: list[Float[np.ndarray, "M C"]],
    columns: dict[str, int],
    parts: Mapping[str, Part],
) -> Scene:
    if not tables:
        return Scene(gaussians, parts=parts, elastic=True).eval()
    anchors = [len(table) / len(gaussians) for table in tables]
    units = dict.fromkeys(columns, 1.0)
    residuals = RatioResiduals(len(gaussians), anchors, units, columns=columns)
    for parameter, table in zip(residuals.tables, tables, strict=True):
        parameter.data.copy_(torch.from_numpy(table))
    return Scene(gaussians, parts={residuals.kind: residuals, **parts}, elastic=True).eval()
