"""MP4 files, frame by frame, through the ffmpeg program that imageio-ffmpeg brings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from flexgs_lightning.errors import InputError


def even_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """(width, height) of a video for frames of ``sizes``: the largest, less a pixel where odd.

    H.264 with colour at half resolution, the one kind that every player shows, needs even sizes.
    """
    width, height = (max(extents) for extents in zip(*sizes, strict=True))
    return max(2, width - width % 2), max(2, height - height % 2)


def fit(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Cut what is beyond ``size`` (width, height) and centre the rest on black."""
    frame = frame[: size[1], : size[0]]
    down, right = size[1] - frame.shape[0], size[0] - frame.shape[1]
    return np.pad(frame, ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0)))


@contextlib.contextmanager
def video_writer(
    path: Path, size: tuple[int, int], fps: float, quality: float
) -> Iterator[Callable[[UInt8[np.ndarray, "h w 3"]], None]]:
    """Yield a function that appends a frame to the MP4 file ``path``.

    Args:
        path: the file; it is complete only when the block has ended without an exception.
        size: (width, height), both even; frames are made to ``fit``.
        fps: frames per second.
        quality: 1 (smallest file) to 10 (lossless).

    Raises:
        InputError: ``fps`` or ``quality`` out of range, or no ffmpeg program.
        OSError: ffmpeg could not write all frames.
    """
    if not fps > 0 or not 1 <= quality <= 10:
        raise InputError(f"video: expected fps > 0 and quality 1 to 10, found {fps:g} and {quality:g}.")
    written = 0
    writer = imageio_ffmpeg.write_frames(
        str(path),
        size,
        fps=fps,
        quality=quality,
        codec="libx264",
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],  # plays in a browser before it is all there
    )

    def append(frame: UInt8[np.ndarray, "h w 3"]) -> None:
        nonlocal written
        writer.send(np.ascontiguousarray(fit(frame, size)))
        written += 1

    try:
        writer.send(None)
    except RuntimeError as error:
        raise InputError(f"video: no ffmpeg program ({error}); PNG frames need none.") from error
    with contextlib.closing(writer):
        yield append
    _require_complete(path, written)


def _require_complete(path: Path, written: int) -> None:
    """ffmpeg's exit status is not to be had, so ask the file itself."""
    try:
        held = imageio_ffmpeg.count_frames_and_secs(str(path))[0] if path.is_file() else 0
    except RuntimeError:
        held = 0
    if held != written:
        raise OSError(f"ffmpeg stored {held} of {written} frames")
