"""The way back from screen-space gradients to the Gaussians' parameters. Notation: ``projection.py``."""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import math

import numpy as np

from flexgs_lightning.jit import inlined, kernel, next_item
from flexgs_lightning.rendering.cpu.projection import (
    CHUNK,
    covariance,
    dot,
    load_camera,
    rotation_of,
    scaled,
    screen_axes,
    times_matrix,
    to_camera,
    view_direction,
)
from flexgs_lightning.rendering.cpu.side_by_side import (
    BATCH,
    get,
    get3,
    get4,
    new_planes,
    put,
    put3,
    put4,
    whole_lanes,
)
from flexgs_lightning.rendering.cpu.spherical_harmonics import direction_gradient, put_basis

ZERO = np.float32(0.0)

# Planes: what is read of each Gaussian, its gradients from one camera, and their sums over cameras.
_MEAN, _QUAT, _SCALE, _OPACITY, _ELLIPSE, _V_ELLIPSE, _V_CENTRE = 0, 3, 7, 10, 11, 14, 17
_DIRECTION, _BASIS, _V_BASIS, _GRADIENT, _SUM, _END = 21, 25, 41, 57, 68, 79
_BY_MEAN, _BY_SCALE, _BY_QUAT, _BY_OPACITY, _GRADIENTS = 0, 3, 6, 10, 11
"""Offsets from ``_GRADIENT`` and ``_SUM``."""


@kernel
def project_backward(
    counter, count, cams, low_pass, antialiased, degree,
    means, quats, scales, opacities, sh, features, radii, v_means2d, v_features,
    v_means, v_quats, v_scales, v_opacities, v_sh,
):  # fmt: skip
    """Vector-Jacobian product of ``project``; one item is a chunk of Gaussians, cameras summed in order.

    ``v_`` arrays hold gradients in the shapes of what they belong to; the last row of arguments is
    written, the one before read. ``sh`` and ``v_sh`` are None if the Gaussians carry no harmonics.
    """
    planes, rows = new_planes(_END), np.empty(BATCH, np.int64)
    item = next_item(counter)
    while item < count:
        end = min((item + 1) * CHUNK, means.shape[0])
        for first in range(item * CHUNK, end, BATCH):
            last = min(first + BATCH, end)
            planes[_SUM * BATCH :] = 0.0
            if sh is not None:
                v_sh[first:last] = ZERO
            for c in range(cams.shape[0]):
                visible = _load(
                    planes, rows, first, last, c, means, quats, scales, opacities, features, radii,
                    v_means2d, v_features,
                )  # fmt: skip
                cam = load_camera(cams, c)
                for j in whole_lanes(visible):
                    _ellipse_backward(planes, j, cam, low_pass, antialiased)
                if sh is not None:
                    for j in whole_lanes(visible):
                        direction = view_direction(cam, get3(planes, _MEAN, j))
                        put4(planes, _DIRECTION, j, direction)
                        put_basis(planes, _BASIS, j, direction[0], direction[1], direction[2])
                    for j in range(np.uint64(visible)):
                        v_rgb = _through_clamp(features, v_features, c, rows[j])
                        _coefficients_backward(planes, j, rows[j], degree, sh, v_sh, v_rgb)
                    for j in whole_lanes(visible):
                        _direction_backward(planes, j)
                for j in range(np.uint64(visible)):
                    slot = np.uint64(rows[j] - first)
                    for k in range(_GRADIENTS):
                        total = get(planes, _SUM + k, slot) + get(planes, _GRADIENT + k, j)
                        put(planes, _SUM + k, slot, total)
            _store(planes, first, last, v_means, v_quats, v_scales, v_opacities)
        item = next_item(counter)


@inlined
def _load(
    planes, rows, first, last, c, means, quats, scales, opacities, features, radii, v_means2d, v_features
):  # fmt: skip
    """Copy those of the rows first..last that camera c sees; return their number."""
    visible = 0
    for i in range(first, last):
        if radii[c, i, 0] > 0:
            j = np.uint64(visible)
            rows[j] = i
            put3(planes, _MEAN, j, (means[i, 0], means[i, 1], means[i, 2]))
            put4(planes, _QUAT, j, (quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]))
            put3(planes, _SCALE, j, (scales[i, 0], scales[i, 1], scales[i, 2]))
            put(planes, _OPACITY, j, opacities[i])
            put3(planes, _ELLIPSE, j, (features[c, i, 0], features[c, i, 1], features[c, i, 2]))
            put3(planes, _V_ELLIPSE, j, (v_features[c, i, 0], v_features[c, i, 1], v_features[c, i, 2]))
            centre = v_means2d[c, i, 0], v_means2d[c, i, 1], v_features[c, i, 3], v_features[c, i, 4]
            put4(planes, _V_CENTRE, j, centre)
            visible += 1
    return visible


@inlined
def _store(planes, first, last, v_means, v_quats, v_scales, v_opacities):
    """Write the sums to the rows first..last."""
    for i in range(first, last):
        j = np.uint64(i - first)
        v_means[i, 0], v_means[i, 1], v_means[i, 2] = get3(planes, _SUM + _BY_MEAN, j)
        v_scales[i, 0], v_scales[i, 1], v_scales[i, 2] = get3(planes, _SUM + _BY_SCALE, j)
        w, x, y, z = get4(planes, _SUM + _BY_QUAT, j)
        v_quats[i, 0], v_quats[i, 1], v_quats[i, 2], v_quats[i, 3] = w, x, y, z
        v_opacities[i] = get(planes, _SUM + _BY_OPACITY, j)


@inlined
def _through_clamp(features, v_features, c, i):
    """Gradient of the colour before its clamp at 0."""
    return (
        v_features[c, i, 5] if features[c, i, 5] > ZERO else ZERO,
        v_features[c, i, 6] if features[c, i, 6] > ZERO else ZERO,
        v_features[c, i, 7] if features[c, i, 7] > ZERO else ZERO,
    )


@inlined
def _coefficients_backward(planes, j, i, degree, sh, v_sh, v_rgb):
    """Add to the coefficients' gradients, and find those by the basis functions."""
    red, green, blue = v_rgb
    for k in range((degree + 1) * (degree + 1)):
        basis = np.float32(get(planes, _BASIS + k, j))
        v_sh[i, k, 0] += basis * red
        v_sh[i, k, 1] += basis * green
        v_sh[i, k, 2] += basis * blue
        put(planes, _V_BASIS + k, j, sh[i, k, 0] * red + sh[i, k, 1] * green + sh[i, k, 2] * blue)


@inlined
def _direction_backward(planes, j):
    """Add the centre's gradient through the view direction."""
    x, y, z, inverse = get4(planes, _DIRECTION, j)
    gx, gy, gz = direction_gradient(planes, _V_BASIS, j, x, y, z)
    radial = gx * x + gy * y + gz * z
    v_mean = inverse * (gx - radial * x), inverse * (gy - radial * y), inverse * (gz - radial * z)
    put3(planes, _GRADIENT + _BY_MEAN, j, _plus(v_mean, get3(planes, _GRADIENT + _BY_MEAN, j)))


@inlined
def _plus(u, v):
    return u[0] + v[0], u[1] + v[1], u[2] + v[2]


@inlined
def _ellipse_backward(planes, j, cam, low_pass, antialiased):
    """Gradients by centre, scales, quaternion and opacity."""
    w, qx, qy, qz = get4(planes, _QUAT, j)
    unit, inverse_norm, rotation = rotation_of(w, qx, qy, qz)
    scale, opacity = get3(planes, _SCALE, j), get(planes, _OPACITY, j)
    v_px, v_py, v_opacity, v_depth = get4(planes, _V_CENTRE, j)
    x, y, z = to_camera(cam, get3(planes, _MEAN, j))
    t1, t2 = screen_axes(cam, x, y, z)
    p1, p2 = times_matrix(t1, rotation), times_matrix(t2, rotation)
    f1, f2 = scaled(p1, scale), scaled(p2, scale)

    v_xx, v_xy, v_yy = _covariance_gradient(get3(planes, _ELLIPSE, j), get3(planes, _V_ELLIPSE, j))
    if antialiased:  # opacity * sqrt(plain / determinant)
        xx, xy, yy, plain, determinant = covariance(f1, f2, low_pass)
        ratio = math.sqrt(plain / determinant)
        half = 0.5 * ratio * opacity * v_opacity
        v_xx += half * (yy / plain - (yy + low_pass) / determinant)
        v_yy += half * (xx / plain - (xx + low_pass) / determinant)
        v_xy -= 2.0 * half * xy * (1.0 / plain - 1.0 / determinant)
        v_opacity *= ratio

    # The covariance is F F^T with F = P S, P = T R, T = J W.
    v_f1 = _combined(2.0 * v_xx, f1, v_xy, f2)
    v_f2 = _combined(2.0 * v_yy, f2, v_xy, f1)
    v_scale = _plus(scaled(v_f1, p1), scaled(v_f2, p2))
    v_p1, v_p2 = scaled(v_f1, scale), scaled(v_f2, scale)
    v_quat = _quaternion_gradient(unit, inverse_norm, t1, t2, v_p1, v_p2)
    v_t1 = dot(v_p1, rotation[0]), dot(v_p1, rotation[1]), dot(v_p1, rotation[2])
    v_t2 = dot(v_p2, rotation[0]), dot(v_p2, rotation[1]), dot(v_p2, rotation[2])
    v_mean = _centre_gradient(cam, x, y, z, t1, t2, v_t1, v_t2, v_px, v_py, v_depth)
    put3(planes, _GRADIENT + _BY_MEAN, j, v_mean)
    put3(planes, _GRADIENT + _BY_SCALE, j, v_scale)
    put4(planes, _GRADIENT + _BY_QUAT, j, v_quat)
    put(planes, _GRADIENT + _BY_OPACITY, j, v_opacity)


@inlined
def _combined(a, u, b, v):
    return a * u[0] + b * v[0], a * u[1] + b * v[1], a * u[2] + b * v[2]


@inlined
def _covariance_gradient(ellipse, v_ellipse):
    """Gradient by (xx, xy, yy) from that by (h, k, g).

    With s = xx - xy^2 / yy: h = 1 / 2s, k = -xy / yy, g = 1 / 2yy.
    """
    h, k, g = ellipse
    v_s, v_k = -2.0 * h * h * v_ellipse[0], 2.0 * g * v_ellipse[1]
    return v_s, 2.0 * k * v_s - v_k, k * (k * v_s - v_k) - 2.0 * g * g * v_ellipse[2]


@inlined
def _centre_gradient(cam, x, y, z, t1, t2, v_t1, v_t2, v_px, v_py, v_depth):
    """Gradient by the centre in world space.

    T's rows are (fx / z) (W_x - a W_z) and (fy / z) (W_y - b W_z) with a = clamp(x / z), b = clamp(y / z);
    the pixel is (fx x / z + cx, fy y / z + cy).
    """
    inverse = 1.0 / z
    axis = (cam[6], cam[7], cam[8])
    v_z = v_depth - inverse * (dot(v_t1, t1) + dot(v_t2, t2))
    v_u, v_v = cam[12] * v_px, cam[13] * v_py  # by x / z and y / z
    if cam[16] <= x * inverse <= cam[17]:
        v_u -= cam[12] * inverse * dot(v_t1, axis)
    if cam[18] <= y * inverse <= cam[19]:
        v_v -= cam[13] * inverse * dot(v_t2, axis)
    v_x, v_y = v_u * inverse, v_v * inverse
    v_z -= (v_x * x + v_y * y) * inverse
    return (
        cam[0] * v_x + cam[3] * v_y + cam[6] * v_z,
        cam[1] * v_x + cam[4] * v_y + cam[7] * v_z,
        cam[2] * v_x + cam[5] * v_y + cam[8] * v_z,
    )


@inlined
def _quaternion_gradient(unit, inverse_norm, t1, t2, v_p1, v_p2):
    """Gradient by the unnormalised quaternion; the rotation matrix's is t1^T v_p1 + t2^T v_p2."""
    w, x, y, z = unit
    r00, r01, r02 = _combined(t1[0], v_p1, t2[0], v_p2)
    r10, r11, r12 = _combined(t1[1], v_p1, t2[1], v_p2)
    r20, r21, r22 = _combined(t1[2], v_p1, t2[2], v_p2)
    v_w = 2.0 * (x * (r21 - r12) + y * (r02 - r20) + z * (r10 - r01))
    v_x = 2.0 * (w * (r21 - r12) + y * (r01 + r10) + z * (r02 + r20) - 2.0 * x * (r11 + r22))
    v_y = 2.0 * (w * (r02 - r20) + x * (r01 + r10) + z * (r12 + r21) - 2.0 * y * (r00 + r22))
    v_z = 2.0 * (w * (r10 - r01) + x * (r02 + r20) + y * (r12 + r21) - 2.0 * z * (r00 + r11))
    radial = v_w * w + v_x * x + v_y * y + v_z * z
    return (
        inverse_norm * (v_w - radial * w),
        inverse_norm * (v_x - radial * x),
        inverse_norm * (v_y - radial * y),
        inverse_norm * (v_z - radial * z),
    )
