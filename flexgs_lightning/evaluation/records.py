"""What records of trainings and comparisons hold: one type for each file that is read again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import Finite, Natural, Positive, Share, parse_json, read_text

Ratio = Annotated[str, Meta(pattern=r"^(1|0\.\d+|[1-9](\.\d+)?e-\d\d)$")]
"""A ratio as a key: 0.05, 1e-05, 1."""


class WorstView(Struct):
    """The held-out view that is drawn worst."""

    name: str
    psnr: Finite


class RatioResult(Struct):
    """Metrics at a ratio."""

    gaussians: Positive
    psnr: Finite
    ssim: Finite | None = None
    lpips: Finite | None = None
    worst: WorstView | None = None


class Metrics(Struct):
    """``metrics.json`` of a run; see ``TestReport``."""

    mean: dict[str, Finite]
    ratios: dict[Ratio, RatioResult]
    gaussians: Positive
    iteration: Natural
    capture: str
    milliseconds: Finite = 0.0
    protocol: dict[str, Any] = {}
    worst: WorstView | None = None


class ImageResult(Struct):
    """Metrics of one held-out view."""

    name: str
    psnr: Finite


class Training(Struct):
    """What a training cost."""

    steps: Natural
    seconds: Finite


class CellResult(Struct):
    """``cell.json``: a method at a ratio."""

    method: str
    ratio: Share
    gaussians: Positive
    megabytes: Finite
    psnr: Finite
    ssim: Finite
    milliseconds: Finite
    switch_milliseconds: Finite
    training: Training | None
    images: Annotated[list[ImageResult], Meta(min_length=1)]
    lpips: Finite | None = None


def read_metrics(path: Path) -> dict[str, Any]:
    """``metrics.json``, with all that reports read of it there.

    Raises:
        InputError: see ``read_json``.
    """
    return _checked(path, Metrics)


def read_cell(path: Path) -> dict[str, Any]:
    """``cell.json`` of a comparison.

    Raises:
        InputError: see ``read_json``.
    """
    return _checked(path, CellResult)


def _checked(path: Path, kind: type[Struct]) -> dict[str, Any]:
    """A record's own fields as they stand, those too that ``kind`` does not name: reports repeat them."""
    content = read_text(path).encode()
    parse_json(path, content, kind)
    try:
        found: dict[str, Any] = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{path}: not sound JSON ({error}).") from error
    return found
