"""Baking: spherical harmonics fitted to what a network makes of features, for all that knows only these."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from gsplat.cuda._torch_impl import _eval_sh_bases_fast
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.model.part import Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import MAX_SH_DEGREE, NONE, Splats

DIRECTIONS = 64
"""Directions in which a Gaussian's colour is fitted, spread evenly over the sphere."""
ROWS = 65_536
"""Gaussians that are shaded at a time."""
logger = logging.getLogger(__name__)

Shade = Callable[[Float[Tensor, "... F"], Float[Tensor, "... 3"]], Float[Tensor, "... 3"]]


@torch.no_grad()
def baked(splats: Splats, shade: Shade, degree: int = MAX_SH_DEGREE) -> tuple[Splats, float]:
    """Splats with spherical harmonics in place of features, by least squares over all directions.

    Each Gaussian is shaded by itself, before blending instead of after it: where Gaussians of different
    features lie over each other, and where the network bends, the image differs.

    Args:
        splats: with features.
        shade: colours of features along rays.
        degree: of the harmonics.

    Returns:
        The splats, and the root mean square difference of colours, in [0, 1], over Gaussians and directions;
        Gaussians count by their opacity.
    """
    rays = sphere(DIRECTIONS).to(splats.device)
    basis = _eval_sh_bases_fast((degree + 1) ** 2, rays)
    solve = torch.linalg.pinv(basis)
    parts, squares = [], 0.0
    for features, opacities in zip(splats.features.split(ROWS), splats.opacities.split(ROWS), strict=True):
        pairs = (len(features), len(rays))
        colors = shade(features[:, None].expand(*pairs, -1), rays.expand(*pairs, -1))
        sh = torch.einsum("kd,ndc->nkc", solve, colors - 0.5)
        error = (torch.einsum("dk,nkc->ndc", basis, sh) + 0.5).clamp_min(0) - colors
        squares += float((error.square().mean(dim=(1, 2)) * opacities).sum())
        parts.append(sh)
    loss = math.sqrt(squares / max(float(splats.opacities.sum()), 1e-12))
    logger.info("Features are baked to harmonics of degree %d: colours differ by %.4f (rms).", degree, loss)
    return replace(splats, features=NONE, sh=torch.cat(parts)), loss


@torch.no_grad()
def with_harmonics(scene: Scene) -> Scene:
    """The same scene with harmonics of degree 3 in place of features, for all times: see ``baked``.

    Colours are those at each Gaussian's own time, where features of time weigh nothing; what these add before
    and after is lost. Base colours stay what small prefixes displace.
    """
    appearance = scene.appearance
    if appearance is None:
        return scene
    parameters = dict(scene.gaussians.params.items())
    features = appearance.at_own_time(parameters)
    splats = replace(scene.gaussians.splats().detach(), sh=NONE, features=features)
    sh = baked(splats, appearance.shade)[0].sh
    parts = {name: part for name, part in scene.parts.items() if part is not appearance}
    return Scene(
        scene.gaussians.like({"sh": sh}),
        selection=scene.selection,
        parts=cast(dict[str, Part], parts),
        elastic=scene.elastic,
    ).train(scene.training)


def sphere(count: int) -> Float[Tensor, "D 3"]:
    """Unit vectors spread evenly (Fibonacci's lattice)."""
    places = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * places / count
    angles = math.pi * (1 + math.sqrt(5)) * places
    across = (1 - z.square()).sqrt()
    return torch.stack([across * angles.cos(), across * angles.sin(), z], dim=-1).float()
