"""PSNR of images."""

from __future__ import annotations

import torch
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


def color_corrected(
    prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"]
) -> Float[Tensor, "C H W 3"]:
    """Predictions whose colours are mapped onto their target's by the best affine map, clamped to [0, 1].

    One 3x4 matrix for each image, by least squares over all pixels: what a camera's own exposure and white
    balance can hide is taken out of a comparison (the "cc" of the field's cc-PSNR).
    """
    images, height, width, _ = prediction.shape
    colors = prediction.clamp(0.0, 1.0).double().flatten(1, 2)
    colors = torch.cat([colors, torch.ones_like(colors[..., :1])], dim=-1)  # [C, HW, 4]
    moments = colors.mT @ colors
    # A pseudo-inverse, because an image of one colour determines no map.
    maps = torch.linalg.pinv(moments, hermitian=True) @ (colors.mT @ target.double().flatten(1, 2))
    return (colors @ maps).clamp(0.0, 1.0).to(prediction).view(images, height, width, 3)


def flicker_psnr(
    before: Float[Tensor, "C H W 3"],
    after: Float[Tensor, "C H W 3"],
    target_before: Float[Tensor, "C H W 3"],
    target_after: Float[Tensor, "C H W 3"],
) -> Float[Tensor, " C"]:
    """PSNR of frame differences: how far what changes between two frames is from what should, in dB.

    A render that is wrong in the same way in all frames does not flicker and costs nothing here; one that
    jitters around the truth does, although each frame may be as near. Peak 1, as for the frames themselves.

    Args:
        before: what is drawn of a frame; clamped to [0, 1], as all four are.
        after: the same of the next.
        target_before: the frame itself.
        target_after: the next.
    """
    changes = (after.clamp(0.0, 1.0) - before.clamp(0.0, 1.0)) - (target_after - target_before)
    return -10.0 * changes.square().mean(dim=(1, 2, 3)).log10()
