"""World-space Gaussians to screen-space ellipses with view-dependent colour, and the way back.

Elliptical weighted average splatting (Zwicker et al. 2001; Kerbl et al. 2023). With W the camera's
rotation, J the Jacobian of the perspective projection at the centre, R S the Gaussian's rotation and
scales, the screen covariance is F F^T + eps I with the 2x3 factor F = J W R S. Working with F instead of
3x3 covariances halves the arithmetic, and det(F F^T) = |f1 x f2|^2 never suffers cancellation.

The ellipse is passed on as (h, k, g) with sigma(d) = h (dx + k dy)^2 + g dy^2, the exponent of the
Gaussian: a sum of squares that rounding cannot make negative, unlike the usual a, b, c of the inverse.
Arithmetic is float64 within one Gaussian; arrays are float32.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.rendering.cpu.jit import inlined, kernel, next_item
from flexgs_lightning.rendering.cpu.spherical_harmonics import direction_gradient, evaluate_basis
from flexgs_lightning.rendering.rasterizer import EPS2D, FAR_PLANE, NEAR_PLANE

FEATURES = 8
"""Columns of ``features``: h, k, g, opacity, red, green, blue, depth."""
CHUNK = 512
"""Gaussians in one work item."""
ALPHA_MIN = 1.0 / 255.0
_MAX_SIGMAS = 3.33


def pack_cameras(cameras: Cameras) -> Float[ndarray, "C 23"]:
    """Rows of rotation (9), translation (3), fx fy cx cy, view limits (4), position (3).

    The limits bound x / z and y / z in the Jacobian to the frustum with a margin of 15 % of its width,
    because the linearisation explodes far outside the image: min x, max x, min y, max y.
    """
    viewmats = cameras.viewmats.detach().cpu().double().numpy()
    Ks = cameras.Ks.detach().cpu().double().numpy()
    rotation, translation = viewmats[:, :3, :3], viewmats[:, :3, 3]
    focal, centre = Ks[:, [0, 1], [0, 1]], Ks[:, :2, 2]
    size = np.array([cameras.width, cameras.height])
    margin = 0.15 * size / focal
    low, high = -centre / focal - margin, (size - centre) / focal + margin
    limits = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    position = -np.einsum("cij,ci->cj", rotation, translation)
    return np.concatenate([rotation.reshape(-1, 9), translation, focal, centre, limits, position], axis=1)


@inlined
def _to_camera(cam, mean):
    """Camera-space position of a world-space one."""
    mx, my, mz = np.float64(mean[0]), np.float64(mean[1]), np.float64(mean[2])
    x = cam[0] * mx + cam[1] * my + cam[2] * mz + cam[9]
    y = cam[3] * mx + cam[4] * my + cam[5] * mz + cam[10]
    z = cam[6] * mx + cam[7] * my + cam[8] * mz + cam[11]
    return x, y, z


@inlined
def _rotation(quat):
    """Normalise (w, x, y, z); return it, 1 / norm and the rotation matrix row by row."""
    w, x, y, z = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    inverse = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    rows = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )
    return (w, x, y, z), inverse, rows


@inlined
def _screen_axes(cam, x, y, z):
    """The two rows of J W, with J taken at x / z and y / z clamped to the view's limits."""
    inverse = 1.0 / z
    a = min(cam[17], max(cam[16], x * inverse))
    b = min(cam[19], max(cam[18], y * inverse))
    jx, jy = cam[12] * inverse, cam[13] * inverse
    row1 = (jx * (cam[0] - a * cam[6]), jx * (cam[1] - a * cam[7]), jx * (cam[2] - a * cam[8]))
    row2 = (jy * (cam[3] - b * cam[6]), jy * (cam[4] - b * cam[7]), jy * (cam[5] - b * cam[8]))
    return row1, row2


@inlined
def _dot(u, v):
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


@inlined
def _times_matrix(u, rows):
    """Row vector times a matrix given as three rows."""
    return (
        u[0] * rows[0][0] + u[1] * rows[1][0] + u[2] * rows[2][0],
        u[0] * rows[0][1] + u[1] * rows[1][1] + u[2] * rows[2][1],
        u[0] * rows[0][2] + u[1] * rows[1][2] + u[2] * rows[2][2],
    )


@inlined
def _scaled(u, s):
    return u[0] * s[0], u[1] * s[1], u[2] * s[2]


@inlined
def _covariance(f1, f2):
    """F F^T as (xx, xy, yy), its determinant, and that of F F^T + eps I."""
    xx, xy, yy = _dot(f1, f1), _dot(f1, f2), _dot(f2, f2)
    n0 = f1[1] * f2[2] - f1[2] * f2[1]
    n1 = f1[2] * f2[0] - f1[0] * f2[2]
    n2 = f1[0] * f2[1] - f1[1] * f2[0]
    determinant = n0 * n0 + n1 * n1 + n2 * n2
    return xx, xy, yy, determinant, determinant + EPS2D * (xx + yy) + EPS2D * EPS2D


@inlined
def _view_direction(cam, mean):
    """Unit vector from the camera to the Gaussian, and 1 / distance."""
    x, y, z = mean[0] - cam[20], mean[1] - cam[21], mean[2] - cam[22]
    inverse = 1.0 / math.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


@kernel
def project(
    counter, count, cams, size, antialiased, degree,
    means, quats, scales, opacities, sh,
    means2d, features, extents, radii,
):  # fmt: skip
    """Fill the screen-space arrays of all cameras; one item is a chunk of Gaussians of one camera.

    Args:
        counter: shared item counter; ``count`` items are C x ceil(N / CHUNK).
        cams: [C, 23] from ``pack_cameras``.
        size: (width, height).
        antialiased: multiply opacities by sqrt(det / det_with_eps).
        degree: spherical-harmonics degree to evaluate.
        means, quats, scales, opacities, sh: the ``Splats``.
        means2d: out, [C, N, 2] pixels.
        features: out, [C, N, FEATURES].
        extents: out, [C, N, 2] half width and height of the box outside which alpha < 1 / 255.
        radii: out, [C, N, 2] int32; ``extents`` rounded up. Zero, like all the rest, where culled.
    """
    n = means.shape[0]
    chunks = (n + CHUNK - 1) // CHUNK
    basis = np.empty(16, np.float64)
    item = next_item(counter)
    while item < count:
        c, first = item // chunks, item % chunks * CHUNK
        for i in range(first, min(first + CHUNK, n)):
            visible = _project_one(
                cams[c], size, antialiased, means[i], quats[i], scales[i], opacities[i],
                means2d[c, i], features[c, i], extents[c, i], radii[c, i],
            )  # fmt: skip
            if visible:
                _colour(cams[c], degree, means[i], sh[i], basis, features[c, i])
        item = next_item(counter)


@inlined
def _project_one(
    cam, size, antialiased, mean, quat, scale, opacity, mean2d, feature, extent, radius
):  # fmt: skip
    """Geometry and opacity of one Gaussian in one camera; zeros and False if it is culled."""
    mean2d[:] = 0.0
    feature[:] = 0.0
    extent[:] = 0.0
    radius[:] = 0
    x, y, z = _to_camera(cam, mean)
    if not NEAR_PLANE <= z <= FAR_PLANE:
        return False
    _, _, rotation = _rotation(quat)
    t1, t2 = _screen_axes(cam, x, y, z)
    f1, f2 = _scaled(_times_matrix(t1, rotation), scale), _scaled(_times_matrix(t2, rotation), scale)
    xx, xy, yy, plain, determinant = _covariance(f1, f2)
    xx, yy = xx + EPS2D, yy + EPS2D
    alpha = np.float64(opacity)
    if antialiased:
        alpha *= math.sqrt(plain / determinant)
    if not alpha >= ALPHA_MIN:
        return False
    sigmas = min(_MAX_SIGMAS, math.sqrt(2.0 * math.log(alpha / ALPHA_MIN)))
    ex, ey = sigmas * math.sqrt(xx), sigmas * math.sqrt(yy)
    rx, ry = math.ceil(ex), math.ceil(ey)
    px, py = cam[12] * x / z + cam[14], cam[13] * y / z + cam[15]
    if not (rx > 0 and ry > 0 and px + rx > 0 and px - rx < size[0] and py + ry > 0 and py - ry < size[1]):
        return False
    if not determinant < math.inf:
        return False
    mean2d[0], mean2d[1] = px, py
    feature[0], feature[1], feature[2] = 0.5 * yy / determinant, -xy / yy, 0.5 / yy
    feature[3], feature[7] = alpha, z
    extent[0], extent[1] = ex, ey
    radius[0], radius[1] = min(rx, 1 << 30), min(ry, 1 << 30)
    return True


@inlined
def _colour(cam, degree, mean, sh, basis, feature):
    """Spherical harmonics in the view direction + 0.5, clamped at 0."""
    x, y, z, _ = _view_direction(cam, mean)
    evaluate_basis(degree, x, y, z, basis)
    red, green, blue = 0.5, 0.5, 0.5
    for k in range((degree + 1) * (degree + 1)):
        red += basis[k] * sh[k, 0]
        green += basis[k] * sh[k, 1]
        blue += basis[k] * sh[k, 2]
    feature[4], feature[5], feature[6] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)


@kernel
def project_backward(
    counter, count, cams, antialiased, degree,
    means, quats, scales, opacities, sh, features, radii, v_means2d, v_features,
    v_means, v_quats, v_scales, v_opacities, v_sh,
):  # fmt: skip
    """Vector-Jacobian product of ``project``; one item is a chunk of Gaussians, cameras summed in order.

    ``v_`` arrays hold gradients in the shapes of what they belong to; the last row of arguments is
    written, the one before read.
    """
    n, bases = means.shape[0], (degree + 1) * (degree + 1)
    basis, v_basis = np.empty(16, np.float64), np.empty(16, np.float64)
    item = next_item(counter)
    while item < count:
        for i in range(item * CHUNK, min((item + 1) * CHUNK, n)):
            v_means[i] = 0.0
            v_quats[i] = 0.0
            v_scales[i] = 0.0
            v_opacities[i] = 0.0
            v_sh[i] = 0.0
            for c in range(cams.shape[0]):
                if radii[c, i, 0] > 0:
                    _colour_backward(
                        cams[c], degree, bases, means[i], sh[i], features[c, i], v_features[c, i],
                        basis, v_basis, v_means[i], v_sh[i],
                    )  # fmt: skip
                    v_opacities[i] += _geometry_backward(
                        cams[c], antialiased, means[i], quats[i], scales[i], opacities[i],
                        features[c, i], v_means2d[c, i], v_features[c, i],
                        v_means[i], v_quats[i], v_scales[i],
                    )  # fmt: skip
        item = next_item(counter)


@inlined
def _colour_backward(
    cam, degree, bases, mean, sh, feature, v_feature, basis, v_basis, v_mean, v_sh
):  # fmt: skip
    """Gradients of one colour by the coefficients and, through the view direction, by the centre."""
    x, y, z, inverse = _view_direction(cam, mean)
    evaluate_basis(degree, x, y, z, basis)
    red = v_feature[4] if feature[4] > 0.0 else 0.0
    green = v_feature[5] if feature[5] > 0.0 else 0.0
    blue = v_feature[6] if feature[6] > 0.0 else 0.0
    for k in range(bases):
        v_sh[k, 0] += basis[k] * red
        v_sh[k, 1] += basis[k] * green
        v_sh[k, 2] += basis[k] * blue
        v_basis[k] = sh[k, 0] * red + sh[k, 1] * green + sh[k, 2] * blue
    gx, gy, gz = direction_gradient(degree, x, y, z, v_basis)
    radial = gx * x + gy * y + gz * z
    v_mean[0] += inverse * (gx - radial * x)
    v_mean[1] += inverse * (gy - radial * y)
    v_mean[2] += inverse * (gz - radial * z)


@inlined
def _geometry_backward(
    cam, antialiased, mean, quat, scale, opacity, feature, v_mean2d, v_feature, v_mean, v_quat, v_scale
):  # fmt: skip
    """Add to the gradients of centre, rotation and scales; return the opacity's."""
    x, y, z = _to_camera(cam, mean)
    unit, inverse_norm, rotation = _rotation(quat)
    t1, t2 = _screen_axes(cam, x, y, z)
    p1, p2 = _times_matrix(t1, rotation), _times_matrix(t2, rotation)
    f1, f2 = _scaled(p1, scale), _scaled(p2, scale)

    # (h, k, g) to the covariance. With s = xx - xy^2 / yy: h = 1 / 2s, k = -xy / yy, g = 1 / 2yy.
    h, k, g = np.float64(feature[0]), np.float64(feature[1]), np.float64(feature[2])
    v_s, v_k = -2.0 * h * h * v_feature[0], 2.0 * g * v_feature[1]
    v_xx = v_s
    v_xy = 2.0 * k * v_s - v_k
    v_yy = k * (k * v_s - v_k) - 2.0 * g * g * v_feature[2]
    v_opacity = np.float64(v_feature[3])
    if antialiased:  # opacity * sqrt(plain / determinant)
        xx, xy, yy, plain, determinant = _covariance(f1, f2)
        ratio = math.sqrt(plain / determinant)
        half = 0.5 * ratio * opacity * v_opacity
        v_xx += half * (yy / plain - (yy + EPS2D) / determinant)
        v_yy += half * (xx / plain - (xx + EPS2D) / determinant)
        v_xy -= 2.0 * half * xy * (1.0 / plain - 1.0 / determinant)
        v_opacity *= ratio

    # The covariance is F F^T with F = P S, P = T R, T = J W.
    v_f1 = (
        2.0 * v_xx * f1[0] + v_xy * f2[0],
        2.0 * v_xx * f1[1] + v_xy * f2[1],
        2.0 * v_xx * f1[2] + v_xy * f2[2],
    )
    v_f2 = (
        2.0 * v_yy * f2[0] + v_xy * f1[0],
        2.0 * v_yy * f2[1] + v_xy * f1[1],
        2.0 * v_yy * f2[2] + v_xy * f1[2],
    )
    for axis in range(3):
        v_scale[axis] += v_f1[axis] * p1[axis] + v_f2[axis] * p2[axis]
    v_p1, v_p2 = _scaled(v_f1, scale), _scaled(v_f2, scale)
    _rotation_backward(unit, inverse_norm, t1, t2, v_p1, v_p2, v_quat)
    v_t1 = (_dot(v_p1, rotation[0]), _dot(v_p1, rotation[1]), _dot(v_p1, rotation[2]))
    v_t2 = (_dot(v_p2, rotation[0]), _dot(v_p2, rotation[1]), _dot(v_p2, rotation[2]))

    # T's rows are jx (W_x - a W_z) and jy (W_y - b W_z) with jx = fx / z, a = clamp(x / z).
    inverse = 1.0 / z
    w3 = (cam[6], cam[7], cam[8])
    v_a, v_b = -cam[12] * inverse * _dot(v_t1, w3), -cam[13] * inverse * _dot(v_t2, w3)
    v_z = -inverse * (_dot(v_t1, t1) + _dot(v_t2, t2)) + v_feature[7]
    v_u, v_v = cam[12] * v_mean2d[0], cam[13] * v_mean2d[1]
    if cam[16] <= x * inverse <= cam[17]:
        v_u += v_a
    if cam[18] <= y * inverse <= cam[19]:
        v_v += v_b
    v_x, v_y = v_u * inverse, v_v * inverse
    v_z -= (v_x * x + v_y * y) * inverse
    for axis in range(3):
        v_mean[axis] += cam[axis] * v_x + cam[3 + axis] * v_y + cam[6 + axis] * v_z
    return v_opacity


@inlined
def _rotation_backward(unit, inverse_norm, t1, t2, v_p1, v_p2, v_quat):
    """Gradient by the unnormalised quaternion, where the matrix's gradient is t1^T v_p1 + t2^T v_p2."""
    w, x, y, z = unit
    r00, r01, r02 = (
        t1[0] * v_p1[0] + t2[0] * v_p2[0],
        t1[0] * v_p1[1] + t2[0] * v_p2[1],
        t1[0] * v_p1[2] + t2[0] * v_p2[2],
    )
    r10, r11, r12 = (
        t1[1] * v_p1[0] + t2[1] * v_p2[0],
        t1[1] * v_p1[1] + t2[1] * v_p2[1],
        t1[1] * v_p1[2] + t2[1] * v_p2[2],
    )
    r20, r21, r22 = (
        t1[2] * v_p1[0] + t2[2] * v_p2[0],
        t1[2] * v_p1[1] + t2[2] * v_p2[1],
        t1[2] * v_p1[2] + t2[2] * v_p2[2],
    )
    v_w = 2.0 * (x * (r21 - r12) + y * (r02 - r20) + z * (r10 - r01))
    v_x = 2.0 * (w * (r21 - r12) + y * (r01 + r10) + z * (r02 + r20) - 2.0 * x * (r11 + r22))
    v_y = 2.0 * (w * (r02 - r20) + x * (r01 + r10) + z * (r12 + r21) - 2.0 * y * (r00 + r22))
    v_z = 2.0 * (w * (r10 - r01) + x * (r02 + r20) + y * (r12 + r21) - 2.0 * z * (r00 + r11))
    radial = v_w * w + v_x * x + v_y * y + v_z * z
    v_quat[0] += inverse_norm * (v_w - radial * w)
    v_quat[1] += inverse_norm * (v_x - radial * x)
    v_quat[2] += inverse_norm * (v_y - radial * y)
    v_quat[3] += inverse_norm * (v_z - radial * z)
