"""L1 and SSIM and their gradient in fused CPU kernels; imported at first use, because numba is.

Images stay interleaved (R, G, B, R, ...): every float of a row is one lane, and a horizontal neighbour is
three lanes away. The image is cut into blocks of BAND rows x LANES lanes, which threads share. A block
copies its window (with a margin of 5 pixels, zero outside the image) into a small buffer of constant
strides, because only then are the compiler's loops vectorised. Blocks do not depend on the number of
threads and nothing is summed across them in parallel, so neither do results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flexgs_lightning.jit import compiler, next_item, run

if TYPE_CHECKING:
    from flexgs_lightning.metrics.ssim import SSIMReference

# Stated here again although ssim.py has them: numba's cache only notices changes to this file.
RADIUS, SIGMA = 5, 1.5
C1, C2 = np.float32(0.01**2), np.float32(0.03**2)
_TAPS = [math.exp(-0.5 * (k / SIGMA) ** 2) for k in range(-RADIUS, RADIUS + 1)]
W0, W1, W2, W3, W4, W5 = (np.float32(tap / sum(_TAPS)) for tap in _TAPS[RADIUS:])
"""The normalised Gaussian's taps from its centre outwards."""

CHANNELS = 3
MARGIN = CHANNELS * RADIUS
BAND, LANES = 32, 240
ROWS, SPAN = BAND + 2 * RADIUS, LANES + 2 * MARGIN
MAP, AREA = ROWS * LANES, BAND * LANES
"""Size of one map of a block, with its margin above and below, and without."""

_kernel = compiler({"contract"})  # sums in the written order: SSIM subtracts nearly equal numbers
_inlined = compiler({"contract"}, forceinline=True)
_rounded = compiler(set(), forceinline=True)
_reducer = compiler({"contract", "reassoc"}, forceinline=True)
TWO, ONE = np.float32(2.0), np.float32(1.0)


def photo_moments(photo: Float[Tensor, "C H W 3"]) -> Float[Tensor, "B M"]:
    """See ``ssim.Kernels``; those of each block lie together."""
    blocks = _block_count(photo)
    moments = torch.empty(blocks, 2 * AREA)
    run(_blur_photo_blocks, blocks, *_rows(photo), moments.numpy())
    return moments


def compare(
    render: Float[Tensor, "C H W 3"],
    reference: SSIMReference,
    weights: tuple[float, float],
    with_partials: bool,
) -> tuple[Float[Tensor, " C"], Tensor]:
    """See ``ssim.Kernels``."""
    blocks = _block_count(render)
    sums = np.empty(blocks, np.float64)
    partials = torch.empty((3, *render.shape) if with_partials else (3, 0, 0, 0, 0))
    images, moments = _rows(render, reference.image, partials), reference.moments.numpy()
    run(_compare_blocks, blocks, *images, moments, sums, *map(np.float32, weights))
    means = sums.reshape(len(render), -1).sum(axis=1) / render[0].numel()
    return torch.from_numpy(means.astype(np.float32)), partials


def gradient(
    render: Float[Tensor, "C H W 3"],
    photo: Float[Tensor, "C H W 3"],
    partials: Float[Tensor, "3 C H W 3"],
    upstream: Float[Tensor, " C"],
    weights: tuple[float, float],
) -> Float[Tensor, "C H W 3"]:
    """See ``ssim.Kernels``."""
    result = torch.empty_like(render)
    count = np.float32(render[0].numel())
    of_l1, of_ssim = (upstream.numpy() * np.float32(weight) / count for weight in weights)
    run(_gradient_blocks, _block_count(render), *_rows(render, photo, partials, result), of_l1, of_ssim)
    return result


def _rows(*images: Tensor) -> Iterator[NDArray[np.float32]]:
    """The images' memory, with a row's pixels and channels as one dimension."""
    return (image.numpy().reshape(*image.shape[:-2], image.shape[-2] * CHANNELS) for image in images)


def _block_count(images: Tensor) -> int:
    count, height, width, _ = images.shape
    return count * -(-height // BAND) * -(-width * CHANNELS // LANES)


@_inlined
def _place(block, height, width):  # type: ignore[no-untyped-def]
    """Image, first row and first lane of a block."""
    strips = (width + LANES - 1) // LANES
    per_image = (height + BAND - 1) // BAND * strips
    return block // per_image, block % per_image // strips * BAND, block % strips * LANES


@_kernel
def _blur_photo_blocks(counter, count, y, moments):  # type: ignore[no-untyped-def]
    """Blurs of y and y y."""
    height, width = y.shape[1:]
    window, blurred = np.empty(ROWS * SPAN, np.float32), np.empty(2 * MAP, np.float32)
    block = next_item(counter)
    while block < count:
        image, row, lane = _place(block, height, width)
        _load(y[image], row, lane, window)
        _blur_photo_horizontally(window, blurred, height - row)
        target = moments[block]
        for r in range(min(BAND, height - row)):
            h = r * LANES
            for j in range(LANES):
                target[h + j] = _taps(blurred, h + j, LANES)
                target[h + j + AREA] = _taps(blurred, h + j + MAP, LANES)
        block = next_item(counter)


@_kernel
def _compare_blocks(  # type: ignore[no-untyped-def]
    counter, count, x, y, partials, moments, sums, of_l1, of_ssim
):
    """Weighted sum of |x - y| and SSIM over each block; SSIM's derivatives unless ``partials`` is empty."""
    height, width = x.shape[1:]
    window, blurred = np.empty(2 * ROWS * SPAN, np.float32), np.empty(3 * MAP, np.float32)
    block = next_item(counter)
    while block < count:
        image, row, lane = _place(block, height, width)
        _load(x[image], row, lane, window[: ROWS * SPAN])
        _load(y[image], row, lane, window[ROWS * SPAN :])
        _blur_render_horizontally(window, blurred, height - row)
        place, weights = (image, row, lane, height, width), (of_l1, of_ssim)
        sums[block] = _compare(window, blurred, moments[block], place, weights, partials)
        block = next_item(counter)


@_kernel
def _gradient_blocks(counter, count, x, y, partials, gradient, of_l1, of_ssim):  # type: ignore[no-untyped-def]
    """Derivative of the whole image's weighted sum by x."""
    height, width = x.shape[1:]
    window, blurred = np.empty(ROWS * SPAN, np.float32), np.empty(3 * MAP, np.float32)
    block = next_item(counter)
    while block < count:
        image, row, lane = _place(block, height, width)
        for which in range(3):
            _load(partials[which, image], row, lane, window)
            _blur_horizontally(window, blurred[which * MAP : (which + 1) * MAP], height - row)
        weights = (of_l1[image], of_ssim[image])
        _combine(blurred, x[image], y[image], row, lane, weights, gradient[image])
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
        _copy(source, window[r * SPAN + low :])


@_inlined
def _copy(source, target):  # type: ignore[no-untyped-def]
    """Faster than assigning a slice, which looks for overlap."""
    for j in range(len(source)):
        target[j] = source[j]


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
def _blur_horizontally(window, blurred, below):  # type: ignore[no-untyped-def]
    for r in range(min(ROWS, below + 2 * RADIUS)):
        for j in range(LANES):
            blurred[r * LANES + j] = _taps(window, r * SPAN + j, CHANNELS)


@_inlined
def _blur_photo_horizontally(window, blurred, below):  # type: ignore[no-untyped-def]
    """Blurs of y and y y, each [ROWS, LANES]."""
    for r in range(min(ROWS, below + 2 * RADIUS)):
        y, out = r * SPAN, r * LANES
        for j in range(LANES):
            blurred[out + j] = _taps(window, y + j, CHANNELS)
            blurred[out + j + MAP] = _product_taps(window, y + j, y + j, CHANNELS)


@_inlined
def _blur_render_horizontally(window, blurred, below):  # type: ignore[no-untyped-def]
    """Blurs of x, x x and x y, each [ROWS, LANES]."""
    for r in range(min(ROWS, below + 2 * RADIUS)):
        x, y, out = r * SPAN, (ROWS + r) * SPAN, r * LANES
        for j in range(LANES):
            blurred[out + j] = _taps(window, x + j, CHANNELS)
            blurred[out + j + MAP] = _product_taps(window, x + j, x + j, CHANNELS)
            blurred[out + j + 2 * MAP] = _product_taps(window, x + j, y + j, CHANNELS)


@_inlined
def _compare(window, blurred, moments, place, weights, partials):  # type: ignore[no-untyped-def]
    """Weighted sum over a block; if asked for, SSIM's derivatives by the blurs of x, x x and x y.

    With a1 = 2 mx my + C1, a2 = 2 cov + C2, b1 = mx^2 + my^2 + C1, b2 = var x + var y + C2 (Wang et al.
    2004, Eq. 13), where var x = blur(x x) - mx^2 and cov = blur(x y) - mx my.
    """
    (image, row, lane, height, width), (of_l1, of_ssim) = place, weights
    lanes = min(LANES, width - lane)
    values = np.empty(4 * LANES, np.float32)
    total = 0.0
    for r in range(min(BAND, height - row)):
        h, centre = r * LANES, (r + RADIUS) * SPAN + MARGIN
        for j in range(LANES):
            mx, my = _taps(blurred, h + j, LANES), moments[h + j]
            xx, yy = _taps(blurred, h + j + MAP, LANES), moments[h + j + AREA]
            xy = _taps(blurred, h + j + 2 * MAP, LANES)
            a1, a2 = TWO * (mx * my) + C1, TWO * (xy - mx * my) + C2
            b1, b2 = mx * mx + my * my + C1, (xx - mx * mx) + (yy - my * my) + C2
            similarity = (a1 * a2) / (b1 * b2)
            inverse = ONE / (b1 * b2)
            by_xx = -similarity * b1 * inverse
            by_xy = TWO * a1 * inverse
            by_mx = TWO * inverse * (my * a2 - mx * similarity * b2)
            distance = abs(window[centre + j] - window[ROWS * SPAN + centre + j])
            values[j] = of_l1 * distance + of_ssim * similarity
            values[j + LANES] = by_mx - TWO * mx * by_xx - my * by_xy
            values[j + 2 * LANES] = by_xx
            values[j + 3 * LANES] = by_xy
        total += _sum(values[:lanes])
        if partials.size > 0:
            for which in range(3):
                target = partials[which, image, row + r, lane : lane + lanes]
                _copy(values[(which + 1) * LANES : (which + 1) * LANES + lanes], target)
    return total


@_reducer
def _sum(values):  # type: ignore[no-untyped-def]
    total = 0.0
    for value in values:
        total += value
    return total


@_inlined
def _combine(blurred, x, y, row, lane, weights, gradient):  # type: ignore[no-untyped-def]
    """Chain rule through the blurs: the Gaussian is symmetric, so each blur is its own adjoint."""
    of_l1, of_ssim = weights
    end = min(lane + LANES, x.shape[1])
    for r in range(min(BAND, x.shape[0] - row)):
        h, i = r * LANES, row + r
        x_row, y_row, out = x[i, lane:end], y[i, lane:end], gradient[i, lane:end]
        for j in range(len(out)):
            by_mean = _taps(blurred, h + j, LANES)
            by_square = _taps(blurred, h + j + MAP, LANES)
            by_product = _taps(blurred, h + j + 2 * MAP, LANES)
            similarity = by_mean + TWO * x_row[j] * by_square + y_row[j] * by_product
            distance = np.float32(x_row[j] > y_row[j]) - np.float32(x_row[j] < y_row[j])
            out[j] = _weighted(of_ssim, similarity, of_l1, distance)


@_rounded
def _weighted(of_ssim, similarity, of_l1, distance):  # type: ignore[no-untyped-def]
    """Each product rounded, so that the gradient has the bits of the two losses' own, added up."""
    return of_ssim * similarity + of_l1 * distance
