"""Real spherical harmonics up to degree 3 in the basis, signs and order of 3D Gaussian Splatting.

Polynomials of a unit direction (x, y, z); the constants are those of the orthonormal real harmonics
(Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013) with the Condon-Shortley phase.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

from flexgs_lightning.jit import inlined
from flexgs_lightning.rendering.cpu.side_by_side import get3, put, put3

_C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_XY, _ZZ, _XXYY = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
_33, _32, _31, _30, _32E = (
    0.5900435899266435,
    2.890611442640554,
    0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)


@inlined
def put_basis(planes, plane, j, x, y, z):
    """Write the 16 functions at a unit direction to as many planes (``side_by_side.py``)."""
    xx, yy, zz = x * x, y * y, z * z
    put(planes, plane, j, _C0)
    put3(planes, plane + 1, j, (-_C1 * y, _C1 * z, -_C1 * x))
    put3(planes, plane + 4, j, (_XY * x * y, -_XY * y * z, _ZZ * (3.0 * zz - 1.0)))
    put3(planes, plane + 7, j, (-_XY * x * z, _XXYY * (xx - yy), -_33 * y * (3.0 * xx - yy)))
    put3(planes, plane + 10, j, (_32 * x * y * z, -_31 * y * (5.0 * zz - 1.0), _30 * z * (5.0 * zz - 3.0)))
    put3(
        planes, plane + 13, j, (-_31 * x * (5.0 * zz - 1.0), _32E * z * (xx - yy), -_33 * x * (xx - 3.0 * yy))
    )


@inlined
def direction_gradient(planes, plane, j, x, y, z):
    """Gradient of sum_k v[k] basis[k] by (x, y, z), the polynomials taken as functions of R^3.

    v lies in 16 planes from ``plane`` on. Only the part tangential to the sphere has a meaning: the
    caller projects it.
    """
    v1, v2, v3 = get3(planes, plane + 1, j)
    v4, v5, v6 = get3(planes, plane + 4, j)
    v7, v8, v9 = get3(planes, plane + 7, j)
    v10, v11, v12 = get3(planes, plane + 10, j)
    v13, v14, v15 = get3(planes, plane + 13, j)
    xx, yy, zz = x * x, y * y, z * z
    gx = (
        -_C1 * v3
        + _XY * (y * v4 - z * v7)
        + 2.0 * _XXYY * x * v8
        + _32 * y * z * v10
        - _31 * (5.0 * zz - 1.0) * v13
        + 2.0 * _32E * x * z * v14
        - 3.0 * _33 * (2.0 * x * y * v9 + (xx - yy) * v15)
    )
    gy = (
        -_C1 * v1
        + _XY * (x * v4 - z * v5)
        - 2.0 * _XXYY * y * v8
        + _32 * x * z * v10
        - _31 * (5.0 * zz - 1.0) * v11
        - 2.0 * _32E * y * z * v14
        - 3.0 * _33 * ((xx - yy) * v9 - 2.0 * x * y * v15)
    )
    gz = (
        _C1 * v2
        + 6.0 * _ZZ * z * v6
        - _XY * (y * v5 + x * v7)
        + _32 * x * y * v10
        - 10.0 * _31 * z * (y * v11 + x * v13)
        + _30 * (15.0 * zz - 3.0) * v12
        + _32E * (xx - yy) * v14
    )
    return gx, gy, gz
