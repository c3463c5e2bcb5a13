"""Real spherical harmonics up to degree 3 in the basis, signs and order of 3D Gaussian Splatting.

Polynomials of a unit direction (x, y, z); the constants are those of the orthonormal real harmonics
(Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013) with the Condon-Shortley phase.
"""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

from flexgs_lightning.jit import inlined

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
def evaluate_basis(degree, x, y, z, basis):
    """Write the (degree + 1)^2 basis functions at a unit direction to ``basis`` [16]."""
    basis[0] = _C0
    if degree >= 1:
        basis[1] = -_C1 * y
        basis[2] = _C1 * z
        basis[3] = -_C1 * x
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis[4] = _XY * x * y
        basis[5] = -_XY * y * z
        basis[6] = _ZZ * (3.0 * zz - 1.0)
        basis[7] = -_XY * x * z
        basis[8] = _XXYY * (xx - yy)
        if degree >= 3:
            basis[9] = -_33 * y * (3.0 * xx - yy)
            basis[10] = _32 * x * y * z
            basis[11] = -_31 * y * (5.0 * zz - 1.0)
            basis[12] = _30 * z * (5.0 * zz - 3.0)
            basis[13] = -_31 * x * (5.0 * zz - 1.0)
            basis[14] = _32E * z * (xx - yy)
            basis[15] = -_33 * x * (xx - 3.0 * yy)


@inlined
def direction_gradient(degree, x, y, z, v):
    """Gradient of sum_k v[k] basis[k] by (x, y, z), the polynomials taken as functions of R^3.

    Only the part tangential to the sphere has a meaning: the caller projects it.
    """
    gx, gy, gz = 0.0, 0.0, 0.0
    if degree >= 1:
        gx, gy, gz = -_C1 * v[3], -_C1 * v[1], _C1 * v[2]
    if degree >= 2:
        gx += _XY * (y * v[4] - z * v[7]) + 2.0 * _XXYY * x * v[8]
        gy += _XY * (x * v[4] - z * v[5]) - 2.0 * _XXYY * y * v[8]
        gz += 6.0 * _ZZ * z * v[6] - _XY * (y * v[5] + x * v[7])
    if degree >= 3:
        xx, yy, zz = x * x, y * y, z * z
        gx += (
            _32 * y * z * v[10]
            - _31 * (5.0 * zz - 1.0) * v[13]
            + 2.0 * _32E * x * z * v[14]
            - 3.0 * _33 * (2.0 * x * y * v[9] + (xx - yy) * v[15])
        )
        gy += (
            _32 * x * z * v[10]
            - _31 * (5.0 * zz - 1.0) * v[11]
            - 2.0 * _32E * y * z * v[14]
            - 3.0 * _33 * ((xx - yy) * v[9] - 2.0 * x * y * v[15])
        )
        gz += (
            _32 * x * y * v[10]
            - 10.0 * _31 * z * (y * v[11] + x * v[13])
            + _30 * (15.0 * zz - 3.0) * v[12]
            + _32E * (xx - yy) * v[14]
        )
    return gx, gy, gz
