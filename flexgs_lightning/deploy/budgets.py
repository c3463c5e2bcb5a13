"""Budgets as people write them: ``--ratio``, ``--max-gaussians``, ``--max-megabytes``, on every command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.splats import Splats

_SUFFIXES = {"k": 1e3, "m": 1e6}


@dataclass(frozen=True)
class Budget:
    """One budget: at most one of its fields is set; none means the full model.

    Attributes:
        ratio: share of the Gaussians in (0, 1].
        max_gaussians: number of Gaussians.
        max_megabytes: megabytes (1,000,000 bytes) of an exported PLY file.
    """

    ratio: float | None = None
    max_gaussians: int | None = None
    max_megabytes: float | None = None

    def of(self, model: Model) -> Splats:
        """The model within this budget.

        Raises:
            InputError: out of range, or less than the full model of a scene that is not elastic.
        """
        if self == Budget():
            return model.at(1.0)
        return model.at(self.ratio, max_gaussians=self.max_gaussians, max_megabytes=self.max_megabytes)


def parse_budgets(
    ratio: Sequence[str] | None, max_gaussians: Sequence[str] | None, max_megabytes: Sequence[str] | None
) -> list[Budget]:
    """Budgets from numbers as they are written (0.05, 50k, 1M); the full model if there are none.

    Raises:
        InputError: naming the option that holds something else.
    """
    budgets = [Budget(ratio=number) for number in _numbers("ratio", ratio)]
    budgets += [Budget(max_gaussians=int(number)) for number in _numbers("max_gaussians", max_gaussians)]
    budgets += [Budget(max_megabytes=number) for number in _numbers("max_megabytes", max_megabytes)]
    return budgets or [Budget()]


def parse_budget(ratio: str | None, max_gaussians: str | None, max_megabytes: str | None) -> Budget:
    """As ``parse_budgets``, where there is only one.

    Raises:
        InputError: there are several.
    """
    given = [None if text is None else [text] for text in (ratio, max_gaussians, max_megabytes)]
    budgets = parse_budgets(*given)
    if len(budgets) > 1:
        raise InputError("--ratio, --max_gaussians, --max_megabytes: expected one of them, found several.")
    return budgets[0]


def _numbers(option: str, words: Sequence[str] | None) -> list[float]:
    if words is None:
        return []
    return [_number(option, part) for part in words] or [_number(option, "")]


def _number(option: str, text: str) -> float:
    word = text.strip().lower()
    factor = _SUFFIXES.get(word[-1:], 1.0)
    try:
        number = float(word[:-1] if factor != 1.0 else word) * factor
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"--{option}: expected numbers such as 0.05 or 50k 1M, found '{text}'.")
    return number
