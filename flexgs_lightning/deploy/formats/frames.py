"""The capture's frame, as COLMAP and 3DGS PLY files have it, and those of formats that turn it.

PLY files lie in the capture's frame, whose cameras look along +z with y down. SPZ wants y up and +z
backward, which is half a turn about x; glTF wants y up, +z forward and x to the left: half a turn about z.
Half a turn changes signs only, so it costs no precision, and it is its own inverse.
"""

from __future__ import annotations

import numpy as np
import torch

from flexgs_lightning.splats import Splats

_ODD = {
    # Which of the 16 basis functions, in the 3DGS order, are odd in each coordinate.
    "x": np.array([0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]),
    "y": np.array([0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]),
    "z": np.array([0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0]),
}


def half_turn(splats: Splats, axis: str) -> Splats:
    """The scene turned by 180 degrees about the world's axis "x", "y" or "z", bit for bit.

    A Gaussian's own axes may be mirrored, which its shape does not tell, so that quaternions, too, change
    signs only.
    """
    kept = ["x", "y", "z"].index(axis)
    signs = -torch.ones(3)
    signs[kept] = 1.0
    flipped = [name for name in _ODD if name != axis]
    sh_signs = 1.0 - 2.0 * torch.from_numpy(sum(_ODD[name] for name in flipped) % 2).float()
    return Splats(
        means=splats.means * signs,
        quats=splats.quats * torch.cat([torch.ones(1), signs]),
        scales=splats.scales,
        opacities=splats.opacities,
        sh=splats.sh * sh_signs[: splats.sh.shape[1], None],
    )


def moved(splats: Splats, matrix: np.ndarray) -> Splats:
    """The scene under a similarity: rotation, the same scale along all axes, and translation.

    Args:
        splats: the scene.
        matrix: [4, 4] float64.

    Raises:
        ValueError: the matrix mirrors, shears, or scales unevenly.
    """
    linear = matrix[:3, :3]
    scale = np.cbrt(np.linalg.det(linear))
    if not scale > 0 or not np.allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-5 * scale**2):
        raise ValueError("expected a rotation, one scale for all axes, and a translation")
    rotation = torch.from_numpy(linear / scale)
    quat = torch.tensor(_quaternion(linear / scale))
    return Splats(
        means=(splats.means.double() @ torch.from_numpy(linear).T + torch.from_numpy(matrix[:3, 3])).float(),
        quats=_product(quat, splats.quats.double()).float(),
        scales=splats.scales * float(scale),
        opacities=splats.opacities,
        sh=_turned_sh(splats.sh.double(), rotation).float(),
    )


def _turned_sh(sh: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Coefficients [N, K, 3] of the turned functions: f'(d) = f(R^T d), solved for on many directions."""
    directions = torch.nn.functional.normalize(
        torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
    )
    bases = sh.shape[1]
    there, here = _basis(directions)[:, :bases], _basis(directions @ rotation)[:, :bases]
    return torch.einsum("jk,nkc->njc", torch.linalg.lstsq(there, here).solution, sh)


def _basis(directions: torch.Tensor) -> torch.Tensor:
    """[D, 16] the real spherical harmonics to degree 3 in the 3DGS basis and order."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    columns = [0.28209479177387814 * torch.ones_like(x)]
    columns += [0.4886025119029199 * value for value in (-y, z, -x)]
    columns += [1.0925484305920792 * x * y, -1.0925484305920792 * y * z]
    columns += [0.31539156525252005 * (2 * zz - xx - yy)]
    columns += [-1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy)]
    columns += [-0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z]
    columns += [-0.4570457994644658 * y * (4 * zz - xx - yy)]
    columns += [0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)]
    columns += [-0.4570457994644658 * x * (4 * zz - xx - yy), 1.445305721320277 * z * (xx - yy)]
    columns += [-0.5900435899266435 * x * (xx - 3 * yy)]
    return torch.stack(columns, dim=-1)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation matrix."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return np.array([w, x, y, z])


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Hamilton product of a quaternion [4] and quaternions [N, 4]."""
    w, x, y, z = left
    matrix = torch.tensor([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]).to(right)
    return right @ matrix.T
