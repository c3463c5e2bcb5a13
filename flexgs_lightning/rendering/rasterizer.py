"""rasterize: the one front door to drawing Gaussians, on any device."""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.rendering.types import IMAGE, Outputs, Rendering
from flexgs_lightning.splats import Splats


def rasterize(
    splats: Splats,
    cameras: Cameras,
    *,
    background: Float[Tensor, " D"] | Float[Tensor, "C D"] | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    outputs: Outputs = IMAGE,
) -> Rendering:
    """Draw ``splats`` through ``cameras``; differentiable in every field of ``splats``.

    CUDA tensors go to gsplat, CPU tensors to this package's own kernels; both give the same result
    (README, "Rendering"). On CUDA, gradients are summed with atomics, so they differ in the last bits from
    run to run.

    Args:
        splats: N Gaussians; N = 0 gives the background.
        cameras: C cameras on the same device. No gradient flows to them or to the background.
        background: colour behind the Gaussians, one for all cameras or one each; black if None.
        sh_degree: spherical-harmonics degree to evaluate, at most the stored one (the default).
        antialiased: scale opacities so that the low-pass filter keeps each Gaussian's total weight
            (Mip-Splatting's 2D filter).
        outputs: what to compute beside image and alpha.

    Raises:
        ValueError: devices differ, a tensor on the CPU is not float32, or ``sh_degree`` or the background's
            shape is out of range.
        InputError: CUDA tensors, but gsplat's kernels are not available on this machine.
    """
    backend = backend_of(splats, cameras)
    projection = backend.project(splats, cameras, degree_of(splats, sh_degree), antialiased)
    behind = background_of(background, len(cameras), splats)
    picture = backend.blend(projection, cameras.width, cameras.height, behind, outputs)
    return Rendering(picture, projection, cameras.width, cameras.height)


def backend_of(splats: Splats, cameras: Cameras) -> ModuleType:
    """The module with the two steps of drawing, ``project`` and ``blend``, for a device."""
    if splats.device != cameras.device:
        raise ValueError(f"rasterize: splats are on {splats.device}, cameras on {cameras.device}.")
    if splats.device.type == "cuda":
        from flexgs_lightning.rendering import gsplat_backend

        return gsplat_backend
    from flexgs_lightning.rendering import cpu_backend

    return cpu_backend


def degree_of(splats: Splats, sh_degree: int | None) -> int:
    """The degree to evaluate."""
    degree = splats.sh_degree if sh_degree is None else sh_degree
    if not 0 <= degree <= splats.sh_degree:
        raise ValueError(f"rasterize: sh_degree must lie in 0..{splats.sh_degree}, found {degree}.")
    return degree


def background_of(background: Tensor | None, count: int, splats: Splats) -> Float[Tensor, "C 3"]:
    """One colour for each camera."""
    if background is None:
        return torch.zeros(count, 3, device=splats.device, dtype=splats.means.dtype)
    if background.shape not in ((3,), (count, 3)):
        raise ValueError(
            f"rasterize: background must be [3] or [{count}, 3], found {tuple(background.shape)}."
        )
    return background.to(splats.means).expand(count, 3)
