"""Emulations of other people's viewers on the CPU, differentiable, to fit files to.

Written from what the viewers' published shaders and sort workers do as they come (Spark 2.2, PlayCanvas
2.23, and superspl.at's viewer 1.36, which is made of the latter's engine). What they round is rounded here
with the gradient of what was not (straight-through).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.codec.chunks import morton_codes
from flexgs_lightning.rendering import cpu_backend
from flexgs_lightning.rendering.types import CHANNELS, DEPTH, IMAGE, SHAPE, Falloff, Footprint, Projection
from flexgs_lightning.splats import SH_C0, Splats

BLACK = torch.zeros(3)
_CUT = math.exp(-4)
"""Value of the Gaussian at sqrt(8) deviations, where both viewers stop drawing it."""
SPARK = Footprint(margin=math.inf)
PLAYCANVAS = Footprint(low_pass=0.075, margin=math.inf)


class Emulation(Protocol):
    """Draws a file as a viewer does."""

    def __call__(
        self, splats: Splats, camera: Cameras, background: Float[Tensor, " 3"] = BLACK
    ) -> Float[Tensor, "H W 3"]:
        """The picture of one camera, not clamped above 1; differentiable in all fields of ``splats``."""
        ...


def spark(splats: Splats, camera: Cameras, background: Float[Tensor, " 3"] = BLACK) -> Float[Tensor, "H W 3"]:
    """Spark: 16 bytes a Gaussian, compensated low-pass filter, sorted by distance."""
    stored = _packed(splats)
    position = camera.positions[0]
    seen = replace(stored, means=position + _rounded(stored.means - position, _to_half))
    seen = replace(seen, opacities=2 * _steps(seen.opacities / 2, 255))
    projection = cpu_backend.project(seen, camera, seen.sh_degree, True, SPARK)
    projection = projection._replace(extents=_not_far_outside(projection, camera))
    colours = _steps(projection.features[..., CHANNELS].clamp(0, 1), 255)
    distances = (seen.means - position).detach().norm(dim=1)
    return _blended(projection, camera, background, distances, colours, Falloff.of(0.0, _CUT))


def playcanvas(
    splats: Splats, camera: Cameras, background: Float[Tensor, " 3"] = BLACK
) -> Float[Tensor, "H W 3"]:
    """PlayCanvas: a smaller low-pass filter, a falloff that reaches 0, sorted by depth into buckets."""
    return _by_its_engine(splats, camera, background, _by_depth)


def supersplat(
    splats: Splats, camera: Cameras, background: Float[Tensor, " 3"] = BLACK
) -> Float[Tensor, "H W 3"]:
    """superspl.at: as PlayCanvas, but sorted by distance."""
    return _by_its_engine(splats, camera, background, _by_distance)


def _by_its_engine(
    splats: Splats, camera: Cameras, background: Float[Tensor, " 3"], nearness_of: _Nearness
) -> Float[Tensor, "H W 3"]:
    projection = cpu_backend.project(splats, camera, splats.sh_degree, False, PLAYCANVAS)
    projection = _sized(projection, camera)
    places = _places(splats.detach(), camera, nearness_of)
    colours = projection.features[..., CHANNELS]
    return _blended(projection, camera, background, places, colours, Falloff.of(_CUT, _CUT))


def _blended(
    projection: Projection,
    camera: Cameras,
    background: Float[Tensor, " 3"],
    depths: Float[Tensor, " N"],
    colours: Float[Tensor, "1 N 3"],
    falloff: Falloff,
) -> Float[Tensor, "H W 3"]:
    """The picture of Gaussians in the order of ``depths``, which are positive."""
    before = projection.features[..., :DEPTH]
    features = torch.cat([before, depths[None, :, None], colours], dim=-1)
    projection, size = projection._replace(features=features), (camera.width, camera.height)
    return cpu_backend.blend(projection, *size, background[None], IMAGE, falloff).image[0]


def _not_far_outside(projection: Projection, camera: Cameras) -> Float[Tensor, "1 N 2"]:
    """Extents, 0 where the centre lies 1.4 times as far out as the image's border: Spark drops those."""
    half = torch.tensor([camera.width / 2, camera.height / 2])
    inside = ((projection.means2d.detach() - half).abs() <= 1.4 * half).all(dim=-1, keepdim=True)
    return torch.where(inside, projection.extents, 0.0)


def _sized(projection: Projection, camera: Cameras) -> Projection:
    """PlayCanvas draws no radius, sqrt(8) deviations, below a pixel or beyond the image's smaller side."""
    least, most = 1 / 8, min(camera.width, camera.height, 1024) ** 2 / 8
    h, k, g = projection.features[0, :, SHAPE].detach().double().unbind(1)
    yy = 0.5 / g
    xx, xy = 0.5 / h + k.square() * yy, -k * yy
    variance = (xx + yy) / 2 + ((xx - yy).square() / 4 + xy.square()).sqrt()  # the larger one
    extents = torch.where((variance < least)[:, None], 0.0, projection.extents)
    rows = ((variance > most) & (projection.radii[0, :, 0] > 0)).nonzero().squeeze(1)
    variances, axes = torch.linalg.eigh(torch.stack([xx, xy, xy, yy], 1)[rows].view(-1, 2, 2))
    (xx, _), (xy, yy) = ((axes * variances.clamp_max(most)[:, None]) @ axes.mT).permute(1, 2, 0)
    features = projection.features.clone()
    features[0, rows, SHAPE] = torch.stack(
        [0.5 * yy / (xx * yy - xy.square()), -xy / yy, 0.5 / yy], 1
    ).float()
    reach = math.sqrt(8) * torch.stack([xx, yy], 1).sqrt().float()
    extents[0, rows] = torch.minimum(extents[0, rows], reach)
    return projection._replace(features=features, extents=extents)


def _packed(splats: Splats) -> Splats:
    """What Spark keeps: half floats, scales in 254 steps of their logarithm, the rest in 6 to 8 bits."""
    constant = _steps((splats.sh[:, :1] * SH_C0 + 0.5).clamp(0, 1), 255)
    parts = [(constant - 0.5) / SH_C0]
    for band, steps in ((slice(1, 4), 63), (slice(4, 9), 127), (slice(9, 16), 31)):
        parts.append(_steps(splats.sh[:, band].clamp(-1, 1), steps))
    logs = splats.scales.log().clamp(-12.0, 9.0)
    return replace(
        splats,
        means=_rounded(splats.means, _to_half),
        quats=_rounded(functional.normalize(splats.quats, dim=1), _axis_and_angle),
        scales=(_steps((logs + 12) / 21, 254) * 21 - 12).exp(),
        opacities=_steps(splats.opacities, 255),
        sh=torch.cat(parts, dim=1),
    )


def _rounded(values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """``rounding(values)`` with the gradient of ``values``."""
    return values + (rounding(values.detach()) - values.detach())


def _steps(values: Tensor, count: int) -> Tensor:
    """Rounded to multiples of 1 / count."""
    return _rounded(values, lambda v: (v * count).round() / count)


def _to_half(values: Tensor) -> Tensor:
    return values.half().float()


def _axis_and_angle(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Unit quaternions with an octahedral axis of 8 + 8 bits and an angle of 8, nearest to the given ones."""
    sign = torch.where(quats[:, :1] < 0, -1.0, 1.0)
    w, axis = (quats * sign).split([1, 3], dim=1)
    angle = ((2 * torch.acos(w.clamp(-1, 1)) / math.pi * 255).round() / 255) * math.pi
    folded = _fold(functional.normalize(axis, dim=1, eps=1e-6))
    axis = _unfold(((folded * 0.5 + 0.5) * 255).round() / 255 * 2 - 1)
    return sign * torch.cat([torch.cos(angle / 2), axis * torch.sin(angle / 2)], dim=1)


def _fold(axis: Float[Tensor, "N 3"]) -> Float[Tensor, "N 2"]:
    """Unit vectors on the octahedron's square."""
    upper = axis[:, :2] / axis.abs().sum(dim=1, keepdim=True).clamp_min(1e-12)
    lower = (1 - upper.flip(1).abs()) * torch.where(upper >= 0, 1.0, -1.0)
    return torch.where(axis[:, 2:] < 0, lower, upper)


def _unfold(folded: Float[Tensor, "N 2"]) -> Float[Tensor, "N 3"]:
    z = 1 - folded.abs().sum(dim=1, keepdim=True)
    inwards = (-z).clamp_min(0)
    sides = folded - torch.where(folded >= 0, inwards, -inwards)
    return functional.normalize(torch.cat([sides, z], dim=1), dim=1)


_BINS = 32
"""Stretches of depth, between which PlayCanvas shares out its buckets."""
_SHARES = ((0, 40), (2, 20), (5, 8), (10, 3), (_BINS, 1))
"""Buckets of a stretch by how many stretches it is away from the camera, at most."""
_MORTON_BITS = 10
"""An axis."""
_Nearness = Callable[[Tensor, Tensor, Tensor, Cameras], tuple[Tensor, float]]
"""Where N centres and the camera lie between the box's furthest place, 0, and its nearest, 1.

Takes the centres [N, 3], the lowest and the highest corner of the box around all Gaussians, and the camera.
"""


def _places(splats: Splats, camera: Cameras, nearness_of: _Nearness) -> Float[Tensor, " N"]:
    """Front to back, from 1 on, in PlayCanvas's order: by buckets of depth, and by Morton code in each.

    There are about a quarter as many buckets as Gaussians, over the depth of the box around all of them, so
    that a small file, or one with Gaussians far away, is sorted coarsely.
    """
    means, reach = splats.means.double(), 2 * splats.scales.double().amax(dim=1, keepdim=True)
    nearness, own = nearness_of(means, (means - reach).amin(dim=0), (means + reach).amax(dim=0), camera)
    bits = max(10, min(20, round(math.log2(max(len(splats), 1) / 4))))
    here = max(0, min(_BINS - 1, math.floor(own * _BINS)))
    shares = [next(share for away, share in _SHARES if abs(i - here) <= away) for i in range(_BINS)]
    buckets = torch.tensor([max(1.0, share * (2**bits + 1) // sum(shares)) for share in shares])
    begins = buckets.cumsum(0) - buckets
    at = nearness * _BINS
    bins = at.long().clamp(0, _BINS - 1)
    bucket = (begins[bins] + buckets[bins] * (at - bins)).long()  # from the furthest on
    ranking = torch.argsort(_morton_codes(means) - (bucket << 3 * _MORTON_BITS), stable=True)
    places = torch.empty(len(splats))
    places[ranking] = torch.arange(1.0, len(splats) + 1)
    return places


def _by_depth(
    means: Float[Tensor, "N 3"], low: Float[Tensor, " 3"], high: Float[Tensor, " 3"], camera: Cameras
) -> tuple[Float[Tensor, " N"], float]:
    """By depth along the camera's axis."""
    axis, offset = camera.viewmats[0, 2, :3].double(), camera.viewmats[0, 2, 3].double()
    nearest = (torch.where(axis > 0, low, high) * axis).sum() + offset
    furthest = (torch.where(axis > 0, high, low) * axis).sum() + offset
    depth = float(furthest - nearest)
    return (furthest - offset - means @ axis) / depth, float(furthest) / depth


def _by_distance(
    means: Float[Tensor, "N 3"], low: Float[Tensor, " 3"], high: Float[Tensor, " 3"], camera: Cameras
) -> tuple[Float[Tensor, " N"], float]:
    """By distance; the camera itself is nearest, wherever the box lies."""
    position = camera.positions[0].double()
    furthest = torch.maximum((low - position).abs(), (high - position).abs()).norm()
    return 1 - (means - position).norm(dim=1) / furthest, 1.0


def _morton_codes(means: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """Along the Z-curve, x the lowest bit, on which PlayCanvas puts Gaussians into memory."""
    low, high = means.amin(dim=0), means.amax(dim=0)
    cells = (means - low) * (2**_MORTON_BITS / (high - low).clamp_min(1e-30))
    flipped = cells.long().clamp(0, 2**_MORTON_BITS - 1).flip(1)
    return torch.from_numpy(morton_codes(flipped.numpy(), _MORTON_BITS))
