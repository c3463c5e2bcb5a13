"""Drawing a scene whose Gaussians are shared out over processes (Zhao et al. 2024, "On Scaling Up 3D Gaussian
Splatting Training").

Each process projects its own Gaussians onto the image planes of all processes' cameras, one all-to-all hands
each process what its own cameras see, and each blends its own images. Going backward, the all-to-all returns
the gradients, so each Gaussian's owner gets the sum over all cameras without another word.

gsplat has a mode of its own for this, which is not used: unpacked, it sends every Gaussian to every camera,
seen or not; it asks for as many cameras in every process, all of one size, where validation has views left
over; and it runs on CUDA alone, so nothing of it could be tested with processes on a CPU. Both backends'
kernels are used here, through one way of exchanging.

Gaussians of exactly equal depth are blended in the order of their processes, then of their places there.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.processes import Shards, exchange, gather_rows
from flexgs_lightning.rendering import rasterizer
from flexgs_lightning.rendering.shading import Shader
from flexgs_lightning.rendering.types import IMAGE, Drawn, Outputs, Picture, Projection, Renderer, Rendering
from flexgs_lightning.splats import Splats


def renderer_of(shards: Shards) -> Renderer:
    """What draws Gaussians that are shared out like this."""
    return rasterize if shards.several else rasterizer.rasterize


def rasterize(
    splats: Drawn,
    cameras: Cameras,
    *,
    background: Float[Tensor, " D"] | Float[Tensor, "C D"] | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    outputs: Outputs = IMAGE,
    shader: Shader | None = None,
) -> Rendering:
    """See ``rasterizer.rasterize``; for all processes together.

    All must call it, each with its own Gaussians and cameras (or none) and with the same options, and go
    backward through it together. A list of Gaussians is one for each camera of all processes, by rank.
    """
    shader = rasterizer.shader_of(splats, shader)
    views = _of_all_processes(cameras)
    projection = _project(splats, views, sh_degree, antialiased, shader)
    delivery = _deliver(projection, [len(batch) for batch in views], len(cameras))
    picture = rasterizer.blend(delivery.projection, cameras, background, outputs, shader)
    picture = _returned(picture, delivery, projection.means2d.shape[:2])
    return Rendering(picture, projection, cameras.width, cameras.height)


def _of_all_processes(cameras: Cameras) -> list[Cameras]:
    """Every process's cameras, by rank; sizes may differ, near planes not, and a process may have none."""
    size = cameras.Ks.new_tensor([cameras.width, cameras.height]).expand(len(cameras), 2)
    packed = torch.cat([cameras.viewmats.flatten(1), cameras.Ks.flatten(1), size], dim=1)
    return [
        Cameras(
            rows[:, :16].reshape(-1, 4, 4),
            rows[:, 16:25].reshape(-1, 3, 3),
            *((int(number) for number in rows[0, 25:].tolist()) if len(rows) else (1, 1)),
            near_plane=cameras.near_plane,
        )
        for rows in gather_rows(packed)
    ]


def _project(
    splats: Drawn,
    views: list[Cameras],
    sh_degree: int | None,
    antialiased: bool,
    shader: Shader | None,
) -> Projection:
    """This process's Gaussians on the image planes of all cameras: at once if these have one size."""
    batches = [batch for batch in views if len(batch)]
    if len({(batch.width, batch.height) for batch in batches}) == 1:
        batches = [Cameras.stack(batches)]
    ends = itertools.accumulate(len(batch) for batch in batches)
    seen = [
        splats if isinstance(splats, Splats) else splats[end - len(batch) : end]
        for batch, end in zip(batches, ends, strict=True)
    ]
    parts = [
        rasterizer.project(own, batch, sh_degree, antialiased, shader)
        for own, batch in zip(seen, batches, strict=True)
    ]
    return parts[0] if len(parts) == 1 else Projection(*map(torch.cat, zip(*parts, strict=True)))


class _Delivery(NamedTuple):
    """What went where.

    Attributes:
        projection: what came: the K Gaussians of all processes that this process's C cameras see.
        chosen: for each process the indices of this one's Gaussians that went there.
        cameras: for each process its number of cameras.
        counts: for each process how many Gaussians came from it.
    """

    projection: Projection
    chosen: list[Int[Tensor, " U"]]
    cameras: list[int]
    counts: list[int]


def _deliver(projection: Projection, cameras: list[int], own: int) -> _Delivery:
    """Send to each process the Gaussians that any of its cameras sees."""
    means2d, features, extents, radii = projection
    columns = torch.cat([means2d, features, extents], dim=-1)
    numbers = columns.shape[-1]
    visible = (radii > 0).all(dim=-1).split(cameras)
    chosen = [seen.any(dim=0).nonzero().squeeze(-1) for seen in visible]
    parcels = [
        block.index_select(1, indices).flatten()
        for block, indices in zip(columns.split(cameras), chosen, strict=True)
    ]
    came, sizes = exchange(torch.cat(parcels), [len(parcel) for parcel in parcels])
    counts = [size // max(own * numbers, 1) for size in sizes]
    blocks = [
        parcel.view(own, count, numbers) for parcel, count in zip(came.split(sizes), counts, strict=True)
    ]
    means2d, features, extents = torch.cat(blocks, dim=1).split((2, numbers - 4, 2), dim=-1)
    extents = extents.detach()
    arrived = Projection(means2d, features, extents, extents.ceil().int())
    return _Delivery(arrived, chosen, cameras, counts)


def _returned(picture: Picture, delivery: _Delivery, shape: torch.Size) -> Picture:
    """The same picture, with what it tells of Gaussians handed back to their owners."""
    weights, hits, absgrad = picture.weights, picture.hits, picture.absgrad
    found = [tensor.float() for tensor in (weights, hits) if tensor is not None]
    if found:
        weights_and_hits = _return(torch.stack(found, dim=-1), delivery, shape)
        weights = None if weights is None else weights_and_hits[..., 0]
        hits = None if hits is None else weights_and_hits[..., -1].int()
    together = None if absgrad is None else lambda: _return(absgrad(), delivery, shape)
    return picture._replace(weights=weights, hits=hits, absgrad=together)


def _return(
    numbers: Float[Tensor, "C K R"], delivery: _Delivery, shape: torch.Size
) -> Float[Tensor, "V N R"]:
    """Hand back to the Gaussians' owners what this process's cameras found; V cameras of all processes."""
    own, _, each = numbers.shape
    parcels = [part.flatten() for part in numbers.split(delivery.counts, dim=1)]
    sizes = [
        each * cameras * len(chosen)
        for cameras, chosen in zip(delivery.cameras, delivery.chosen, strict=True)
    ]
    came, _ = exchange(torch.cat(parcels), [each * own * count for count in delivery.counts], sizes)
    whole = numbers.new_zeros(*shape, each)
    for block, parcel, indices in zip(
        whole.split(delivery.cameras), came.split(sizes), delivery.chosen, strict=True
    ):
        block[:, indices] = parcel.view(len(block), len(indices), each)
    return whole
