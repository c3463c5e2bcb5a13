"""Tiny videos and filmed captures with known pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

SIZE = (96, 64)
"""Width and height of a frame."""


def numbered_frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that tells its number: eight vertical bars, bright where a bit is set, and a moving edge."""
    width, height = size
    frame = np.full((height, width, 3), (60, 90, 120), np.uint8)
    for bit in range(8):
        left, right = bit * width // 8, (bit + 1) * width // 8
        frame[: height // 2, left:right] = 230 if number >> bit & 1 else 20
    frame[height // 2 :, : 2 + 2 * number % width] = (200, 60, 40)
    return frame


def number_in(frame: np.ndarray) -> int:
    """What ``numbered_frame`` wrote, however badly it was compressed."""
    height, width = frame.shape[:2]
    bars = [frame[height // 4, (2 * bit + 1) * width // 16].mean() > 125 for bit in range(8)]
    return sum(int(bright) << bit for bit, bright in enumerate(bars))


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: int = 30,
    group: int = 8,
    codec: str = "libx264",
    timestamps: Sequence[int] | None = None,
    **options: str,
) -> Path:
    """Encode frames; ``timestamps`` are in frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = group
        stream.codec_context.thread_count = 1
        stream.options = options
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = i if timestamps is None else timestamps[i]
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
