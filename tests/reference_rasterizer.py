"""The rasterizer's meaning written a second time: dense, float64, plain torch with autograd.

Deliberately different from the kernels in every way that can hide a shared mistake: 3x3 covariances and
matrix inverses, all Gaussians against all pixels, cumulative products, spherical harmonics from
associated Legendre functions by their definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.splats import Splats

EPS2D, FAR = 0.3, 1e10
ALPHA_MIN, ALPHA_MAX, T_MIN, MAX_SIGMAS = 1 / 255, 0.999, 1e-4, 3.33


@dataclass
class Reference:
    """Like ``Rendering``, in float64.

    ``means2d`` holds one tensor per camera, on the graph, so that their ``grad`` can be read, and
    ``centres`` the same once more for each pixel [N, H W, 2].
    ``doubtful`` [C, H, W] marks pixels where a threshold (1/255, 0.999, 1e-4) is met so closely that
    float32 may decide otherwise: comparisons leave them out.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor
    means2d: tuple[Tensor, ...]
    radii: Tensor
    weights: Tensor
    hits: Tensor
    doubtful: Tensor
    centres: tuple[Tensor, ...]

    def absgrad(self) -> Tensor:
        """[C, N, 2] sum over pixels of the absolute gradient by a centre."""
        return torch.stack([centres.grad.abs().sum(dim=1) for centres in self.centres])


def rasterize(
    splats: Splats,
    cameras: Cameras,
    background: Tensor | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    channels: Tensor | None = None,
) -> Reference:
    """All cameras one by one; see ``flexgs_lightning.rendering.rasterizer.rasterize``.

    ``channels`` [C, N, D] are blended in place of the spherical harmonics' colours.
    """
    if channels is None:
        degree = splats.sh_degree if sh_degree is None else sh_degree
        centres = [-view[:3, :3].T.double() @ view[:3, 3].double() for view in cameras.viewmats]
        channels = torch.stack([_colours(splats, centre, degree) for centre in centres])
    if background is None:
        background = torch.zeros(channels.shape[-1])
    backgrounds = background.double().expand(len(cameras), channels.shape[-1])
    views = [
        _one_camera(splats, cameras[c], backgrounds[c], channels[c], antialiased) for c in range(len(cameras))
    ]
    fields = dict(zip(Reference.__dataclass_fields__, zip(*views, strict=True), strict=True))
    return Reference(
        **{
            name: parts if name in ("means2d", "centres") else torch.stack(parts)
            for name, parts in fields.items()
        }
    )


def _one_camera(
    splats: Splats, camera: Cameras, background: Tensor, colours: Tensor, antialiased: bool
) -> tuple[Tensor, ...]:
    view, K = camera.viewmats[0].double(), camera.Ks[0].double()
    width, height = camera.width, camera.height
    means = splats.means.double()
    opacities = splats.opacities.double()
    in_camera = means @ view[:3, :3].T + view[:3, 3]
    z = in_camera[:, 2]
    in_range = (z >= camera.near_plane) & (z <= FAR)
    in_camera = torch.where(in_range[:, None], in_camera, torch.ones(3, dtype=torch.float64))
    homogeneous = in_camera @ K.T
    means2d = homogeneous[:, :2] / homogeneous[:, 2:]
    if means2d.requires_grad:
        means2d.retain_grad()

    plain = _screen_covariance(splats, in_camera, view[:3, :3], K, width, height)
    covariance = plain + EPS2D * torch.eye(2, dtype=torch.float64)
    if antialiased:
        opacities = opacities * (torch.linalg.det(plain) / torch.linalg.det(covariance)).clamp_min(0).sqrt()
    opaque = in_range & (opacities >= ALPHA_MIN)
    sigmas = (2 * (opacities.detach() / ALPHA_MIN).clamp_min(1).log()).sqrt().clamp_max(MAX_SIGMAS)
    radii = (sigmas[:, None] * covariance.detach().diagonal(dim1=1, dim2=2).sqrt()).ceil()
    size = torch.tensor([width, height])
    touches = ((means2d + radii > 0) & (means2d - radii < size)).all(1)
    visible = opaque & touches & (radii > 0).all(1)
    radii = torch.where(visible[:, None], radii, torch.zeros(())).int()

    order = torch.argsort(torch.where(visible, in_camera[:, 2], torch.inf), stable=True)[: visible.sum()]
    centres = means2d[:, None].expand(-1, width * height, -1).clone()
    if centres.requires_grad:
        centres.retain_grad()
    image, alpha, depth, weights, doubtful = _composite(
        centres[order], covariance[order], opacities[order], colours[order], in_camera[order, 2],
        background, width, height,
    )  # fmt: skip
    total, hits = torch.zeros(len(means), dtype=torch.float64), torch.zeros(len(means), dtype=torch.int64)
    total[order], hits[order] = weights.detach().sum(1), (weights > 0).sum(1)
    return image, alpha, depth, means2d, radii, total, hits, doubtful, centres


def _screen_covariance(
    splats: Splats, in_camera: Tensor, rotation: Tensor, K: Tensor, width: int, height: int
) -> Tensor:
    """[N, 2, 2] J W Sigma W^T J^T, J at the centre clamped to the frustum plus 0.3 tan(fov / 2)."""
    w, x, y, z = torch.nn.functional.normalize(splats.quats.double(), dim=1).unbind(1)
    zero = torch.zeros_like(w)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    local = torch.eye(3, dtype=torch.float64) + 2 * w[:, None, None] * cross + 2 * cross @ cross  # Rodrigues
    covariance = local @ torch.diag_embed(splats.scales.double() ** 2) @ local.mT

    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    depth = in_camera[:, 2]
    a = (in_camera[:, 0] / depth).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    b = (in_camera[:, 1] / depth).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(depth)
    jacobian = torch.stack([fx / depth, zero, -fx * a / depth, zero, fy / depth, -fy * b / depth], 1)
    jacobian = jacobian.view(-1, 2, 3) @ rotation
    return jacobian @ covariance @ jacobian.mT


def _composite(
    centres: Tensor, covariance: Tensor, opacities: Tensor, colours: Tensor, z: Tensor,
    background: Tensor, width: int, height: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Front-to-back blending of sorted Gaussians (``centres`` [K, H W, 2]) over all pixels at once."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(-1, 2) + 0.5
    d = pixels.double() - centres
    sigma = 0.5 * (d @ torch.linalg.inv(covariance) * d).sum(-1)
    free = opacities[:, None] * torch.exp(-sigma)
    alpha = torch.where(free <= ALPHA_MAX, free, ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=0)
    drawn = (after > T_MIN) & (alpha > 0)
    alpha = torch.where(drawn, alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=0)
    ones = torch.ones(1, len(pixels), dtype=torch.float64)
    in_front, last = torch.cat([ones, after])[:-1], torch.cat([ones, after])[-1]
    weights = alpha * in_front
    image = weights.T @ colours + last[:, None] * background
    accumulated = weights.sum(0)
    depth = torch.where(accumulated > 0, weights.T @ z / accumulated.clamp_min(1e-10), 0.0)

    running = (
        torch.cat([ones, torch.cumprod(1 - torch.where(free > ALPHA_MAX, ALPHA_MAX, free), 0)])[:-1] > 1e-5
    )
    doubtful = ((free / ALPHA_MIN - 1).abs() < 2e-5) & running
    doubtful |= (free / ALPHA_MAX - 1).abs() < 2e-5
    unbounded = torch.cumprod(1 - torch.where(free >= ALPHA_MIN, free.clamp_max(ALPHA_MAX), 0.0), dim=0)
    doubtful |= (unbounded / T_MIN - 1).abs() < 1e-3
    shape = (height, width)
    return (
        image.view(*shape, -1),
        (1 - last).view(*shape, 1),
        depth.view(*shape, 1),
        weights,
        doubtful.any(0).view(shape) if len(doubtful) else torch.zeros(shape, dtype=torch.bool),
    )


def _colours(splats: Splats, position: Tensor, degree: int) -> Tensor:
    """[N, 3] colours seen from ``position``."""
    directions = torch.nn.functional.normalize(splats.means.double() - position, dim=1)
    basis = spherical_harmonics(directions, degree)
    colours = torch.einsum("nk,nkc->nc", basis, splats.sh.double()[:, : (degree + 1) ** 2])
    return (colours + 0.5).clamp_min(0)


def spherical_harmonics(directions: Tensor, degree: int) -> Tensor:
    """[N, (degree + 1)^2] real orthonormal harmonics with the Condon-Shortley phase, ordered (l, m).

    Y_lm = sqrt(2) N_lm P_l^|m|(z) {cos m phi | sin |m| phi}, a polynomial, since
    P_l^m(z) = (-1)^m sin^m(theta) d^m P_l / dz^m and sin^m(theta) e^{i m phi} = (x + i y)^m.
    """
    x, y, z = directions.unbind(1)
    columns = []
    for l in range(degree + 1):  # noqa: E741
        legendre = [torch.ones_like(z), z, 1.5 * z**2 - 0.5, 2.5 * z**3 - 1.5 * z][l]
        derivatives = {
            0: [torch.ones_like(z)],
            1: [z, torch.ones_like(z)],
            2: [legendre, 3 * z, 3 * torch.ones_like(z)],
            3: [legendre, 7.5 * z**2 - 1.5, 15 * z, 15 * torch.ones_like(z)],
        }[l]
        for m in range(-l, l + 1):
            k = abs(m)
            power = torch.complex(x, y) ** k
            norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - k) / math.factorial(l + k))
            part = power.imag if m < 0 else power.real
            factor = norm * (math.sqrt(2) if m else 1) * (-1) ** k
            columns.append(factor * derivatives[k] * part)
    return torch.stack(columns, 1)
