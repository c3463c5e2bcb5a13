"""CPU backend: gsplat's semantics in numba kernels.

Two differentiable steps, with ``means2d`` between them so that its gradient can be read: projection with
spherical harmonics, and blending over tiles. See ``cpu/`` for the kernels and how they use threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.jit import run
from flexgs_lightning.rendering.cpu import (
    projection,
    projection_backward,
    raster,
    raster_backward,
    tile_pixels,
)
from flexgs_lightning.rendering.cpu.tiles import build_tile_lists
from flexgs_lightning.rendering.types import OURS, Falloff, Footprint, Outputs, Picture, Projection
from flexgs_lightning.splats import Splats


def project(
    splats: Splats, cameras: Cameras, sh_degree: int, antialiased: bool, footprint: Footprint = OURS
) -> Projection:
    """The first step of drawing; ``footprint`` is ours, or a viewer's.

    Raises:
        ValueError: a tensor of ``splats`` is not float32, the only type of the kernels.
    """
    for name in ("means", "quats", "scales", "opacities", "sh"):
        dtype = getattr(splats, name).dtype
        if dtype != torch.float32:
            raise ValueError(f"rasterize: splats.{name} must be torch.float32, found {dtype}.")
    ellipsoids = (splats.means, splats.quats, splats.scales, splats.opacities)
    sh = None if splats.has_features else splats.sh
    return Projection(*_Projection.apply(*ellipsoids, sh, cameras, sh_degree, antialiased, footprint))


def blend(
    projection: Projection,
    width: int,
    height: int,
    background: Float[Tensor, "C D"],
    outputs: Outputs,
    falloff: Falloff | None = None,
) -> Picture:
    """The second step of drawing; reads no radii. ``falloff`` is a viewer's own."""
    means2d, features, extents, _ = projection
    channels = background.shape[1]
    missing = tile_pixels.CHANNELS - channels
    if missing > 0:
        features, background = pad(features, (0, missing)), pad(background, (0, missing))
    absolute: list[Tensor] = []
    image, alpha, depth, weights, hits = _Blending.apply(
        means2d, features, extents, width, height, background, outputs, falloff, absolute
    )
    absgrad = (lambda: absolute[-1]) if outputs.absgrad else None
    return Picture(image if missing <= 0 else image[..., :channels], alpha, depth, weights, hits, absgrad)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _arrays(*tensors: Tensor | None) -> list[np.ndarray | None]:
    return [None if tensor is None else _array(tensor) for tensor in tensors]


class _Projection(torch.autograd.Function):
    """(means, quats, scales, opacities, sh) -> (means2d, features, extents, radii), each [C, N, ...]."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        sh: Tensor | None,
        cameras: Cameras,
        degree: int,
        antialiased: bool,
        footprint: Footprint,
    ) -> tuple[Tensor, ...]:
        shape = (len(cameras), len(means))
        means2d, extents = torch.empty(*shape, 2), torch.empty(*shape, 2)
        features = torch.empty(*shape, 5 if sh is None else 8)
        radii = torch.empty(*shape, 2, dtype=torch.int32)
        cams = projection.pack_cameras(cameras, footprint.margin)
        inputs = (means, quats, scales, opacities, sh)
        run(
            projection.project,
            shape[0] * -(-shape[1] // projection.CHUNK),
            cams,
            (cameras.width, cameras.height),
            footprint.low_pass,
            antialiased,
            degree,
            *_arrays(*inputs, means2d, features, extents, radii),
        )
        ctx.save_for_backward(*inputs, features, radii)
        ctx.options = cams, footprint.low_pass, antialiased, degree
        ctx.mark_non_differentiable(extents, radii)
        return means2d, features, extents, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_means2d: Tensor, v_features: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gradients = [None if tensor is None else torch.empty(tensor.shape) for tensor in saved[:5]]
        run(
            projection_backward.project_backward,
            -(-len(saved[0]) // projection.CHUNK),
            *ctx.options,
            *_arrays(*saved, v_means2d, v_features, *gradients),
        )
        return *gradients, None, None, None, None


class _Blending(torch.autograd.Function):
    """(means2d, features) -> (image, alpha, depth, weights, hits); None is what was not asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        features: Tensor,
        extents: Tensor,
        width: int,
        height: int,
        background: Tensor,
        outputs: Outputs,
        falloff: Falloff | None,
        absolute: list[Tensor],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        count, n = means2d.shape[:2]
        lists = build_tile_lists(_array(means2d), _array(extents), _array(features), width, height)
        channels = background.shape[1]
        image, alpha = torch.empty(count, height, width, channels), torch.empty(count, height, width, 1)
        depth = torch.empty(count, height, width, 1) if outputs.depth else None
        transmittance, stop = torch.empty(count, height, width), torch.empty(count, height, width)
        counted = outputs.weights or outputs.hits
        slots = np.empty((len(lists.splats), 2), np.float32) if counted else None
        rest = channels - tile_pixels.CHANNELS or None
        tiles = (lists.offsets, lists.splats, lists.entries, lists.columns, lists.tiles, rest, falloff)
        flat = [_array(tensor.flatten(0, 1)) for tensor in (means2d, features, extents)]
        drawn = _arrays(background, image, alpha, depth, transmittance, stop)
        run(raster.draw, count * lists.tiles, *tiles, *flat, *drawn, slots)
        ctx.save_for_backward(means2d, features, extents, background, alpha, depth, transmittance, stop)
        ctx.tiles, ctx.entry_offsets = tiles, lists.entry_offsets
        ctx.absolute = absolute if outputs.absgrad else None
        weights = hits = None
        if slots is not None:
            sums = _sum_slots(lists.entry_offsets, slots)[0].view(count, n, 2)
            weights = sums[..., 0].contiguous() if outputs.weights else None
            hits = sums[..., 1].int() if outputs.hits else None
            ctx.mark_non_differentiable(*(tensor for tensor in (weights, hits) if tensor is not None))
        return image, alpha, depth, weights, hits

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v_image: Tensor | None, v_alpha: Tensor | None, v_depth: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        means2d, features, extents, background, alpha, depth, transmittance, stop = ctx.saved_tensors
        if v_image is None:
            v_image = stop.new_zeros(*stop.shape, background.shape[1])
        flat = [_array(tensor.flatten(0, 1)) for tensor in (means2d, features, extents)]
        slots = np.empty((len(ctx.tiles[1]), 2 + features.shape[-1]), np.float32)
        absolute = None if ctx.absolute is None else np.empty((len(slots), 2), np.float32)
        run(
            raster_backward.draw_backward,
            stop.shape[0] * ctx.tiles[4],
            *ctx.tiles,
            *flat,
            *_arrays(background, alpha, depth, transmittance, stop, v_image, v_alpha, v_depth),
            slots,
            absolute,
        )
        if absolute is not None:
            ctx.absolute.append(_sum_slots(ctx.entry_offsets, absolute)[0].view(means2d.shape))
        v_means2d, v_features = _sum_slots(ctx.entry_offsets, slots)
        return v_means2d.view(means2d.shape), v_features.view(features.shape), *[None] * 7


def _sum_slots(entry_offsets: np.ndarray, slots: np.ndarray) -> tuple[Tensor, Tensor]:
    """Sums [C N, 2] and [C N, K] of each Gaussian's slots [M, 2 + K]."""
    count, columns = len(entry_offsets) - 1, slots.shape[1]
    sums = torch.empty(count, 2), torch.empty(count, columns - 2)
    run(
        raster_backward.sum_slots,
        -(-count // raster_backward.CHUNK),
        entry_offsets,
        slots,
        *map(_array, sums),
    )
    return sums
