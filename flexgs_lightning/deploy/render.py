"""Drawing splats to files: PNG frames and MP4 video, one frame in memory at a time."""

from __future__ import annotations

import mimetypes
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import ImageSource
from flexgs_lightning.deploy.video import even_size, video_writer
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.images import to_uint8
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats

VIDEO_NAME = "video.mp4"
"""The video that lies beside the frames."""
RENDERS = (".png", ".mp4")
"""Endings of the files that a folder of renders holds."""


@torch.no_grad()
def draw(
    splats: Splats,
    camera: Cameras,
    background: Float[Tensor, " 3"] | None = None,
    antialiased: bool = False,
) -> Float[Tensor, "H W 3"]:
    """The image of one camera (C = 1), on the splats' device; not clamped."""
    camera = camera.to(splats.device)
    return rasterize(splats, camera, background=background, antialiased=antialiased).image[0]


def read_photo(source: ImageSource, background: Float[Tensor, " 3"] | None = None) -> Float[Tensor, "H W 3"]:
    """A photo in [0, 1] on the CPU, over ``background`` (black if None) where it has alpha."""
    photo = torch.from_numpy(source.read()).float() / 255.0
    if photo.shape[-1] == 3:
        return photo
    colour, alpha = photo[..., :3], photo[..., 3:]
    return colour * alpha + (0.0 if background is None else background.to(photo)) * (1.0 - alpha)


def render_views(
    splats: Splats | Callable[[int], Splats],
    cameras: Cameras | Sequence[Cameras],
    output: str | Path,
    *,
    names: Sequence[str] | None = None,
    photos: Sequence[ImageSource] | None = None,
    background: Float[Tensor, " 3"] | None = None,
    antialiased: bool = False,
    video: bool = False,
    fps: float = 30.0,
    quality: float = 8.0,
    overwrite: bool = False,
) -> Path:
    """Draw ``splats`` through ``cameras`` into a folder of PNG frames or an MP4 file.

    Colours are clamped to [0, 1] and rounded to 8 bits. ``output`` appears when every frame is done:
    an interruption leaves what was there before.

    Args:
        splats: the scene, on the device that draws; of one that moves, what gives it for a frame's number.
        cameras: one batch, or several of different sizes.
        output: an ``.mp4`` file, or else a folder.
        names: name of each camera's frame, for instance of the view; numbers if None.
        photos: put each camera's photo to the right of its frame.
        background: [3] colour behind the Gaussians and behind photos with alpha; black if None.
        antialiased: see ``rasterize``.
        video: with a folder, also write the frames as ``video.mp4`` in it.
        fps: frames per second of the video.
        quality: of the video, 1 to 10.
        overwrite: replace an existing ``output``.

    Returns:
        ``output`` as a path.

    Raises:
        InputError: no cameras; names or photos of another number; ``output`` exists (and ``overwrite`` is
            not set, or it is a folder that holds other things than renders) or is a file of another kind;
            it cannot be written.
    """
    output = Path(output)
    require_kind(output)
    require_free(output, overwrite, RENDERS)
    batches = [cameras] if isinstance(cameras, Cameras) else cameras
    batch = [several[i] for several in batches for i in range(len(several))]
    file_names = _file_names(names if names is not None else [f"{i:05d}" for i in range(len(batch))])
    given = [len(file_names)] if photos is None else [len(file_names), len(photos)]
    if not batch or any(count != len(batch) for count in given):
        raise InputError(
            f"{output}: {len(batch)} cameras with {given} names (and photos); expected one each."
        )
    frames = _frames(splats, batch, photos, background, antialiased)
    wider = 1 if photos is None else 2
    size = even_size({(wider * camera.width, camera.height) for camera in batch})

    with atomic_path(output) as temporary:
        if is_video(output):
            with video_writer(temporary, size, fps, quality) as append:
                for frame in frames:
                    append(frame)
        else:
            temporary.mkdir()
            path = temporary / VIDEO_NAME
            with video_writer(path, size, fps, quality) if video else nullcontext() as append_too:
                for name, frame in zip(file_names, frames, strict=True):
                    Image.fromarray(frame).save(temporary / f"{name}.png")
                    if append_too:
                        append_too(frame)
    return output


def _frames(
    splats: Splats | Callable[[int], Splats],
    cameras: Sequence[Cameras],
    photos: Sequence[ImageSource] | None,
    background: Float[Tensor, " 3"] | None,
    antialiased: bool,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Frames as they are stored, one by one, with a progress bar."""
    for i, camera in enumerate(tqdm(cameras, desc="rendering", unit="frame")):
        here = splats if isinstance(splats, Splats) else splats(i)
        frame = to_uint8(draw(here, camera, background, antialiased))
        if photos is not None:
            frame = np.concatenate([frame, to_uint8(read_photo(photos[i], background))], axis=1)
        yield frame


def is_video(output: Path) -> bool:
    """Whether ``render_views`` makes a video file of that name, not a folder of frames."""
    return output.suffix.lower() == ".mp4"


def require_kind(output: Path) -> None:
    """Refuse names such as ``orbit.gif`` that would become a folder.

    Raises:
        InputError: the name's ending promises a kind of file that is not written.
    """
    kind = mimetypes.guess_type(output.name)[0] or ""
    if not is_video(output) and kind:
        raise InputError(
            f"{output}: expected an .mp4 file or a folder for PNG frames, found a name for {kind}."
        )


def require_free(output: Path, overwrite: bool, suffixes: Collection[str]) -> None:
    """Refuse to replace what exists, and never a folder that holds anything but files of ``suffixes``.

    Raises:
        InputError: ``output`` exists and may not be replaced.
    """
    held = sorted(output.iterdir()) if output.is_dir() else []
    if not output.exists() or (output.is_dir() and not held):
        return
    if not overwrite:
        raise InputError(f"{output}: exists already. Choose another output, or set overwrite to replace it.")
    others = [path.name for path in held if path.is_dir() or path.suffix not in suffixes]
    if others:
        expected = " and ".join(suffixes)
        raise InputError(f"{output}: not replaced, because it holds more than {expected} ('{others[0]}').")


def _file_names(names: Sequence[str]) -> list[str]:
    """A file name without suffix for each view, inside the output folder whatever the capture states."""
    flat = [
        "_".join(p for p in PurePosixPath(name).with_suffix("").parts if p not in ("/", ".."))
        for name in names
    ]
    counts = Counter(flat)  # a.jpg and a.png, or a/b.jpg and a_b.jpg
    return [name if counts[name] == 1 else f"{name}_{i:05d}" for i, name in enumerate(flat)]
