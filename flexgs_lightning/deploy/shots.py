"""What ``flexgs render`` draws: cameras and, of a scene that moves, the time of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flexgs_lightning.cameras import NEAR_PLANE, Cameras
from flexgs_lightning.data.capture import View
from flexgs_lightning.deploy.opening import one_size, open_capture
from flexgs_lightning.deploy.path_file import read_timed_path
from flexgs_lightning.deploy.timeline import WHOLE, Span
from flexgs_lightning.deploy.trajectory import interpolate, orbit
from flexgs_lightning.errors import InputError

ORBIT_FRAMES = 120
VIEWS = ("test", "train")


@dataclass(frozen=True)
class Shots:
    """Frames to draw.

    Attributes:
        cameras: batches of cameras, one camera a frame.
        views: the capture's views that these are; None of a path.
        times: of the frames, as a path file says them; None where it does not.
    """

    cameras: list[Cameras]
    views: Sequence[View] | None = None
    times: list[float] | None = None

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.cameras)

    @staticmethod
    def of_views(views: Sequence[View]) -> Shots:
        """A frame for each view."""
        return Shots([view.camera for view in views], views)

    def timed(self, span: Span | None) -> Shots:
        """The same of a scene that moves: every frame has a time.

        Views keep their own; a moment shows what stood there then, each camera of a film once, and a stretch
        those of its views. Along a path time runs through the stretch, by default the whole scene.

        Raises:
            InputError: a view has no time, or none lies in the stretch.
        """
        if self.views is None:
            own = self.times if span is None else None
            return Shots(self.cameras, None, own or (span or WHOLE).moments(len(self)))
        times = [view.time for view in self.views if view.time is not None]
        if len(times) < len(self.views):
            raise InputError(
                "--path: the scene moves, but the capture does not say when its views were taken."
            )
        views = list(self.views)
        if span is not None and span.stands_still:
            views = nearest(views, span.start)
            return Shots([view.camera for view in views], views, [span.start] * len(views))
        if span is not None:
            views = [view for view in views if view.time is not None and span.holds(view.time)]
            if not views:
                raise InputError(
                    f"--time: no view was taken between {span.start:g} and {span.stop:g} of the scene."
                )
        return Shots([view.camera for view in views], views, [view.time or 0.0 for view in views])


def shots(
    path: str | Path, data: dict[str, Any], frames: int | None, orbit_frames: int = ORBIT_FRAMES
) -> Shots:
    """What ``--path`` and ``--frames`` ask for.

    Args:
        path: "test", "train", "orbit" or a camera path file.
        data: of the model's capture; see ``opening.open_capture``.
        frames: number of frames of a smooth flight; None for the cameras themselves.
        orbit_frames: of an orbit without ``frames``.

    Raises:
        InputError: no such path, capture or views.
    """
    if str(path) not in (*VIEWS, "orbit"):
        if not Path(path).is_file():
            raise InputError(
                f"--path {path}: expected test, train, orbit or a camera path file; no such file."
            )
        cameras, times = read_timed_path(path)
        cameras = replace(cameras, near_plane=data.get("near_plane") or NEAR_PLANE)
        return Shots([cameras], None, times) if frames is None else _flight(cameras, times, frames)
    if data.get("root") is None:
        raise InputError(f"--path {path}: expected --data_root, the folder of the capture.")
    capture = open_capture(data)
    if str(path) == "orbit":
        cameras = one_size(standing(capture.views))
        return Shots([orbit(cameras, orbit_frames if frames is None else frames)])
    views = capture.test_views if str(path) == "test" else capture.train_views
    if not views:
        raise InputError(f"--path {path}: capture '{capture.name}' has no {path} views.")
    if frames is not None:
        return Shots([interpolate(one_size(standing(views)), frames)])
    return Shots.of_views(views)


def _flight(cameras: Cameras, times: list[float] | None, frames: int) -> Shots:
    if times is not None:
        places = np.linspace(0, len(times) - 1, frames)
        times = np.interp(places, np.arange(len(times)), times).tolist()
    return Shots([interpolate(cameras, frames)], None, times)


def standing(views: Sequence[View]) -> list[View]:
    """One view of each camera that stands still, and all others."""
    return list({view.taken_by: view for view in reversed(views)}.values())[::-1]


def views_at(views: Sequence[View], time: float) -> list[View]:
    """Views of one moment: of all moments, the one that is nearest to a time."""
    moments = {view.time for view in views if view.time is not None}
    moment = min(moments, key=lambda other: abs(other - time), default=None)
    return [view for view in views if view.time == moment]


def nearest(views: Sequence[View], time: float) -> list[View]:
    """The view of each camera that is nearest to a time."""
    found: dict[str, View] = {}
    for view in views:
        best = found.setdefault(view.taken_by, view)
        if abs((view.time or 0.0) - time) < abs((best.time or 0.0) - time):
            found[view.taken_by] = view
    return list(found.values())
