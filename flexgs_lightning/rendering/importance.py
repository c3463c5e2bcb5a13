"""How much each Gaussian matters to a set of views: removal, blending weights, hits and Global Importance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.shading import Shader
from flexgs_lightning.rendering.types import OPACITY, Drawn, Outputs, Renderer, Rendering
from flexgs_lightning.splats import Splats

VolumeFactor = Literal["clamped", "power", "none"]


@torch.no_grad()
def blending_importance(
    splats: Drawn, views: Iterable[Cameras], *, antialiased: bool = False, renderer: Renderer = rasterize
) -> Float[Tensor, " N"]:
    """What each Gaussian contributes to ``views``, in one render of each batch of cameras.

    Colour plays no part. With several processes, share the views out and add up the results. If they hold
    the Gaussians together, the result is that of all their views already; their numbers of batches must then
    be equal, batches may be empty.

    Args:
        splats: N Gaussians, or as many for each camera of each batch.
        views: batches of cameras, moved to the device of ``splats`` one at a time; sizes may differ.
        antialiased: as the scene is rendered.
        renderer: draws the views; of several processes' Gaussians, ``sharded.rasterize``.

    Returns:
        [N] float64 sum of alpha_i T_i over all pixels of all views.
    """
    one = _one(splats)
    total = torch.zeros(len(one), dtype=torch.float64, device=one.device)
    for drawn in _drawn(splats, views, antialiased, renderer, Outputs(weights=True)):
        total += drawn.weights.sum(dim=0, dtype=torch.float64)
    return total


@torch.no_grad()
def hit_counts(
    splats: Splats, views: Iterable[Cameras], *, antialiased: bool = False, renderer: Renderer = rasterize
) -> Int[Tensor, " N"]:
    """[N] int64 number of all views' pixels to which a Gaussian contributes; as ``blending_importance``."""
    total = torch.zeros(len(splats), dtype=torch.int64, device=splats.device)
    for drawn in _drawn(splats, views, antialiased, renderer, Outputs(hits=True)):
        total += drawn.hits.sum(dim=0, dtype=torch.int64)
    return total


def _one(splats: Drawn) -> Splats:
    """The Gaussians as the first camera sees them."""
    return splats if isinstance(splats, Splats) else splats[0]


def _drawn(
    splats: Drawn, views: Iterable[Cameras], antialiased: bool, renderer: Renderer, outputs: Outputs
) -> Iterator[Rendering]:
    for cameras in views:
        degree = None if _one(splats).has_features else 0
        yield renderer(
            splats,
            cameras.to(_one(splats).device),
            sh_degree=degree,
            antialiased=antialiased,
            outputs=outputs,
        )


def global_importance(
    weights: Float[Tensor, " N"], scales: Float[Tensor, "N 3"], volume: VolumeFactor = "none"
) -> Float[Tensor, " N"]:
    """Global Importance GI_i = gamma(s_i) sum alpha_i T_i (Liu et al. 2025, Eqs. 8-10).

    With V the product of a Gaussian's scales and V90 the 90th percentile of all V, gamma is
    min(V / V90, 1) if "clamped" (the paper prints max, which would reward the largest tenth alone),
    (V / V90)^0.1 if "power" (Fan et al. 2024, LightGaussian), or 1 if "none".

    Args:
        weights: [N] blending weights, summed over views.
        scales: [N, 3] standard deviations, positive.
        volume: which gamma.

    Returns:
        [N] float64.

    Raises:
        InputError: unknown ``volume``.
    """
    if volume not in get_args(VolumeFactor):
        raise InputError(
            f"Volume factor of the importance: expected clamped, power or none, found '{volume}'."
        )
    weights = weights.double()
    if volume == "none" or len(weights) == 0:
        return weights
    logs = scales.double().log().sum(dim=-1)  # a product of three small scales can underflow
    percentile = max(1, round(0.9 * len(logs)))
    logs = logs - logs.kthvalue(percentile).values
    if volume == "clamped":
        return weights * logs.clamp(max=0.0).exp()
    return weights * (0.1 * logs).exp()


@torch.enable_grad()
def removal_importance(
    splats: Drawn,
    cameras: Cameras,
    *,
    probes: int = 1,
    generator: torch.Generator | None = None,
    background: Float[Tensor, " 3"] | None = None,
    antialiased: bool = False,
    renderer: Renderer = rasterize,
    shader: Shader | None = None,
) -> Float[Tensor, " N"]:
    """By how much the images change if one Gaussian is left out: the squared difference, summed over pixels.

    An image C is linear in the opacity o_i of each Gaussian, so leaving one out changes it by exactly
    -o_i dC/do_i (but for the rasterizer's thresholds), what it hides behind it included. The square of that
    difference's norm is the mean of (r . o_i dC/do_i)^2 over images r of random signs (Hutchinson 1990). One
    backward pass so measures all Gaussians at once, without bias; with n probes, over all views, the relative
    standard deviation is sqrt(2 / n).

    Args:
        splats: N Gaussians, or as many for each camera.
        cameras: a batch of views; sum the results over batches.
        probes: random images for the batch.
        generator: of the signs, on the device of ``splats``.
        background: colour behind the Gaussians; black if None.
        antialiased: as the scene is rendered.
        renderer: draws the views; of several processes' Gaussians, ``sharded.rasterize``.
        shader: makes colours of features; where it bends, differences are those of its slope.

    Returns:
        [N] float64, in units of squared colour in [0, 1] times pixels and channels.
    """
    rendering = renderer(
        _leaf(splats) if isinstance(splats, Splats) else [_leaf(own) for own in splats],
        cameras.to(_one(splats).device),
        background=background,
        antialiased=antialiased,
        shader=shader,
    )
    # As they are blended, one for each camera: the way back need not go further than that.
    image, features = rendering.image, rendering.projection.features
    opacities = features[..., OPACITY].detach()
    total = torch.zeros(opacities.shape, dtype=torch.float64, device=image.device)
    for probe in range(probes if image.requires_grad else 0):
        signs = torch.empty_like(image).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        (gradient,) = torch.autograd.grad(image, features, signs, retain_graph=probe + 1 < probes)
        total += (gradient[..., OPACITY] * opacities).double().square()
    return total.sum(dim=0) / probes


def _leaf(splats: Splats) -> Splats:
    """The same with opacities that gather a gradient, and nothing else that does."""
    still = splats.detach()
    return replace(still, opacities=still.opacities.clone().requires_grad_())
