"""Step sizes from sensitivity: a rule that predicts what an error costs from what a decoder already knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Int32

from flexgs_lightning.codec.chunks import ATTRIBUTES
from flexgs_lightning.codec.quantization import SH_UNIT, UNITS
from flexgs_lightning.codec.rows import FEATURES, FRACTION, SH_RULE
from flexgs_lightning.codec.sensitivity import Sensitivity
from flexgs_lightning.model.compression.coordinates import PLACES, WIDTH

_T, _SCALES, _DISTANCE = (1, 2), (3, 4, 5), (6,)
_OPEN = {
    0: _DISTANCE,
    1: _T + _DISTANCE,
    2: _T + _SCALES[:1] + _DISTANCE,
    3: _T + _SCALES[:2] + _DISTANCE,
}
"""Features that are known when a column is coded; for all other columns, all of them."""
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
        weights: [14, 7] int32, see ``Numbers``.
        curves: of each level and attribute, the constant and the slope over ln(rank) of
            ln(second derivative) beside the weights.
        harms: of each level, the step for a second derivative of 1. Larger is coarser.
        balance: factors on the steps of attributes.
        means_unit: of the file.
    """

    weights: Int32[np.ndarray, "14 7"]
    curves: tuple[dict[str, tuple[float, float]], ...]
    harms: tuple[float, ...]
    balance: Mapping[str, float]
    means_unit: float

    def offsets(self, level: int, first: int, stop: int) -> Int32[np.ndarray, " 6"]:
        """[6] offsets of the chunk of ranks ``first`` to ``stop`` at a level.

        The other spherical harmonics are the same at all levels, so theirs are the full model's.
        """
        curves = [self.curve(level, name) for name in ATTRIBUTES]
        classes = [constant + slope * log_rank(first, stop) for constant, slope in curves]
        return np.array(
            [round(min(max(found * _OFFSET_UNITS, -32768), 32767)) for found in classes], dtype=np.int32
        )

    def curve(self, level: int, name: str) -> tuple[float, float]:
        """Step class of an attribute at a level, beside the weights: constant, and slope over ln(rank)."""
        place = len(self.harms) - 1 if name == "sh_rest" else level
        constant, slope = self.curves[place][name]
        step = self.harms[place] * self.balance.get(name, 1.0) / self._unit(name)
        octave = CLASSES_AN_OCTAVE / (2 * math.log(2))
        return CLASSES_AN_OCTAVE * math.log2(step) - octave * constant, -octave * slope

    def _unit(self, name: str) -> float:
        return SH_UNIT if name == "sh_rest" else self.means_unit if name == "means" else UNITS[name]

    def scaled(self, factors: tuple[float, ...]) -> StepRule:
        """The same with coarser or finer steps at each level."""
        harms = tuple(harm * factor for harm, factor in zip(self.harms, factors, strict=True))
        return replace(self, harms=harms)


def log_rank(first: int, stop: int) -> float:
    """Logarithm of the geometric middle of the ranks of a chunk."""
    return math.log(math.sqrt((first + 1) * stop))


def fit_rule(
    features: Float[np.ndarray, "N 7"],
    sensitivities: list[Sensitivity],
    harms: tuple[float, ...],
    means_unit: float,
    balance: Mapping[str, float],
) -> StepRule:
    """Fit the rule to measured sensitivities.

    Each fit minimises ln(mean(S / p)) + mean(ln p) over predictions p that are log-linear in features and
    ln(rank): the distortion at equal rate of steps proportional to 1 / sqrt(p). Convex; Newton's method.

    Args:
        features: [N, 7] of the full model's rows, as the kernels compute them.
        sensitivities: of each level, the full model's last.
        harms: see ``StepRule``.
        means_unit: of the file.
        balance: see ``StepRule``.
    """
    ranks = np.log(np.arange(len(features)) + 1.0)
    weights = np.zeros((SH_RULE + 1, FEATURES))
    full: dict[str, tuple[float, float]] = {}
    for name in ATTRIBUTES:
        columns = _columns(name)
        slopes = []
        for column in columns:
            open_features = list(_OPEN.get(column, _T + _SCALES + _DISTANCE))
            design = np.column_stack([features[:, open_features], ranks])
            fitted = _fit(design, _measured(sensitivities[-1], column), np.zeros(len(features)))
            weights[column, open_features] = fitted[1:-1]
            weights[column, 0] = fitted[0]
            slopes.append(fitted[-1])
        first = weights[columns[0], 0]
        weights[columns, 0] -= first
        full[name] = (first, float(np.mean(slopes)))
    curves = [_curve(features[: len(s.values)], weights, s) for s in sensitivities[:-1]]
    integers = np.rint(weights * -CLASSES_AN_OCTAVE / (2 * math.log(2)) * (1 << FRACTION))
    integers[:, 0] = np.rint(integers[:, 0] / (1 << 12))
    return StepRule(
        np.clip(integers, -(1 << 20), 1 << 20).astype(np.int32), (*curves, full), harms, balance, means_unit
    )


def _curve(
    features: Float[np.ndarray, "R 7"], weights: Float[np.ndarray, "14 7"], sensitivity: Sensitivity
) -> dict[str, tuple[float, float]]:
    """Constants and slopes of a level's attributes, given the full model's weights."""
    ranks = np.log(np.arange(len(features)) + 1.0)[:, None]
    curves = {}
    for name in PLACES:
        fits = []
        for column in _columns(name):
            known = features[:, 1:] @ weights[column, 1:] + weights[column, 0]
            fits.append(_fit(ranks, _measured(sensitivity, column), known))
        constant, slope = np.mean(fits, axis=0)
        curves[name] = (float(constant), float(slope))
    return curves


def _columns(name: str) -> list[int]:
    return [SH_RULE] if name == "sh_rest" else list(range(WIDTH))[PLACES[name]]


def _measured(sensitivity: Sensitivity, column: int) -> Float[np.ndarray, " R"]:
    """Second derivatives by a column; means share theirs, because one rule serves all their axes."""
    if column == SH_RULE:
        flat = sensitivity.sh_rest.reshape(len(sensitivity.sh_rest), -1)
        return flat.mean(axis=1) if flat.shape[1] else np.ones(len(flat))
    for name in ("means", "sh0"):
        place = PLACES[name]
        if place.start <= column < place.stop:
            return np.asarray(sensitivity.values[:, place].mean(axis=1))
    return np.asarray(sensitivity.values[:, column])


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


def row_features(rows: Int[np.ndarray, "N 14"]) -> Float[np.ndarray, "N 7"]:
    """What the kernels compute from a row: a constant, t, t^2 / 4096, three scales, the distance."""
    t = rows[:, 0].astype(np.float64)
    columns = [np.ones(len(rows)), t, t * t / 4096, rows[:, 1], rows[:, 2], rows[:, 3], rows[:, WIDTH]]
    return np.column_stack(columns).astype(np.float64)
