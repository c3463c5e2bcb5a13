"""PSNR of images."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def psnr(
    prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"], clamp: bool = True
) -> Float[Tensor, " C"]:
    """Peak signal-to-noise ratio of each image in dB, for a peak of 1.

    Args:
        prediction: rendered images; clamped to [0, 1] first unless ``clamp`` is off, because that is
            what a viewer or an image file shows.
        target: photos in [0, 1].

    Returns:
        [C] dB; infinite where both are equal.
    """
    if clamp:
        prediction = prediction.clamp(0.0, 1.0)
    return -10.0 * (prediction - target).square().mean(dim=(1, 2, 3)).log10()
