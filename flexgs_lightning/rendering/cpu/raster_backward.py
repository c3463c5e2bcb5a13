"""The way back through blending, and the sums of what tiles found for each Gaussian. See ``raster.py``."""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import numpy as np

from flexgs_lightning.jit import exp_negative, inlined, kernel, next_item, prefetch, prefetch_pixel
from flexgs_lightning.rendering.cpu.tile_pixels import (
    AHEAD,
    ALPHA,
    ALPHA_MAX,
    ALPHA_MIN,
    BEHIND,
    BLUE,
    CHANNELS,
    DEPTH,
    FEATURES,
    GREEN,
    ONE,
    RED,
    SCRATCH,
    STOP,
    TRANSMITTANCE,
    ZERO,
    X,
    Y,
    covered,
    fallen,
    further_plane,
    new_state,
    prefetch_splat,
    reset,
)
from flexgs_lightning.rendering.cpu.tiles import TILE_HEIGHT, TILE_WIDTH

CHUNK = 2048
"""Gaussians in one work item of ``sum_slots``."""
_GRADIENTS = 10
"""Columns of an intersection's gradients: means2d (2), features; those of further channels follow."""
_NO_GRADIENTS = (ZERO,) * _GRADIENTS
_TWO = np.float32(2.0)


@inlined
def _load_splat(means2d, features, i, left, top):
    """Centre in the tile and features of a Gaussian (a tuple: a row's references are counted, atomically)."""
    return (
        means2d[i, 0] - left, means2d[i, 1] - top, features[i, 0], features[i, 1], features[i, 2],
        features[i, 3], features[i, 4], features[i, 5], features[i, 6], features[i, 7],
    )  # fmt: skip


@kernel
def draw_backward(
    counter, count, tile_offsets, tile_splats, tile_entries, columns, tiles, rest, falloff,
    means2d, features, extents, background, alpha, depth, transmittance, stop, v_image, v_alpha, v_depth,
    gradients, absolute,
):  # fmt: skip
    """Vector-Jacobian product of ``raster.draw`` per intersection; one item is a tile of one camera.

    ``v_image``, ``v_alpha`` and ``v_depth`` are the images' gradients (the last two may be None);
    ``gradients`` [M, 10 + R] is written, one row per slot, and unless it is None ``absolute`` [M, 2], the
    sums over pixels of the absolute gradients by means2d.
    """
    state = new_state(rest)
    tile = next_item(counter)
    while tile < count:
        c = tile // tiles
        top, left = tile % tiles // columns * TILE_HEIGHT, tile % tiles % columns * TILE_WIDTH
        first, size = tile_offsets[tile], tile_offsets[tile + 1] - tile_offsets[tile]
        if size > 0:
            deepest = _load(
                state, c, left, top, background, alpha, depth, transmittance, stop, v_image, v_alpha, v_depth,
                rest,
            )  # fmt: skip
        for place in range(size - 1, -1, -1):
            ahead = first + max(place - AHEAD, 0)
            prefetch_splat(means2d, features, extents, tile_splats[ahead])
            prefetch(gradients, tile_entries[ahead])
            row = tile_entries[first + place]
            values, across, down = _NO_GRADIENTS, ZERO, ZERO
            if np.float32(place) < deepest:
                index = tile_splats[first + place]
                splat = _load_splat(means2d, features, index, np.float32(left), np.float32(top))
                begin, end = covered(splat[1], extents[index, 1])
                if rest is not None:
                    _gradient_by_weight(state, begin, end, features, index, rest)
                values, across, down = _blend_backward(
                    state, begin, end, np.float32(place), splat, falloff, v_alpha, v_depth, absolute, rest
                )
                if rest is not None:
                    _rest_backward(state, begin, end, gradients, row, rest)
            elif rest is not None:
                for r in range(rest):
                    gradients[row, _GRADIENTS + r] = ZERO
            (
                gradients[row, 0], gradients[row, 1], gradients[row, 2], gradients[row, 3], gradients[row, 4],
                gradients[row, 5], gradients[row, 6], gradients[row, 7], gradients[row, 8], gradients[row, 9],
            ) = values  # fmt: skip
            if absolute is not None:
                absolute[row, 0], absolute[row, 1] = across, down
        tile = next_item(counter)


@inlined
def _load(
    state, c, left, top, background, alpha, depth, transmittance, stop, v_image, v_alpha, v_depth, rest
):  # fmt: skip
    """Read a tile's pixels and their gradients; return the largest stop.

    The expected depth is D / A with D = sum(w z) and A = sum(w): its gradient goes to both sums.
    """
    height, width = stop.shape[1], stop.shape[2]
    reset(state, width - left, height - top)
    deepest = ZERO
    for y in range(top, min(top + TILE_HEIGHT, height)):
        prefetch_pixel(transmittance, c, y + AHEAD, left)
        prefetch_pixel(stop, c, y + AHEAD, left)
        prefetch_pixel(v_image, c, y + AHEAD, left)
        for x in range(left, min(left + TILE_WIDTH, width)):
            i = np.uint64((y - top) * TILE_WIDTH + x - left)
            T = transmittance[c, y, x]
            red, green, blue = v_image[c, y, x, 0], v_image[c, y, x, 1], v_image[c, y, x, 2]
            v_accumulated = ZERO
            if v_alpha is not None:
                v_accumulated = v_alpha[c, y, x, 0]
            if v_depth is not None and alpha[c, y, x, 0] > ZERO:
                v_sum = v_depth[c, y, x, 0] / alpha[c, y, x, 0]
                state[DEPTH + i] = v_sum
                v_accumulated -= v_sum * depth[c, y, x, 0]
            state[TRANSMITTANCE + i] = T
            state[STOP + i] = stop[c, y, x]
            state[RED + i], state[GREEN + i], state[BLUE + i] = red, green, blue
            state[ALPHA + i] = v_accumulated
            state[BEHIND + i] = T * (
                red * background[c, 0] + green * background[c, 1] + blue * background[c, 2]
            )
            if rest is not None:
                for r in range(rest):
                    value = v_image[c, y, x, CHANNELS + r]
                    state[further_plane(r) + i] = value
                    state[BEHIND + i] += T * value * background[c, CHANNELS + r]
            deepest = max(deepest, stop[c, y, x])
    return deepest


@inlined
def _blend_backward(
    state, begin, end, place, splat, falloff, with_alpha, with_depth, with_absolute, with_rest
):
    """Step back over one Gaussian: restore T in front of it and return its gradients (``_GRADIENTS`` of
    them), and the sums of absolute ones by the centre's two coordinates.

    With q a pixel's gradient by the Gaussian's weight and B what lies behind it, weighted likewise,
    dL / dalpha = T q - B / (1 - alpha). Arguments ``with_`` are as in ``_blend``.
    """
    mx, my, h, k, g, opacity, z, red, green, blue = splat
    v_red, v_green, v_blue, v_depth = ZERO, ZERO, ZERO, ZERO
    s, su, sy, suu, suy, syy = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    across, down = ZERO, ZERO
    for i in range(begin, end):
        dy = state[Y + i] - my
        u = state[X + i] - mx + k * dy
        value = exp_negative(h * u * u + g * dy * dy)
        free = opacity * value
        if falloff is not None:
            free = opacity * fallen(value, falloff)
        capped = min(ALPHA_MAX, free)
        drawn = (capped >= ALPHA_MIN) & (state[STOP + i] > place)
        alpha = capped if drawn else ZERO
        inverse = ONE / (ONE - alpha)
        T = state[TRANSMITTANCE + i] * inverse
        weight = alpha * T
        pr, pg, pb = state[RED + i], state[GREEN + i], state[BLUE + i]
        q = red * pr + green * pg + blue * pb
        if with_depth is not None:
            q += z * state[DEPTH + i]
            v_depth += weight * state[DEPTH + i]
        if with_alpha is not None or with_depth is not None:
            q += state[ALPHA + i]
        if with_rest is not None:
            q += state[SCRATCH + i]
            state[SCRATCH + i] = weight
        behind = state[BEHIND + i]
        v_alpha = T * q - behind * inverse
        state[TRANSMITTANCE + i] = T
        state[BEHIND + i] = behind + weight * q
        v_red += weight * pr
        v_green += weight * pg
        v_blue += weight * pb
        v = free * v_alpha if drawn & (free <= ALPHA_MAX) else ZERO
        s += v
        if falloff is not None:
            v = opacity * value * falloff.gain * v_alpha if drawn & (free <= ALPHA_MAX) else ZERO
        # From here on v is minus the gradient by sigma.
        vu, vy = v * u, v * dy
        su += vu
        sy += vy
        suu += vu * u
        suy += vu * dy
        syy += vy * dy
        if with_absolute is not None:
            across += abs(vu)
            down += abs(h * k * vu + g * vy)
    v_x, v_y = _TWO * h * su, _TWO * (h * k * su + g * sy)
    values = v_x, v_y, -suu, -_TWO * h * suy, -syy, s / opacity, v_depth, v_red, v_green, v_blue
    return values, _TWO * h * across, _TWO * down


@inlined
def _gradient_by_weight(state, begin, end, features, index, rest):
    """The pixels' gradients by the Gaussian's weight, as far as further channels go."""
    for i in range(begin, end):
        state[SCRATCH + i] = ZERO
    for r in range(rest):
        value, plane = features[index, FEATURES + r], further_plane(r)
        for i in range(begin, end):
            state[SCRATCH + i] += state[plane + i] * value


@inlined
def _rest_backward(state, begin, end, gradients, row, rest):
    """Gradients by further channels, from the weights that ``_blend_backward`` left."""
    for r in range(rest):
        total, plane = ZERO, further_plane(r)
        for i in range(begin, end):
            total += state[SCRATCH + i] * state[plane + i]
        gradients[row, _GRADIENTS + r] = total


@kernel
def sum_slots(counter, count, entry_offsets, slots, first, others):
    """[first | others] [C N, 2 | K] = sums of a Gaussian's adjoining rows of slots [M, 2 + K], in order."""
    item = next_item(counter)
    while item < count:
        for index in range(item * CHUNK, min((item + 1) * CHUNK, len(first))):
            first[index] = ZERO
            others[index] = ZERO
            for entry in range(entry_offsets[index], entry_offsets[index + 1]):
                first[index, 0] += slots[entry, 0]
                first[index, 1] += slots[entry, 1]
                for column in range(others.shape[1]):
                    others[index, column] += slots[entry, 2 + column]
        item = next_item(counter)
