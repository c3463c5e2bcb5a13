"""CUDA tensors: gsplat (Ye et al. 2024), which compiles its kernels at first use."""

from __future__ import annotations

import functools
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

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
        columns, sizes = 5 if splats.has_features else 8, zero.detach().expand(*shape, 2)
        return Projection(zero.expand(*shape, 2), zero.expand(*shape, columns), sizes, sizes.int())
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
        near_plane=cameras.near_plane,
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
    features = [conics, opacities.unsqueeze(-1), depths.unsqueeze(-1)]
    if not splats.has_features:
        directions = splats.means - cameras.positions[:, None]
        sh = splats.sh.expand(len(cameras), *splats.sh.shape)
        colors = gsplat.spherical_harmonics(sh_degree, directions, sh, masks=visible)
        features.append((colors + 0.5).clamp_min(0.0))
    return Projection(means2d, torch.cat(features, dim=-1), radii.to(means2d), radii)


def blend(
    projection: Projection, width: int, height: int, background: Float[Tensor, "C D"], outputs: Outputs
) -> Picture:
    """The second step of drawing."""
    features = projection.features
    if 0 in features.shape[:2]:
        return _nothing(projection, width, height, background, outputs)
    require_kernels()
    depths, channels = features[..., DEPTH], features[..., CHANNELS]
    ellipses = _sorted(projection, width, height)
    if outputs.depth:
        channels = torch.cat([channels, depths.unsqueeze(-1)], dim=-1)
        background = torch.nn.functional.pad(background, (0, 1))  # none of depth
    drawn, alpha = _draw(ellipses, channels, background, outputs.absgrad)
    depth = None
    if outputs.depth:
        drawn, depth = drawn[..., :-1], drawn[..., -1:] / alpha.clamp(min=1e-10)
    weights = _weights(ellipses) if outputs.weights else None
    hits = _hits(ellipses) if outputs.hits else None
    return Picture(drawn, alpha, depth, weights, hits, ellipses.absgrad if outputs.absgrad else None)


class _Ellipses(NamedTuple):
    """Screen-space Gaussians in gsplat's terms, with the lists of those that touch each tile, by depth."""

    means2d: Float[Tensor, "C N 2"]
    conics: Float[Tensor, "C N 3"]
    opacities: Float[Tensor, "C N"]
    width: int
    height: int
    tile_size: int
    isect_offsets: Int[Tensor, "C Y X"]
    flatten_ids: Int[Tensor, " M"]

    def absgrad(self) -> Float[Tensor, "C N 2"]:
        """What gsplat's backward pass leaves there."""
        found: Tensor = self.means2d.absgrad  # type: ignore[attr-defined]
        return found


def _sorted(projection: Projection, width: int, height: int) -> _Ellipses:
    """Find and sort all intersections; gsplat stops the host to learn how many there are."""
    means2d, features, extents, _ = projection
    cameras = len(means2d)
    across, down = -(-width // TILE_SIZE), -(-height // TILE_SIZE)
    _, ids, flatten_ids = gsplat.isect_tiles(
        means2d, extents.int(), features[..., DEPTH], TILE_SIZE, across, down, n_images=cameras
    )
    offsets = gsplat.isect_offset_encode(ids, cameras, across, down)
    shape, opacities = features[..., SHAPE].contiguous(), features[..., OPACITY].contiguous()
    return _Ellipses(means2d.contiguous(), shape, opacities, width, height, TILE_SIZE, offsets, flatten_ids)


def _draw(
    ellipses: _Ellipses,
    channels: Float[Tensor, "C N D"],
    background: Float[Tensor, "C D"] | None = None,
    absgrad: bool = False,
) -> tuple[Float[Tensor, "C H W D"], Float[Tensor, "C H W 1"]]:
    """gsplat's blending, which pads the channels to a number that it has kernels for."""
    means2d, conics, opacities, *rest = ellipses
    drawn: tuple[Tensor, Tensor] = gsplat.rasterize_to_pixels(
        means2d, conics, channels.contiguous(), opacities, *rest, backgrounds=background, absgrad=absgrad
    )
    return drawn


def _weights(ellipses: _Ellipses) -> Float[Tensor, "C N"]:
    """[C, N] sum over pixels of alpha_i T_i: the gradient of the summed image by a scalar colour.

    A backward pass of its own over clones, so that it also works in ``no_grad`` and ``inference_mode``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        still = ellipses._replace(
            means2d=ellipses.means2d.detach().clone(),
            conics=ellipses.conics.detach().clone(),
            opacities=ellipses.opacities.detach().clone(),
            isect_offsets=ellipses.isect_offsets.clone(),
            flatten_ids=ellipses.flatten_ids.clone(),
        )
        colors = torch.ones_like(still.opacities).unsqueeze(-1).requires_grad_()
        image, _ = _draw(still, colors)
        (gradient,) = torch.autograd.grad(image.sum(), colors)
        return gradient.squeeze(-1)


@torch.no_grad()
def _hits(ellipses: _Ellipses) -> Int[Tensor, "C N"]:
    """[C, N] number of pixels to which each Gaussian contributes, by the rasterizer's own stop rule.

    gsplat can list every (Gaussian, pixel) contribution, which for millions of Gaussians would not fit
    in memory at once. So it is asked for a few tiles at a time: all other tiles get an empty range.
    Each tile is still walked from its front, with the very arithmetic of the rendered image. Reading where
    the tiles begin stops the host.
    """
    means2d, *rest, offsets, flatten_ids = ellipses
    cameras, count = ellipses.opacities.shape
    transmittances = means2d.new_ones(cameras, ellipses.height, ellipses.width)
    hits = torch.zeros(cameras * count, dtype=torch.int64, device=means2d.device)
    for start, end in _chunks(offsets, len(flatten_ids)):
        tiles = (offsets.clamp(start, end), flatten_ids[:end])
        gaussians, _, images = gsplat.rasterize_to_indices_in_range(
            0, 2**31 - 1, transmittances, means2d, *rest, *tiles
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
    tensors = (getattr(splats, field.name) for field in fields(splats))
    return sum((tensor.sum() for tensor in tensors), start=splats.means.new_zeros(())) * 0.0


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
