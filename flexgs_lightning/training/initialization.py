"""Where a scene starts: from SfM points, at random, or from a trained scene."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import Cameras, focus_point
from flexgs_lightning.data.capture import Capture, Points, View
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.part import Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.processes import ALONE, Shards
from flexgs_lightning.training.densification.checks import MIN_GAUSSIANS

logger = logging.getLogger(__name__)

MOST_RANDOM = 100_000_000
"""Gaussians of a random start: more fit no memory."""
_OBJECT_REACH = 0.5
"""Half the side of an object's cube, relative to the cameras' distance."""


@dataclass(frozen=True)
class Initialization:
    """What a new scene starts from.

    Args:
        opacity: opacity of every Gaussian.
        random_gaussians: number of Gaussians if the capture has no SfM points.
        max_gaussians: begin with at most this many: of more SfM points, that many are drawn at random by the
            run's seed; null for all.

    Raises:
        InputError: a number of Gaussians that nothing can be made of, or an opacity outside (0, 1).
    """

    opacity: float = 0.1
    random_gaussians: int = 100_000
    max_gaussians: int | None = None

    def __post_init__(self) -> None:
        least = f"{MIN_GAUSSIANS} or more"
        if self.max_gaussians is not None and self.max_gaussians < MIN_GAUSSIANS:
            raise InputError(
                f"model.initialization.max_gaussians: expected null or {least}, found {self.max_gaussians}."
            )
        if not MIN_GAUSSIANS <= self.random_gaussians <= MOST_RANDOM:
            raise InputError(
                f"model.initialization.random_gaussians: expected {MIN_GAUSSIANS} to {MOST_RANDOM:,}, "
                f"found {self.random_gaussians}."
            )
        if not 0 < self.opacity < 1:
            raise InputError(
                f"model.initialization.opacity: expected a number in (0, 1), found {self.opacity}."
            )


def initial_scene(
    capture: Capture,
    options: Initialization,
    sh_degree: int,
    start: Scene | None,
    parts: Mapping[str, Part],
    shards: Shards = ALONE,
) -> Scene:
    """What training begins with; what is random of it comes from torch's global generator.

    If several processes hold the Gaussians, each must ask for the same, and gets its share.

    Args:
        capture: its SfM points are used if it has any.
        options: for a new scene.
        sh_degree: degree of the spherical harmonics; that of ``start`` if it is higher.
        start: a trained scene to go on from, instead of a new one.
        parts: what changes the Gaussians before they are drawn; those of ``start`` if it has any.
        shards: who holds the Gaussians.
    """
    points = _thinned(capture.points, options.max_gaussians)
    moving = start is not None and start.moves
    if start is not None and moving:
        logger.info("The scene to start from moves: model.motion and model.appearance are as it has them.")
        parts = copy.deepcopy(dict(zip(start.parts.keys(), start.each_part(), strict=True)))
    scene = Scene(_all_gaussians(capture, points, options, sh_degree, start), parts=parts)
    for part in [] if moving else scene.each_part():
        part.begin(scene.gaussians, points.times if start is None and len(points) else None)
    if not shards.several:
        return scene
    own = scene.gaussians.like({name: shards.mine(values) for name, values in scene.gaussians.own().items()})
    return Scene(own, parts=parts, shards=shards, total=len(scene))


def _all_gaussians(
    capture: Capture, points: Points, options: Initialization, sh_degree: int, start: Scene | None
) -> Gaussians:
    if start is not None:
        return start.gaussians.with_sh_degree(max(sh_degree, start.gaussians.sh_degree))
    if 0 < len(points) < MIN_GAUSSIANS:
        raise InputError(
            f"data.root: found {len(points)} SfM points in {capture.name} to start from, expected at least "
            f"{MIN_GAUSSIANS}, or none for a random start."
        )
    if len(points):
        if not any(view.camera.contain(points.positions).any() for view in capture.train_views):
            raise InputError(
                f"data.root: none of the {len(points):,} SfM points of {capture.name} lies in a training "
                "view; expected cameras and points of one reconstruction."
            )
        return Gaussians.from_points(
            points.positions, points.colors, sh_degree=sh_degree, opacity=options.opacity
        )
    return Gaussians.random(
        *random_bounds(capture),
        count=min(options.random_gaussians, options.max_gaussians or options.random_gaussians),
        sh_degree=sh_degree,
        opacity=options.opacity,
    )


def random_bounds(capture: Capture) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Two corners of the box in which Gaussians start at random, [3] each, in world units.

    Photos with alpha show an object: a cube around the point that they look at, which reaches halfway to the
    cameras (Blender's synthetic scenes lie well inside). Otherwise the cameras' bounding box, grown by
    the scene's extent on each side.
    """
    positions = torch.cat([view.camera.positions for view in capture.views])
    focus = _object_centre(capture.views)
    if focus is not None:
        reach = _OBJECT_REACH * (positions - focus).norm(dim=-1).median()
        return focus - reach, focus + reach
    return positions.amin(dim=0) - capture.extent, positions.amax(dim=0) + capture.extent


def _object_centre(views: Sequence[View]) -> Float[Tensor, " 3"] | None:
    """[3] what photos with alpha look at; None unless all have it, and that point in the picture."""
    if not all(view.source.has_alpha for view in views):
        return None
    size = views[0].camera.width, views[0].camera.height
    focus = focus_point(Cameras.stack([view.camera.resized(*size) for view in views]))
    seen = focus is not None and all(bool(view.camera.contain(focus[None]).all()) for view in views)
    return focus if seen else None


def _thinned(points: Points, most: int | None) -> Points:
    """The points, or ``most`` of them, which torch's global generator draws; their order stays."""
    if most is None or len(points) <= most:
        return points
    return points[torch.randperm(len(points))[:most].sort().values]
