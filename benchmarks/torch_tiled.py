"""The rasterizer's meaning as tiled, vectorised torch with autograd: the yardstick of ``rasterizer.py``.

Written to be fast in torch: projection and colours of all Gaussians at once, one sort by (tile, depth),
then per 16x16 tile all its Gaussians against all its pixels with a cumulative product.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.splats import Splats

EPS2D, NEAR = 0.3, 0.01
ALPHA_MIN, ALPHA_MAX, T_MIN = 1 / 255, 0.999, 1e-4
TILE = 16


def rasterize(splats: Splats, camera: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Image [H, W, 3], alpha [H, W, 1] and expected depth [H, W, 1] of one camera, black background."""
    means2d, covariance, z = _project(splats, camera)
    with torch.no_grad():
        sigmas = (2 * (splats.opacities / ALPHA_MIN).log()).clamp_min(0).sqrt()
        radii = (sigmas[:, None] * covariance[:, [0, 2]].sqrt()).ceil()
        order, offsets, columns, rows = _tile_lists(means2d, radii, z, camera)
    colours = _colours(splats, camera.positions[0])
    a, b, c = covariance.unbind(1)
    conics = torch.stack([c, -b, a], 1) / (a * c - b * b)[:, None]
    table = torch.cat([means2d, conics, splats.opacities[:, None], colours, z[:, None]], 1)

    tiles = []
    for tile, (first, last) in enumerate(itertools.pairwise(offsets)):
        x, y = tile % columns * TILE, tile // columns * TILE
        tiles.append(_blend(table[order[first:last]], x, y))
    picture = torch.stack(tiles).view(rows, columns, TILE, TILE, 5).transpose(1, 2)
    picture = picture.reshape(rows * TILE, columns * TILE, 5)[: camera.height, : camera.width]
    alpha = picture[..., 4:]
    return picture[..., :3], alpha, picture[..., 3:4] / alpha.clamp_min(1e-10)


def _project(splats: Splats, camera: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [N, 2], blurred covariances [N, 3] (xx, xy, yy) and depths [N]."""
    view, K = camera.viewmats[0], camera.Ks[0]
    rotation = view[:3, :3]
    x, y, z = (splats.means @ rotation.T + view[:3, 3]).unbind(1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    z = torch.where(z > NEAR, z, NEAR)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], 1)
    mx, my = 0.15 * camera.width / fx, 0.15 * camera.height / fy
    u = torch.clamp(x / z, -cx / fx - mx, (camera.width - cx) / fx + mx)
    v = torch.clamp(y / z, -cy / fy - my, (camera.height - cy) / fy + my)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], 1).view(-1, 2, 3)
    factor = jacobian @ rotation @ (_rotations(splats.quats) * splats.scales[:, None])
    covariance = factor @ factor.mT
    xx, xy, yy = covariance[:, 0, 0] + EPS2D, covariance[:, 0, 1], covariance[:, 1, 1] + EPS2D
    return means2d, torch.stack([xx, xy, yy], 1), z


def _rotations(quats: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


def _tile_lists(
    means2d: Tensor, radii: Tensor, z: Tensor, camera: Cameras
) -> tuple[Tensor, list[int], int, int]:
    """Gaussians of all tiles, tile by tile and front to back, and where each tile starts."""
    columns, rows = math.ceil(camera.width / TILE), math.ceil(camera.height / TILE)
    limit = torch.tensor([columns, rows])
    low = ((means2d - radii) / TILE).floor().long().clamp_min(0).minimum(limit)
    high = ((means2d + radii) / TILE).ceil().long().clamp_min(0).minimum(limit)
    shape = (high - low).clamp_min(0) * ((z > NEAR) & (radii > 0).all(1))[:, None]
    counts = shape.prod(1)
    owner = torch.repeat_interleave(torch.arange(len(z)), counts)
    local = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    width = shape[owner, 0]
    tile = (low[owner, 1] + local // width) * columns + low[owner, 0] + local % width
    by_depth = torch.argsort(z[owner])
    order = by_depth[torch.argsort(tile[by_depth], stable=True)]
    ends = torch.bincount(tile, minlength=columns * rows).cumsum(0)
    return owner[order], [0, *ends.tolist()], columns, rows


def _blend(rows: Tensor, x: int, y: int) -> Tensor:
    """[TILE^2, 5] colour, depth sum and alpha of one tile from its Gaussians [K, 10]."""
    ys, xs = torch.meshgrid(torch.arange(TILE) + y + 0.5, torch.arange(TILE) + x + 0.5, indexing="ij")
    dx, dy = xs.reshape(1, -1) - rows[:, 0:1], ys.reshape(1, -1) - rows[:, 1:2]
    sigma = 0.5 * (rows[:, 2:3] * dx * dx + rows[:, 4:5] * dy * dy) + rows[:, 3:4] * dx * dy
    alpha = (rows[:, 5:6] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat([torch.ones_like(alpha[:1]) if len(rows) else torch.ones(0, TILE * TILE), after[:-1]])
    weights = torch.where(after > T_MIN, alpha * before, 0.0)
    return weights.T @ torch.cat([rows[:, 6:], torch.ones_like(rows[:, :1])], 1)


def _colours(splats: Splats, position: Tensor) -> Tensor:
    """Degree-3 spherical harmonics in the 3DGS basis, + 0.5, clamped at 0."""
    x, y, z = torch.nn.functional.normalize(splats.means - position, dim=1).unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [
        torch.full_like(x, 0.28209479177387814),
        -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x,
        1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (3 * zz - 1),
        -1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy),
        -0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (5 * zz - 1), 0.3731763325901154 * z * (5 * zz - 3),
        -0.4570457994644658 * x * (5 * zz - 1), 1.445305721320277 * z * (xx - yy),
        -0.5900435899266435 * x * (xx - 3 * yy),
    ]  # fmt: skip
    return (torch.einsum("kn,nkc->nc", torch.stack(basis), splats.sh) + 0.5).clamp_min(0)
