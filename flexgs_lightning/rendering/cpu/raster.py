"""Blending the tiles' Gaussians front to back.

The field's volume rendering (Kerbl et al. 2023): a Gaussian's alpha at a pixel is
min(0.999, opacity exp(-sigma)), below 1 / 255 it is skipped, its weight is alpha T with T the
transmittance in front of it, and a pixel stops before the Gaussian that would take T to 1e-4 or less.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import numpy as np

from flexgs_lightning.jit import exp_negative, inlined, kernel, next_item
from flexgs_lightning.rendering.cpu.tile_pixels import (
    ALPHA,
    ALPHA_MAX,
    ALPHA_MIN,
    BLUE,
    CHANNELS,
    DEPTH,
    FEATURES,
    GREEN,
    NEVER,
    ONE,
    PIXELS,
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

_BATCH = 16
"""Gaussians that are fetched at once, and between two checks whether a whole tile is finished."""
_T_MIN = np.float32(1e-4)


@inlined
def _fetch(batch, spans, tile_splats, begin, end, means2d, features, extents, left, top):
    """Copy Gaussians from all over memory to where they are at hand: centre in the tile, features, pixels.

    In a loop of its own the processor waits for many of them at once, and the next batch is on its way
    meanwhile. (The way back, with more to compute for each, is slower with such a loop.)
    """
    for j in range(end - begin):
        prefetch_splat(means2d, features, extents, tile_splats[min(begin + j + _BATCH, len(tile_splats) - 1)])
        i = tile_splats[begin + j]
        my = means2d[i, 1] - top
        batch[j, 0], batch[j, 1] = means2d[i, 0] - left, my
        for column in range(FEATURES):
            batch[j, 2 + column] = features[i, column]
        spans[j, 0], spans[j, 1] = covered(my, extents[i, 1])


@inlined
def _at_hand(batch, j):
    """Centre in the tile and features of a Gaussian that was fetched."""
    return (
        batch[j, 0], batch[j, 1], batch[j, 2], batch[j, 3], batch[j, 4], batch[j, 5], batch[j, 6],
        batch[j, 7], batch[j, 8], batch[j, 9],
    )  # fmt: skip


@inlined
def _all_finished(state, place):
    running = 0
    for i in range(np.uint64(PIXELS)):
        running += state[STOP + i] > place
    return running == 0


@kernel
def draw(
    counter, count, tile_offsets, tile_splats, tile_entries, columns, tiles, rest, falloff,
    means2d, features, extents, background, image, alpha, depth, transmittance, stop, importance,
):  # fmt: skip
    """Blend all tiles; one item is a tile of one camera.

    Args:
        counter: shared item counter; ``count`` items are C x ``tiles``.
        tile_offsets, tile_splats, tile_entries, columns, tiles: see ``TileLists``.
        rest: R, the number of channels beyond the first three, or None: numba then compiles all that is for
            them away.
        falloff: a ``types.Falloff`` other than the Gaussian's own, or None: compiled away likewise.
        means2d, features, extents: [C N, ...] as from ``project``.
        background: [C, 3 + R].
        image, alpha, depth: out, [C, H, W, 3 + R | 1 | 1]; depth may be None.
        transmittance, stop: out, [C, H, W] final T, and the place in the tile's list where blending
            stopped, for the backward pass.
        importance: out, [M, 2] sum of weights and number of pixels per slot, or None.
    """
    height, width = stop.shape[1], stop.shape[2]
    state = new_state(rest)
    batch, spans = np.empty((_BATCH, 2 + FEATURES), np.float32), np.empty((_BATCH, 2), np.uint64)
    tile = next_item(counter)
    while tile < count:
        c = tile // tiles
        top, left = tile % tiles // columns * TILE_HEIGHT, tile % tiles % columns * TILE_WIDTH
        reset(state, width - left, height - top)
        first, size, finished = tile_offsets[tile], tile_offsets[tile + 1] - tile_offsets[tile], False
        for place in range(size):
            if place % _BATCH == 0 and not finished:
                finished = _all_finished(state, np.float32(place))
                if not finished:
                    _fetch(
                        batch, spans, tile_splats, first + place, first + min(place + _BATCH, size),
                        means2d, features, extents, np.float32(left), np.float32(top),
                    )  # fmt: skip
            weight, hits = ZERO, ZERO
            if not finished:
                j = place % _BATCH
                begin, end = spans[j, 0], spans[j, 1]
                weight, hits = _blend(
                    state, begin, end, np.float32(place), _at_hand(batch, j), falloff, depth, rest
                )
                if rest is not None:
                    _blend_rest(state, begin, end, features, tile_splats[first + place], rest)
            elif importance is None:
                break
            if importance is not None:
                entry = tile_entries[first + place]
                importance[entry, 0], importance[entry, 1] = weight, hits
        _store(state, c, left, top, background, image, alpha, depth, transmittance, stop, rest)
        tile = next_item(counter)


@inlined
def _blend(state, begin, end, place, splat, falloff, with_depth, with_rest):
    """Add one Gaussian to the pixels begin..end; return the sum of its weights and its pixel count.

    Arguments ``with_`` are None where something is not asked for: numba then compiles its terms away.
    """
    mx, my, h, k, g, opacity, z, red, green, blue = splat
    total, hits = ZERO, ZERO
    for i in range(begin, end):
        dy = state[Y + i] - my
        u = state[X + i] - mx + k * dy
        value = exp_negative(h * u * u + g * dy * dy)
        if falloff is not None:
            value = fallen(value, falloff)
        alpha = min(ALPHA_MAX, opacity * value)
        T, stop = state[TRANSMITTANCE + i], state[STOP + i]
        after = T - alpha * T
        reached = (alpha >= ALPHA_MIN) & (stop > place)
        drawn = reached & (after > _T_MIN)
        weight = alpha * T if drawn else ZERO
        state[TRANSMITTANCE + i] = T - weight
        state[STOP + i] = min(stop, place if reached & (after <= _T_MIN) else NEVER)
        state[RED + i] += weight * red
        state[GREEN + i] += weight * green
        state[BLUE + i] += weight * blue
        if with_depth is not None:
            state[DEPTH + i] += weight * z
        state[ALPHA + i] += weight
        if with_rest is not None:
            state[SCRATCH + i] = weight
        total += weight
        hits += ONE if drawn else ZERO
    return total, hits


@inlined
def _blend_rest(state, begin, end, features, index, rest):
    """The further channels, with the weights that ``_blend`` left."""
    for r in range(rest):
        value, plane = features[index, FEATURES + r], further_plane(r)
        for i in range(begin, end):
            state[plane + i] += state[SCRATCH + i] * value


@inlined
def _store(
    state, c, left, top, background, image, alpha, depth, transmittance, stop, rest
):  # fmt: skip
    """Write a tile's finished pixels to the images."""
    height, width = stop.shape[1], stop.shape[2]
    for y in range(top, min(top + TILE_HEIGHT, height)):
        for x in range(left, min(left + TILE_WIDTH, width)):
            i = np.uint64((y - top) * TILE_WIDTH + x - left)
            T = state[TRANSMITTANCE + i]
            image[c, y, x, 0] = state[RED + i] + T * background[c, 0]
            image[c, y, x, 1] = state[GREEN + i] + T * background[c, 1]
            image[c, y, x, 2] = state[BLUE + i] + T * background[c, 2]
            if rest is not None:
                for r in range(rest):
                    image[c, y, x, CHANNELS + r] = (
                        state[further_plane(r) + i] + T * background[c, CHANNELS + r]
                    )
            opaque = state[ALPHA + i]  # 1 - T, but exact where little is drawn
            alpha[c, y, x, 0] = opaque
            if depth is not None:
                depth[c, y, x, 0] = state[DEPTH + i] / opaque if opaque > ZERO else ZERO
            transmittance[c, y, x] = T
            stop[c, y, x] = state[STOP + i]
