"""What ``scene.json`` says to the player: where to look from, test views, and how long a film lasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexgs_lightning.cameras import NEAR_PLANE, Cameras
from flexgs_lightning.codec.film import facts_of, is_film, open_film
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.deploy.opening import open_model_file
from flexgs_lightning.deploy.shots import standing, views_at
from flexgs_lightning.deploy.vantage import Vantage, vantage_of_capture, vantage_of_splats

MOMENTS = 5
"""Moments of a film from which test views are published."""


@dataclass(frozen=True)
class Visit:
    """A test view as the player offers it.

    Attributes:
        name: what people choose.
        view: the capture's view.
    """

    name: str
    view: View


def visits_of(capture: Capture | None) -> list[Visit]:
    """The test views to publish; of a film, those of every camera at a few moments, evenly spread."""
    if capture is None:
        return []
    if not capture.moves:
        return [Visit(view.name, view) for view in capture.test_views]
    times = sorted({view.time for view in capture.test_views if view.time is not None})
    count = min(MOMENTS, len(times))
    moments = [times[(2 * i + 1) * len(times) // (2 * count)] for i in range(count)]
    cameras = [view.taken_by for view in standing(capture.test_views)]
    found = [view for moment in moments for view in views_at(capture.test_views, moment)]
    found.sort(
        key=lambda view: (cameras.index(view.taken_by) if view.filmed_by else len(cameras), view.time or 0.0)
    )
    return [Visit(_name_at_a_moment(view, capture), view) for view in found]


def _name_at_a_moment(view: View, capture: Capture) -> str:
    time = view.time or 0.0
    moment = f"{time:.2f} of 1" if capture.seconds is None else f"{time * capture.seconds:.2f} s"
    return f"{view.filmed_by or view.name}, {moment}"


def describe(scene: Path, capture: Capture | None, visits: Sequence[Visit], title: str) -> dict[str, Any]:
    """What ``scene.json`` says of an elastic file.

    Args:
        scene: the file.
        capture: of the scene, if it is at hand.
        visits: test views; their times are only told of a scene that moves.
        title: heading of the page.
    """
    moves = is_film(scene)
    near = _near_plane(scene, capture)
    vantage = vantage_of_capture(capture) if capture else _vantage_of_file(scene, moves)
    return {
        "version": 1,
        "title": title,
        "file": scene.name,
        **({"film": _film(scene)} if moves else {}),
        **({"near": near} if near != NEAR_PLANE else {}),
        **_numbers(vantage),
        "views": [_entry(visit, moves) for visit in visits],
    }


def _film(scene: Path) -> dict[str, Any]:
    """Facts for people and for pages that embed the player; the player itself reads them from the file."""
    front = open_film(scene).front
    seconds, frames = front.seconds, front.frames
    rate = {"frames_per_second": frames / seconds} if seconds and frames else {}
    return {"seconds": seconds, "frames": frames, **rate, "groups": front.groups}


def _vantage_of_file(scene: Path, moves: bool) -> Vantage:
    return vantage_of_splats(open_model_file(scene).splats(0.5 if moves else None))


def _near_plane(scene: Path, capture: Capture | None) -> float:
    """What the file says that it was trained with, or else the capture."""
    stated = facts_of(scene).get("near_plane")
    if isinstance(stated, float | int) and 0 < stated < math.inf:
        return float(stated)
    return capture.near_plane if capture else NEAR_PLANE


def _entry(visit: Visit, moves: bool) -> dict[str, Any]:
    time = {"time": visit.view.time} if moves and visit.view.time is not None else {}
    return {"name": visit.name, **time, **_camera(visit.view.camera)}


def _numbers(vantage: Vantage) -> dict[str, Any]:
    turning_point = vantage.turning_point(vantage.camera)
    return {
        "up": vantage.up.tolist(),
        "focus": turning_point.tolist(),
        "unit": vantage.unit,
        "start": _camera(vantage.camera),
    }


def _camera(camera: Cameras) -> dict[str, Any]:
    """One camera (C = 1): world-to-camera rows and pixels, as ``cameras`` has them."""
    K = camera.Ks[0].double()
    return {
        "viewmat": camera.viewmats[0, :3].double().flatten().tolist(),
        "K": [K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item()],
        "width": camera.width,
        "height": camera.height,
    }
