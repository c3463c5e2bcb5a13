"""A plan's rule as training sees it, and back: what training for bytes and the encoder agree on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.encoder import CELL_BITS, Plan, chunk_stops
from flexgs_lightning.codec.quantization import (
    SH_UNIT,
    Numbers,
    fit_box,
    fit_mixing,
    fit_motion_mixing,
)
from flexgs_lightning.codec.rows import FRACTION, LIMIT
from flexgs_lightning.codec.steps import CLASSES_AN_OCTAVE, StepRule
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.compression.coordinates import PLACES, WIDTH
from flexgs_lightning.model.compression.layout import DISTANCE
from flexgs_lightning.model.compression.rule import Rule
from flexgs_lightning.model.compression.rule_quantization import RuleQuantization

_CLASSES = CLASSES_AN_OCTAVE / (2 * math.log(2))
"""Step classes that 1 of ln of a second derivative takes off."""


def rule_of(plan: Plan) -> Rule:
    """A plan's rule for training."""
    numbers, rule = plan.numbers, plan.rule
    layout = numbers.layout
    units = np.insert(numbers.units, DISTANCE, np.float32(SH_UNIT)).astype(np.float64)
    weights = numbers.weights.astype(np.float64) / (1 << FRACTION)
    weights[:, 0] *= 4096
    curves = np.zeros((len(rule.harms), len(layout.attributes), 2))
    for level in range(len(rule.harms)):
        for attribute, name in enumerate(layout.attributes):
            curves[level, attribute] = rule.curve(level, name)
    still, moving = units[:WIDTH], numbers.motion_units.astype(np.float64)
    matrix = numbers.basis.astype(np.float64) * numbers.basis_scales / SH_UNIT
    arrays = {
        "weights": weights,
        "curves": curves,
        "bounds": numbers.bounds,
        "units": units,
        "origin": numbers.origin,
        "centre": numbers.origin + numbers.centre * np.float64(numbers.means_unit),
        "basis": matrix,
        "mixing": numbers.mixing[:, :WIDTH] / 4096.0 * still[:, None] / still,
        "motion_mixing": numbers.motion_mixing[:, :-1] / 4096.0 * moving[:, None] / moving,
    }
    tensors = {name: torch.from_numpy(np.asarray(a, np.float32)) for name, a in arrays.items()}
    return Rule(**tensors, layout=layout)


def trained_plan(arrays: ElasticModelArrays, trained: RuleQuantization) -> Plan:
    """The plan of a scene that was trained for bytes: its steps, transform and prediction, and who moves.

    Args:
        arrays: the scene, not rounded, with the levels that it was trained with.
        trained: its quantisation.

    Raises:
        InputError: it is that of a scene that moves in another way.
    """
    if trained.layout != arrays.movement.layout:
        raise InputError(
            f"quantization: trained for columns of {trained.layout}, found {arrays.movement.layout}."
        )
    layout = trained.layout
    rule = replace(trained.rule, **{n: getattr(trained, n).detach().cpu() for n in Rule.tensors(layout)})
    full = arrays.levels[-1].values
    if layout.motion:
        flags = _moving(torch.from_numpy(full), trained.flags.detach().cpu(), rule, len(trained.ratios) - 1)
        arrays = arrays.moving_only(arrays.flags & flags.numpy())
        full = arrays.levels[-1].values
    origin, unit = fit_box(full[:, PLACES["means"]])
    centre = np.rint((rule.centre.double().numpy() - origin) / np.float64(unit))
    weights = rule.weights.double().numpy() * (1 << FRACTION)
    weights[:, 0] /= 4096
    matrix = rule.basis.double().numpy()
    scales = np.abs(matrix).max(axis=0, initial=0.0) / 127.0
    numbers = Numbers(
        origin,
        unit,
        np.clip(centre, -LIMIT, LIMIT).astype(np.int32),
        max(CELL_BITS),
        np.rint(weights).astype(np.int32),
        rule.bounds.numpy().astype(np.int32),
        np.zeros((WIDTH, WIDTH + 1), np.int32),
        np.rint(matrix / np.where(scales > 0, scales, 1.0)).astype(np.int8),
        (scales * SH_UNIT).astype(np.float32),
        layout,
        rule.units.numpy()[DISTANCE + 1 :].copy(),
        np.zeros((layout.motion_columns, layout.motion_columns + 1), np.int32),
    )
    rows = numbers.integers(full)
    stops = chunk_stops(arrays.total, [len(level.values) for level in arrays.levels])
    numbers = replace(
        numbers,
        mixing=fit_mixing(rows),
        motion_mixing=fit_motion_mixing(layout, rows, arrays.flags),
    )
    units = {name: float(rule.units[layout.rule_rows(name)[0]]) for name in layout.attributes}
    curves = tuple(
        {
            # In terms of ln of a second derivative, for a step of 1 where that is 0.
            name: (
                -(float(constant) + CLASSES_AN_OCTAVE * math.log2(units[name])) / _CLASSES,
                -float(slope) / _CLASSES,
            )
            for name, (constant, slope) in zip(layout.attributes, level, strict=True)
        }
        for level in rule.curves.double().numpy()
    )
    own = StepRule(numbers.weights, curves, (1.0,) * len(curves), {}, units, layout)
    return Plan(arrays, numbers, own, stops)


def _moving(
    values: Float[Tensor, "N V"], flags: UInt8[Tensor, " N"], rule: Rule, level: int
) -> UInt8[Tensor, " N"]:
    """Who of those that may does move: no motion that rounds to nothing is coded."""
    steps, flags = rule.steps(values, torch.arange(len(values)), level), flags.clone()
    for field in rule.layout.motion:
        if field.flag and rule.layout.path != "bases":  # which move by mixtures, whatever these are
            there = (values[:, field.values].abs() > steps[:, field.place] / 2).any(dim=1)
            flags[~there] &= 0xFF - field.flag
    return flags
