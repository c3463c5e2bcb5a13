"""``flexgs render``. Its signature and docstring are the command line's help."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import View
from flexgs_lightning.deploy.budgets import parse_budget
from flexgs_lightning.deploy.opening import choose_device, grey, one_size, open_capture, open_model
from flexgs_lightning.deploy.path_file import read_path
from flexgs_lightning.deploy.profile import timed
from flexgs_lightning.deploy.render import RENDERS, render_views, require_free, require_kind
from flexgs_lightning.deploy.trajectory import interpolate, orbit
from flexgs_lightning.errors import InputError

log = logging.getLogger(__name__)

_ORBIT_FRAMES = 120


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
        data_root: COLMAP folder of the capture; by default the one that the checkpoint was trained on.
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
    require_kind(output)
    require_free(output, overwrite, RENDERS)
    wanted = parse_budget(ratio, max_gaussians, max_megabytes, max_milliseconds, profile)
    model = open_model(ckpt, ply)
    wished = {"root": data_root, "downscale": downscale, "test_every": test_every}
    data = model.data | {name: value for name, value in wished.items() if value is not None}
    (budget,) = timed([wanted], model, data, device)
    splats = budget.of(model)
    cameras, views = _cameras(path, data, frames)
    if photos and views is None:
        raise InputError("--photos: there are photos only for --path test or train, without --frames.")
    render_views(
        splats.to(choose_device(device)),
        cameras,
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
    log.info(f"{output}: {sum(len(batch) for batch in cameras)} frames of {len(splats):,} Gaussians")


def _cameras(
    path: str | Path, data: dict[str, Any], frames: int | None
) -> tuple[list[Cameras], Sequence[View] | None]:
    """The cameras to draw through, and the views that they are, if they are views."""
    if str(path) not in ("test", "train", "orbit"):
        if not Path(path).is_file():
            raise InputError(
                f"--path {path}: expected test, train, orbit or a camera path file; no such file."
            )
        cameras = read_path(path)
        return [cameras if frames is None else interpolate(cameras, frames)], None
    if data.get("root") is None:
        raise InputError(f"--path {path}: expected --data_root, the COLMAP folder of the capture.")
    capture = open_capture(data)
    if str(path) == "orbit":
        return [orbit(one_size(capture.views), _ORBIT_FRAMES if frames is None else frames)], None
    views = capture.test_views if str(path) == "test" else capture.train_views
    if not views:
        raise InputError(f"--path {path}: capture '{capture.name}' has no {path} views.")
    if frames is not None:
        return [interpolate(one_size(views), frames)], None
    return [view.camera for view in views], views
