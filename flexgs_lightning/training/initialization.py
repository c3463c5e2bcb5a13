"""Where a scene starts: from SfM points, at random, or from a trained scene."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
from dataclasses import dataclass

import torch

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.splats import Splats


@dataclass(frozen=True)
class Initialization:
    """What a new scene starts from.

    Args:
        opacity: opacity of every Gaussian.
        random_gaussians: number of Gaussians if the capture has no SfM points.
    """

    opacity: float = 0.1
    random_gaussians: int = 100_000


def initial_gaussians(
    capture: Capture, options: Initialization, sh_degree: int, start: Splats | None
) -> Gaussians:
    """Gaussians to begin training with; random ones come from torch's global generator.

    Args:
        capture: its SfM points are used if it has any.
        options: for a new scene.
        sh_degree: degree of the spherical harmonics; that of ``start`` if it is higher.
        start: a trained scene to go on from, instead of a new one.
    """
    if start is not None:
        return Gaussians.from_splats(start.with_sh_degree(max(sh_degree, start.sh_degree)))
    points = capture.points
    if len(points):
        return Gaussians.from_points(
            points.positions, points.colors, sh_degree=sh_degree, opacity=options.opacity
        )
    return Gaussians.random(
        torch.cat([view.camera.positions for view in capture.views]),
        capture.extent,
        count=options.random_gaussians,
        sh_degree=sh_degree,
        opacity=options.opacity,
    )
