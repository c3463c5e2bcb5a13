"""SSIM of images, alone and together with L1: the metric, and the training loss."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class SSIMReference:
    """Photos to compare renders with, and their moments under SSIM's window: blurred once for all renders.

    Attributes:
        image: [C, H, W, 3] the photos y.
        moments: blurs of y and y y, in the layout of whatever compares: of ``Kernels``, or [2, C, H, W, 3].
    """

    image: Float[Tensor, "C H W 3"]
    moments: Tensor

    @classmethod
    def of(cls, photo: Float[Tensor, "C H W 3"]) -> SSIMReference:
        """Blur the photos' moments; differentiable where a gradient is asked for."""
        kernels = None if photo.requires_grad else _kernels(photo)
        if kernels is not None:
            photo = photo.detach().contiguous()
            return cls(photo, kernels.photo_moments(photo))
        return cls(photo, torch.stack(_blurred(photo, photo * photo)))


def ssim(
    prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"] | SSIMReference
) -> Float[Tensor, " C"]:
    """Structural similarity (Wang et al. 2004) of each image in the variant of the 3DGS papers.

    Gaussian window of 11 x 11 pixels with sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, biased variances; the
    images are padded with zeros and the borders count; mean over pixels and channels. Nothing is clamped
    and everything is differentiable, so the same function is the training loss.

    Float32 goes to fused kernels (on the CPU about ten times faster), on CUDA where Triton is installed, when
    no gradient is asked for the target; all else through torch's convolutions. They agree to about 1e-6.
    """
    return l1_and_ssim(prediction, target, l1_weight=0.0, ssim_weight=1.0)


def l1_and_ssim(
    prediction: Float[Tensor, "C H W 3"],
    target: Float[Tensor, "C H W 3"] | SSIMReference,
    *,
    l1_weight: float,
    ssim_weight: float,
) -> Float[Tensor, " C"]:
    """Weighted sum of the mean |x - y| and of ``ssim``, of each image; with fused kernels in one pass."""
    image = target.image if isinstance(target, SSIMReference) else target
    if prediction.shape != image.shape or prediction.ndim != 4 or prediction.shape[-1] != 3:
        raise ValueError(
            f"ssim: expected two [C, H, W, 3], found {tuple(prediction.shape)} and {tuple(image.shape)}."
        )
    kernels = None if image.requires_grad or image.dtype != prediction.dtype else _kernels(prediction)
    if kernels is None:
        value = ssim_weight * ssim_by_convolution(prediction, target)
        return value if l1_weight == 0 else value + l1_weight * (prediction - image).abs().mean(dim=(1, 2, 3))
    reference = target if isinstance(target, SSIMReference) else SSIMReference.of(target)
    return _FusedL1AndSSIM.apply(prediction, reference, (l1_weight, ssim_weight), kernels)


def ssim_by_convolution(
    prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"] | SSIMReference
) -> Float[Tensor, " C"]:
    """``ssim`` in plain torch, for any device and dtype.

    All moments are blurred in one batch of depthwise, separable convolutions: of the ways to write it in
    torch, the fastest on the CPU by far.
    """
    x = prediction
    if isinstance(target, SSIMReference):
        y, (mean_y, square_y) = target.image, target.moments
        mean_x, square_x, product = _blurred(x, x * x, x * y)
    else:
        y = target
        mean_x, mean_y, square_x, square_y, product = _blurred(x, y, x * x, y * y, x * y)
    variances = (square_x - mean_x.square()) + (square_y - mean_y.square())
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    return (luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)).mean(dim=(1, 2, 3))


class Kernels(Protocol):
    """What ``ssim_cpu`` and ``ssim_triton`` do, on contiguous float32 images [C, H, W, 3] of their device."""

    def photo_moments(self, photo: Tensor) -> Tensor:
        """Blurs of y and y y, in a layout of the kernels' own."""

    def compare(
        self, render: Tensor, reference: SSIMReference, weights: tuple[float, float], with_partials: bool
    ) -> tuple[Float[Tensor, " C"], Tensor]:
        """Mean over each image of its |x - y| and SSIM, weighted and added up.

        With partials, also SSIM's derivatives by the blurs of x, x x and x y, [3, C, H, W, 3].
        """

    def gradient(
        self,
        render: Tensor,
        photo: Tensor,
        partials: Float[Tensor, "3 C H W 3"],
        upstream: Float[Tensor, " C"],
        weights: tuple[float, float],
    ) -> Tensor:
        """Gradient by x of ``compare``'s values times ``upstream``."""


def _kernels(image: Tensor) -> Kernels | None:
    """Fused kernels for this image; they compile or are slow to import, so not before they are needed."""
    if image.dtype != torch.float32:
        return None
    if image.device.type == "cpu":
        from flexgs_lightning.metrics import ssim_cpu

        return ssim_cpu
    if image.device.type == "cuda" and _triton_is_installed():
        from flexgs_lightning.metrics import ssim_triton

        return ssim_triton
    return None


@functools.cache
def _triton_is_installed() -> bool:
    """Not so on Windows and macOS."""
    return find_spec("triton") is not None


class _FusedL1AndSSIM(torch.autograd.Function):
    """``l1_and_ssim`` by fused kernels, differentiable in the prediction only."""

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        reference: SSIMReference,
        weights: tuple[float, float],
        kernels: Kernels,
    ) -> Tensor:
        """Partial derivatives are computed along, while the moments are at hand."""
        render, with_partials = prediction.detach().contiguous(), ctx.needs_input_grad[0]
        values, partials = kernels.compare(render, reference, weights, with_partials)
        if with_partials:
            ctx.save_for_backward(render, reference.image, partials)
            ctx.weights, ctx.kernels = weights, kernels
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        """Blur the partial derivatives; the gradient is written once."""
        render, photo, partials = ctx.saved_tensors
        return ctx.kernels.gradient(render, photo, partials, upstream, ctx.weights), None, None, None


def _blurred(*images: Float[Tensor, "C H W 3"]) -> tuple[Tensor, ...]:
    stacked = torch.cat([image.permute(0, 3, 1, 2) for image in images], dim=1)
    return tuple(part.permute(0, 2, 3, 1) for part in _Blur.apply(stacked).chunk(len(images), dim=1))


class _Blur(torch.autograd.Function):
    """SSIM's window over [C, K, H, W], zero outside; symmetric, so it is its own adjoint.

    A function of its own so that the backward pass, too, keeps clear of cuDNN, which may compute float32
    convolutions in TF32: SSIM subtracts nearly equal numbers, and would be off by 0.003 to 0.012.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        channels = images.shape[1]
        window = _gaussian_window(images.device, images.dtype)
        vertical = window.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
        horizontal = window.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
        with _without_cudnn():
            blurred = conv2d(images, vertical, padding=(SSIM_RADIUS, 0), groups=channels)
            return conv2d(blurred, horizontal, padding=(0, SSIM_RADIUS), groups=channels)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return _Blur.apply(upstream)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@functools.cache
def _gaussian_window(device: torch.device, dtype: torch.dtype) -> Float[Tensor, " 11"]:
    with torch.inference_mode(False):  # cached, so it must also serve in training
        distances = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64)
        window = torch.exp(-0.5 * (distances / SSIM_SIGMA) ** 2)
        return (window / window.sum()).to(device, dtype)
