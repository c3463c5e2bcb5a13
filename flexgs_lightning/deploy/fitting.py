"""The largest model whose file stays within a number of bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flexgs_lightning.deploy.formats.registry import Format, has_suffix
from flexgs_lightning.deploy.formats.sog import META
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path, temporary_path
from flexgs_lightning.model.budget import MEGABYTE
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)

_FIRST_GUESS = 16.0
"""Bytes that a Gaussian may take in a compressed file, before the first one is measured."""
_CLOSE = 0.985
"""A share of the budget from which on a measured file is not made larger."""
_TRIES = 8


@dataclass(frozen=True)
class Form:
    """What is written of a model's Gaussians.

    Attributes:
        of: the file of some of them.
        draft: one of about as many bytes, where ``of`` takes long: sizes are tried out with it.
    """

    of: Callable[[Splats], SplatFile]
    draft: Callable[[Splats], SplatFile] | None = None


def write_within(model: Model, format: Format, max_bytes: float, path: Path, form: Form) -> SplatFile:
    """Write the largest size of ``model`` whose file takes at most ``max_bytes``.

    Formats of fixed size are computed. Files of the others are written and measured, eight of
    them at most once one fits: the one that is kept never exceeds the budget, and mostly uses 98.5 % of it.

    Returns:
        What was written.

    Raises:
        InputError: no Gaussian fits; the model is not elastic and does not fit as a whole; it cannot be
            written.
    """
    if not 0 < max_bytes < float("inf"):
        raise InputError(f"max_megabytes: expected a positive number, found {max_bytes / MEGABYTE:g}.")
    if format.size is None:
        if has_suffix(path, META):
            raise InputError(f"{path}: a size in megabytes needs one file, such as scene.sog.")
        return _search(model, format, max_bytes, path, form)
    low, high = 0, len(model) + 1  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        fits = format.size(middle, model.sh_degree, model.antialiased) <= max_bytes
        low, high = (middle, high) if fits else (low, middle)
    return _write(model, format, _at_least_one(low, format, max_bytes), path, form)


def _search(model: Model, format: Format, max_bytes: float, path: Path, form: Form) -> SplatFile:
    low, high = 0, len(model) + 1  # low fits, high does not, as far as was measured
    count = len(model)
    if model.elastic:
        count = min(max(int(max_bytes / _FIRST_GUESS), 1), len(model))
        if form.draft is not None:
            with temporary_path(path) as unused:
                count = len(_search(model, format, max_bytes, unused, Form(form.draft)).splats)
    measured: list[tuple[int, int]] = []
    best = None
    with atomic_path(path) as kept, temporary_path(path) as trial:
        while high - low > 1 and (best is None or len(measured) < _TRIES):
            file = _write(model, format, count, trial, form)
            measured.append((count, trial.stat().st_size))
            log.info(f"{format.name}: {count:,} Gaussians take {measured[-1][1] / MEGABYTE:.3f} MB")
            if measured[-1][1] <= max_bytes:
                low, best = count, file
                trial.replace(kept)
                if measured[-1][1] >= _CLOSE * max_bytes:
                    break
            else:
                high = count
            count = _next_count(measured, max_bytes, low, high)
        _at_least_one(low, format, max_bytes)
    assert best is not None
    return best


def _next_count(measured: list[tuple[int, int]], max_bytes: float, low: int, high: int) -> int:
    """Where a straight line through the last two files meets the budget; halfway where that goes nowhere."""
    (first, first_size), (count, size) = measured[-2:] if len(measured) > 1 else ((0, 0), measured[0])
    slope = (size - first_size) / (count - first) if count != first else 0.0
    if slope <= 0 or len(measured) >= _TRIES:
        return (low + high) // 2
    aim = count + (max_bytes * (1 + _CLOSE) / 2 - size) / slope
    return int(min(max(aim, low + 1), high - 1))


def _at_least_one(count: int, format: Format, max_bytes: float) -> int:
    if count < 1:
        raise InputError(f"max_megabytes: {max_bytes / MEGABYTE:g} holds no Gaussian as {format.name}.")
    return count


def _write(model: Model, format: Format, count: int, path: Path, form: Form) -> SplatFile:
    file = form.of(model.at(max_gaussians=count))
    format.write(file, path)
    return file
