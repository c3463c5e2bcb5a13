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

from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.processes import Shards, exchange, gather_rows
from flexgs_lightning.rendering.rasterizer import OPACITY, Picture, Projection, Rendering
from flexgs_lightning.splats import Splats

NUMBERS = 12
"""What a camera gets of a Gaussian: centre (2), features (8), extents (2)."""


def rasterize(
    splats: Splats,
    cameras: Cameras,
    background: Float[Tensor, "C 3"],
    sh_degree: int,
    antialiased: bool,
    with_importance: bool,
    shards: Shards,
) -> Rendering:
    """See ``rasterizer.rasterize``; for all processes together, each with its own arguments."""
    backend = _backend(splats)
    views = _of_all_processes(cameras)
    projection = _project(backend, splats, views, sh_degree, antialiased)
    opacities = projection.features[..., OPACITY]
    delivery = _deliver(projection, opacities, [len(batch) for batch in views], len(cameras))
    picture: Picture = backend.blend(
        delivery.projection, cameras.width, cameras.height, background, with_importance
    )
    if picture.importance is not None:
        returned = _return(picture.importance, delivery, projection.means2d.shape[:2])
        picture = picture._replace(importance=returned)
    return Rendering.of(projection, picture, cameras, opacities)


def _backend(splats: Splats) -> ModuleType:
    if splats.device.type == "cuda":
        from flexgs_lightning.rendering import gsplat_backend

        gsplat_backend.require_kernels()
        return gsplat_backend
    from flexgs_lightning.rendering import cpu_backend

    return cpu_backend


def _of_all_processes(cameras: Cameras) -> list[Cameras]:
    """Every process's cameras, by rank; sizes may differ, and a process may have none."""
    size = cameras.Ks.new_tensor([cameras.width, cameras.height]).expand(len(cameras), 2)
    packed = torch.cat([cameras.viewmats.flatten(1), cameras.Ks.flatten(1), size], dim=1)
    return [
        Cameras(
            rows[:, :16].reshape(-1, 4, 4),
            rows[:, 16:25].reshape(-1, 3, 3),
            *((int(number) for number in rows[0, 25:].tolist()) if len(rows) else (1, 1)),
        )
        for rows in gather_rows(packed)
    ]


def _project(
    backend: ModuleType, splats: Splats, views: list[Cameras], sh_degree: int, antialiased: bool
) -> Projection:
    """This process's Gaussians on the image planes of all cameras: at once if these have one size."""
    batches = [batch for batch in views if len(batch)]
    if len({(batch.width, batch.height) for batch in batches}) == 1:
        batches = [Cameras.stack(batches)]
    parts = [backend.project(splats, batch, sh_degree, antialiased) for batch in batches]
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


def _deliver(
    projection: Projection, opacities: Float[Tensor, "C N"], cameras: list[int], own: int
) -> _Delivery:
    """Send to each process the Gaussians that any of its cameras sees."""
    means2d, features, extents, radii = projection
    shape, rest = features[..., :OPACITY], features[..., OPACITY + 1 :]
    columns = torch.cat([means2d, shape, opacities.unsqueeze(-1), rest, extents], dim=-1)
    visible = (radii > 0).all(dim=-1).split(cameras)
    chosen = [seen.any(dim=0).nonzero().squeeze(-1) for seen in visible]
    parcels = [
        block.index_select(1, indices).flatten()
        for block, indices in zip(columns.split(cameras), chosen, strict=True)
    ]
    came, sizes = exchange(torch.cat(parcels), [len(parcel) for parcel in parcels])
    counts = [size // max(own * NUMBERS, 1) for size in sizes]
    blocks = [
        parcel.view(own, count, NUMBERS) for parcel, count in zip(came.split(sizes), counts, strict=True)
    ]
    means2d, features, extents = torch.cat(blocks, dim=1).split((2, NUMBERS - 4, 2), dim=-1)
    extents = extents.detach()
    arrived = Projection(means2d, features, extents, extents.ceil().int())
    return _Delivery(arrived, chosen, cameras, counts)


def _return(
    importance: Float[Tensor, "C K 2"], delivery: _Delivery, shape: torch.Size
) -> Float[Tensor, "V N 2"]:
    """Hand weights and hits back to the Gaussians' owners; V cameras of all processes."""
    own = len(importance)
    parcels = [part.flatten() for part in importance.split(delivery.counts, dim=1)]
    sizes = [
        2 * cameras * len(chosen) for cameras, chosen in zip(delivery.cameras, delivery.chosen, strict=True)
    ]
    came, _ = exchange(torch.cat(parcels), [2 * own * count for count in delivery.counts], sizes)
    whole = importance.new_zeros(*shape, 2)
    for block, parcel, indices in zip(
        whole.split(delivery.cameras), came.split(sizes), delivery.chosen, strict=True
    ):
        block[:, indices] = parcel.view(len(block), len(indices), 2)
    return whole
