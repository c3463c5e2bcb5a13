"""The first step: upright photos in one folder, from whatever was given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from scipy import ndimage
from tqdm import tqdm

from flexgs_lightning.data.images import read_header
from flexgs_lightning.data.photos import IMAGE_SUFFIXES
from flexgs_lightning.data.video import SUFFIXES as VIDEO_SUFFIXES
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path

_KEPT_AS_THEY_ARE = (".jpg", ".jpeg", ".png")
_UNREADABLE = (".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".avif")
"""Photos all the same: their owner is told that they are left out."""
_QUALITY = 95
_SHARPNESS_SIDE = 480
"""Longest side in pixels at which sharpness is measured, so that noise does not pass for detail."""


@dataclass(frozen=True)
class Source:
    """What was given.

    Attributes:
        photos: files, sorted by name.
        video: one file, or None.
        unreadable: photos of a kind that is not read here.
    """

    photos: tuple[Path, ...]
    video: Path | None
    unreadable: tuple[Path, ...]

    @staticmethod
    def find(path: Path) -> Source:
        """Photos of a folder, at any depth, or one video (a file, or alone in a folder).

        Raises:
            InputError: nothing of that kind is there, or several videos are.
        """
        if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
            return Source((), path, ())
        if not path.is_dir():
            found = "another file" if path.exists() else "no such file or folder"
            raise InputError(f"{path}: {found}, expected a folder of photos or a video.")
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        photos = tuple(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
        unreadable = tuple(file for file in files if file.suffix.lower() in _UNREADABLE)
        videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        if photos:
            return Source(photos, None, unreadable)
        if len(videos) == 1:
            return Source((), videos[0], unreadable)
        if unreadable:
            kinds = ", ".join(sorted({file.suffix.lower() for file in unreadable}))
            raise InputError(f"{path}: found {len(unreadable)} photos of kind {kinds}; convert them to JPEG.")
        raise InputError(f"{path}: found {len(videos)} videos and no photos, expected photos or one video.")


def gather(source: Source, root: Path, folder: Path, frames: int) -> None:
    """Fill ``folder`` with upright photos, whole or not at all.

    A photo that stands upright is linked where possible, and copied elsewhere. Of a video, ``frames`` windows
    of equal length give their sharpest frame each.

    Args:
        source: what was given.
        root: folder that photos' names are relative to.
        folder: to be made.
        frames: number of frames to take from a video.

    Raises:
        InputError: a file cannot be read, or the folder not written.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        if source.video is not None:
            _sample(source.video, temporary, frames)
            return
        for photo in tqdm(source.photos, desc="Photos", unit="photo"):
            _take(photo, temporary / _without_blanks(photo.relative_to(root)))


def _without_blanks(name: Path) -> Path:
    """COLMAP's lists separate names by blanks."""
    return Path(*("_".join(part.split()) for part in name.parts))


def _take(photo: Path, target: Path) -> None:
    """Link, copy, or turn upright and write anew; what camera it was stays in the EXIF data."""
    read_header(photo)  # says what is wrong
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(photo) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if upright and photo.suffix.lower() in _KEPT_AS_THEY_ARE:
            _link(photo, target)
            return
        try:
            turned = ImageOps.exif_transpose(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{photo}: expected a readable image, found: {error}.") from error
        is_jpeg = photo.suffix.lower() in (".jpg", ".jpeg")
        if is_jpeg:
            turned.save(target, quality=_QUALITY, exif=turned.getexif())
        else:
            turned.save(target.with_suffix(".png"))


def _link(photo: Path, target: Path) -> None:
    try:
        os.link(photo.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(photo, target)


def _sample(video: Path, folder: Path, count: int) -> None:
    """Write the sharpest frame of each of ``count`` windows of equal duration."""
    best: tuple[float, UInt8[np.ndarray, "H W 3"]] | None = None
    current = 0
    with tqdm(total=count, desc="Sharp frames", unit="frame") as progress:
        for position, frame in _frames(video):
            window = min(int(position * count), count - 1)
            if window != current and best is not None:
                _write_frame(best[1], folder, current)
                best = None
                progress.update(window - current)
            current = window
            sharpness = _sharpness(frame)
            if best is None or sharpness > best[0]:
                best = sharpness, frame
        if best is None:
            raise InputError(f"{video}: expected a readable video, found no frame that can be decoded.")
        _write_frame(best[1], folder, current)
        progress.update()


def _frames(video: Path) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    """Every frame, upright, with its place in the video from 0 to 1."""
    try:
        with av.open(str(video), metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError(f"{video}: expected a video, found no picture in it.")
            stream = container.streams.video[0]
            stream.thread_count = 1
            unit = float(stream.time_base or 0)
            start, length = unit * (stream.start_time or 0), unit * (stream.duration or 0)
            length = length or float(container.duration or 0) / av.time_base
            for i, frame in enumerate(container.decode(stream)):
                time = i / float(stream.average_rate or 30) if frame.time is None else frame.time - start
                place = min(max(time / length, 0.0), 1.0) if length > 0 else 0.0
                yield place, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    except (av.FFmpegError, OSError) as error:
        found = "an empty file" if video.stat().st_size == 0 else str(error)
        raise InputError(f"{video}: expected a readable video, found: {found}.") from error


def _sharpness(frame: UInt8[np.ndarray, "H W 3"]) -> float:
    """Variance of the Laplacian of the grey picture: blur takes it away."""
    image = Image.fromarray(np.ascontiguousarray(frame)).convert("L")
    image.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE), Image.Resampling.BOX)
    return float(ndimage.laplace(np.asarray(image, dtype=np.float32)).var())


def _write_frame(frame: UInt8[np.ndarray, "H W 3"], folder: Path, window: int) -> None:
    name = f"frame_{window + 1:05d}.jpg"
    Image.fromarray(np.ascontiguousarray(frame)).save(folder / name, quality=_QUALITY)
