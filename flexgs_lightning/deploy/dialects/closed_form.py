"""Each Gaussian by itself: the scales and opacity with which a viewer draws it most nearly as we do.

Our rasterizer, like gsplat, adds 0.3 square pixels to each projected covariance and draws exp(-sigma) of it.
Others add another amount, make up for it in the opacity, or draw another falloff. A file for such a viewer
has other scales and opacities: for each Gaussian those whose picture in that viewer is nearest (least squares
over pixels) to what it is here, as the capture's cameras see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.dialects.table import Dialect
from flexgs_lightning.rendering.types import EPS2D
from flexgs_lightning.splats import Splats

MAX_VIEWS = 16
"""Cameras, evenly chosen, that a file is adapted to."""
MORE_BLUR = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
"""Square pixels that a Gaussian may grow by where its opacity alone cannot make up for the filter."""
_NEAR = 0.01
_FULLY_OPAQUE = 0.9999


@torch.no_grad()
def adapted(splats: Splats, antialiased: bool, dialect: Dialect, cameras: Sequence[Cameras]) -> Splats:
    """Splats that look in a viewer as ``splats`` look here, at the cameras' size.

    Args:
        splats: on the CPU.
        antialiased: whether they are drawn here with compensated opacities.
        dialect: of the viewer.
        cameras: of the capture, one each; a Gaussian that none of them sees stays as it is.
    """
    if antialiased and dialect.compensated and dialect.low_pass == EPS2D:
        return splats  # the same filter
    chosen = _evenly(cameras, MAX_VIEWS)
    footprints = [_footprint(splats, camera) for camera in chosen]
    pixel = _typical_pixel(footprints)
    scales, opacities = splats.scales.clone(), splats.opacities.clone()
    least = torch.full_like(opacities, torch.inf)
    for blur in MORE_BLUR:
        grown = (EPS2D + blur) / dialect.width - dialect.low_pass
        squares = splats.scales.square() / dialect.width + grown * pixel.square()[:, None]
        candidate = replace(splats, scales=squares.sqrt())
        opacity, error = _nearest_opacity(splats, candidate, antialiased, dialect, chosen, footprints)
        better = (error < least) & (pixel > 0)
        least = torch.where(better, error, least)
        scales = torch.where(better[:, None], candidate.scales, scales)
        opacities = torch.where(better, opacity, opacities)
    return replace(splats, scales=scales, opacities=opacities)


class _Footprint(NamedTuple):
    """Gaussians in a picture: covariances [N, 2, 2] in square pixels, who is seen [N], pixel size [N]."""

    covariances: Float[Tensor, "N 2 2"]
    seen: Float[Tensor, " N"]
    pixel: Float[Tensor, " N"]


def typical_pixel(splats: Splats, cameras: Sequence[Cameras]) -> Float[Tensor, " N"]:
    """Width of a pixel in world units where each Gaussian is, for the cameras that see it; 0 if none does."""
    return _typical_pixel([_footprint(splats, camera) for camera in _evenly(cameras, MAX_VIEWS)])


def _evenly(cameras: Sequence[Cameras], most: int) -> list[Cameras]:
    last, count = len(cameras) - 1, min(len(cameras), most)
    return [cameras[i] for i in sorted({round(i * last / max(1, count - 1)) for i in range(count)})]


def _footprint(splats: Splats, camera: Cameras) -> _Footprint:
    """One camera's view, without any filter; ``pixel`` is a pixel's width in world units at each Gaussian."""
    view, K = camera.viewmats[0], camera.Ks[0]
    x, y, z = (splats.means @ view[:3, :3].T + view[:3, 3]).unbind(1)
    inside = camera.contain(splats.means)[0] & (z > _NEAR)
    z = z.clamp_min(_NEAR)
    fx, fy, zero = K[0, 0], K[1, 1], torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2], 1).view(-1, 2, 3)
    factor = jacobian @ view[:3, :3] @ (_rotations(splats.quats) * splats.scales[:, None])
    return _Footprint(factor @ factor.mT, inside.float(), 2 * z / (fx + fy))


def _rotations(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3 3"]:
    w, x, y, z = functional.normalize(quats, dim=1).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


def _typical_pixel(footprints: Sequence[_Footprint]) -> Float[Tensor, " N"]:
    """Median width of a pixel over the cameras that see a Gaussian; 0 where none does."""
    widths = torch.stack([torch.where(f.seen > 0, f.pixel, torch.nan) for f in footprints])
    return widths.nanmedian(dim=0).values.nan_to_num(0.0)


def _nearest_opacity(
    splats: Splats,
    candidate: Splats,
    antialiased: bool,
    dialect: Dialect,
    cameras: Sequence[Cameras],
    footprints: Sequence[_Footprint],
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Opacity of each candidate with which the viewer draws it nearest to ours, and the error that is left.

    Of Gaussians a G(A) and b G(B), the integral of the product is 2 pi a b sqrt(|A| |B| / |A + B|).
    """
    mixed, own, ours = torch.zeros(len(splats)), torch.zeros(len(splats)), torch.zeros(len(splats))
    for camera, footprint in zip(cameras, footprints, strict=True):
        here = _blurred(footprint.covariances, EPS2D)
        there = _blurred(_footprint(candidate, camera).covariances, dialect.low_pass)
        spread = _spread(_footprint(candidate, camera).covariances, there) if dialect.compensated else 1.0
        wanted = splats.opacities * (_spread(footprint.covariances, here) if antialiased else 1.0)
        drawn, shape = dialect.height * spread, dialect.width * there
        mixed += footprint.seen * wanted * drawn * _overlap(here, shape)
        own += footprint.seen * drawn**2 * _overlap(shape, shape)
        ours += footprint.seen * wanted**2 * _overlap(here, here)
    opacity = (mixed / own.clamp_min(1e-12)).clamp(0, _FULLY_OPAQUE)
    return opacity, ours - 2 * opacity * mixed + opacity.square() * own


def _blurred(covariances: Float[Tensor, "N 2 2"], amount: float) -> Float[Tensor, "N 2 2"]:
    return covariances + amount * torch.eye(2)


def _determinant(matrices: Float[Tensor, "N 2 2"]) -> Float[Tensor, " N"]:
    a, b, c, d = matrices.flatten(1).unbind(1)
    return (a * d - b * c).clamp_min(1e-12)


def _spread(plain: Float[Tensor, "N 2 2"], blurred: Float[Tensor, "N 2 2"]) -> Float[Tensor, " N"]:
    """What compensation multiplies opacity by."""
    return (_determinant(plain) / _determinant(blurred)).sqrt()


def _overlap(a: Float[Tensor, "N 2 2"], b: Float[Tensor, "N 2 2"]) -> Float[Tensor, " N"]:
    return (_determinant(a) * _determinant(b) / _determinant(a + b)).sqrt()
