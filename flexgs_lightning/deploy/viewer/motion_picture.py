"""A picture of what moves in a scene."""

from __future__ import annotations

import torch

from flexgs_lightning.images import heat
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.splats import SH_C0, Splats

_STEP = 1 / 60
"""Between the two moments that tell a speed, in lengths of the scene."""
_DIM = 0.35
"""Brightness of what stands still."""


@torch.no_grad()
def with_motion_lit(model: Model, count: int, time: float, unit: float) -> Splats:
    """The scene in dim grey, with what moves the brighter the faster, by the root of its speed.

    Args:
        model: of a scene that moves.
        count: Gaussians.
        time: in [0, 1].
        unit: a length; what covers it in a second is brightest.
    """
    ratio = count / len(model)
    scene, moment = model.scene.showing(time)
    time = moment or 0.0
    chosen = scene.first(ratio)
    now = scene.drawn(chosen, Conditions(ratio, time))
    other = time + _STEP if time + _STEP <= 1 else time - _STEP
    way = (scene.drawn(chosen, Conditions(ratio, other)).means - now.means).norm(dim=1)
    speed = way / (_STEP * (model.seconds or 1.0) * unit)
    still = (
        (0.5 + SH_C0 * now.sh[:, 0]).clamp(0, 1).mean(dim=1) if now.sh.shape[1] else torch.full_like(way, 0.5)
    )
    amount = speed.clamp(0, 1).sqrt()[:, None]
    colors = (1 - amount) * _DIM * still[:, None] + amount * heat(0.4 + 0.6 * amount[:, 0])
    sh = ((colors - 0.5) / SH_C0)[:, None]
    return Splats(now.means, now.quats, now.scales, now.opacities, sh)[now.opacities >= 1 / 255]
