"""PSNR, SSIM and LPIPS with a stated protocol, the same in training and in evaluation."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchmetrics import Metric

from flexgs_lightning.perceptual import LPIPS, LPIPSNetwork

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


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
        from flexgs_lightning.fused_ssim import FusedSSIM  # compiles, so not before it is needed

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


class ImageMetrics(nn.Module):
    """PSNR, SSIM and LPIPS of each image, and their means over all images of all processes.

    Example:
        >>> metrics = ImageMetrics(lpips="none")
        >>> photo = torch.rand(2, 32, 32, 3)
        >>> sorted(metrics.update(photo * 0.9, photo))
        ['psnr', 'ssim']
        >>> float(metrics.compute()["psnr"]) > 20
        True
    """

    def __init__(
        self,
        lpips: LPIPSNetwork | Literal["none"] = "vgg",
        lpips_weights: Path | None = None,
        lpips_input_range: Literal["unit", "signed"] | None = None,
    ) -> None:
        """Choose the protocol.

        Args:
            lpips: backbone of LPIPS; "none" leaves it out.
            lpips_weights: folder with the backbone's weights; by default torch's own cache.
            lpips_input_range: see ``LPIPS``.
        """
        super().__init__()
        self._lpips = None if lpips == "none" else LPIPS(lpips, lpips_input_range, lpips_weights)
        self._means = _Means(("psnr", "ssim", "lpips"))

    def like(self) -> ImageMetrics:
        """New, empty metrics under the same protocol; they share the LPIPS network."""
        other = ImageMetrics(lpips="none")
        other._lpips = self._lpips
        return other

    @torch.no_grad()
    def update(
        self, prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"]
    ) -> dict[str, Float[Tensor, " C"]]:
        """Measure C images and remember them for the means. Predictions are clamped to [0, 1].

        Returns:
            "psnr" (dB), "ssim" and, unless left out or without weights, "lpips"; each [C].
        """
        prediction = prediction.detach().clamp(0.0, 1.0)
        values = {"psnr": psnr(prediction, target), "ssim": ssim(prediction, target.detach())}
        lpips = None if self._lpips is None else self._lpips(prediction, target)
        if lpips is not None:
            values["lpips"] = lpips
        self._means.update(values)
        return values

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Means over the images since ``reset``, of all processes; empty if there were none."""
        return self._means.compute()

    def reset(self) -> None:
        """Forget all images."""
        self._means.reset()

    def protocol(self) -> dict[str, str]:
        """What exactly is measured, for reports."""
        lpips = "left out" if self._lpips is None else self._lpips.protocol()
        return {
            "psnr": "predictions clamped to [0, 1], not quantised; peak 1; over pixels and channels",
            "ssim": "Gaussian window 11x11, sigma 1.5, C1 0.01^2, C2 0.03^2, zero padding, borders count",
            "lpips": lpips,
            "average": "mean of per-image values",
        }


class _Means(Metric):
    """Means of named per-image values; sums and counts are added up over processes."""

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        # Every process sums the same names, or processes would wait for each other's missing ones.
        super().__init__()
        self.names = names
        for kind in ("sums", "counts"):
            self.add_state(kind, torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: dict[str, Tensor]) -> None:
        for i, name in enumerate(self.names):
            if name in values:
                self.sums[i] += values[name].double().sum()
                self.counts[i] += values[name].numel()

    def compute(self) -> dict[str, Tensor]:
        pairs = zip(self.names, self.sums, self.counts, strict=True)
        return {name: (total / count).float() for name, total, count in pairs if count > 0}
