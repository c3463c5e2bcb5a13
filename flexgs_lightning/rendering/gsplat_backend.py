"""CUDA tensors: gsplat (Ye et al. 2024), which compiles its kernels at first use."""

from __future__ import annotations

import functools
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import gsplat
import torch
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.cpp_extension import get_default_build_root

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering.types import (
    CHANNELS,
    DEPTH,
    EPS2D,
    FAR_PLANE,
    NEAR_PLANE,
    OPACITY,
    SHAPE,
    Outputs,
    Picture,
    Projection,
)
from flexgs_lightning.splats import Splats

TILE_SIZE = 16
"""Pixels; gsplat's own default, and the only size that it tests."""
INTERSECTIONS_PER_CHUNK = 2**16
"""Hits are listed for this many (Gaussian, tile) pairs at a time: at most 256 pixels of 40 bytes each."""


def project(splats: Splats, cameras: Cameras, sh_degree: int, antialiased: bool) -> Projection:
    """The first step of drawing; the features' shape is gsplat's conic."""
    shape = (len(cameras), len(splats))
    if 0 in shape:  # gsplat would divide by zero
        zero = _zero(splats)
        sizes = zero.detach().expand(*shape, 2)
        return Projection(zero.expand(*shape, 2), zero.expand(*shape, 8), sizes, sizes.int())
    require_kernels()
    radii, means2d, depths, conics, compensations = gsplat.fully_fused_projection(
        splats.means,
        None,
        splats.quats,
        splats.scales,
        cameras.viewmats,
        cameras.Ks,
        cameras.width,
        cameras.height,
        eps2d=EPS2D,
        packed=False,
        near_plane=NEAR_PLANE,
        far_plane=FAR_PLANE,
        radius_clip=0.0,
        calc_compensations=antialiased,
        opacities=splats.opacities,
    )
    visible = (radii > 0).all(dim=-1)
    # gsplat leaves culled entries uninitialised. Neither of its passes reads them, so writing past
    # autograd is safe, and the tensor stays the one between projection and blending.
    means2d.data.masked_fill_(~visible.unsqueeze(-1), 0.0)
    opacities = splats.opacities.expand(shape)
    if compensations is not None:
        opacities = opacities * compensations.masked_fill(~visible, 0.0)
    directions = splats.means - cameras.positions[:, None]
    sh = splats.sh.expand(len(cameras), *splats.sh.shape)
    colors = gsplat.spherical_harmonics(sh_degree, directions, sh, masks=visible)
    columns = (conics, opacities.unsqueeze(-1), depths.unsqueeze(-1), (colors + 0.5).clamp_min(0.0))
    return Projection(means2d, torch.cat(columns, dim=-1), radii.to(means2d), radii)


def blend(
    projection: Projection, width: int, height: int, background: Float[Tensor, "C D"], outputs: Outputs
) -> Picture:
    """The second step of drawing."""
    means2d, features, extents, _ = projection
    cameras, count = means2d.shape[:2]
    if cameras == 0 or count == 0:
        return _nothing(projection, width, height, background, outputs)
    require_kernels()
    depths, channels = features[..., DEPTH], features[..., CHANNELS]
    across, down = -(-width // TILE_SIZE), -(-height // TILE_SIZE)
    _, ids, flatten_ids = gsplat.isect_tiles(
        means2d, extents.int(), depths, TILE_SIZE, across, down, n_images=cameras
    )
    lists = {
        "isect_offsets": gsplat.isect_offset_encode(ids, cameras, across, down),
        "flatten_ids": flatten_ids,
    }
    ellipses = (means2d.contiguous(), features[..., SHAPE].contiguous(), features[..., OPACITY].contiguous())
    if outputs.depth:
        channels = torch.cat([channels, depths.unsqueeze(-1)], dim=-1)
        background = torch.nn.functional.pad(background, (0, 1))  # none of depth
    drawn, alpha = _draw(*ellipses, channels, width, height, lists, background, outputs.absgrad)
    depth = None
    if outputs.depth:
        drawn, depth = drawn[..., :-1], drawn[..., -1:] / alpha.clamp(min=1e-10)
    weights = _weights(*ellipses, width, height, lists) if outputs.weights else None
    hits = _hits(*ellipses, width, height, **lists) if outputs.hits else None
    absgrad = (lambda: ellipses[0].absgrad) if outputs.absgrad else None
    return Picture(drawn, alpha, depth, weights, hits, absgrad)


def _draw(
    means2d: Float[Tensor, "C N 2"],
    conics: Float[Tensor, "C N 3"],
    opacities: Float[Tensor, "C N"],
    channels: Float[Tensor, "C N D"],
    width: int,
    height: int,
    lists: dict[str, Tensor],
    background: Float[Tensor, "C D"] | None = None,
    absgrad: bool = False,
) -> tuple[Float[Tensor, "C H W D"], Float[Tensor, "C H W 1"]]:
    """gsplat's own blending, which pads the channels to a number that it has kernels for."""
    drawn: tuple[Tensor, Tensor] = gsplat.rasterize_to_pixels(
        means2d,
        conics,
        channels.contiguous(),
        opacities,
        width,
        height,
        TILE_SIZE,
        backgrounds=background,
        absgrad=absgrad,
        **lists,
    )
    return drawn


def _weights(
    means2d: Tensor, conics: Tensor, opacities: Tensor, width: int, height: int, lists: dict[str, Tensor]
) -> Float[Tensor, "C N"]:
    """[C, N] sum over pixels of alpha_i T_i: the gradient of the summed image by a scalar colour.

    A backward pass of its own over clones, so that it also works in ``no_grad`` and ``inference_mode``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        ellipses = [tensor.detach().clone() for tensor in (means2d, conics, opacities)]
        lists = {name: tensor.clone() for name, tensor in lists.items()}
        colors = torch.ones_like(ellipses[2])[..., None].requires_grad_()
        image, _ = _draw(*ellipses, colors, width, height, lists)
        (gradient,) = torch.autograd.grad(image.sum(), colors)
        return gradient[..., 0]


@torch.no_grad()
def _hits(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    width: int,
    height: int,
    isect_offsets: Int[Tensor, "C Y X"],
    flatten_ids: Int[Tensor, " M"],
) -> Int[Tensor, "C N"]:
    """[C, N] number of pixels to which each Gaussian contributes, by the rasterizer's own stop rule.

    gsplat can list every (Gaussian, pixel) contribution, which for millions of Gaussians would not fit
    in memory at once. So it is asked for a few tiles at a time: all other tiles get an empty range.
    Each tile is still walked from its front, with the very arithmetic of the rendered image. Reading where
    the tiles begin stops the host.
    """
    cameras, count = means2d.shape[:2]
    transmittances = means2d.new_ones(cameras, height, width)
    ellipses, size = (means2d, conics, opacities), (width, height, TILE_SIZE)
    hits = torch.zeros(cameras * count, dtype=torch.int64, device=means2d.device)
    for start, end in _chunks(isect_offsets, len(flatten_ids)):
        tiles = (isect_offsets.clamp(start, end), flatten_ids[:end])
        gaussians, _, images = gsplat.rasterize_to_indices_in_range(
            0, 2**31 - 1, transmittances, *ellipses, *size, *tiles
        )
        hits += torch.bincount(images * count + gaussians, minlength=hits.numel())
    return hits.to(torch.int32).reshape(cameras, count)


def _chunks(offsets: Int[Tensor, "C Y X"], total: int) -> Iterator[tuple[int, int]]:
    """Split 0..total where tiles begin, into ranges of at most ``INTERSECTIONS_PER_CHUNK`` (or one tile)."""
    starts = sorted({*offsets.flatten().tolist(), total})
    position = 0
    while position < total:
        end = starts[bisect_right(starts, position + INTERSECTIONS_PER_CHUNK) - 1]
        if end <= position:
            end = starts[bisect_right(starts, position)]
        yield position, end
        position = end


def _nothing(
    projection: Projection, width: int, height: int, background: Float[Tensor, "C D"], outputs: Outputs
) -> Picture:
    """Nothing but background. Still part of the graph, so that ``backward`` works as in any other scene."""
    means2d, features, _, _ = projection
    cameras, count = means2d.shape[:2]
    screen = (means2d.sum() + features.sum()).mul(0.0).expand(cameras, height, width, 1)
    return Picture(
        image=screen + background[:, None, None, :],
        alpha=screen,
        depth=screen if outputs.depth else None,
        weights=means2d.new_zeros(cameras, count) if outputs.weights else None,
        hits=means2d.new_zeros(cameras, count, dtype=torch.int32) if outputs.hits else None,
        absgrad=(lambda: torch.zeros_like(means2d)) if outputs.absgrad else None,
    )


def _zero(splats: Splats) -> Float[Tensor, ""]:
    """0, as a function of all fields."""
    fields = (splats.means, splats.quats, splats.scales, splats.opacities, splats.sh)
    return sum((field.sum() for field in fields), start=splats.means.new_zeros(())) * 0.0


@functools.cache
def require_kernels() -> None:
    """Load gsplat's CUDA kernels; the first call on a machine compiles them, which takes minutes.

    Raises:
        InputError: they could not be compiled or loaded; says what to install.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    cause = "no CUDA toolkit was found"
    try:
        root.mkdir(parents=True, exist_ok=True)
        # gsplat clears unfinished build folders when it starts, also one that another process (a run on
        # several GPUs) is building in.
        with FileLock(root / "flexgs_gsplat.lock"):
            from gsplat.cuda._backend import _C as kernels  # noqa: N811
    except Exception as error:  # whatever compiler, ninja or loader make of it
        kernels, cause = None, f"{type(error).__name__}: {error}"
    if kernels is None:
        raise InputError(
            f"gsplat's CUDA kernels could not be built ({cause.splitlines()[0]}). Rendering on the GPU needs "
            f"the CUDA toolkit {torch.version.cuda or ''} with nvcc (the version that torch was built with; "
            "set CUDA_HOME if it is not found), a C++ compiler and ninja; TORCH_CUDA_ARCH_LIST (for example "
            '"9.0") picks the architecture. On the CPU everything works without: --trainer.accelerator cpu.'
        )
