"""``flexgs export`` and ``flexgs render``. Signatures and docstrings here are the command line's help."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.path_file import read_path
from flexgs_lightning.deploy.ply import read_ply, write_ply
from flexgs_lightning.deploy.render import render_views, require_free, require_kind
from flexgs_lightning.deploy.trajectory import interpolate, orbit
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)

_CAPTURE_OPTIONS = ("downscale", "test_every", "images", "masks")
_ORBIT_FRAMES = 120


def export(ckpt: Path, output: Path, overwrite: bool = False) -> None:
    """Write a checkpoint as a standard 3DGS PLY file, in the capture's own world frame.

    Args:
        ckpt: Checkpoint of a training.
        output: The .ply file to write.
        overwrite: Replace the file if it exists.
    """
    if output.suffix.lower() != ".ply":
        raise InputError(f"{output}: expected the name of a .ply file.")
    require_free(output, overwrite)
    splats = load(ckpt).splats()
    write_ply(splats, output)
    size = output.stat().st_size / 1e6
    log.info(f"{output}: {len(splats):,} Gaussians, SH degree {splats.sh_degree}, {size:.1f} MB")


def render(
    output: Path,
    ckpt: Path | None = None,
    ply: Path | None = None,
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
    """Draw a checkpoint or PLY file: a capture's views, an orbit or a camera path, to PNG frames and video.

    Args:
        output: An .mp4 file, or a folder for PNG frames.
        ckpt: Checkpoint to draw.
        ply: 3DGS PLY file to draw, instead of a checkpoint.
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
        antialiased: Draw with the antialiased rasterizer; by default as trained, or not.
        video: With a folder, also write video.mp4 in it.
        fps: Frames per second of the video.
        quality: Quality of the video, from 1 to 10.
        device: Where to draw; "auto" takes CUDA where there is a device.
        overwrite: Replace the output if it exists.
    """
    require_kind(output)
    require_free(output, overwrite)
    scene = _open_scene(ckpt, ply)
    wished = {"root": data_root, "downscale": downscale, "test_every": test_every}
    data = scene.data | {name: value for name, value in wished.items() if value is not None}
    cameras, views = _cameras(path, data, frames)
    if photos and views is None:
        raise InputError("--photos: there are photos only for --path test or train, without --frames.")
    render_views(
        scene.splats.to(_device(device)),
        cameras,
        output,
        names=None if views is None else [view.name for view in views],
        photos=[view.source for view in views] if photos and views is not None else None,
        background=scene.background if background is None else _grey(background == "white"),
        antialiased=scene.antialiased if antialiased is None else antialiased,
        video=video,
        fps=fps,
        quality=quality,
        overwrite=overwrite,
    )
    log.info(f"{output}: {sum(len(batch) for batch in cameras)} frames of {len(scene.splats):,} Gaussians")


@dataclass(frozen=True)
class _Scene:
    """What is drawn, and what its file says about how: ``data`` are options of the capture."""

    splats: Splats
    background: torch.Tensor
    antialiased: bool
    data: dict[str, Any]


def _open_scene(ckpt: Path | None, ply: Path | None) -> _Scene:
    if ckpt is not None and ply is None:
        model = load(ckpt)
        return _Scene(model.splats(), model.background, model.antialiased, model.data)
    if ply is not None and ckpt is None:
        return _Scene(read_ply(ply), _grey(False), False, {})
    raise InputError(f"expected either --ckpt or --ply, found {'both' if ckpt else 'neither'}.")


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
    capture = _open_capture(data, path)
    if str(path) == "orbit":
        return [orbit(_one_size(capture.views), _ORBIT_FRAMES if frames is None else frames)], None
    views = capture.test_views if str(path) == "test" else capture.train_views
    if not views:
        raise InputError(f"--path {path}: capture '{capture.name}' has no {path} views.")
    if frames is not None:
        return [interpolate(_one_size(views), frames)], None
    return [view.camera for view in views], views


def _open_capture(data: dict[str, Any], path: str | Path) -> Capture:
    if data.get("root") is None:
        raise InputError(f"--path {path}: expected --data_root, the COLMAP folder of the capture.")
    return read_colmap(data["root"], **{name: data[name] for name in _CAPTURE_OPTIONS if name in data})


def _one_size(views: Sequence[View]) -> Cameras:
    """All cameras as one batch, at the size that most of them have."""
    sizes = Counter((view.camera.width, view.camera.height) for view in views)
    (width, height), _ = sizes.most_common(1)[0]
    return Cameras.stack([view.camera.resized(width, height) for view in views])


def _grey(level: float) -> torch.Tensor:
    return torch.full((3,), float(level))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device that torch can use.")
    return torch.device(name)
