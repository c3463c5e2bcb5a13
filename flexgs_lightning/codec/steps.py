"""Step sizes from sensitivity: a rule that predicts what an error costs from what a decoder already knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Int32

from flexgs_lightning.codec.rows import FRACTION
from flexgs_lightning.codec.sensitivity import Sensitivity
from flexgs_lightning.model.compression.layout import DISTANCE, STILL, TIME_SCALES, Layout

_T, _SCALES, _DISTANCE, _TIME_SCALE = (1, 2), (3, 4, 5), (6,), (7,)
"""Features by what they are made of."""
_OFFSET_UNITS = 64
"""Offsets of chunks are in this part of a step class."""
CLASSES_AN_OCTAVE = 4
_ROUNDS = 30
_SAMPLE = 100_000
"""Gaussians that a fit looks at, evenly spread over the ranks."""
_RIDGE = 1e-2


@dataclass(frozen=True)
class StepRule:
    """Step classes as a function of a row, an attribute's level and the rank.

    Attributes:
        weights: [W, F] int32, see ``Numbers``.
        curves: of each level and attribute, the constant and the slope over ln(rank) of
            ln(second derivative) beside the weights.
        harms: of each level, the step for a second derivative of 1. Larger is coarser.
        balance: factors on the steps of attributes.
        units: values of 1 of the attributes' integers, see ``Numbers.unit_of``.
        layout: the columns.
    """

    weights: Int32[np.ndarray, "W F"]
    curves: tuple[dict[str, tuple[float, float]], ...]
    harms: tuple[float, ...]
    balance: Mapping[str, float]
    units: Mapping[str, float]
    layout: Layout = STILL

    def offsets(self, level: int, first: int, stop: int) -> Int32[np.ndarray, " A"]:
        """[A] offsets of the chunk of ranks ``first`` to ``stop`` at a level.

        What is the same at all levels has the full model's.
        """
        curves = [self.curve(level, name) for name in self.layout.attributes]
        classes = [constant + slope * log_rank(first, stop) for constant, slope in curves]
        return np.array(
            [round(min(max(found * _OFFSET_UNITS, -32768), 32767)) for found in classes], dtype=np.int32
        )

    def curve(self, level: int, name: str) -> tuple[float, float]:
        """Step class of an attribute at a level, beside the weights: constant, and slope over ln(rank)."""
        place = level if name in self.layout.update_streams else len(self.harms) - 1
        constant, slope = self.curves[place][name]
        step = self.harms[place] * self.balance.get(name, 1.0) / self.units[name]
        octave = CLASSES_AN_OCTAVE / (2 * math.log(2))
        return CLASSES_AN_OCTAVE * math.log2(step) - octave * constant, -octave * slope

    def scaled(self, factors: tuple[float, ...]) -> StepRule:
        """The same with coarser or finer steps at each level."""
        harms = tuple(harm * factor for harm, factor in zip(self.harms, factors, strict=True))
        return replace(self, harms=harms)


def log_rank(first: int, stop: int) -> float:
    """Logarithm of the geometric middle of the ranks of a chunk."""
    return math.log(math.sqrt((first + 1) * stop))


def fit_rule(
    features: Float[np.ndarray, "N F"],
    sensitivities: list[Sensitivity],
    harms: tuple[float, ...],
    units: Mapping[str, float],
    balance: Mapping[str, float],
    layout: Layout = STILL,
) -> StepRule:
    """Fit the rule to measured sensitivities.

    Each fit minimises ln(mean(S / p)) + mean(ln p) over predictions p that are log-linear in features and
    ln(rank): the distortion at equal rate of steps proportional to 1 / sqrt(p). Convex; Newton's method.

    Args:
        features: [N, F] of the full model's rows, as the kernels compute them.
        sensitivities: of each level, the full model's last.
        harms: see ``StepRule``.
        units: see ``StepRule``.
        balance: see ``StepRule``.
        layout: the columns.
    """
    ranks = np.log(np.arange(len(features)) + 1.0)
    weights = np.zeros((layout.width, layout.features))
    full: dict[str, tuple[float, float]] = {}
    for name in layout.attributes:
        columns = layout.rule_rows(name)
        slopes = []
        for column in columns:
            open_features = list(_known(layout, name, column))
            design = np.column_stack([features[:, open_features], ranks])
            measured = _measured(sensitivities[-1], layout, column)
            fitted = _fit(design, measured, np.zeros(len(features)))
            weights[column, open_features] = fitted[1:-1]
            weights[column, 0] = fitted[0]
            slopes.append(fitted[-1])
        first = weights[columns[0], 0]
        weights[columns, 0] -= first
        full[name] = (first, float(np.mean(slopes)))
    curves = [_curve(features[: len(s.values)], weights, s, layout) for s in sensitivities[:-1]]
    integers = np.rint(weights * -CLASSES_AN_OCTAVE / (2 * math.log(2)) * (1 << FRACTION))
    integers[:, 0] = np.rint(integers[:, 0] / (1 << 12))
    rounded = np.clip(integers, -(1 << 20), 1 << 20).astype(np.int32)
    return StepRule(rounded, (*curves, full), harms, balance, units, layout)


def _known(layout: Layout, name: str, column: int) -> tuple[int, ...]:
    """Features that are known when a column is coded."""
    order = layout.attributes
    scales = _SCALES[: column - 1] if name == "scales" else _SCALES
    return (
        (_T if name != "opacities" else ())
        + (scales if order.index(name) >= order.index("scales") else ())
        + _DISTANCE
        + (_TIME_SCALE if layout.varying and order.index(name) > order.index("time_scales") else ())
    )


def _curve(
    features: Float[np.ndarray, "R F"],
    weights: Float[np.ndarray, "W F"],
    sensitivity: Sensitivity,
    layout: Layout,
) -> dict[str, tuple[float, float]]:
    """Constants and slopes of a level's attributes, given the full model's weights."""
    ranks = np.log(np.arange(len(features)) + 1.0)[:, None]
    curves = {}
    for name in layout.update_streams:
        fits = []
        for column in layout.rule_rows(name):
            known = features[:, 1:] @ weights[column, 1:] + weights[column, 0]
            fits.append(_fit(ranks, _measured(sensitivity, layout, column), known))
        constant, slope = np.mean(fits, axis=0)
        curves[name] = (float(constant), float(slope))
    return curves


def _measured(sensitivity: Sensitivity, layout: Layout, column: int) -> Float[np.ndarray, " R"]:
    """Second derivatives by a column; what are three numbers for three axes or colours share theirs."""
    if column == DISTANCE:
        flat = sensitivity.sh_rest.reshape(len(sensitivity.sh_rest), -1)
        return flat.mean(axis=1) if flat.shape[1] else np.ones(len(flat))
    for field in layout.fields:
        if field.place.start <= column < field.place.stop and field.name in ("means", "sh0", "motion"):
            power = (column - field.place.start) // 3 * 3 + field.values.start
            return np.asarray(sensitivity.values[:, power : power + 3].mean(axis=1))
    return np.asarray(sensitivity.values[:, column - (column > DISTANCE)])


def _fit(
    design: Float[np.ndarray, "R F"], measured: Float[np.ndarray, " R"], known: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " G"]:
    """[1 + F] constant and weights of ln p, beside what is ``known`` of it."""
    every = max(1, len(measured) // _SAMPLE)
    design, measured, known = design[::every], measured[::every], known[::every]
    floor = max(float(measured.mean()) * 1e-6, 1e-300)
    logs = np.log(np.maximum(measured, floor)) - known
    middle, width = design.mean(axis=0), design.std(axis=0) + 1e-9
    normal = (design - middle) / width
    slopes = np.zeros(normal.shape[1])

    def objective(candidate: Float[np.ndarray, " F"]) -> tuple[float, Float[np.ndarray, " R"]]:
        left = logs - normal @ candidate
        top = left.max()
        shares = np.exp(left - top)
        value = top + math.log(shares.mean()) + 0.5 * _RIDGE * float(candidate @ candidate)
        return value, shares / shares.sum()

    value, shares = objective(slopes)
    for _ in range(_ROUNDS):
        weighted = shares @ normal
        gradient = -weighted + _RIDGE * slopes
        centred = normal - weighted
        curvature = (centred * shares[:, None]).T @ centred + (_RIDGE + 1e-3) * np.eye(len(slopes))
        direction = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-4:
            candidate = slopes - length * direction
            next_value, next_shares = objective(candidate)
            if next_value < value:
                break
            length /= 2
        else:
            break
        improvement, value, slopes, shares = value - next_value, next_value, candidate, next_shares
        if improvement < 1e-7:
            break
    left = logs - normal @ slopes
    constant = left.max() + math.log(np.exp(left - left.max()).mean())
    slopes = slopes / width
    return np.concatenate([[constant - middle @ slopes], slopes])


def row_features(rows: Int[np.ndarray, "N W"], layout: Layout = STILL) -> Float[np.ndarray, "N F"]:
    """What kernels compute from a row: a constant, t, t^2 / 4096, three scales, the distance, the width."""
    t = rows[:, 0].astype(np.float64)
    columns = [np.ones(len(rows)), t, t * t / 4096, rows[:, 1], rows[:, 2], rows[:, 3], rows[:, DISTANCE]]
    if layout.varying:
        columns.append(rows[:, TIME_SCALES])
    return np.column_stack(columns).astype(np.float64)
