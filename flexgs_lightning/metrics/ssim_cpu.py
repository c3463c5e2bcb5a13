"""SSIM and its gradient in one fused CPU kernel; imported at first use, because numba is.

Images stay interleaved (R, G, B, R, ...): every float of a row is one lane, and a horizontal neighbour is
three lanes away. The image is cut into blocks of BAND rows x LANES lanes, which threads share. A block
copies its window (with a margin of 5 pixels, zero outside the image) into a small buffer of constant
strides, because only then are the compiler's loops vectorised. Blocks do not depend on the number of
threads and nothing is summed across them in parallel, so neither do results.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flexgs_lightning.jit import compiler, next_item, run

# Stated here again although metrics.py has them: numba's cache only notices changes to this file.
RADIUS, SIGMA = 5, 1.5
C1, C2 = np.float32(0.01**2), np.float32(0.03**2)
_TAPS = [math.exp(-0.5 * (k / SIGMA) ** 2) for k in range(-RADIUS, RADIUS + 1)]
W0, W1, W2, W3, W4, W5 = (np.float32(tap / sum(_TAPS)) for tap in _TAPS[RADIUS:])
"""The normalised Gaussian's taps from its centre outwards."""

CHANNELS = 3
MARGIN = CHANNELS * RADIUS
BAND, LANES = 32, 48
ROWS, SPAN = BAND + 2 * RADIUS, LANES + 2 * MARGIN
MAP = ROWS * LANES
"""Size of one blurred map of a block."""

_kernel = compiler({"contract"})  # sums in the written order: SSIM subtracts nearly equal numbers
_inlined = compiler({"contract"}, forceinline=True)
_reducer = compiler({"contract", "reassoc"}, forceinline=True)
TWO, ONE = np.float32(2.0), np.float32(1.0)


class FusedSSIM(torch.autograd.Function):
    """``metrics.ssim`` for float32 CPU tensors, differentiable in the prediction only."""

    @staticmethod
    def forward(ctx, prediction: Tensor, target: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """[C, H, W, 3] twice to [C]. The gradient is computed along, while the moments are at hand."""
        count, height, width, _ = prediction.shape
        shape = (count, height, width * CHANNELS)
        x, y = (image.detach().contiguous().numpy().reshape(shape) for image in (prediction, target))
        with_gradient = ctx.needs_input_grad[0]
        blocks = -(-height // BAND) * -(-shape[2] // LANES)
        sums = np.empty(count * blocks, np.float64)
        partials = np.empty((3, *shape) if with_gradient else (3, 0, 0, 0), np.float32)
        run(_compare_blocks, count * blocks, x, y, sums, partials)
        if with_gradient:
            gradient = np.empty(shape, np.float32)
            run(_gradient_blocks, count * blocks, x, y, partials, gradient)
            ctx.save_for_backward(torch.from_numpy(gradient.reshape(prediction.shape)))
        means = sums.reshape(count, blocks).sum(axis=1) / (shape[1] * shape[2])
        return torch.from_numpy(means.astype(np.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Scale each image's gradient."""
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / gradient[0].numel())[:, None, None, None], None


@_inlined
def _place(block, height, width):  # type: ignore[no-untyped-def]
    """Image, first row and first lane of a block."""
    strips = (width + LANES - 1) // LANES
    per_image = (height + BAND - 1) // BAND * strips
    return block // per_image, block % per_image // strips * BAND, block % strips * LANES


@_kernel
def _compare_blocks(counter, count, x, y, sums, partials):  # type: ignore[no-untyped-def]
    """Sum of SSIM over each block, and its partial derivatives at each pixel unless ``partials`` is empty."""
    height, width = x.shape[1:]
    window, blurred = np.empty(2 * ROWS * SPAN, np.float32), np.empty(5 * MAP, np.float32)
    block = next_item(counter)
    while block < count:
        image, row, lane = _place(block, height, width)
        _load(x[image], row, lane, window[: ROWS * SPAN])
        _load(y[image], row, lane, window[ROWS * SPAN :])
        _blur_moments_horizontally(window, blurred)
        sums[block] = _compare(blurred, image, row, lane, height, width, partials)
        block = next_item(counter)


@_kernel
def _gradient_blocks(counter, count, x, y, partials, gradient):  # type: ignore[no-untyped-def]
    """Derivative of the whole image's sum of SSIM by x."""
    height, width = x.shape[1:]
    window, blurred = np.empty(ROWS * SPAN, np.float32), np.empty(3 * MAP, np.float32)
    block = next_item(counter)
    while block < count:
        image, row, lane = _place(block, height, width)
        for which in range(3):
            _load(partials[which, image], row, lane, window)
            _blur_horizontally(window, blurred[which * MAP : (which + 1) * MAP])
        _combine(blurred, x[image], y[image], row, lane, gradient[image])
        block = next_item(counter)


@_inlined
def _load(plane, row, lane, window):  # type: ignore[no-untyped-def]
    """Copy the block at (row, lane) with its margins; zero outside the image."""
    height, width = plane.shape
    low, high = max(0, MARGIN - lane), min(SPAN, width + MARGIN - lane)
    inside = row >= RADIUS and row - RADIUS + ROWS <= height and low == 0 and high == SPAN
    if not inside:
        for j in range(ROWS * SPAN):
            window[j] = 0.0
    for r in range(max(0, RADIUS - row), min(ROWS, height + RADIUS - row)):
        source = plane[row - RADIUS + r, lane - MARGIN + low : lane - MARGIN + high]
        line = window[r * SPAN + low : r * SPAN + high]
        for j in range(len(source)):
            line[j] = source[j]


@_inlined
def _taps(a, j, step):  # type: ignore[no-untyped-def]
    """Blur of 11 values from lane j, ``step`` apart."""
    return (
        W0 * a[j + 5 * step]
        + W1 * (a[j + 4 * step] + a[j + 6 * step])
        + W2 * (a[j + 3 * step] + a[j + 7 * step])
        + W3 * (a[j + 2 * step] + a[j + 8 * step])
        + W4 * (a[j + step] + a[j + 9 * step])
        + W5 * (a[j] + a[j + 10 * step])
    )


@_inlined
def _product_taps(a, j, k, step):  # type: ignore[no-untyped-def]
    """The same of the products of two lanes."""
    return (
        W0 * a[j + 5 * step] * a[k + 5 * step]
        + W1 * (a[j + 4 * step] * a[k + 4 * step] + a[j + 6 * step] * a[k + 6 * step])
        + W2 * (a[j + 3 * step] * a[k + 3 * step] + a[j + 7 * step] * a[k + 7 * step])
        + W3 * (a[j + 2 * step] * a[k + 2 * step] + a[j + 8 * step] * a[k + 8 * step])
        + W4 * (a[j + step] * a[k + step] + a[j + 9 * step] * a[k + 9 * step])
        + W5 * (a[j] * a[k] + a[j + 10 * step] * a[k + 10 * step])
    )


@_inlined
def _blur_moments_horizontally(window, blurred):  # type: ignore[no-untyped-def]
    """Blurs of x, y, x x, y y, x y, each [ROWS, LANES]."""
    for r in range(ROWS):
        x, y, out = r * SPAN, (ROWS + r) * SPAN, r * LANES
        for j in range(LANES):
            blurred[out + j] = _taps(window, x + j, CHANNELS)
            blurred[out + j + MAP] = _taps(window, y + j, CHANNELS)
            blurred[out + j + 2 * MAP] = _product_taps(window, x + j, x + j, CHANNELS)
            blurred[out + j + 3 * MAP] = _product_taps(window, y + j, y + j, CHANNELS)
            blurred[out + j + 4 * MAP] = _product_taps(window, x + j, y + j, CHANNELS)


@_inlined
def _blur_horizontally(window, blurred):  # type: ignore[no-untyped-def]
    for r in range(ROWS):
        for j in range(LANES):
            blurred[r * LANES + j] = _taps(window, r * SPAN + j, CHANNELS)


@_inlined
def _compare(blurred, image, row, lane, height, width, partials):  # type: ignore[no-untyped-def]
    """Sum of SSIM over a block; if asked for, its derivatives by the blurs of x, x x and x y.

    With a1 = 2 mx my + C1, a2 = 2 cov + C2, b1 = mx^2 + my^2 + C1, b2 = var x + var y + C2 (Wang et al.
    2004, Eq. 13), where var x = blur(x x) - mx^2 and cov = blur(x y) - mx my.
    """
    lanes = min(LANES, width - lane)
    values = np.empty(4 * LANES, np.float32)
    total = 0.0
    for r in range(min(BAND, height - row)):
        h = r * LANES
        for j in range(LANES):
            mx, my = _taps(blurred, h + j, LANES), _taps(blurred, h + j + MAP, LANES)
            xx, yy = _taps(blurred, h + j + 2 * MAP, LANES), _taps(blurred, h + j + 3 * MAP, LANES)
            xy = _taps(blurred, h + j + 4 * MAP, LANES)
            a1, a2 = TWO * (mx * my) + C1, TWO * (xy - mx * my) + C2
            b1, b2 = mx * mx + my * my + C1, (xx - mx * mx) + (yy - my * my) + C2
            similarity = (a1 * a2) / (b1 * b2)
            inverse = ONE / (b1 * b2)
            by_xx = -similarity * b1 * inverse
            by_xy = TWO * a1 * inverse
            by_mx = TWO * inverse * (my * a2 - mx * similarity * b2)
            values[j] = similarity
            values[j + LANES] = by_mx - TWO * mx * by_xx - my * by_xy
            values[j + 2 * LANES] = by_xx
            values[j + 3 * LANES] = by_xy
        total += _sum(values[:lanes])
        if partials.size > 0:
            for which in range(3):
                source = values[(which + 1) * LANES : (which + 1) * LANES + lanes]
                partials[which, image, row + r, lane : lane + lanes] = source
    return total


@_reducer
def _sum(values):  # type: ignore[no-untyped-def]
    total = 0.0
    for value in values:
        total += value
    return total


@_inlined
def _combine(blurred, x, y, row, lane, gradient):  # type: ignore[no-untyped-def]
    """Chain rule through the blurs: the Gaussian is symmetric, so each blur is its own adjoint."""
    end = min(lane + LANES, x.shape[1])
    for r in range(min(BAND, x.shape[0] - row)):
        h, i = r * LANES, row + r
        x_row, y_row, out = x[i, lane:end], y[i, lane:end], gradient[i, lane:end]
        for j in range(len(out)):
            by_mean = _taps(blurred, h + j, LANES)
            by_square = _taps(blurred, h + j + MAP, LANES)
            by_product = _taps(blurred, h + j + 2 * MAP, LANES)
            out[j] = by_mean + TWO * x_row[j] * by_square + y_row[j] * by_product
