"""A scene filmed by several calibrated cameras that stand still, as a Capture: every frame is a view."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from flexgs_lightning.data.calibration import FittedCamera, fit_camera
from flexgs_lightning.data.capture import TEST_EVERY, Capture, Points, View
from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.sequences import Frames
from flexgs_lightning.errors import InputError

logger = logging.getLogger(__name__)

MIN_CAMERAS = 2
"""Training cameras that stand still: a single one sees no depth."""
_RATE_TOLERANCE = 0.01
"""Cameras of 29.97 and 30 frames per second count as alike; of 25 and 30 they do not."""


@dataclass(frozen=True)
class FilmCamera:
    """A camera that stands still, and what it filmed.

    Attributes:
        name: unlike the others'.
        frames: in the order of time.
        fitted: what it shows of its frames, reduced.
        reduction: of its frames.
        held_out: whether it is a test camera.
    """

    name: str
    frames: Frames
    fitted: FittedCamera
    reduction: int
    held_out: bool

    @staticmethod
    def fit(
        name: str,
        frames: Frames,
        pose: Float[np.ndarray, "3 4"],
        calibrated: pycolmap.Camera,
        *,
        downscale: int,
        held_out: bool,
    ) -> FilmCamera:
        """A camera from its calibration; see ``calibration.fit_camera``."""
        fitted = fit_camera(pose, calibrated, frames.size, downscale, frames.path)
        return FilmCamera(name, frames, fitted, downscale, held_out)

    def views(self, count: int) -> list[View]:
        """Its first ``count`` frames, at moments spread evenly over [0, 1)."""
        digits = max(4, len(str(count - 1)))
        return [
            View(
                name=f"{self.name}/{i:0{digits}d}",
                camera=self.fitted.camera,
                source=self.frames.source(i, self.reduction, self.fitted.lens),
                time=i / count,
                filmed_by=self.name,
            )
            for i in range(count)
        ]


def film_capture(
    cameras: Sequence[FilmCamera],
    *,
    root: Path,
    name: str,
    points: Points,
    fps: float | None = None,
    frames: int | None = None,
) -> Capture:
    """A capture of all frames that all cameras have.

    Where some cameras have filmed for longer, their last frames are left out, with a warning.

    Args:
        cameras: in any order.
        root: the capture's folder, for messages.
        name: short name for reports.
        points: SfM points.
        fps: frames per second as stated; None takes the videos'.
        frames: frames of each camera as stated.

    Raises:
        InputError: too few cameras, names twice, or films that are not of one rate, beginning or, as stated,
            length.
    """
    cameras = sorted(cameras, key=lambda camera: camera.name)
    _check_cameras(root, cameras)
    _check_beginning(cameras)
    count = _common_length(cameras, frames)
    fps = _common_rate(cameras, fps)
    views = tuple(view for camera in cameras for view in camera.views(count))
    held_out = {camera.name for camera in cameras if camera.held_out}
    capture = Capture(
        name=name,
        views=views,
        points=points,
        protocol=_protocol(cameras, count, fps),
        test_every=TEST_EVERY if held_out else 0,
        test_names=frozenset(view.name for view in views if view.filmed_by in held_out),
        test_rule=f"all frames of {', '.join(sorted(held_out))} are held out",
        seconds=None if fps is None else count / fps,
    )
    logger.info(
        "%s: %s; %d cameras to train and %d to test; %d points",
        capture.name,
        capture.protocol,
        len(cameras) - len(held_out),
        len(held_out),
        len(points),
    )
    if not len(points):
        logger.warning("%s: there are no points; Gaussians must start at random.", root)
    return capture


def cut(capture: Capture, frames: Sequence[int]) -> Capture:
    """Frames ``start`` to ``stop`` (not included) of a capture that moves, as one that lasts from 0 to 1.

    Frames are its different moments in their order. Of points that belong to moments, those of the frames
    remain, or if there are none, all.

    Raises:
        InputError: the capture does not move, or has no such frames.
    """
    moments = sorted({view.time for view in capture.views if view.time is not None})
    if not moments:
        raise InputError(f"data.frames: {capture.name} does not move; expected none, found {list(frames)}.")
    if len(frames) != 2 or not 0 <= frames[0] < frames[1] <= len(moments):
        raise InputError(
            f"data.frames: expected a start and a stop within the {len(moments)} frames of {capture.name}, "
            f"such as 0 {len(moments)}; found {' '.join(map(str, frames))}."
        )
    start, stop = frames
    after = moments[stop] if stop < len(moments) else _end(moments)
    begin, length = moments[start], after - moments[start]
    kept = set(moments[start:stop])
    views = tuple(
        replace(view, time=(view.time - begin) / length)
        for view in capture.views
        if view.time is not None and view.time in kept
    )
    return replace(
        capture,
        views=views,
        points=_cut_points(capture.points, begin, length),
        protocol=f"{capture.protocol}; frames {start} to {stop - 1}",
        seconds=None if capture.seconds is None else capture.seconds * length,
    )


def _end(moments: Sequence[float]) -> float:
    """When the last frame is over: 1, unless the last moment is 1 itself."""
    if moments[-1] < 1.0:
        return 1.0
    return 2 * moments[-1] - moments[-2] if len(moments) > 1 else moments[-1] + 1.0


def _cut_points(points: Points, begin: float, length: float) -> Points:
    if points.times is None:
        return points
    times = (points.times - begin) / length
    inside = (times > -1e-6) & (times < 1 - 1e-6)
    if not inside.any():
        return replace(points, times=None)
    return replace(points, times=times.clamp_min(0.0))[inside]


def _check_cameras(root: Path, cameras: Sequence[FilmCamera]) -> None:
    names = [camera.name for camera in cameras]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{root}: there are two cameras named {twice}, expected one.")
    training = [camera for camera in cameras if not camera.held_out]
    if len(training) < MIN_CAMERAS:
        raise InputError(
            f"{root}: {len(training)} of {len(cameras)} cameras remain for training, expected at least "
            f"{MIN_CAMERAS}: one camera that stands still sees no depth. A moving one belongs into a "
            "transforms.json with the pose and the time of each frame."
        )


def _check_beginning(cameras: Sequence[FilmCamera]) -> None:
    begin = cameras[0]
    for camera in cameras:
        if camera.frames.first != begin.frames.first:
            raise InputError(
                f"{camera.frames.path}: the first frame is number {camera.frames.first}, expected "
                f"{begin.frames.first} as in {begin.frames.path}: cameras must begin together."
            )


def _common_length(cameras: Sequence[FilmCamera], stated: int | None) -> int:
    shortest = min(cameras, key=lambda camera: len(camera.frames))
    longest = max(cameras, key=lambda camera: len(camera.frames))
    count = len(shortest.frames)
    if stated is not None and count < stated:
        raise InputError(f"{shortest.frames.path}: found {count} frames, expected {stated} as stated.")
    if len(longest.frames) > count and stated is None:
        logger.warning(
            "%s has %d frames, %s only %d: the first %d of every camera are used.",
            longest.frames.path,
            len(longest.frames),
            shortest.frames.path,
            count,
            count,
        )
    return count if stated is None else stated


def _common_rate(cameras: Sequence[FilmCamera], stated: float | None) -> float | None:
    known = [(camera.frames.rate, camera.frames.path) for camera in cameras if camera.frames.rate is not None]
    if not known:
        return stated
    first = stated if stated is not None else known[0][0]
    for rate, path in known:
        if abs(rate - first) > _RATE_TOLERANCE * first:
            raise InputError(
                f"{path}: found {rate:.2f} frames per second, expected the {first:.2f} of the others: "
                "cameras must film in step."
            )
    return first


def _protocol(cameras: Sequence[FilmCamera], count: int, fps: float | None) -> str:
    """One line for logs and reports: which pixels these are."""
    reduction = cameras[0].reduction
    text = f"{count} frames of {len(cameras)} cameras"
    text += "" if fps is None else f" at {fps:g} per second"
    text += " as shipped" if reduction == 1 else f" reduced by {reduction} (area filter)"
    lenses = {camera.fitted.lens.model for camera in cameras if camera.fitted.lens is not None}
    return text + (f", undistorted from {' and '.join(sorted(lenses))}" if lenses else "")


def no_points() -> Points:
    """Of a capture without any."""
    return Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))
