"""``flexgs render``. Its signature and docstring are the command line's help."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flexgs_lightning.deploy.budgets import Budget, parse_budget
from flexgs_lightning.deploy.opening import choose_device, given, grey, open_model
from flexgs_lightning.deploy.profile import timed
from flexgs_lightning.deploy.render import RENDERS, render_views, require_free, require_kind
from flexgs_lightning.deploy.shots import ORBIT_FRAMES, Shots, shots
from flexgs_lightning.deploy.timeline import WHOLE, Span, parse_time
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)


def render(
    output: Path,
    ckpt: Path | None = None,
    ply: Path | None = None,
    ratio: str | None = None,
    max_gaussians: str | None = None,
    max_megabytes: str | None = None,
    max_milliseconds: str | None = None,
    profile: Path | None = None,
    path: Literal["test", "train", "orbit"] | Path = "test",
    frames: int | None = None,
    time: str | None = None,
    data_root: Path | None = None,
    downscale: int | None = None,
    test_every: int | None = None,
    photos: bool = False,
    background: Literal["black", "white"] | None = None,
    antialiased: bool | None = None,
    video: bool = False,
    fps: float = 30.0,
    quality: float = 8.0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> None:
    """Draw a checkpoint or splat file: a capture's views, an orbit or a camera path, to PNG frames and video.

    Args:
        output: An .mp4 file, or a folder for PNG frames.
        ckpt: Checkpoint to draw, or an elastic file (.egs).
        ply: Splat file to draw, instead of a checkpoint: PLY, SPZ or any other that flexgs convert reads.
        ratio: Share of an elastic scene's Gaussians to draw, in (0, 1]; by default all.
        max_gaussians: Instead, their number, such as 120000 or 50k.
        max_megabytes: Instead, the size in megabytes of the PLY file that holds them.
        max_milliseconds: Instead, the time of a frame, on the device of the profile.
        profile: What "flexgs profile" wrote on a device; by default this device is measured.
        path: Cameras: "test" or "train" views of the capture, an "orbit" around what it shows, or a camera
            path file (JSON; this package's or nerfstudio's).
        frames: Number of frames: of the orbit (120 by default), or of a smooth flight through the other
            cameras in their order.
        time: Of a scene that moves: a moment such as 0.5, at which the camera moves alone (bullet time), or a
            stretch such as 0:2 that is played along the path; in seconds if it is known how long the scene
            lasts, otherwise from 0 to 1. By default views have their own times, and a path plays everything.
        data_root: Folder of the capture; by default the one that the checkpoint was trained on.
            A camera path file needs none.
        downscale: Reduction of the capture's photos, and so size of the frames; by default as trained, or 1.
        test_every: Every n-th photo is a test view; by default as trained, or 8.
        photos: Put the photo to the right of each frame (with "test" and "train").
        background: Colour behind the Gaussians; by default as trained, or black.
        antialiased: Draw with the antialiased rasterizer; by default as trained, or as the file says.
        video: With a folder, also write video.mp4 in it.
        fps: Frames per second of the video.
        quality: Quality of the video, from 1 to 10.
        device: Where to draw; "auto" takes CUDA where there is a device.
        overwrite: Replace the output if it exists.
    """
    if not (0 < fps <= 1000 and 1 <= quality <= 10):
        raise InputError(f"--fps and --quality: expected above 0 and 1 to 10, found {fps:g} and {quality:g}.")
    require_kind(output)
    require_free(output, overwrite, RENDERS)
    wanted = parse_budget(ratio, max_gaussians, max_megabytes, max_milliseconds, profile)
    model = open_model(ckpt, ply)
    moving = _require_time(model, time)
    span = None if time is None else parse_time(time, model.seconds)
    data = model.data | given(root=data_root, downscale=downscale, test_every=test_every)
    (budget,) = timed([wanted], model, data, device)
    shown = shots(path, data, frames, _orbit_frames(model, span, fps))
    shown = shown.timed(span) if moving else shown
    views = shown.views
    if photos and views is None:
        raise InputError("--photos: there are photos only for --path test or train, without --frames.")
    splats = _splats(model.to(choose_device(device)), budget, shown)
    render_views(
        splats,
        shown.cameras,
        output,
        names=None if views is None else [view.name for view in views],
        photos=[view.source for view in views] if photos and views is not None else None,
        background=model.background if background is None else grey(background == "white"),
        antialiased=model.antialiased if antialiased is None else antialiased,
        video=video,
        fps=fps,
        quality=quality,
        overwrite=overwrite,
    )
    count = f"{len(splats):,}" if isinstance(splats, Splats) else f"up to {len(model):,}"
    log.info(f"{output}: {len(shown)} frames of {count} Gaussians")


def _require_time(model: Model, time: str | None) -> bool:
    """Whether the scene moves; if not, there is no time to ask for."""
    if not model.moves and time is not None:
        raise InputError(f"--time {time}: {model.name} does not move, expected none.")
    return model.moves


def _orbit_frames(model: Model, span: Span | None, fps: float) -> int:
    """As many as the stretch lasts, so that a film of a moving scene runs at its own speed."""
    span = span or WHOLE
    if not model.moves or model.seconds is None or span.stands_still:
        return ORBIT_FRAMES
    return max(1, round(abs(span.stop - span.start) * model.seconds * fps))


def _splats(model: Model, budget: Budget, shown: Shots) -> Splats | Callable[[int], Splats]:
    """The scene, or what it is at each frame."""
    times = shown.times
    if times is None:
        return budget.of(model)
    if len(set(times)) == 1:
        return budget.of(model, times[0])
    return lambda frame: budget.of(model, times[frame])
