"""Ranking Gaussians: which ones a small model keeps."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selector import rank
from flexgs_lightning.processes import ALONE, Shards, process_rank, sum_over_processes, world_size
from flexgs_lightning.rendering.importance import (
    VolumeFactor,
    blending_importance,
    global_importance,
    removal_importance,
)
from flexgs_lightning.rendering.shading import Shader
from flexgs_lightning.rendering.sharded import renderer_of
from flexgs_lightning.rendering.types import Drawn
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.moments import at_each, shader_of

Importance = Literal["removal", "blending", "global", "global_power"]
"""By what Gaussians are ranked: "removal" by what the images lose with them (``rank_by_removal``), the others
by blending weights with the volume factor in ``VOLUME``."""
VOLUME: dict[Importance, VolumeFactor] = {"blending": "none", "global": "clamped", "global_power": "power"}
PROBES = 200
"""Least number of random images for one measurement of removal, over all views; of more views, so many."""
KEPT = 0.5
"""Share of the Gaussians that stay from one round of ``rank_by_removal`` to the next."""


class Ranking(NamedTuple):
    """Gaussians from the first to keep to the first to leave out.

    Attributes:
        order: [N] indices.
        importance: [N] float64 what each was ranked by, in that order.
    """

    order: Int[Tensor, " N"]
    importance: Float[Tensor, " N"]


def rank_gaussians(
    model: Scene,
    cameras: Sequence[Cameras],
    importance: Importance,
    *,
    lowest_ratio: float,
    background: Float[Tensor, " 3"],
    antialiased: bool = False,
    times: Sequence[float] | None = None,
) -> Ranking:
    """Rank by importance to the views, which the processes share out; a progress bar shows if it takes long.

    Args:
        model: as it stands: "removal" measures what its prefixes have learned.
        cameras: the training views.
        importance: by what.
        lowest_ratio: the smallest prefix that has to be good.
        background: colour behind the scene.
        antialiased: as the scene is rendered.
        times: when each view sees a scene that moves.

    Raises:
        InputError: no view sees any Gaussian.
    """
    if importance == "removal":
        ranking = rank_by_removal(
            model.drawn,
            len(model),
            cameras,
            lowest_ratio,
            background=background,
            antialiased=antialiased,
            shards=model.shards,
            times=times,
            shader=shader_of(model),
        )
    else:
        ranking = _rank_by_weight(model, cameras, VOLUME[importance], antialiased, times)
    if not (ranking.importance > 0).any():
        raise InputError("data.root: no training view sees any Gaussian of this scene.")
    return ranking


@torch.no_grad()
def rank_by_removal(
    draw: Callable[[Int[Tensor, " M"], Conditions], Splats],
    gaussians: int,
    cameras: Sequence[Cameras],
    lowest_ratio: float,
    *,
    background: Float[Tensor, " 3"],
    antialiased: bool = False,
    shards: Shards = ALONE,
    times: Sequence[float] | None = None,
    shader: Shader | None = None,
) -> Ranking:
    """Rank by what the images lose with a Gaussian, in ever smaller prefixes down to ``lowest_ratio``.

    All Gaussians are ranked in the render of the full model, the better half of them again in its own render,
    and so on. So a prefix consists of what matters to itself: a Gaussian that the full model hides counts as
    soon as those in front of it are gone.

    Args:
        draw: the Gaussians at M places of those that are here as they look at a ratio and time.
        gaussians: N.
        cameras: the training views.
        lowest_ratio: the smallest prefix that has to be good.
        background: colour behind the scene, on the device of the Gaussians.
        antialiased: as the scene is rendered.
        shards: who holds the Gaussians.
        times: when each view sees a scene that moves; a Gaussian so counts for all of its life.
        shader: makes colours of features.
    """
    rounds = 1 + math.ceil(math.log(max(lowest_ratio, 1 / gaussians), KEPT))
    order = torch.arange(gaussians, device=background.device)
    importance = torch.zeros(gaussians, dtype=torch.float64, device=background.device)
    for ratio in tqdm([KEPT**i for i in range(rounds)], **_bar()):
        count = max(1, int(ratio * gaussians))
        chosen = shards.own(order[:count])
        scene = _AtTimes(partial(_drawn, draw, chosen, ratio), times, shards)
        measured = _of_all(_removal(scene, cameras, background, antialiased, shader), order[:count], shards)
        inner = rank(measured)
        order[:count] = order[:count][inner]
        importance[:count] = measured[inner]
    return Ranking(order, importance)


def _drawn(
    draw: Callable[[Int[Tensor, " M"], Conditions], Splats],
    chosen: Int[Tensor, " M"],
    ratio: float,
    time: float | None,
) -> Splats:
    return draw(chosen, Conditions(ratio, time))


class _AtTimes:
    """Gaussians as views see them: drawn anew for each where they move, once and for all where not."""

    def __init__(
        self, draw: Callable[[float | None], Splats], times: Sequence[float] | None, shards: Shards
    ) -> None:
        self._draw, self._times, self.shards = draw, times, shards
        self.first = draw(None if times is None else times[0])

    def seen(self, view: int, views: Sequence[int]) -> Drawn:
        """For the view with this number among ``views``, and those that other processes draw with it."""
        if self._times is None:
            return self.first
        count = self.shards.count
        together = views[view - view % count :][:count] if self.shards.several else [views[view]]
        return at_each(tuple(self._times[i] for i in together), self._draw)


def _of_all(measured: Float[Tensor, " m"], chosen: Int[Tensor, " M"], shards: Shards) -> Float[Tensor, " M"]:
    """What all processes measured of M Gaussians, in their order."""
    if not shards.several:
        return measured
    whole = measured.new_empty(len(chosen))
    for process, part in enumerate(shards.parts(measured)):
        whole[shards.holds(chosen, process)] = part
    return whole


def probed_views(count: int) -> list[int]:
    """All views, or of more than ``PROBES`` one from each of that many equal stretches of their order.

    Which one is drawn, with the same outcome in every process and round: a regular step could fall in with
    a rig's or an orbit's.
    """
    if count <= PROBES:
        return list(range(count))
    starts = torch.arange(PROBES + 1) * count // PROBES
    places = torch.rand(PROBES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views: list[int] = (starts[:-1] + (places * starts.diff()).long()).tolist()
    return views


def _own_views(cameras: Sequence[Cameras], shards: Shards) -> list[tuple[int, Cameras]]:
    """This process's views and their numbers; where processes draw together, as many in each, if empty."""
    own = [(i, cameras[i]) for i in range(process_rank(), len(cameras), world_size())]
    if shards.several and len(own) < -(-len(cameras) // shards.count):
        own.append((len(cameras) - 1, cameras[0][:0]))
    return own


def _removal(
    scene: _AtTimes,
    cameras: Sequence[Cameras],
    background: Tensor,
    antialiased: bool,
    shader: Shader | None,
) -> Float[Tensor, " N"]:
    total = torch.zeros(len(scene.first), dtype=torch.float64, device=background.device)
    views = probed_views(len(cameras))
    for i, view in _own_views([cameras[i] for i in views], scene.shards):
        total += removal_importance(
            scene.seen(i, views),
            view,
            probes=math.ceil(PROBES / len(views)),
            generator=torch.Generator(total.device).manual_seed(i),  # each view's own, whoever draws it
            background=background,
            antialiased=antialiased,
            renderer=renderer_of(scene.shards),
            shader=shader,
        )
    if not scene.shards.several:
        sum_over_processes(total)
    return total


@torch.no_grad()
def _rank_by_weight(
    model: Scene,
    cameras: Sequence[Cameras],
    volume: VolumeFactor,
    antialiased: bool,
    times: Sequence[float] | None,
) -> Ranking:
    """Rank by blending weights times a volume factor (Eqs. 8-10)."""
    shards, everyone = model.shards, model.first(1.0)
    scene = _AtTimes(lambda time: model.drawn(everyone, Conditions(time=time)), times, shards)
    weights = torch.zeros(len(scene.first), dtype=torch.float64, device=scene.first.device)
    for i, view in tqdm(_own_views(cameras, shards), **_bar()):
        weights += blending_importance(
            scene.seen(i, range(len(cameras))), [view], antialiased=antialiased, renderer=renderer_of(shards)
        )
    if not shards.several:
        sum_over_processes(weights)
    importance = global_importance(shards.joined(weights), shards.joined(scene.first.scales), volume)
    order = rank(importance)
    return Ranking(order, importance[order])


def _bar() -> dict[str, Any]:
    return {"desc": "Importance", "leave": False, "delay": 3, "disable": process_rank() > 0}
