"""CUDA tensors: gsplat (Ye et al. 2024), which compiles its kernels at first use."""

from __future__ import annotations

import functools
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gsplat
import torch
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.cpp_extension import get_default_build_root

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering.rasterizer import (
    EPS2D,
    FAR_PLANE,
    NEAR_PLANE,
    OPACITY,
    Picture,
    Projection,
    Rendering,
)
from flexgs_lightning.splats import Splats

TILE_SIZE = 16
"""Pixels; gsplat's own default, and the only size that it tests."""
INTERSECTIONS_PER_CHUNK = 2**16
"""Hits are listed for this many (Gaussian, tile) pairs at a time: at most 256 pixels of 40 bytes each."""


def rasterize(
    splats: Splats,
    cameras: Cameras,
    background: Float[Tensor, "C 3"],
    sh_degree: int,
    antialiased: bool,
    with_importance: bool,
) -> Rendering:
    """See ``rasterizer.rasterize``.

    Gradients are summed with atomics, so they differ in the last bits from run to run.
    """
    if len(splats) == 0 or len(cameras) == 0:  # gsplat would divide by zero
        return _empty(splats, cameras, background, with_importance)
    require_kernels()
    colors_and_depth, alpha, state = gsplat.rasterization(
        splats.means,
        splats.quats,
        splats.scales,
        splats.opacities,
        splats.sh,
        cameras.viewmats,
        cameras.Ks,
        cameras.width,
        cameras.height,
        near_plane=NEAR_PLANE,
        far_plane=FAR_PLANE,
        eps2d=EPS2D,
        sh_degree=sh_degree,
        packed=False,
        backgrounds=background,
        render_mode="RGB+ED",
        rasterize_mode="antialiased" if antialiased else "classic",
    )
    means2d = state["means2d"]
    # gsplat leaves culled entries uninitialised. Neither of its passes reads them, so writing past
    # autograd is safe, and the tensor stays the one between projection and rasterization.
    means2d.data.masked_fill_((state["radii"] == 0).any(dim=-1, keepdim=True), 0.0)
    return Rendering(
        image=colors_and_depth[..., :3],
        alpha=alpha,
        depth=colors_and_depth[..., 3:],
        means2d=means2d,
        radii=state["radii"],
        weights=_weights(state) if with_importance else None,
        hits=_hits(state) if with_importance else None,
        width=cameras.width,
        height=cameras.height,
    )


def project(splats: Splats, cameras: Cameras, sh_degree: int, antialiased: bool) -> Projection:
    """The first half of what ``gsplat.rasterization`` does; the features' shape is gsplat's conic."""
    shape = (len(cameras), len(splats))
    if 0 in shape:  # gsplat would divide by zero
        zero = _zero(splats)
        sizes = zero.detach().expand(*shape, 2)
        return Projection(zero.expand(*shape, 2), zero.expand(*shape, 8), sizes, sizes.int())
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
    # As in ``rasterize``: what gsplat leaves uninitialised must not be taken for a number.
    means2d.data.masked_fill_(~visible.unsqueeze(-1), 0.0)
    opacities = splats.opacities.expand(shape)
    if compensations is not None:
        opacities = opacities * compensations.masked_fill(~visible, 0.0)
    directions = splats.means - cameras.positions[:, None]
    sh = splats.sh.expand(len(cameras), *splats.sh.shape)
    colors = gsplat.spherical_harmonics(sh_degree, directions, sh, masks=visible)
    columns = (conics, opacities.unsqueeze(-1), (colors + 0.5).clamp_min(0.0), depths.unsqueeze(-1))
    return Projection(means2d, torch.cat(columns, dim=-1), radii.to(means2d), radii)


def blend(
    projection: Projection, width: int, height: int, background: Float[Tensor, "C 3"], with_importance: bool
) -> Picture:
    """The second half of what ``gsplat.rasterization`` does."""
    means2d, features, extents, _ = projection
    cameras, count = means2d.shape[:2]
    if cameras == 0 or count == 0:
        screen = (means2d.sum() + features.sum()).mul(0.0).expand(cameras, height, width, 1)
        nothing = screen.new_zeros(cameras, count, 2) if with_importance else None
        return Picture(screen + background[:, None, None, :], screen, screen, nothing)
    size = (width, height, TILE_SIZE)
    across, down = -(-width // TILE_SIZE), -(-height // TILE_SIZE)
    conics, opacities, colors = features.split((OPACITY, 1, 4), dim=-1)
    opacities = opacities.squeeze(-1).contiguous()
    _, ids, flatten_ids = gsplat.isect_tiles(
        means2d, extents.int(), colors[..., 3], TILE_SIZE, across, down, n_images=cameras
    )
    offsets = gsplat.isect_offset_encode(ids, cameras, across, down)
    behind = torch.nn.functional.pad(background, (0, 1))  # none of depth
    means2d, conics = means2d.contiguous(), conics.contiguous()
    drawn, alpha = gsplat.rasterize_to_pixels(
        means2d, conics, colors.contiguous(), opacities, *size, offsets, flatten_ids, backgrounds=behind
    )
    importance = None
    if with_importance:
        state: dict[str, Any] = {"means2d": means2d, "conics": conics, "opacities": opacities}
        state |= {"isect_offsets": offsets, "flatten_ids": flatten_ids}
        state |= {"width": width, "height": height, "tile_size": TILE_SIZE}
        importance = torch.stack([_weights(state), _hits(state).float()], dim=-1)
    return Picture(drawn[..., :3], alpha, drawn[..., 3:] / alpha.clamp(min=1e-10), importance)


def _weights(state: dict[str, Any]) -> Float[Tensor, "C N"]:
    """[C, N] sum over pixels of alpha_i T_i: the gradient of the summed image by a scalar colour.

    A backward pass of its own over clones, so that it also works in ``no_grad`` and ``inference_mode``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        names = ("means2d", "conics", "opacities", "isect_offsets", "flatten_ids")
        means2d, conics, opacities, offsets, flatten_ids = (state[name].detach().clone() for name in names)
        colors = torch.ones_like(opacities)[..., None].requires_grad_()
        size = (state["width"], state["height"], state["tile_size"])
        image, _ = gsplat.rasterize_to_pixels(
            means2d, conics, colors, opacities, *size, isect_offsets=offsets, flatten_ids=flatten_ids
        )
        (gradient,) = torch.autograd.grad(image.sum(), colors)
        return gradient[..., 0]


@torch.no_grad()
def _hits(state: dict[str, Any]) -> Int[Tensor, "C N"]:
    """[C, N] number of pixels to which each Gaussian contributes, by the rasterizer's own stop rule.

    gsplat can list every (Gaussian, pixel) contribution, which for millions of Gaussians would not fit
    in memory at once. So it is asked for a few tiles at a time: all other tiles get an empty range.
    Each tile is still walked from its front, with the very arithmetic of the rendered image.
    """
    cameras, count = state["means2d"].shape[:2]
    offsets, flatten_ids = state["isect_offsets"], state["flatten_ids"]
    transmittances = state["means2d"].new_ones(cameras, state["height"], state["width"])
    hits = torch.zeros(cameras * count, dtype=torch.int64, device=offsets.device)
    for start, end in _chunks(offsets, len(flatten_ids)):
        gaussians, _, images = gsplat.rasterize_to_indices_in_range(
            0,
            2**31 - 1,
            transmittances,
            state["means2d"],
            state["conics"],
            state["opacities"],
            state["width"],
            state["height"],
            state["tile_size"],
            offsets.clamp(start, end),
            flatten_ids[:end],
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


def _empty(
    splats: Splats, cameras: Cameras, background: Float[Tensor, "C 3"], with_importance: bool
) -> Rendering:
    """Nothing but background. Still part of the graph, so that ``backward`` works as in any other scene."""
    zero = _zero(splats)
    screen = zero.expand(len(cameras), cameras.height, cameras.width, 1)
    per_splat = zero.detach().expand(len(cameras), len(splats))
    return Rendering(
        image=screen + background[:, None, None, :],
        alpha=screen,
        depth=screen,
        means2d=zero.expand(len(cameras), len(splats), 2),
        radii=per_splat.int()[..., None].expand(-1, -1, 2),
        weights=per_splat if with_importance else None,
        hits=per_splat.int() if with_importance else None,
        width=cameras.width,
        height=cameras.height,
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
