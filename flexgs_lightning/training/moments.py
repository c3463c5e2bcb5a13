"""Moments: the Gaussians of a moving scene as each camera of a batch sees them, each at its own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.sequence import SceneSequence
from flexgs_lightning.rendering.shading import RayShader, Shader
from flexgs_lightning.splats import Splats

Moments = tuple[float, ...] | None
"""A time for each camera that is drawn together, those of all processes by rank; None where nothing moves."""


def moments_of(scene: Scene, times: Float[Tensor, " C"] | None) -> Moments:
    """The times of a batch for a scene that moves; all processes that hold the scene must ask.

    Raises:
        InputError: the scene moves and the views have no time.
    """
    if not scene.moves:
        return None
    if times is None:
        raise InputError(_NO_TIMES)
    return tuple(time for part in scene.shards.parts(times) for time in part.tolist())


def check_times(capture: Capture) -> None:
    """Refuse to let a scene move in a capture whose views have no times.

    Raises:
        InputError: one has none.
    """
    if any(view.time is None for view in capture.views):
        raise InputError(_NO_TIMES)


def times_of(scene: Scene, views: Sequence[View]) -> list[float] | None:
    """The time of each view for a scene that moves; None for one that does not.

    Raises:
        InputError: the scene moves and a view has no time.
    """
    if not scene.moves:
        return None
    times = [view.time for view in views if view.time is not None]
    if len(times) < len(views):
        raise InputError(_NO_TIMES)
    return times


def at_each(moments: Moments, draw: Callable[[float | None], Splats]) -> Splats | list[Splats]:
    """What ``draw`` makes of each moment, for ``rasterize``: one for all cameras where they share it."""
    if moments is None:
        return draw(None)
    made = {time: draw(time) for time in dict.fromkeys(moments)}
    return made[moments[0]] if len(made) == 1 else [made[time] for time in moments]


def everyone_at(scene: Scene, moments: Moments) -> Splats | list[Splats]:
    """All Gaussians that are here for cameras to learn from: a gradient of one is a gradient of that row."""
    everyone = scene.first(1.0)
    return at_each(moments, lambda time: scene.drawn(everyone, Conditions(time=time)))


def shader_of(scene: Scene, times: Float[Tensor, " C"] | None = None) -> Shader | None:
    """What makes colours of a scene's features; None where it has spherical harmonics.

    Args:
        scene: any; of a sequence the group that shows the cameras' moment is meant.
        times: the cameras'.
    """
    if isinstance(scene, SceneSequence) and times is not None:
        scene = scene.showing(times[0].item())[0]
    return None if scene.appearance is None else RayShader(scene.appearance.shade)


def seen_at(scene: Scene, ratio: float, moments: Moments) -> Splats | list[Splats]:
    """A scene for cameras to see, without gradients to come.

    Args:
        scene: whole or elastic.
        ratio: share of its Gaussians.
        moments: when. If it is one, Gaussians that do not live then are left out.
    """
    if moments is None or (len(set(moments)) == 1 and not scene.shards.several):
        return scene.at(Conditions(ratio, None if moments is None else moments[0]))
    chosen = scene.first(ratio)
    return at_each(moments, lambda time: scene.drawn(chosen, Conditions(ratio, time)))


_NO_TIMES = (
    "model.motion: the scene is to move, but the capture does not say when its views were taken; expected a "
    "capture with times, or model.motion.path none and model.motion.opacity constant."
)
