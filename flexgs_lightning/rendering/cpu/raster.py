"""Blending the tiles' Gaussians front to back, and the way back.

The field's volume rendering (Kerbl et al. 2023): a Gaussian's alpha at a pixel is
min(0.999, opacity exp(-sigma)), below 1 / 255 it is skipped, its weight is alpha T with T the
transmittance in front of it, and a pixel stops before the Gaussian that would take T to 1e-4 or less.

The loops over pixels must vectorise, or they are five times slower; what they need: all state of a
tile's pixels in one float32 array with planes at constant offsets (so that no aliasing has to be
excluded), one flat loop over the pairs of rows that a Gaussian covers (16 pixels, the widest register),
unsigned indices (signed ones wrap around), float32 constants (literals are float64), and selections
instead of branches. A pixel is finished from the Gaussian whose place in the tile's list is ``stop`` on;
outside the image that is the first.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import numpy as np

from flexgs_lightning.jit import exp_negative, inlined, kernel, next_item
from flexgs_lightning.rendering.cpu.tiles import TILE_HEIGHT, TILE_WIDTH

CHANNELS = 3
"""Blended with all else in one loop over the pixels; further channels in loops of their own (``rest``)."""
_GRADIENTS = 10
"""Columns of an intersection's gradients: means2d (2), features; those of further channels follow."""
_PIXELS = TILE_WIDTH * TILE_HEIGHT
_BATCH = 16
"""Gaussians that are fetched at once, and between two checks whether a whole tile is finished."""
CHUNK = 2048
"""Gaussians in one work item of ``sum_slots``."""

# Planes of the pixels' state. T is the transmittance.
_X, _Y, _T, _STOP, _RED, _GREEN, _BLUE, _DEPTH, _ALPHA, _BEHIND, _SCRATCH, _REST = (
    np.uint64(plane * _PIXELS) for plane in range(12)
)
_PLANES = 10
"""With further channels, one for scratch and one for each of them come behind these."""

_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_HALF = np.float32(0.5)
_ALPHA_MIN, _ALPHA_MAX, _T_MIN = np.float32(1.0 / 255.0), np.float32(0.999), np.float32(1e-4)
_NEVER = np.float32(3e38)
_MARGIN = np.float32(0.01)
_NONE, _LAST_ROW = np.float32(-1.0), np.float32(TILE_HEIGHT - 1)
_BLOCK = 2 * TILE_WIDTH
_NO_GRADIENTS = (_ZERO,) * _GRADIENTS
_FEATURES = 5 + CHANNELS


@inlined
def _covered(my, extent):
    """Range of the tile's pixels, in whole blocks of two rows, that a Gaussian can reach.

    Truncation is as good as rounding on values moved above zero, and needs no call to the C library.
    """
    above = my - extent - _HALF - _MARGIN
    below = my + extent - _HALF + _MARGIN
    first = np.int64(min(max(above, _NONE), _LAST_ROW) + _ONE)
    last = np.int64(min(max(below, _NONE), _LAST_ROW) + _ONE)
    first, last = first // 2 * _BLOCK, (last + 1) // 2 * _BLOCK
    return np.uint64(first), np.uint64(last)


@inlined
def _load_splat(means2d, features, i, left, top):
    """Centre in the tile and features of a Gaussian (a tuple: a row's references are counted, atomically)."""
    return (
        means2d[i, 0] - left, means2d[i, 1] - top, features[i, 0], features[i, 1], features[i, 2],
        features[i, 3], features[i, 4], features[i, 5], features[i, 6], features[i, 7],
    )  # fmt: skip


@inlined
def _fetch(batch, spans, tile_splats, begin, end, means2d, features, extents, left, top):
    """Copy Gaussians from all over memory to where they are at hand: centre in the tile, features, pixels.

    In a loop of its own the processor waits for many of them at once: drawing takes a quarter less time. (The
    way back, with more to compute for each, is slower with it.)
    """
    for j in range(end - begin):
        i = tile_splats[begin + j]
        my = means2d[i, 1] - top
        batch[j, 0], batch[j, 1] = means2d[i, 0] - left, my
        for column in range(_FEATURES):
            batch[j, 2 + column] = features[i, column]
        spans[j, 0], spans[j, 1] = _covered(my, extents[i, 1])


@inlined
def _at_hand(batch, j):
    """As ``_load_splat``, of one that was fetched."""
    return (
        batch[j, 0], batch[j, 1], batch[j, 2], batch[j, 3], batch[j, 4], batch[j, 5], batch[j, 6],
        batch[j, 7], batch[j, 8], batch[j, 9],
    )  # fmt: skip


@inlined
def _new_state(rest):
    """State of one tile's pixels; their centres, relative to the tile, stay."""
    planes = _PLANES
    if rest is not None:
        planes += 1 + rest
    state = np.zeros(planes * _PIXELS, np.float32)
    for i in range(_PIXELS):
        state[_X + np.uint64(i)] = np.float32(i % TILE_WIDTH) + _HALF
        state[_Y + np.uint64(i)] = np.float32(i // TILE_WIDTH) + _HALF
    return state


@inlined
def _reset(state, columns, rows):
    """Nothing drawn yet; pixels outside the image are finished before the first Gaussian."""
    state[_T:_STOP] = _ONE
    state[_STOP:_RED] = _NEVER
    state[_RED:] = _ZERO
    if columns < TILE_WIDTH or rows < TILE_HEIGHT:
        for i in range(_PIXELS):
            if i % TILE_WIDTH >= columns or i // TILE_WIDTH >= rows:
                state[_STOP + np.uint64(i)] = _ZERO


@inlined
def _all_finished(state, place):
    running = 0
    for i in range(np.uint64(_PIXELS)):
        running += state[_STOP + i] > place
    return running == 0


@inlined
def _plane(r):
    """Where the plane of the r-th further channel begins."""
    return _REST + np.uint64(r) * np.uint64(_PIXELS)


@kernel
def draw(
    counter, count, tile_offsets, tile_splats, tile_entries, columns, tiles, rest,
    means2d, features, extents, background, image, alpha, depth, transmittance, stop, importance,
):  # fmt: skip
    """Blend all tiles; one item is a tile of one camera.

    Args:
        counter: shared item counter; ``count`` items are C x ``tiles``.
        tile_offsets, tile_splats, tile_entries, columns, tiles: see ``TileLists``.
        rest: R, the number of channels beyond the first three, or None: numba then compiles all that is for
            them away.
        means2d, features, extents: [C N, ...] as from ``project``.
        background: [C, 3 + R].
        image, alpha, depth: out, [C, H, W, 3 + R | 1 | 1]; depth may be None.
        transmittance, stop: out, [C, H, W] final T, and the place in the tile's list where blending
            stopped, for the backward pass.
        importance: out, [M, 2] sum of weights and number of pixels per slot, or None.
    """
    height, width = stop.shape[1], stop.shape[2]
    state = _new_state(rest)
    batch, spans = np.empty((_BATCH, 2 + _FEATURES), np.float32), np.empty((_BATCH, 2), np.uint64)
    tile = next_item(counter)
    while tile < count:
        c = tile // tiles
        top, left = tile % tiles // columns * TILE_HEIGHT, tile % tiles % columns * TILE_WIDTH
        _reset(state, width - left, height - top)
        first, size, finished = tile_offsets[tile], tile_offsets[tile + 1] - tile_offsets[tile], False
        for place in range(size):
            if place % _BATCH == 0 and not finished:
                finished = _all_finished(state, np.float32(place))
                if not finished:
                    _fetch(
                        batch, spans, tile_splats, first + place, first + min(place + _BATCH, size),
                        means2d, features, extents, np.float32(left), np.float32(top),
                    )  # fmt: skip
            weight, hits = _ZERO, _ZERO
            if not finished:
                j = place % _BATCH
                begin, end = spans[j, 0], spans[j, 1]
                weight, hits = _blend(state, begin, end, np.float32(place), _at_hand(batch, j), depth, rest)
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
def _blend(state, begin, end, place, splat, with_depth, with_rest):
    """Add one Gaussian to the pixels begin..end; return the sum of its weights and its pixel count.

    Arguments ``with_`` are None where something is not asked for: numba then compiles its terms away.
    """
    mx, my, h, k, g, opacity, z, red, green, blue = splat
    total, hits = _ZERO, _ZERO
    for i in range(begin, end):
        dy = state[_Y + i] - my
        u = state[_X + i] - mx + k * dy
        alpha = min(_ALPHA_MAX, opacity * exp_negative(h * u * u + g * dy * dy))
        T, stop = state[_T + i], state[_STOP + i]
        after = T - alpha * T
        reached = (alpha >= _ALPHA_MIN) & (stop > place)
        drawn = reached & (after > _T_MIN)
        weight = alpha * T if drawn else _ZERO
        state[_T + i] = T - weight
        state[_STOP + i] = min(stop, place if reached & (after <= _T_MIN) else _NEVER)
        state[_RED + i] += weight * red
        state[_GREEN + i] += weight * green
        state[_BLUE + i] += weight * blue
        if with_depth is not None:
            state[_DEPTH + i] += weight * z
        state[_ALPHA + i] += weight
        if with_rest is not None:
            state[_SCRATCH + i] = weight
        total += weight
        hits += _ONE if drawn else _ZERO
    return total, hits


@inlined
def _blend_rest(state, begin, end, features, index, rest):
    """The further channels, with the weights that ``_blend`` left."""
    for r in range(rest):
        value, plane = features[index, _FEATURES + r], _plane(r)
        for i in range(begin, end):
            state[plane + i] += state[_SCRATCH + i] * value


@inlined
def _store(
    state, c, left, top, background, image, alpha, depth, transmittance, stop, rest
):  # fmt: skip
    """Write a tile's finished pixels to the images."""
    height, width = stop.shape[1], stop.shape[2]
    for y in range(top, min(top + TILE_HEIGHT, height)):
        for x in range(left, min(left + TILE_WIDTH, width)):
            i = np.uint64((y - top) * TILE_WIDTH + x - left)
            T = state[_T + i]
            image[c, y, x, 0] = state[_RED + i] + T * background[c, 0]
            image[c, y, x, 1] = state[_GREEN + i] + T * background[c, 1]
            image[c, y, x, 2] = state[_BLUE + i] + T * background[c, 2]
            if rest is not None:
                for r in range(rest):
                    image[c, y, x, CHANNELS + r] = state[_plane(r) + i] + T * background[c, CHANNELS + r]
            opaque = state[_ALPHA + i]  # 1 - T, but exact where little is drawn
            alpha[c, y, x, 0] = opaque
            if depth is not None:
                depth[c, y, x, 0] = state[_DEPTH + i] / opaque if opaque > _ZERO else _ZERO
            transmittance[c, y, x] = T
            stop[c, y, x] = state[_STOP + i]


@kernel
def draw_backward(
    counter, count, tile_offsets, tile_splats, tile_entries, columns, tiles, rest,
    means2d, features, extents, background, alpha, depth, transmittance, stop, v_image, v_alpha, v_depth,
    gradients, absolute,
):  # fmt: skip
    """Vector-Jacobian product of ``draw`` per intersection; one item is a tile of one camera.

    ``v_image``, ``v_alpha`` and ``v_depth`` are the images' gradients (the last two may be None);
    ``gradients`` [M, 10 + R] is written, one row per slot, and unless it is None ``absolute`` [M, 2], the
    sums over pixels of the absolute gradients by means2d.
    """
    state = _new_state(rest)
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
            row = tile_entries[first + place]
            values, across, down = _NO_GRADIENTS, _ZERO, _ZERO
            if np.float32(place) < deepest:
                index = tile_splats[first + place]
                splat = _load_splat(means2d, features, index, np.float32(left), np.float32(top))
                begin, end = _covered(splat[1], extents[index, 1])
                if rest is not None:
                    _gradient_by_weight(state, begin, end, features, index, rest)
                values, across, down = _blend_backward(
                    state, begin, end, np.float32(place), splat, v_alpha, v_depth, absolute, rest
                )
                if rest is not None:
                    _rest_backward(state, begin, end, gradients, row, rest)
            elif rest is not None:
                for r in range(rest):
                    gradients[row, _GRADIENTS + r] = _ZERO
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
    _reset(state, width - left, height - top)
    deepest = _ZERO
    for y in range(top, min(top + TILE_HEIGHT, height)):
        for x in range(left, min(left + TILE_WIDTH, width)):
            i = np.uint64((y - top) * TILE_WIDTH + x - left)
            T = transmittance[c, y, x]
            red, green, blue = v_image[c, y, x, 0], v_image[c, y, x, 1], v_image[c, y, x, 2]
            v_accumulated = _ZERO
            if v_alpha is not None:
                v_accumulated = v_alpha[c, y, x, 0]
            if v_depth is not None and alpha[c, y, x, 0] > _ZERO:
                v_sum = v_depth[c, y, x, 0] / alpha[c, y, x, 0]
                state[_DEPTH + i] = v_sum
                v_accumulated -= v_sum * depth[c, y, x, 0]
            state[_T + i] = T
            state[_STOP + i] = stop[c, y, x]
            state[_RED + i], state[_GREEN + i], state[_BLUE + i] = red, green, blue
            state[_ALPHA + i] = v_accumulated
            state[_BEHIND + i] = T * (
                red * background[c, 0] + green * background[c, 1] + blue * background[c, 2]
            )
            if rest is not None:
                for r in range(rest):
                    value = v_image[c, y, x, CHANNELS + r]
                    state[_plane(r) + i] = value
                    state[_BEHIND + i] += T * value * background[c, CHANNELS + r]
            deepest = max(deepest, stop[c, y, x])
    return deepest


@inlined
def _blend_backward(state, begin, end, place, splat, with_alpha, with_depth, with_absolute, with_rest):
    """Step back over one Gaussian: restore T in front of it and return its gradients (``_GRADIENTS`` of
    them), and the sums of absolute ones by the centre's two coordinates.

    With q a pixel's gradient by the Gaussian's weight and B what lies behind it, weighted likewise,
    dL / dalpha = T q - B / (1 - alpha). Arguments ``with_`` are as in ``_blend``.
    """
    mx, my, h, k, g, opacity, z, red, green, blue = splat
    v_red, v_green, v_blue, v_depth = _ZERO, _ZERO, _ZERO, _ZERO
    s, su, sy, suu, suy, syy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    across, down = _ZERO, _ZERO
    for i in range(begin, end):
        dy = state[_Y + i] - my
        u = state[_X + i] - mx + k * dy
        free = opacity * exp_negative(h * u * u + g * dy * dy)
        capped = min(_ALPHA_MAX, free)
        drawn = (capped >= _ALPHA_MIN) & (state[_STOP + i] > place)
        alpha = capped if drawn else _ZERO
        inverse = _ONE / (_ONE - alpha)
        T = state[_T + i] * inverse
        weight = alpha * T
        pr, pg, pb = state[_RED + i], state[_GREEN + i], state[_BLUE + i]
        q = red * pr + green * pg + blue * pb
        if with_depth is not None:
            q += z * state[_DEPTH + i]
            v_depth += weight * state[_DEPTH + i]
        if with_alpha is not None or with_depth is not None:
            q += state[_ALPHA + i]
        if with_rest is not None:
            q += state[_SCRATCH + i]
            state[_SCRATCH + i] = weight
        behind = state[_BEHIND + i]
        v_alpha = T * q - behind * inverse
        state[_T + i] = T
        state[_BEHIND + i] = behind + weight * q
        v_red += weight * pr
        v_green += weight * pg
        v_blue += weight * pb
        v = free * v_alpha if drawn & (free <= _ALPHA_MAX) else _ZERO  # minus the gradient by sigma
        vu, vy = v * u, v * dy
        s += v
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
        state[_SCRATCH + i] = _ZERO
    for r in range(rest):
        value, plane = features[index, _FEATURES + r], _plane(r)
        for i in range(begin, end):
            state[_SCRATCH + i] += state[plane + i] * value


@inlined
def _rest_backward(state, begin, end, gradients, row, rest):
    """Gradients by further channels, from the weights that ``_blend_backward`` left."""
    for r in range(rest):
        total, plane = _ZERO, _plane(r)
        for i in range(begin, end):
            total += state[_SCRATCH + i] * state[plane + i]
        gradients[row, _GRADIENTS + r] = total


@kernel
def sum_slots(counter, count, entry_offsets, slots, first, others):
    """[first | others] [C N, 2 | K] = sums of a Gaussian's adjoining rows of slots [M, 2 + K], in order."""
    item = next_item(counter)
    while item < count:
        for index in range(item * CHUNK, min((item + 1) * CHUNK, len(first))):
            first[index] = _ZERO
            others[index] = _ZERO
            for entry in range(entry_offsets[index], entry_offsets[index + 1]):
                first[index, 0] += slots[entry, 0]
                first[index, 1] += slots[entry, 1]
                for column in range(others.shape[1]):
                    others[index, column] += slots[entry, 2 + column]
        item = next_item(counter)
