"""Videos: every frame by its number, exactly, however they come to be asked for.

A compressed video decodes only forwards from a keyframe. Its packets are listed once, without decoding: their
timestamps give the order in which frames are shown, so that a frame's number means the same everywhere.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flexgs_lightning.data.images import Lens, Size
from flexgs_lightning.errors import InputError

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
"""Endings of files that count as videos."""
_OPEN_VIDEOS = 2
"""Decoders kept by each process: one for what is read in order, one for what interrupts it."""
_LARGEST_JITTER = Fraction(1, 2)
"""Frames further from even spacing than this share of their distance were dropped or shown twice."""


@dataclass(frozen=True)
class Video:
    """What a video file states about its frames, in the order in which they are shown.

    Attributes:
        path: the file. A rotation that it asks players for is ignored, as a photo's is.
        size: width and height in pixels.
        rate: frames per second.
        timestamps: of each frame, in the file's own unit, rising.
        keyframes: numbers of the frames at which decoding can begin, rising.
    """

    path: Path
    size: Size
    rate: float
    timestamps: tuple[int, ...] = field(compare=False, repr=False)
    keyframes: tuple[int, ...] = field(compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.timestamps)

    def group(self, index: int) -> range:
        """Numbers of the frames that are decoded together with frame ``index``: from keyframe to keyframe."""
        bounds = (*self.keyframes, len(self))
        after = next(i for i, start in enumerate(bounds) if start > index)
        return range(bounds[after - 1], bounds[after])


def open_video(path: Path) -> Video:
    """List a video's frames; nothing is decoded.

    Raises:
        InputError: no such file, not a video, without timestamps, or its frames are not evenly spaced.
    """
    with _reporting(path), av.open(str(path), metadata_errors="replace") as container:
        if not container.streams.video:
            raise InputError(f"{path}: expected a video, found no picture in it.")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise InputError(f"{path}: expected a video, found one of a kind that cannot be decoded here.")
        size = (stream.codec_context.width, stream.codec_context.height)
        shown = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        unit = stream.time_base
    if any(packet.pts is None for packet in shown):
        raise InputError(f"{path}: some frames have no timestamp, so that their order is unknown.")
    shown.sort(key=lambda packet: packet.pts or 0)
    timestamps = tuple(packet.pts or 0 for packet in shown)
    keyframes = tuple(i for i, packet in enumerate(shown) if packet.is_keyframe)
    if not shown or not keyframes or keyframes[0] != 0 or unit is None:
        raise InputError(f"{path}: expected a video that begins with a keyframe, found {len(shown)} frames.")
    return Video(path, size, _rate(path, timestamps, unit), timestamps, keyframes)


def _rate(path: Path, timestamps: tuple[int, ...], unit: Fraction) -> float:
    """Frames per second of evenly spaced frames; 0 of one frame alone."""
    count = len(timestamps)
    if count < 2:
        return 0.0
    step = Fraction(timestamps[-1] - timestamps[0], count - 1)
    for i, timestamp in enumerate(timestamps):
        if timestamp == timestamps[i - 1] and i:
            raise InputError(f"{path}: frames {i - 1} and {i} have one timestamp, expected one each.")
        if abs(timestamp - timestamps[0] - i * step) > _LARGEST_JITTER * step:
            raise InputError(
                f"{path}: frame {i} comes at {float((timestamp - timestamps[0]) * unit):.3f} s, expected "
                f"{float(i * step * unit):.3f} s: frames are missing, or the frame rate varies."
            )
    return float(1 / (step * unit))


@dataclass(frozen=True)
class VideoFrame:
    """An ``ImageSource`` that reads one frame of a video: decode, reduce by area, undistort.

    Attributes:
        video: where it comes from.
        index: its number, from 0.
        reduction: as of ``images.ImageFile``.
        lens: how to undistort the reduced frame; None for a pinhole camera.
    """

    video: Video
    index: int
    reduction: int = 1
    lens: Lens | None = None

    @property
    def has_alpha(self) -> bool:
        """Videos are opaque."""
        return False

    def read(self) -> UInt8[np.ndarray, "H W 3"]:
        """Decode to uint8 RGB.

        Raises:
            InputError: the file is gone or damaged, or the frame cannot be decoded.
        """
        with _decoding:
            return self._developed(_decoder(self.video).frame(self.index))

    def read_group(self) -> Iterator[tuple[VideoFrame, UInt8[np.ndarray, "H W 3"]]]:
        """This frame and those that are decoded with it, in their order.

        Raises:
            InputError: as ``read``.
        """
        for index in self.video.group(self.index):
            frame = replace(self, index=index)
            yield frame, frame.read()

    def _developed(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        if self.reduction > 1:
            width, height = (side // self.reduction for side in self.video.size)
            whole = (0, 0, width * self.reduction, height * self.reduction)
            pixels = np.asarray(Image.fromarray(pixels).reduce(self.reduction, whole))
        return pixels if self.lens is None else self.lens.undistort(pixels)


class _Decoder:
    """An open video and where it stands: going on is quick, going back is a seek."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._numbers = {timestamp: index for index, timestamp in enumerate(video.timestamps)}
        with _reporting(video.path):
            self._container = av.open(str(video.path), metadata_errors="replace")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._last: tuple[int, av.VideoFrame] | None = None

    def frame(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        with _reporting(self._video.path):
            if not self._reachable(index):
                self._go_to(index)
            while self._last is None or self._last[0] != index:
                self._next(index)
            return self._last[1].to_ndarray(format="rgb24")

    def _reachable(self, index: int) -> bool:
        """Whether going on is no longer than beginning at the keyframe before ``index``."""
        return self._last is not None and self._video.group(index)[0] <= self._last[0] <= index

    def _go_to(self, index: int) -> None:
        """Start decoding at the last keyframe before a frame, or at an earlier one if that lands too late."""
        starts = [start for start in self._video.keyframes if start <= index]
        for start in [*reversed(starts[-2:]), 0]:
            self._container.seek(self._video.timestamps[start], stream=self._stream, backward=True)
            self._frames, self._last = self._container.decode(self._stream), None
            self._next(index)
            if self._last is not None and self._last[0] <= index:
                return
        raise InputError(f"{self._video.path}: frame {index} cannot be reached from any keyframe.")

    def _next(self, wanted: int) -> None:
        """Decode one more; frames shown before the first keyframe decoded lack their references."""
        for frame in self._frames:
            index = None if frame.pts is None else self._numbers.get(frame.pts)
            if index is None or (self._last is None and not frame.key_frame):
                continue
            if self._last is not None and index <= self._last[0]:
                continue
            if frame.is_corrupt or (self._last is not None and self._last[0] < wanted < index):
                break
            self._last = index, frame
            return
        self._last = None
        raise InputError(f"{self._video.path}: frame {wanted} of {len(self._video)} is damaged or missing.")


_decoding = threading.Lock()
_decoders: OrderedDict[tuple[Path, int], _Decoder] = OrderedDict()


def _decoder(video: Video) -> _Decoder:
    """This process's decoder of a video, one of the few kept open; a file that has changed is opened anew."""
    with _reporting(video.path):
        key = video.path, video.path.stat().st_mtime_ns
    if key not in _decoders:
        while len(_decoders) >= _OPEN_VIDEOS:
            _decoders.popitem(last=False)
        _decoders[key] = _Decoder(video)
    _decoders.move_to_end(key)
    return _decoders[key]


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Every way in which a video can fail becomes an ``InputError``."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a video.") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        found = "an empty file" if path.is_file() and path.stat().st_size == 0 else str(error)
        raise InputError(f"{path}: expected a readable video, found: {found}.") from error
