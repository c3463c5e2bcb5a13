"""rasterize: the one front door to drawing Gaussians, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.splats import Splats

EPS2D = 0.3
"""Low-pass filter: added to the diagonal of every projected covariance, in square pixels."""
NEAR_PLANE = 0.01
FAR_PLANE = 1e10


@dataclass(frozen=True)
class Rendering:
    """What C cameras see of N Gaussians.

    Attributes:
        image: [C, H, W, 3] colour, background included; not clamped above 1.
        alpha: [C, H, W, 1] accumulated opacity.
        depth: [C, H, W, 1] expected camera-space z, sum(w z) / sum(w); 0 where alpha is 0.
        means2d: [C, N, 2] projected centres in pixels. ``means2d.retain_grad()`` before backward keeps
            the gradient that densification reads. Zero where culled.
        radii: [C, N, 2] int32 screen radii in pixels along x and y; 0 where culled.
        weights: [C, N] sum over pixels of alpha_i T_i (the blending weight), without gradient; None
            unless asked for.
        hits: [C, N] int32 number of pixels to which the Gaussian contributes; None unless asked for.
        width: image width in pixels.
        height: image height in pixels.
    """

    image: Float[Tensor, "C H W 3"]
    alpha: Float[Tensor, "C H W 1"]
    depth: Float[Tensor, "C H W 1"]
    means2d: Float[Tensor, "C N 2"]
    radii: Int[Tensor, "C N 2"]
    weights: Float[Tensor, "C N"] | None
    hits: Int[Tensor, "C N"] | None
    width: int
    height: int


def rasterize(
    splats: Splats,
    cameras: Cameras,
    *,
    background: Float[Tensor, " 3"] | Float[Tensor, "C 3"] | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    with_importance: bool = False,
) -> Rendering:
    """Draw ``splats`` through ``cameras``; differentiable in every field of ``splats``.

    CUDA tensors go to gsplat, CPU tensors to this package's own kernels; both give the same result
    (README, "Rendering").

    Args:
        splats: N Gaussians; N = 0 gives the background.
        cameras: C cameras on the same device.
        background: colour behind the Gaussians, one for all cameras or one each; black if None.
        sh_degree: spherical-harmonics degree to evaluate, at most the stored one (the default).
        antialiased: scale opacities so that the low-pass filter keeps each Gaussian's total weight
            (Mip-Splatting's 2D filter).
        with_importance: also return ``weights`` and ``hits``.

    Raises:
        ValueError: devices differ, or ``sh_degree`` or the background's shape is out of range.
        InputError: CUDA tensors, but gsplat's kernels are not available on this machine.
    """
    degree = splats.sh_degree if sh_degree is None else sh_degree
    if not 0 <= degree <= splats.sh_degree:
        raise ValueError(f"rasterize: sh_degree must lie in 0..{splats.sh_degree}, found {degree}.")
    if splats.device != cameras.device:
        raise ValueError(f"rasterize: splats are on {splats.device}, cameras on {cameras.device}.")
    colour = _background(background, len(cameras), splats.means)
    if splats.device.type == "cuda":
        from flexgs_lightning.rendering.gsplat_backend import rasterize as draw
    else:
        from flexgs_lightning.rendering.cpu_backend import rasterize as draw
    return draw(splats, cameras, colour, degree, antialiased, with_importance)


def _background(background: Tensor | None, count: int, like: Tensor) -> Float[Tensor, "C 3"]:
    if background is None:
        return torch.zeros(count, 3, device=like.device, dtype=like.dtype)
    if background.shape not in ((3,), (count, 3)):
        raise ValueError(
            f"rasterize: background must be [3] or [{count}, 3], found {tuple(background.shape)}."
        )
    return background.to(like).expand(count, 3)
