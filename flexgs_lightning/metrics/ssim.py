"""SSIM of images: the metric, and the training loss."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def ssim(prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"]) -> Float[Tensor, " C"]:
    """Structural similarity (Wang et al. 2004) of each image in the variant of the 3DGS papers.

    Gaussian window of 11 x 11 pixels with sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, biased variances; the
    images are padded with zeros and the borders count; mean over pixels and channels. Nothing is clamped
    and everything is differentiable, so the same function is the training loss.

    Float32 CPU tensors go to a fused kernel (about ten times faster) when no gradient is asked for the
    target; all others through torch's convolutions. Both agree to about 1e-6.
    """
    if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[-1] != 3:
        raise ValueError(
            f"ssim: expected two [C, H, W, 3], found {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    tensors = (prediction, target)
    if all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and not target.requires_grad:
        from flexgs_lightning.metrics.ssim_cpu import FusedSSIM  # compiles, so not before it is needed

        return FusedSSIM.apply(prediction, target)
    return ssim_by_convolution(prediction, target)


def ssim_by_convolution(
    prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"]
) -> Float[Tensor, " C"]:
    """``ssim`` in plain torch, for any device and dtype.

    All five moments are blurred in one batch of depthwise, separable convolutions: of the ways to write
    it in torch, the fastest on the CPU by far.
    """
    x, y = prediction.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2)
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    channels = moments.shape[1]
    window = _gaussian_window(moments.device, moments.dtype)
    vertical = window.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    horizontal = window.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    blurred = conv2d(moments, vertical, padding=(SSIM_RADIUS, 0), groups=channels)
    blurred = conv2d(blurred, horizontal, padding=(0, SSIM_RADIUS), groups=channels)
    mean_x, mean_y, square_x, square_y, product = blurred.chunk(5, dim=1)
    variances = (square_x - mean_x.square()) + (square_y - mean_y.square())
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    return (luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)).mean(dim=(1, 2, 3))


@functools.cache
def _gaussian_window(device: torch.device, dtype: torch.dtype) -> Float[Tensor, " 11"]:
    with torch.inference_mode(False):  # cached, so it must also serve in training
        distances = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64)
        window = torch.exp(-0.5 * (distances / SSIM_SIGMA) ** 2)
        return (window / window.sum()).to(device, dtype)
