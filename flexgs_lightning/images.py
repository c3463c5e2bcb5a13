"""Images for people to look at: 8-bit conversion, error maps, renders beside photos."""

from __future__ import annotations

import functools

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

ERROR_RANGE = 0.25
"""Mean absolute colour error drawn as the brightest colour of an error map. Fixed, so that maps of
different views and training steps compare."""


def to_uint8(image: Float[Tensor, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Colours clamped to [0, 1] and rounded to 0..255, on the CPU."""
    return image.detach().clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()


def error_map(
    render: Float[Tensor, "H W 3"], photo: Float[Tensor, "H W 3"], error_range: float = ERROR_RANGE
) -> UInt8[np.ndarray, "H W 3"]:
    """Absolute error, mean over the channels, from black (none) to bright yellow (``error_range`` or more).

    The colours are matplotlib's "inferno": equal steps of error look equally large, in grey too.
    """
    _require_same_shape(render, photo)
    error = (render.detach().clamp(0, 1) - photo).abs().mean(dim=-1)
    return _inferno()[to_uint8(error / error_range)]


def heat(level: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 3"]:
    """Colours of numbers from 0 (black) to 1 (bright yellow), as in error maps; clamped."""
    return torch.from_numpy(_inferno()[to_uint8(level)]).to(level) / 255.0


def side_by_side(
    render: Float[Tensor, "H W 3"], photo: Float[Tensor, "H W 3"], error_range: float = ERROR_RANGE
) -> UInt8[np.ndarray, "H 3W 3"]:
    """Render, photo and error map from left to right.

    Args:
        render: what the model draws; clamped to [0, 1].
        photo: what it should be, in [0, 1], on the same device.
        error_range: see ``error_map``.

    Raises:
        ValueError: the shapes are not one [H, W, 3].
    """
    return np.concatenate([to_uint8(render), to_uint8(photo), error_map(render, photo, error_range)], axis=1)


def _require_same_shape(render: Tensor, photo: Tensor) -> None:
    if render.shape != photo.shape or render.ndim != 3 or render.shape[-1] != 3:
        raise ValueError(
            f"expected render and photo of one shape [H, W, 3], "
            f"found {tuple(render.shape)} and {tuple(photo.shape)}."
        )


@functools.cache
def _inferno() -> UInt8[np.ndarray, "256 3"]:
    from matplotlib import colormaps  # slow to import, and only needed for pictures

    return np.round(colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
