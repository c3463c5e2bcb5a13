"""Options that comparisons have in common: their ranges, and the metrics that a config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.protocol import ImageMetrics
from flexgs_lightning.training.optimization import MOST_STEPS


def check_counts(found: object, least: Mapping[str, int]) -> None:
    """Refuse numbers of iterations and the like that are out of range.

    Args:
        found: what has them as attributes; None where one is left to something else.
        least: the smallest of each, by name.

    Raises:
        InputError: naming the first such option.
    """
    for name, minimum in least.items():
        value = getattr(found, name)
        if value is not None and not minimum <= value <= MOST_STEPS:
            raise InputError(f"--{name}: expected {minimum} to {MOST_STEPS:,}, found {value}.")


def check_seed(seed: int) -> None:
    """Refuse what no generator takes.

    Raises:
        InputError: it is out of range.
    """
    if not 0 <= seed < 1 << 32:
        raise InputError(f"--seed: expected 0 to {(1 << 32) - 1}, found {seed}.")


def image_metrics(config: Mapping[str, Any]) -> ImageMetrics:
    """PSNR, SSIM and the LPIPS that a config of ``flexgs fit`` has, with its weights."""
    own = {name: value for name, value in config.get("model", {}).items() if name.startswith("lpips")}
    if own.get("lpips_weights") is not None:
        own["lpips_weights"] = Path(own["lpips_weights"])
    return ImageMetrics(**own)
