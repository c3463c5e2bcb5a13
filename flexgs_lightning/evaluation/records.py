"""What records of trainings and comparisons hold: one type for each file that is read again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import Finite, Natural, Positive, Share, parse_json, read_text

Ratio = Annotated[str, Meta(pattern=r"^(1|0\.\d+|[1-9](\.\d+)?e-\d\d)$")]
"""A ratio as a key: 0.05, 1e-05, 1."""
Amount = Annotated[float, Meta(gt=0, le=1.7e308)]
"""What a chart shows on a logarithmic axis."""


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


class FrameResult(Struct):
    """Means of a moment over the held-out cameras."""

    frame: Natural
    psnr: Finite


class OverTime(Struct):
    """Metrics of a capture that moves, moment by moment; see ``training.callbacks.over_time``."""

    frames: list[FrameResult]
    flicker: Finite | None = None


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
    over_time: OverTime | None = None


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
    megabytes: Amount
    psnr: Finite
    ssim: Finite
    milliseconds: Amount
    switch_milliseconds: Finite
    training: Training | None
    images: Annotated[list[ImageResult], Meta(min_length=1)]
    lpips: Finite | None = None


class RatePoint(Struct):
    """One file of a system: its bytes, and what is drawn from it."""

    label: str
    gaussians: Positive
    bytes: Positive
    psnr: Finite
    ssim: Finite
    encode_seconds: Finite
    decode_seconds: Finite
    attributes: dict[str, Natural]
    lpips: Finite | None = None
    training: Training | None = None


class FormResult(Struct):
    """``cell.json`` of a report of representations: one of them in one form."""

    representation: str
    form: Literal["whole", "elastic", "coded"]
    psnr: Finite | None = None
    ssim: Finite | None = None
    lpips: Finite | None = None
    flicker: Finite | None = None
    worst: WorstView | None = None
    gaussians: Positive | None = None
    living: Finite | None = None
    frames: list[FrameResult] = []
    trained: Positive | None = None
    training: Training | None = None
    ratios: dict[Ratio, RatioResult] = {}
    bytes: Positive | None = None
    lost: Finite | None = None
    protocol: dict[str, Any] = {}


class RateResult(Struct):
    """``cell.json`` of a rate-distortion report: a system at a setting."""

    system: str
    setting: str
    points: Annotated[list[RatePoint], Meta(min_length=1)]


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


def read_form(path: Path) -> dict[str, Any]:
    """``cell.json`` of a report of representations.

    Raises:
        InputError: see ``read_json``.
    """
    return _checked(path, FormResult)


def read_rates(path: Path) -> dict[str, Any]:
    """``cell.json`` of a rate-distortion report.

    Raises:
        InputError: see ``read_json``.
    """
    return _checked(path, RateResult)


def _checked(path: Path, kind: type[Struct]) -> dict[str, Any]:
    """A record's own fields as they stand, those too that ``kind`` does not name: reports repeat them."""
    content = read_text(path).encode()
    parse_json(path, content, kind)
    try:
        found: dict[str, Any] = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{path}: not sound JSON ({error}).") from error
    return found
