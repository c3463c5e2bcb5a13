"""gsplat's kernels as small dense torch functions with the signatures of gsplat 1.5.3."""

import types
from collections.abc import Callable
from unittest import mock

import gsplat
import torch
from gsplat.cuda import _torch_impl

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.rendering import gsplat_backend, rasterizer
from flexgs_lightning.rendering.types import Rendering
from flexgs_lightning.splats import Splats


def project(means, covars, quats, scales, viewmats, Ks, width, height, **options):
    """gsplat.fully_fused_projection, with what its torch version lacks: opacity-aware radii."""
    assert covars is None
    assert not options["packed"]
    assert options["radius_clip"] == 0.0
    covariances, _ = _torch_impl._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    names = ("eps2d", "near_plane", "far_plane", "calc_compensations")
    radii, means2d, depths, conics, compensations = _torch_impl._fully_fused_projection(
        means, covariances, viewmats, Ks, width, height, **{name: options[name] for name in names}
    )
    opacities = options["opacities"].expand_as(depths)
    if compensations is not None:
        opacities = opacities * compensations
    extent = torch.sqrt(2 * torch.log((255 * opacities).clamp(min=1))).clamp(max=3.33)
    determinants = conics[..., 0] * conics[..., 2] - conics[..., 1] ** 2
    deviations = torch.sqrt(torch.stack([conics[..., 2], conics[..., 0]], -1) / determinants[..., None])
    tight = torch.ceil(extent[..., None] * deviations).int()
    outside = ((means2d + tight <= 0) | (means2d - tight >= torch.tensor([width, height]))).any(-1)
    culled = (radii == 0).any(-1) | (opacities < 1 / 255) | outside
    garbage = torch.full_like(means2d, float("nan"))  # gsplat leaves culled entries uninitialised
    means2d = torch.where(culled[..., None], garbage, means2d)
    return tight.masked_fill(culled[..., None], 0), means2d, depths, conics, compensations


def intersect(means2d, radii, depths, tile_size, tile_width, tile_height, **_):
    """gsplat.isect_tiles: intersections sorted by image, tile and depth; ids hold image and tile."""
    ids, flat = [], []
    for image in range(means2d.shape[0]):
        for tile in range(tile_width * tile_height):
            corner = torch.tensor([tile % tile_width, tile // tile_width]) * tile_size
            low, high = means2d[image] - radii[image], means2d[image] + radii[image]
            touches = ((low < corner + tile_size) & (high > corner)).all(-1) & (radii[image] > 0).all(-1)
            members = touches.nonzero().flatten()
            members = members[depths[image, members].argsort(stable=True)]
            ids += [image * tile_width * tile_height + tile] * len(members)
            flat += (image * means2d.shape[1] + members).tolist()
    return None, torch.tensor(ids, dtype=torch.int64), torch.tensor(flat, dtype=torch.int32)


def offsets(isect_ids, images, tile_width, tile_height):
    """gsplat.isect_offset_encode."""
    tiles = torch.arange(images * tile_width * tile_height)
    return torch.searchsorted(isect_ids, tiles).int().reshape(images, tile_height, tile_width)


def walk(means2d, conics, opacities, width, height, tile_size, isect_offsets, flatten_ids):
    """The rasterizer's loop: (image, pixels [P], Gaussian, contributing [P], alpha_i T_i [P]) in turn.

    ``means2d`` is [C, N, 2], or [C, N, H W, 2]: once for each pixel.
    """
    starts = torch.cat([isect_offsets.flatten(), torch.tensor([len(flatten_ids)])]).tolist()
    count, (_, tiles_y, tiles_x) = means2d.shape[1], isect_offsets.shape
    for tile in range(isect_offsets.numel()):
        image, y, x = tile // (tiles_y * tiles_x), tile // tiles_x % tiles_y, tile % tiles_x
        rows = torch.arange(y * tile_size, min((y + 1) * tile_size, height))
        columns = torch.arange(x * tile_size, min((x + 1) * tile_size, width))
        pixels = (rows[:, None] * width + columns).flatten()
        centres = torch.stack([pixels % width, pixels // width], -1) + 0.5
        transmittance, running = torch.ones(len(pixels)), torch.ones(len(pixels), dtype=torch.bool)
        for flat in flatten_ids[starts[tile] : starts[tile + 1]].tolist():
            g = flat % count
            centre = means2d[image, g]
            dx, dy = ((centre if centre.ndim == 1 else centre[pixels]) - centres).unbind(-1)
            a, b, c = conics[image, g]
            sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
            alpha = (opacities[image, g] * torch.exp(-sigma)).clamp(max=0.999)
            visible = (sigma >= 0) & (alpha >= 1 / 255)
            after = transmittance * (1 - alpha)
            running = running & ~(visible & (after <= 1e-4))
            contributes = visible & running
            yield image, pixels, g, contributes, torch.where(contributes, alpha * transmittance, 0)
            transmittance = torch.where(contributes, after, transmittance)


def draw(means2d, conics, colors, opacities, *tiles, backgrounds=None, absgrad=False):
    """gsplat.rasterize_to_pixels."""
    width, height, *_ = tiles
    given = means2d
    if absgrad and means2d.requires_grad:
        means2d = means2d[:, :, None].expand(-1, -1, width * height, -1).clone()
        means2d.register_hook(lambda gradient: setattr(given, "absgrad", gradient.abs().sum(dim=2)))
    image = torch.zeros(len(means2d), height * width, colors.shape[-1])
    alpha = torch.zeros(len(means2d), height * width, 1)
    for i, pixels, g, _, weight in walk(means2d, conics, opacities, *tiles):
        index = (torch.full_like(pixels, i), pixels)
        image = image.index_put(index, weight[:, None] * colors[i, g], accumulate=True)
        alpha = alpha.index_put(index, weight[:, None], accumulate=True)
    if backgrounds is not None:
        image = image + (1 - alpha) * backgrounds[:, None, :]
    return image.unflatten(1, (height, width)), alpha.unflatten(1, (height, width))


def list_indices(start, end, transmittances, means2d, conics, opacities, *rest):
    """gsplat.rasterize_to_indices_in_range."""
    assert start == 0
    assert end * 256 >= means2d.shape[1]
    assert end < 2**32  # the kernel takes an unsigned 32-bit number
    assert (transmittances == 1).all()
    found = [
        (g, pixel, image)
        for image, pixels, g, contributes, _ in walk(means2d, conics, opacities, *rest)
        for pixel in pixels[contributes].tolist()
    ]
    list_indices.largest = max(list_indices.largest, len(found))
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3).unbind(-1)


def install(replace: Callable[[types.ModuleType, str, object], None]) -> None:
    """Put the stand-ins in the places of gsplat's functions."""

    def harmonics(degree, dirs, coefficients, masks):
        return _torch_impl._spherical_harmonics(degree, dirs, coefficients[..., : (degree + 1) ** 2, :])

    list_indices.largest = 0
    stand_ins = {
        "fully_fused_projection": project,
        "spherical_harmonics": harmonics,
        "isect_tiles": intersect,
        "isect_offset_encode": offsets,
        "rasterize_to_pixels": draw,
    }
    for name, function in stand_ins.items():
        replace(gsplat, name, function)
    replace(gsplat, "rasterize_to_indices_in_range", list_indices)
    replace(gsplat_backend, "require_kernels", lambda: None)


def rasterize(splats: Splats, cameras: Cameras, **options) -> Rendering:
    """``rasterizer.rasterize`` as it draws CUDA tensors."""
    with mock.patch.object(rasterizer, "backend_of", return_value=gsplat_backend):
        return rasterizer.rasterize(splats, cameras, **options)
