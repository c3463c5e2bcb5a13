"""The frames of one camera: numbered images in a folder, or a video."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flexgs_lightning.data.capture import ImageSource
from flexgs_lightning.data.images import ImageFile, Lens, Size, read_header
from flexgs_lightning.data.video import SUFFIXES, Video, VideoFrame, open_video
from flexgs_lightning.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
FOLDERS = ("frames", "videos")
"""Where the cameras' folders and videos lie inside a capture, beside its own folder."""
_NUMBER = re.compile(r"(\d+)$")


class Frames(Protocol):
    """One camera's frames, in the order of time.

    Attributes:
        path: where they lie, for messages.
        size: width and height of all of them in pixels, as stored.
        rate: frames per second; None where nothing is said about that.
        first: number of the first one, which is 0 of a video.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def size(self) -> Size: ...  # noqa: D102
    @property
    def rate(self) -> float | None: ...  # noqa: D102
    @property
    def first(self) -> int: ...  # noqa: D102

    def __len__(self) -> int: ...

    def source(self, index: int, reduction: int, lens: Lens | None) -> ImageSource:
        """The pixels of a frame, reduced and undistorted."""
        ...


@dataclass(frozen=True)
class ImageSequence:
    """Numbered images in a folder; see ``Frames``."""

    path: Path
    files: tuple[Path, ...]
    size: Size
    has_alpha: bool
    first: int
    rate: float | None = None

    def __len__(self) -> int:
        return len(self.files)

    def source(self, index: int, reduction: int, lens: Lens | None) -> ImageSource:
        """See ``Frames``."""
        return ImageFile(self.files[index], self.size, self.has_alpha, reduction, lens=lens)


@dataclass(frozen=True)
class FilmStrip:
    """The frames of a video; see ``Frames``."""

    video: Video

    @property
    def path(self) -> Path:
        """The video file."""
        return self.video.path

    @property
    def size(self) -> Size:
        """Size of its frames."""
        return self.video.size

    @property
    def rate(self) -> float | None:
        """Frames per second."""
        return self.video.rate or None

    @property
    def first(self) -> int:
        """Videos begin at 0."""
        return 0

    def __len__(self) -> int:
        return len(self.video)

    def source(self, index: int, reduction: int, lens: Lens | None) -> ImageSource:
        """See ``Frames``."""
        return VideoFrame(self.video, index, reduction, lens)


def find_frames(root: Path, camera: str) -> Frames:
    """The frames of a camera: ``frames/CAMERA/`` or ``videos/CAMERA.mp4``, or either in ``root`` itself.

    Raises:
        InputError: there are none, or they cannot be used; see ``read_sequence`` and ``open_video``.
    """
    for folder in (*(root / name for name in FOLDERS), root):
        for suffix in SUFFIXES:
            if (path := folder / f"{camera}{suffix}").is_file():
                return FilmStrip(open_video(path))
        if (folder / camera).is_dir():
            return read_sequence(folder / camera)
    raise InputError(
        f"{root}: camera {camera} has no frames, expected a folder frames/{camera} of images or a video "
        f"{camera}.mp4."
    )


def camera_names(root: Path) -> list[str]:
    """Names of the cameras that have frames in a capture, sorted; by the names of files and folders alone."""
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    found = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    for folder in (*folders, root):
        found |= {path.stem for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    return sorted(found)


def read_sequence(folder: Path) -> ImageSequence:
    """Images of a folder in the order of the numbers at the end of their names.

    Numbers may begin anywhere and rise by any step, but always by the same. Every header is read, so that a
    broken or smaller image is found before training.

    Raises:
        InputError: no images, one without a number, two with one number, one missing, or sizes differ.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: has no images, expected the frames of a camera.")
    numbered = sorted((_number(path), path) for path in files)
    numbers, ordered = [number for number, _ in numbered], tuple(path for _, path in numbered)
    _check_steps(folder, numbers, ordered)
    first = read_header(ordered[0])
    for path in ordered[1:]:
        header = read_header(path)
        if header.size != first.size:
            raise InputError(
                f"{path}: found {header.size[0]}x{header.size[1]} pixels, expected the "
                f"{first.size[0]}x{first.size[1]} of {ordered[0].name}."
            )
        if header.has_alpha != first.has_alpha:
            raise InputError(f"{path}: expected alpha in all frames of a camera or in none.")
    return ImageSequence(folder, ordered, first.size, first.has_alpha, numbers[0])


def _number(path: Path) -> int:
    found = _NUMBER.search(path.stem)
    if found is None:
        raise InputError(
            f"{path}: expected a frame's name to end with its number, such as 0012{path.suffix}."
        )
    return int(found[1])


def _check_steps(folder: Path, numbers: Sequence[int], files: Sequence[Path]) -> None:
    """The usual step is the greatest common one; a hole shows as a larger step."""
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    if not steps:
        return
    if min(steps) == 0:
        twice = steps.index(0)
        raise InputError(
            f"{folder}: {files[twice].name} and {files[twice + 1].name} have one number, expected two."
        )
    usual = math.gcd(*steps)
    for step, (before, after) in zip(steps, itertools.pairwise(files), strict=True):
        if step != usual:
            raise InputError(
                f"{folder}: {step // usual - 1} frames are missing between {before.name} and {after.name}."
            )
