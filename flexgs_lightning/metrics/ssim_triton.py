"""L1 and SSIM and their gradient in fused Triton kernels, for CUDA tensors; imported at first use.

Images stay interleaved (R, G, B, R, ...), as in ``ssim_cpu``: every float of a row is one lane, and a
horizontal neighbour is three lanes away. A program walks down a strip of LANES lanes: it blurs row after
row along the lanes, and keeps the last eleven blurred rows in registers to blur across them. All is plain
float32: SSIM subtracts nearly equal numbers, which TF32 has not the digits for. No sum depends on the order
in which programs run, so neither do results.
"""

# mypy: disallow-untyped-defs=False
# ruff: noqa: RUF005  (Triton joins tuples by +)
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from flexgs_lightning.metrics.ssim import SSIMReference

RADIUS, SIGMA = tl.constexpr(5), 1.5
C1, C2 = tl.constexpr(0.01**2), tl.constexpr(0.03**2)
_TAPS = [math.exp(-0.5 * (k / SIGMA) ** 2) for k in range(-5, 6)]
W0, W1, W2, W3, W4, W5 = (tl.constexpr(tap / sum(_TAPS)) for tap in _TAPS[5:])
"""The normalised Gaussian's taps from its centre outwards."""

CHANNELS = tl.constexpr(3)
ROWS, LANES, WARPS = 32, 128, 4
"""Rows and lanes of a program; a thread holds one lane's 33 blurred values."""


def photo_moments(photo: Float[Tensor, "C H W 3"]) -> Float[Tensor, "2 C H W 3"]:
    """See ``ssim.Kernels``."""
    moments = photo.new_empty(2, *photo.shape)
    _launch(_blur_photo, photo, (photo, moments))
    return moments


def compare(
    render: Float[Tensor, "C H W 3"],
    reference: SSIMReference,
    weights: tuple[float, float],
    with_partials: bool,
) -> tuple[Float[Tensor, " C"], Tensor]:
    """See ``ssim.Kernels``."""
    partials = render.new_empty((3, *render.shape) if with_partials else (0,))
    sums = render.new_empty(len(render), _programs(render))
    tensors = (render, reference.image, reference.moments, partials, sums)
    _launch(_compare, render, tensors, *weights, with_partials=with_partials)
    return sums.sum(dim=1) / render[0].numel(), partials


def gradient(
    render: Float[Tensor, "C H W 3"],
    photo: Float[Tensor, "C H W 3"],
    partials: Float[Tensor, "3 C H W 3"],
    upstream: Float[Tensor, " C"],
    weights: tuple[float, float],
) -> Float[Tensor, "C H W 3"]:
    """See ``ssim.Kernels``."""
    result = torch.empty_like(render)
    _launch(_differentiate, render, (render, photo, partials, upstream.contiguous(), result), *weights)
    return result


def _programs(images: Tensor) -> int:
    """Programs for each image."""
    _, height, width, channels = images.shape
    return triton.cdiv(height, ROWS) * triton.cdiv(width * channels, LANES)


def _launch(kernel, images, tensors, *weights, **options):
    count, height, width, channels = images.shape
    grid = (triton.cdiv(width * channels, LANES), triton.cdiv(height, ROWS), count)
    with torch.cuda.device_of(images):
        kernel[grid](
            *tensors, height, width * channels, *weights, **options, rows=ROWS, lanes=LANES, num_warps=WARPS
        )


@triton.jit
def _blur_photo(y, moments, height, width, rows: tl.constexpr, lanes: tl.constexpr):
    """Blurs of y and y y."""
    image, lane, first = _place(height, width, rows, lanes)
    y, mean, square = y + image, moments + image, moments + image + _volume(height, width)
    m, s = _no_rows(lanes), _no_rows(lanes)
    for lower in range(first - RADIUS, first + rows + RADIUS):
        b, row = _neighbours(y, lower, lane, height, width), lower - RADIUS
        m, s = m[1:] + (_weigh(b),), s[1:] + (_weigh_products(b, b),)
        if row >= first:
            pixel, inside = row * width + lane, (row < height) & (lane < width)
            tl.store(mean + pixel, _weigh(m), mask=inside)
            tl.store(square + pixel, _weigh(s), mask=inside)


@triton.jit
def _compare(
    x, y, moments, partials, sums, height, width, l1_weight, ssim_weight,
    with_partials: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Weighted sum of |x - y| and SSIM over a strip; if asked for, SSIM's derivatives at each pixel.

    The formulas are those of ``ssim_cpu._compare``.
    """
    image, lane, first = _place(height, width, rows, lanes)
    volume = _volume(height, width)
    x, y, partials = x + image, y + image, partials + image
    mean, square = moments + image, moments + image + volume
    m, s, p = _no_rows(lanes), _no_rows(lanes), _no_rows(lanes)
    total = tl.zeros([lanes], tl.float32)
    for lower in range(first - RADIUS, first + rows + RADIUS):
        a, b = _neighbours(x, lower, lane, height, width), _neighbours(y, lower, lane, height, width)
        m, s = m[1:] + (_weigh(a),), s[1:] + (_weigh_products(a, a),)
        p = p[1:] + (_weigh_products(a, b),)
        row = lower - RADIUS
        if row >= first:
            pixel, inside = row * width + lane, (row < height) & (lane < width)
            mx, my = _weigh(m), tl.load(mean + pixel, mask=inside, other=0.0)
            xx, yy = _weigh(s), tl.load(square + pixel, mask=inside, other=0.0)
            xy = _weigh(p)
            a1, a2 = 2 * (mx * my) + C1, 2 * (xy - mx * my) + C2
            b1, b2 = mx * mx + my * my + C1, (xx - mx * mx) + (yy - my * my) + C2
            similarity = (a1 * a2) / (b1 * b2)
            difference = tl.load(x + pixel, mask=inside, other=0.0) - tl.load(
                y + pixel, mask=inside, other=0.0
            )
            distance = tl.abs(difference)
            total += tl.where(inside, l1_weight * distance + ssim_weight * similarity, 0.0)
            if with_partials:
                inverse = 1 / (b1 * b2)
                by_xx = -similarity * b1 * inverse
                by_xy = 2 * a1 * inverse
                by_mx = 2 * inverse * (my * a2 - mx * similarity * b2) - 2 * mx * by_xx - my * by_xy
                tl.store(partials + pixel, by_mx, mask=inside)
                tl.store(partials + volume + pixel, by_xx, mask=inside)
                tl.store(partials + 2 * volume + pixel, by_xy, mask=inside)
    strips = tl.num_programs(0)
    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * strips + tl.program_id(0)
    tl.store(sums + program, tl.sum(total))


@triton.jit
def _differentiate(
    x, y, partials, upstream, gradient, height, width, l1_weight, ssim_weight,
    rows: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Chain rule through the blurs: the Gaussian is symmetric, so each blur is its own adjoint."""
    image, lane, first = _place(height, width, rows, lanes)
    scale = tl.load(upstream + tl.program_id(2)) / (height * width)
    x, y, partials, gradient = x + image, y + image, partials + image, gradient + image
    volume = _volume(height, width)
    m, s, p = _no_rows(lanes), _no_rows(lanes), _no_rows(lanes)
    for lower in range(first - RADIUS, first + rows + RADIUS):
        m = m[1:] + (_weigh(_neighbours(partials, lower, lane, height, width)),)
        s = s[1:] + (_weigh(_neighbours(partials + volume, lower, lane, height, width)),)
        p = p[1:] + (_weigh(_neighbours(partials + 2 * volume, lower, lane, height, width)),)
        row = lower - RADIUS
        if row >= first:
            pixel, inside = row * width + lane, (row < height) & (lane < width)
            a = tl.load(x + pixel, mask=inside, other=0.0)
            b = tl.load(y + pixel, mask=inside, other=0.0)
            of_ssim = _weigh(m) + 2 * a * _weigh(s) + b * _weigh(p)
            of_l1 = tl.where(a > b, 1.0, 0.0) - tl.where(a < b, 1.0, 0.0)
            tl.store(gradient + pixel, scale * (l1_weight * of_l1 + ssim_weight * of_ssim), mask=inside)


@triton.jit
def _place(height, width, rows: tl.constexpr, lanes: tl.constexpr):
    """Offset of a program's image, its lanes and its first row."""
    image = tl.program_id(2).to(tl.int64) * height * width
    return image, tl.program_id(0) * lanes + tl.arange(0, lanes), tl.program_id(1) * rows


@triton.jit
def _volume(height, width):
    """Values of all images."""
    return tl.num_programs(2).to(tl.int64) * height * width


@triton.jit
def _no_rows(lanes: tl.constexpr):
    """Eleven blurred rows, all zero."""
    zero = tl.zeros([lanes], tl.float32)
    return (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)


@triton.jit
def _neighbours(plane, row, lane, height, width):
    """The pixels of a row from five to the left to five to the right; zero outside the image."""
    used = (row >= 0) & (row < height) & (lane < width)
    line = plane + row * width + lane
    return (
        tl.load(line - 5 * CHANNELS, mask=used & (lane >= 5 * CHANNELS), other=0.0),
        tl.load(line - 4 * CHANNELS, mask=used & (lane >= 4 * CHANNELS), other=0.0),
        tl.load(line - 3 * CHANNELS, mask=used & (lane >= 3 * CHANNELS), other=0.0),
        tl.load(line - 2 * CHANNELS, mask=used & (lane >= 2 * CHANNELS), other=0.0),
        tl.load(line - CHANNELS, mask=used & (lane >= CHANNELS), other=0.0),
        tl.load(line, mask=used, other=0.0),
        tl.load(line + CHANNELS, mask=used & (lane < width - CHANNELS), other=0.0),
        tl.load(line + 2 * CHANNELS, mask=used & (lane < width - 2 * CHANNELS), other=0.0),
        tl.load(line + 3 * CHANNELS, mask=used & (lane < width - 3 * CHANNELS), other=0.0),
        tl.load(line + 4 * CHANNELS, mask=used & (lane < width - 4 * CHANNELS), other=0.0),
        tl.load(line + 5 * CHANNELS, mask=used & (lane < width - 5 * CHANNELS), other=0.0),
    )


@triton.jit
def _weigh(a):
    """Blur of eleven values. (Tensors come first: Triton's interpreter knows no constexpr times a tensor.)"""
    return (
        a[5] * W0
        + (a[4] + a[6]) * W1
        + (a[3] + a[7]) * W2
        + (a[2] + a[8]) * W3
        + (a[1] + a[9]) * W4
        + (a[0] + a[10]) * W5
    )


@triton.jit
def _weigh_products(a, b):
    """The same of the products of two times eleven."""
    return (
        a[5] * b[5] * W0
        + (a[4] * b[4] + a[6] * b[6]) * W1
        + (a[3] * b[3] + a[7] * b[7]) * W2
        + (a[2] * b[2] + a[8] * b[8]) * W3
        + (a[1] * b[1] + a[9] * b[9]) * W4
        + (a[0] * b[0] + a[10] * b[10]) * W5
    )
