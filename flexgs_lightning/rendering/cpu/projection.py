"""World-space Gaussians to screen-space ellipses with view-dependent colour.

Elliptical weighted average splatting (Zwicker et al. 2001; Kerbl et al. 2023). With W the camera's
rotation, J the Jacobian of the perspective projection at the centre, R S the Gaussian's rotation and
scales, the screen covariance is F F^T + low_pass I with the 2x3 factor F = J W R S. Working with F instead of
3x3 covariances halves the arithmetic, and det(F F^T) = |f1 x f2|^2 never suffers cancellation.

The ellipse is passed on as (h, k, g) with sigma(d) = h (dx + k dy)^2 + g dy^2, the exponent of the
Gaussian: a sum of squares that rounding cannot make negative, unlike the usual a, b, c of the inverse.
Geometry is float64 within one Gaussian; arrays, and sums over harmonics, are float32. Helpers pass tuples
of numbers: a row of an array is an object whose reference count is atomic, and counting costs more than the
arithmetic.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.jit import inlined, kernel, next_item
from flexgs_lightning.rendering.cpu.side_by_side import (
    BATCH,
    get,
    get3,
    get4,
    new_planes,
    put3,
    put4,
    whole_lanes,
)
from flexgs_lightning.rendering.cpu.spherical_harmonics import put_basis
from flexgs_lightning.rendering.types import FAR_PLANE

CHUNK = 512
"""Gaussians in one work item."""
ALPHA_MIN = 1.0 / 255.0
_MAX_SIGMAS = 3.33
_MAX_RADIUS = 1 << 30
ZERO, HALF = np.float32(0.0), np.float32(0.5)

# Planes: what is read of each Gaussian, and what is found.
_MEAN, _QUAT, _SCALE, _CENTRE, _SHAPE, _SIZE, _BASIS, _END = 0, 3, 7, 10, 13, 16, 20, 36


def pack_cameras(cameras: Cameras, margin: float) -> Float[ndarray, "C 24"]:
    """Rows of rotation (9), translation (3), fx fy cx cy, view limits (4), position (3), near plane.

    The limits bound x / z and y / z in the Jacobian to the frustum with a margin, a share of its width,
    because the linearisation explodes far outside the image: min x, max x, min y, max y. With an infinite
    margin there are none.
    """
    viewmats = cameras.viewmats.detach().cpu().double().numpy()
    Ks = cameras.Ks.detach().cpu().double().numpy()
    rotation, translation = viewmats[:, :3, :3], viewmats[:, :3, 3]
    focal, centre = Ks[:, [0, 1], [0, 1]], Ks[:, :2, 2]
    size = np.array([cameras.width, cameras.height])
    beyond = margin * size / focal
    low, high = -centre / focal - beyond, (size - centre) / focal + beyond
    limits = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    position = -np.einsum("cij,ci->cj", rotation, translation)
    near = np.full((len(cameras), 1), cameras.near_plane)
    columns = [rotation.reshape(-1, 9), translation, focal, centre, limits, position, near]
    return np.concatenate(columns, axis=1)


@inlined
def load_camera(cams, c):
    """A row of ``pack_cameras`` as a tuple."""
    return (
        cams[c, 0], cams[c, 1], cams[c, 2], cams[c, 3], cams[c, 4], cams[c, 5], cams[c, 6], cams[c, 7],
        cams[c, 8], cams[c, 9], cams[c, 10], cams[c, 11], cams[c, 12], cams[c, 13], cams[c, 14],
        cams[c, 15], cams[c, 16], cams[c, 17], cams[c, 18], cams[c, 19], cams[c, 20], cams[c, 21],
        cams[c, 22], cams[c, 23],
    )  # fmt: skip


@inlined
def dot(u, v):
    """Inner product of triples."""
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


@inlined
def times_matrix(u, rows):
    """Row vector times a matrix given as three rows."""
    return (
        u[0] * rows[0][0] + u[1] * rows[1][0] + u[2] * rows[2][0],
        u[0] * rows[0][1] + u[1] * rows[1][1] + u[2] * rows[2][1],
        u[0] * rows[0][2] + u[1] * rows[1][2] + u[2] * rows[2][2],
    )


@inlined
def scaled(u, s):
    """Elementwise product of triples."""
    return u[0] * s[0], u[1] * s[1], u[2] * s[2]


@inlined
def to_camera(cam, mean):
    """Camera-space position of a world-space one."""
    x = cam[0] * mean[0] + cam[1] * mean[1] + cam[2] * mean[2] + cam[9]
    y = cam[3] * mean[0] + cam[4] * mean[1] + cam[5] * mean[2] + cam[10]
    z = cam[6] * mean[0] + cam[7] * mean[1] + cam[8] * mean[2] + cam[11]
    return x, y, z


@inlined
def rotation_of(w, x, y, z):
    """Normalised quaternion, 1 / norm, and the rotation matrix as three rows."""
    inverse = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    rows = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )
    return (w, x, y, z), inverse, rows


@inlined
def screen_axes(cam, x, y, z):
    """The two rows of J W, with J taken at x / z and y / z clamped to the view's limits."""
    inverse = 1.0 / z
    a = min(cam[17], max(cam[16], x * inverse))
    b = min(cam[19], max(cam[18], y * inverse))
    jx, jy = cam[12] * inverse, cam[13] * inverse
    row1 = (jx * (cam[0] - a * cam[6]), jx * (cam[1] - a * cam[7]), jx * (cam[2] - a * cam[8]))
    row2 = (jy * (cam[3] - b * cam[6]), jy * (cam[4] - b * cam[7]), jy * (cam[5] - b * cam[8]))
    return row1, row2


@inlined
def covariance(f1, f2, low_pass):
    """F F^T as (xx, xy, yy), its determinant, and that of F F^T + low_pass I."""
    xx, xy, yy = dot(f1, f1), dot(f1, f2), dot(f2, f2)
    n0 = f1[1] * f2[2] - f1[2] * f2[1]
    n1 = f1[2] * f2[0] - f1[0] * f2[2]
    n2 = f1[0] * f2[1] - f1[1] * f2[0]
    determinant = n0 * n0 + n1 * n1 + n2 * n2
    return xx, xy, yy, determinant, determinant + low_pass * (xx + yy) + low_pass * low_pass


@inlined
def view_direction(cam, mean):
    """Unit vector from the camera to the Gaussian, and 1 / distance."""
    x, y, z = mean[0] - cam[20], mean[1] - cam[21], mean[2] - cam[22]
    inverse = 1.0 / math.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


@kernel
def project(
    counter, count, cams, size, low_pass, antialiased, degree,
    means, quats, scales, opacities, sh,
    means2d, features, extents, radii,
):  # fmt: skip
    """Fill the screen-space arrays of all cameras; one item is a chunk of Gaussians of one camera.

    Args:
        counter: shared item counter; ``count`` items are C x ceil(N / CHUNK).
        cams: [C, 24] from ``pack_cameras``.
        size: (width, height).
        low_pass: square pixels added to the covariances' diagonals.
        antialiased: multiply opacities by sqrt(det / det_with_low_pass).
        degree: spherical-harmonics degree to evaluate.
        means, quats, scales, opacities, sh: the ``Splats``; ``sh`` is None if they carry no harmonics.
        means2d: out, [C, N, 2] pixels.
        features: out, [C, N, 8] h, k, g, opacity, depth, red, green, blue; without harmonics [C, N, 5].
        extents: out, [C, N, 2] half width and height of the box outside which alpha < 1 / 255.
        radii: out, [C, N, 2] int32; ``extents`` rounded up. Zero, like all the rest, where culled.
    """
    n = means.shape[0]
    chunks = (n + CHUNK - 1) // CHUNK
    planes = new_planes(_END)
    item = next_item(counter)
    while item < count:
        c, begin = item // chunks, item % chunks * CHUNK
        cam, end = load_camera(cams, c), min(begin + CHUNK, n)
        for first in range(begin, end, BATCH):
            found = np.uint64(min(BATCH, end - first))
            _load(planes, found, first, means, quats, scales)
            for j in whole_lanes(found):
                _ellipse(planes, j, cam, low_pass)
            if sh is not None:
                for j in whole_lanes(found):
                    x, y, z, _ = view_direction(cam, get3(planes, _MEAN, j))
                    put_basis(planes, _BASIS, j, x, y, z)
            for j in range(found):
                i = first + j
                visible, centre, ellipse, alpha, z, extent, radius = _seen(
                    planes, j, cam[23], size, antialiased, np.float64(opacities[i])
                )
                means2d[c, i, 0], means2d[c, i, 1] = centre
                features[c, i, 0], features[c, i, 1], features[c, i, 2] = ellipse
                features[c, i, 3], features[c, i, 4] = alpha, z
                if sh is not None:
                    colour = (ZERO, ZERO, ZERO)
                    if visible:
                        colour = _colour(planes, j, degree, sh, i)
                    features[c, i, 5], features[c, i, 6], features[c, i, 7] = colour
                extents[c, i, 0], extents[c, i, 1] = extent
                radii[c, i, 0], radii[c, i, 1] = radius
        item = next_item(counter)


@inlined
def _load(planes, found, first, means, quats, scales):
    """Copy adjoining rows."""
    for j in range(found):
        i = first + j
        put3(planes, _MEAN, j, (means[i, 0], means[i, 1], means[i, 2]))
        put4(planes, _QUAT, j, (quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]))
        put3(planes, _SCALE, j, (scales[i, 0], scales[i, 1], scales[i, 2]))


@inlined
def _ellipse(planes, j, cam, low_pass):
    """What does not depend on whether the Gaussian is seen; of one behind the camera it is never read."""
    w, qx, qy, qz = get4(planes, _QUAT, j)
    rotation, scale = rotation_of(w, qx, qy, qz)[2], get3(planes, _SCALE, j)
    x, y, z = to_camera(cam, get3(planes, _MEAN, j))
    t1, t2 = screen_axes(cam, x, y, z)
    f1, f2 = scaled(times_matrix(t1, rotation), scale), scaled(times_matrix(t2, rotation), scale)
    xx, xy, yy, plain, determinant = covariance(f1, f2, low_pass)
    xx, yy = xx + low_pass, yy + low_pass
    put3(planes, _CENTRE, j, (cam[12] * x / z + cam[14], cam[13] * y / z + cam[15], z))
    put3(planes, _SHAPE, j, (0.5 * yy / determinant, -xy / yy, 0.5 / yy))
    put4(planes, _SIZE, j, (math.sqrt(xx), math.sqrt(yy), determinant, math.sqrt(plain / determinant)))


@inlined
def _seen(planes, j, near, size, antialiased, opacity):
    """(visible, centre, (h, k, g), opacity, depth, extent, radius) of one Gaussian; zeros if it is culled."""
    culled = False, (0.0, 0.0), (0.0, 0.0, 0.0), 0.0, 0.0, (0.0, 0.0), (0, 0)
    px, py, z = get3(planes, _CENTRE, j)
    if not near <= z <= FAR_PLANE:
        return culled
    deviation_x, deviation_y, determinant, compensation = get4(planes, _SIZE, j)
    if antialiased:
        opacity *= compensation
    if not (opacity >= ALPHA_MIN and determinant < math.inf):
        return culled
    sigmas = min(_MAX_SIGMAS, math.sqrt(2.0 * math.log(opacity / ALPHA_MIN)))
    ex, ey = sigmas * deviation_x, sigmas * deviation_y
    rx, ry = min(math.ceil(ex), _MAX_RADIUS), min(math.ceil(ey), _MAX_RADIUS)
    if not (rx > 0 and ry > 0 and px + rx > 0 and px - rx < size[0] and py + ry > 0 and py - ry < size[1]):
        return culled
    return True, (px, py), get3(planes, _SHAPE, j), opacity, z, (ex, ey), (rx, ry)


@inlined
def _colour(planes, j, degree, sh, i):
    """Spherical harmonics in the view direction + 0.5, clamped at 0."""
    red, green, blue = HALF, HALF, HALF
    for k in range((degree + 1) * (degree + 1)):
        basis = np.float32(get(planes, _BASIS + k, j))
        red += basis * sh[i, k, 0]
        green += basis * sh[i, k, 1]
        blue += basis * sh[i, k, 2]
    return max(red, ZERO), max(green, ZERO), max(blue, ZERO)
