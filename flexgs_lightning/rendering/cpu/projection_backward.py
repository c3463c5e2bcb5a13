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
    load3,
    load_camera,
    rotation_of,
    scaled,
    screen_axes,
    times_matrix,
    to_camera,
    view_direction,
)
from flexgs_lightning.rendering.cpu.spherical_harmonics import direction_gradient, evaluate_basis
from flexgs_lightning.rendering.types import EPS2D


@kernel
def project_backward(
    counter, count, cams, antialiased, degree,
    means, quats, scales, opacities, sh, features, radii, v_means2d, v_features,
    v_means, v_quats, v_scales, v_opacities, v_sh,
):  # fmt: skip
    """Vector-Jacobian product of ``project``; one item is a chunk of Gaussians, cameras summed in order.

    ``v_`` arrays hold gradients in the shapes of what they belong to; the last row of arguments is
    written, the one before read. ``sh`` and ``v_sh`` are None if the Gaussians carry no harmonics.
    """
    basis, v_basis = np.empty(16, np.float64), np.empty(16, np.float64)
    item = next_item(counter)
    while item < count:
        for i in range(item * CHUNK, min((item + 1) * CHUNK, means.shape[0])):
            untouched = True
            v_mean, v_scale, v_quat, v_opacity = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), 0.0
            for c in range(cams.shape[0]):
                if radii[c, i, 0] > 0:
                    cam, mean, scale = load_camera(cams, c), load3(means, i), load3(scales, i)
                    if sh is not None:
                        v_rgb = _through_clamp(features, v_features, c, i)
                        by_colour = _colour_backward(
                            cam, degree, mean, sh, i, v_rgb, basis, v_basis, v_sh, untouched
                        )
                        v_mean = _plus(v_mean, by_colour)
                        untouched = False
                    by_shape, v_s, v_q, v_o = _ellipse_backward(
                        cam, antialiased, mean, rotation_of(quats, i), scale, np.float64(opacities[i]),
                        _load_ellipse(features, c, i), _load_ellipse(v_features, c, i),
                        np.float64(v_features[c, i, 3]), np.float64(v_features[c, i, 4]),
                        np.float64(v_means2d[c, i, 0]), np.float64(v_means2d[c, i, 1]),
                    )  # fmt: skip
                    v_mean, v_scale = _plus(v_mean, by_shape), _plus(v_scale, v_s)
                    v_quat = v_quat[0] + v_q[0], v_quat[1] + v_q[1], v_quat[2] + v_q[2], v_quat[3] + v_q[3]
                    v_opacity += v_o
            if sh is not None:
                for k in range(0 if untouched else (degree + 1) * (degree + 1), sh.shape[1]):
                    v_sh[i, k, 0], v_sh[i, k, 1], v_sh[i, k, 2] = 0.0, 0.0, 0.0
            v_means[i, 0], v_means[i, 1], v_means[i, 2] = v_mean
            v_quats[i, 0], v_quats[i, 1], v_quats[i, 2], v_quats[i, 3] = v_quat
            v_scales[i, 0], v_scales[i, 1], v_scales[i, 2] = v_scale
            v_opacities[i] = v_opacity
        item = next_item(counter)


@inlined
def _load_ellipse(features, c, i):
    return np.float64(features[c, i, 0]), np.float64(features[c, i, 1]), np.float64(features[c, i, 2])


@inlined
def _plus(u, v):
    return u[0] + v[0], u[1] + v[1], u[2] + v[2]


@inlined
def _through_clamp(features, v_features, c, i):
    """Gradient of the colour before its clamp at 0."""
    red = v_features[c, i, 5] if features[c, i, 5] > 0.0 else 0.0
    green = v_features[c, i, 6] if features[c, i, 6] > 0.0 else 0.0
    blue = v_features[c, i, 7] if features[c, i, 7] > 0.0 else 0.0
    return np.float64(red), np.float64(green), np.float64(blue)


@inlined
def _colour_backward(cam, degree, mean, sh, i, v_rgb, basis, v_basis, v_sh, untouched):
    """Set or add to the coefficients' gradients; return the centre's, which is through the view direction."""
    x, y, z, inverse = view_direction(cam, mean)
    evaluate_basis(degree, x, y, z, basis)
    red, green, blue = v_rgb
    bases = (degree + 1) * (degree + 1)
    if untouched:
        for k in range(bases):
            v_sh[i, k, 0], v_sh[i, k, 1], v_sh[i, k, 2] = basis[k] * red, basis[k] * green, basis[k] * blue
    else:
        for k in range(bases):
            v_sh[i, k, 0] += basis[k] * red
            v_sh[i, k, 1] += basis[k] * green
            v_sh[i, k, 2] += basis[k] * blue
    for k in range(bases):
        v_basis[k] = sh[i, k, 0] * red + sh[i, k, 1] * green + sh[i, k, 2] * blue
    gx, gy, gz = direction_gradient(degree, x, y, z, v_basis)
    radial = gx * x + gy * y + gz * z
    return inverse * (gx - radial * x), inverse * (gy - radial * y), inverse * (gz - radial * z)


@inlined
def _ellipse_backward(
    cam, antialiased, mean, oriented, scale, opacity, ellipse, v_ellipse, v_opacity, v_depth, v_px, v_py
):  # fmt: skip
    """Gradients by centre, scales, quaternion and opacity."""
    unit, inverse_norm, rotation = oriented
    x, y, z = to_camera(cam, mean)
    t1, t2 = screen_axes(cam, x, y, z)
    p1, p2 = times_matrix(t1, rotation), times_matrix(t2, rotation)
    f1, f2 = scaled(p1, scale), scaled(p2, scale)

    v_xx, v_xy, v_yy = _covariance_gradient(ellipse, v_ellipse)
    if antialiased:  # opacity * sqrt(plain / determinant)
        xx, xy, yy, plain, determinant = covariance(f1, f2)
        ratio = math.sqrt(plain / determinant)
        half = 0.5 * ratio * opacity * v_opacity
        v_xx += half * (yy / plain - (yy + EPS2D) / determinant)
        v_yy += half * (xx / plain - (xx + EPS2D) / determinant)
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
    return v_mean, v_scale, v_quat, v_opacity


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
