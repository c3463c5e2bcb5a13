"""Spark, PlayCanvas and superspl.at written a second time: dense, float64, one Gaussian after the other.

Facts from the viewers' own code as published (Spark 2.2, PlayCanvas 2.23, superspl.at's 1.36), in a form
that shares nothing with ``flexgs_lightning.deploy.dialects.emulation``: numbers are packed into integers,
Gaussians sorted by counting, and painted over each other from back to front.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import torch
from reference_rasterizer import _colours
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.splats import Splats

C0 = 0.28209479177387814


def seen_in(viewer: str, splats: Splats, camera: Cameras) -> Tensor:
    """[H, W, 3] as the viewer draws it on black; differentiable where nothing is rounded (not Spark)."""
    view, K = camera.viewmats[0].double(), camera.Ks[0].double()
    eye = -view[:3, :3].T @ view[:3, 3]
    order_of = splats.detach()
    if viewer == "spark":
        splats = unpacked(splats)
    colours = _colours(splats, eye, splats.sh_degree)
    means, opacities = splats.means.double(), splats.opacities.double()
    if viewer == "spark":
        means = eye + (means - eye).half().double()
        opacities = (opacities / 2 * 255).round() / 255 * 2
        colours = (colours.clamp(0, 1) * 255).round() / 255
    local = means @ view[:3, :3].T + view[:3, 3]
    plain = screen_covariance(splats, local, view[:3, :3], K)
    covariance = plain + (0.3 if viewer == "spark" else 0.075) * torch.eye(2, dtype=torch.float64)
    centres = (local @ K.T)[:, :2] / local[:, 2:]
    size = torch.tensor([camera.width, camera.height])
    drawn = local[:, 2] > 0.01
    if viewer == "spark":
        drawn &= ((centres / size * 2 - 1).abs() <= 1.4).all(1)
        opacities = opacities * (torch.linalg.det(plain) / torch.linalg.det(covariance)).clamp_min(0).sqrt()
        order = torch.argsort(local.detach().norm(dim=1), descending=True, stable=True).tolist()
    else:
        covariance = with_radius_within(covariance, float(size.min()), drawn)
        drawn &= torch.linalg.eigvalsh(torch.where(drawn[:, None, None], covariance, 0.0))[:, 1] >= 1 / 8
        order = painted_by_playcanvas(order_of, camera, by_distance=viewer == "supersplat")
    ys, xs = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    pixels = torch.stack([xs, ys], -1) + 0.5
    image = torch.zeros(camera.height, camera.width, 3, dtype=torch.float64)
    for i in order:
        if not drawn[i]:
            continue
        offset = pixels - centres[i]
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", offset, torch.linalg.inv(covariance[i]), offset)
        value = torch.exp(-sigma)
        if viewer != "spark":
            value = (value - math.exp(-4)) / (1 - math.exp(-4))
        alpha = opacities[i] * torch.where(sigma <= 4, value, 0.0)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)[..., None]
        image = image * (1 - alpha) + alpha * colours[i]
    return image.float()


def unpacked(splats: Splats) -> Splats:
    """What is left of them after Spark's 16 bytes a Gaussian."""

    def integers(values: Tensor, low: float, high: float, most: int) -> Tensor:
        extent = high - low
        return ((values.double().clamp(low, high) - low) / extent * most).round() / most * extent + low

    sh = splats.sh.double().clone()
    sh[:, 0] = (integers(sh[:, 0] * C0 + 0.5, 0, 1, 255) - 0.5) / C0
    for first, last, most in ((1, 4, 63), (4, 9, 127), (9, 16, 31)):
        sh[:, first:last] = (sh[:, first:last].clamp(-1, 1) * most).round() / most
    return replace(
        splats,
        means=splats.means.half().double(),
        quats=torch.tensor([unpacked_rotation(q) for q in splats.quats.tolist()], dtype=torch.float64),
        scales=integers(splats.scales.double().log(), -12, 9, 254).exp(),
        opacities=integers(splats.opacities, 0, 1, 255),
        sh=sh,
    )


def unpacked_rotation(quat: list[float]) -> list[float]:
    """One quaternion through an octahedron's 8 + 8 bits and an angle of 8."""
    w, x, y, z = (v / math.hypot(*quat) * (-1 if quat[0] < 0 else 1) for v in quat)
    angle = round(2 * math.acos(min(1.0, w)) * 255 / math.pi) / 255 * math.pi
    total = abs(x) + abs(y) + abs(z)
    u, v = x / total, y / total
    if z < 0:
        u, v = (1 - abs(v)) * (1 if u >= 0 else -1), (1 - abs(u)) * (1 if v >= 0 else -1)
    u, v = (math.floor((c * 0.5 + 0.5) * 255 + 0.5) / 255 * 2 - 1 for c in (u, v))
    z = 1 - abs(u) - abs(v)
    inwards = max(-z, 0.0)
    u, v = (c - inwards if c >= 0 else c + inwards for c in (u, v))
    share = math.sin(angle / 2) / math.hypot(u, v, z)
    return [math.cos(angle / 2), u * share, v * share, z * share]


def screen_covariance(splats: Splats, local: Tensor, rotation: Tensor, K: Tensor) -> Tensor:
    """[N, 2, 2] linearised at the centre wherever that is."""
    w, x, y, z = torch.nn.functional.normalize(splats.quats.double(), dim=1).unbind(1)
    zero = torch.zeros_like(w)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    axes = torch.eye(3, dtype=torch.float64) + 2 * w[:, None, None] * cross + 2 * cross @ cross
    x, y, z = local.unbind(1)
    fx, fy, zero = K[0, 0] / z, K[1, 1] / z, torch.zeros_like(z)
    jacobian = torch.stack([fx, zero, -fx * x / z, zero, fy, -fy * y / z], 1).view(-1, 2, 3)
    factor = jacobian @ rotation @ axes @ torch.diag_embed(splats.scales.double())
    return factor @ factor.mT


def with_radius_within(covariance: Tensor, most: float, drawn: Tensor) -> Tensor:
    """PlayCanvas's largest radius, sqrt(8) deviations."""
    found = []
    for matrix, seen in zip(covariance, drawn, strict=True):
        if seen and torch.linalg.eigvalsh(matrix)[1] > most**2 / 8:
            variances, axes = torch.linalg.eigh(matrix.detach())
            matrix = axes @ torch.diag(variances.clamp_max(most**2 / 8)) @ axes.T
        found.append(matrix)
    return torch.stack(found)


def painted_by_playcanvas(splats: Splats, camera: Cameras, by_distance: bool) -> list[int]:
    """In the order of its counting sort: buckets of depth between 32 bins, most of them near the camera.

    superspl.at has it sort by distance instead.
    """
    means = splats.means.double().numpy()
    memory = sorted(range(len(means)), key=lambda i: (z_order(means, i), i))
    reach = 2 * splats.scales.double().amax(1).numpy()[:, None]
    low, high = (means - reach).min(0), (means + reach).max(0)
    eye = camera.positions[0].double().numpy()
    back, offset = -camera.viewmats[0, 2, :3].double().numpy(), -float(camera.viewmats[0, 2, 3])
    ends = [sorted((low[axis] * back[axis], high[axis] * back[axis])) for axis in range(3)]
    corners = [sum(end[side] for end in ends) + offset for side in (0, 1)]
    least, extent = min(corners), max(corners) - min(corners)
    heights = means @ back + offset - least
    if by_distance:
        corners = [math.dist(eye, corner) for corner in itertools.product(*zip(low, high, strict=True))]
        extent = max(corners)
        heights = extent - np.linalg.norm(means - eye, axis=1)
    buckets = 2 ** max(10, min(20, round(math.log2(len(means) / 4)))) + 1
    here = 31 if by_distance else max(0, min(31, math.floor(-least / extent * 32)))
    near = [40, 20, 20, 8, 8, 8, 3, 3, 3, 3, 3] + [1] * 21
    weights = [near[abs(i - here)] for i in range(32)]
    widths = [max(1, math.floor(w / sum(weights) * buckets)) for w in weights]
    filled: dict[int, list[int]] = {}
    for i in memory:
        at = heights[i] * 32 / extent
        n = min(31, int(at))
        filled.setdefault(math.floor(sum(widths[:n]) + widths[n] * (at - n)), []).append(i)
    return [i for key in sorted(filled) for i in reversed(filled[key])]


def z_order(means: np.ndarray, i: int) -> int:
    """Bits of x, y and z interleaved, x the lowest."""
    low, high = means.min(0), means.max(0)
    cells = np.minimum(1023, ((means[i] - low) * (1024 / (high - low))).astype(int))
    return sum((int(cells[axis]) >> bit & 1) << (3 * bit + axis) for bit in range(10) for axis in range(3))
