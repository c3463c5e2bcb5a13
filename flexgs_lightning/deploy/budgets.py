"""Budgets as people write them, on every command: ``--ratio``, ``--max-gaussians``, ``--max-megabytes``,
``--max-milliseconds``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.profile import Profile, read_profile
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)

_SUFFIXES = {"k": 1e3, "m": 1e6}


@dataclass(frozen=True)
class Budget:
    """One budget: at most one of its fields is set; none means the full model.

    Attributes:
        ratio: share of the Gaussians in (0, 1].
        max_gaussians: number of Gaussians.
        max_megabytes: megabytes (1,000,000 bytes) of an exported PLY file.
        max_milliseconds: time of a frame.
        profile: beside the last: what a frame costs on the device that is meant.
    """

    ratio: float | None = None
    max_gaussians: int | None = None
    max_megabytes: float | None = None
    max_milliseconds: float | None = None
    profile: Profile | None = None

    def of(self, model: Model, time: float | None = None) -> Splats:
        """The model within this budget.

        Args:
            model: to draw or write.
            time: of a scene that moves, in [0, 1].

        Raises:
            InputError: out of range, or less than the full model of a scene that is not elastic; or the scene
                moves and there is no time.
        """
        if self == Budget():
            return model.at(1.0, time)
        return model.at(
            self.ratio,
            time,
            max_gaussians=self.max_gaussians,
            max_megabytes=self.max_megabytes,
            max_milliseconds=self.max_milliseconds,
            profile=self.profile,
        )

    def share(self, model: Model) -> float:
        """The ratio that it comes to, in (0, 1]; megabytes are those of a PLY.

        Raises:
            InputError: out of range, or below 1 of a scene that is not elastic.
        """
        if self == Budget():
            return 1.0
        return model.ratio_of(
            self.ratio,
            max_gaussians=self.max_gaussians,
            max_megabytes=self.max_megabytes,
            max_milliseconds=self.max_milliseconds,
            profile=self.profile,
        )


def parse_budgets(
    ratio: Sequence[str] | None,
    max_gaussians: Sequence[str] | None,
    max_megabytes: Sequence[str] | None,
    max_milliseconds: Sequence[str] | None = None,
    profile: Path | None = None,
) -> list[Budget]:
    """Budgets from numbers as they are written (0.05, 50k, 1M); the full model if there are none.

    Raises:
        InputError: naming the option that holds something else; ``profile`` is no profile, or beside no time.
    """
    if profile is not None and max_milliseconds is None:
        raise InputError("--profile: says what milliseconds buy; expected --max-milliseconds beside it.")
    device = None if profile is None else read_profile(profile)
    budgets = [Budget(ratio=number) for number in _numbers("ratio", ratio)]
    budgets += [Budget(max_gaussians=int(number)) for number in _numbers("max_gaussians", max_gaussians)]
    budgets += [Budget(max_megabytes=number) for number in _numbers("max_megabytes", max_megabytes)]
    times = _numbers("max_milliseconds", max_milliseconds)
    budgets += [Budget(max_milliseconds=number, profile=device) for number in times]
    return budgets or [Budget()]


def parse_budget(
    ratio: str | None,
    max_gaussians: str | None,
    max_megabytes: str | None,
    max_milliseconds: str | None = None,
    profile: Path | None = None,
) -> Budget:
    """As ``parse_budgets``, where there is only one.

    Raises:
        InputError: there are several.
    """
    texts = (ratio, max_gaussians, max_megabytes, max_milliseconds)
    first, second, third, fourth = (None if text is None else [text] for text in texts)
    budgets = parse_budgets(first, second, third, fourth, profile)
    if len(budgets) > 1:
        names = "--ratio, --max_gaussians, --max_megabytes, --max_milliseconds"
        raise InputError(f"{names}: expected one of them, found several.")
    return budgets[0]


def with_profile(budgets: Sequence[Budget], measure: Callable[[], Profile]) -> list[Budget]:
    """The same, with this device measured where a time has no profile.

    Args:
        budgets: as parsed.
        measure: called once if it is needed.
    """
    if all(budget.max_milliseconds is None or budget.profile is not None for budget in budgets):
        return list(budgets)
    log.info("Measuring what a frame costs here; flexgs profile keeps it for --profile.")
    found = measure()
    return [replace(budget, profile=found) if budget.max_milliseconds else budget for budget in budgets]


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
