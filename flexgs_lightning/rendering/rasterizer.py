"""rasterize: the one front door to drawing Gaussians, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.processes import ALONE, Shards
from flexgs_lightning.splats import Splats

EPS2D = 0.3
"""Low-pass filter: added to the diagonal of every projected covariance, in square pixels."""
NEAR_PLANE = 0.01
FAR_PLANE = 1e10


class Projection(NamedTuple):
    """N Gaussians on the image planes of C cameras: what is left to do is blending.

    Attributes:
        means2d: [C, N, 2] as in ``Rendering``.
        features: [C, N, 8] three numbers for the shape, opacity, red, green, blue, depth; differentiable.
        extents: [C, N, 2] float32 half width and height in pixels of what has to be drawn; 0 where culled.
        radii: [C, N, 2] int32 ``extents`` rounded up.
    """

    means2d: Float[Tensor, "C N 2"]
    features: Float[Tensor, "C N 8"]
    extents: Float[Tensor, "C N 2"]
    radii: Int[Tensor, "C N 2"]


OPACITY = 3
"""Column of ``Projection.features``."""


class Picture(NamedTuple):
    """What blending gives; see ``Rendering``.

    Attributes:
        image: [C, H, W, 3].
        alpha: [C, H, W, 1].
        depth: [C, H, W, 1].
        importance: [C, N, 2] weights and hits, float32; None unless asked for.
    """

    image: Float[Tensor, "C H W 3"]
    alpha: Float[Tensor, "C H W 1"]
    depth: Float[Tensor, "C H W 1"]
    importance: Float[Tensor, "C N 2"] | None


@dataclass(frozen=True)
class Rendering:
    """What C cameras see of N Gaussians.

    Where several processes hold the Gaussians, images are those of this process's cameras, and what is said
    of Gaussians is said of the N that this process holds, through the cameras of all processes, by rank.

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
        opacities: [C, N] as they are blended (``antialiased`` lowers them), in the graph as ``means2d`` is;
            None unless several processes hold the Gaussians.
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
    opacities: Float[Tensor, "C N"] | None = None

    @staticmethod
    def of(
        projection: Projection,
        picture: Picture,
        cameras: Cameras,
        opacities: Float[Tensor, "C N"] | None = None,
    ) -> Rendering:
        """What both steps of drawing tell together."""
        importance = picture.importance
        return Rendering(
            image=picture.image,
            alpha=picture.alpha,
            depth=picture.depth,
            means2d=projection.means2d,
            radii=projection.radii,
            weights=None if importance is None else importance[..., 0],
            hits=None if importance is None else importance[..., 1].int(),
            width=cameras.width,
            height=cameras.height,
            opacities=opacities,
        )


def rasterize(
    splats: Splats,
    cameras: Cameras,
    *,
    background: Float[Tensor, " 3"] | Float[Tensor, "C 3"] | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    with_importance: bool = False,
    shards: Shards = ALONE,
) -> Rendering:
    """Draw ``splats`` through ``cameras``; differentiable in every field of ``splats``.

    If several processes hold the Gaussians, all must call it, each with its own Gaussians and cameras (or
    none), and go backward through it together (``rendering.sharded``).

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
        shards: who holds the Gaussians.

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
    if shards.several:
        from flexgs_lightning.rendering.sharded import rasterize as draw_together

        return draw_together(splats, cameras, colour, degree, antialiased, with_importance, shards)
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
