"""Reading a capture, whatever program made it: one dispatcher over the readers of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flexgs_lightning.data import cameras_json, llff
from flexgs_lightning.data.cameras_json import read_cameras_json
from flexgs_lightning.data.capture import TEST_EVERY, Capture
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.data.colmap_film import read_colmap_film
from flexgs_lightning.data.film import cut
from flexgs_lightning.data.llff import read_llff
from flexgs_lightning.data.photos import ReadOptions
from flexgs_lightning.data.sequences import camera_names
from flexgs_lightning.data.transforms import has_transforms, read_transforms_capture
from flexgs_lightning.errors import InputError


@dataclass(frozen=True)
class Layout:
    """One way in which captures lie on disk.

    Attributes:
        marks: what a folder of this layout holds, for messages.
        matches: whether a folder looks like it, by names alone; whether all is there is the reader's to say.
        read: its reader.
    """

    marks: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Capture]


def _is_colmap_film(root: Path) -> bool:
    """A video beside ``images/`` is only where these came from."""
    return (root / "sparse").is_dir() and not (root / "images").is_dir() and bool(camera_names(root))


def _is_llff_film(root: Path) -> bool:
    return (root / llff.FILE).is_file() and bool(camera_names(root))


def _read_colmap(root: Path, options: ReadOptions) -> Capture:
    return read_colmap(root, **asdict(options))


LAYOUTS: tuple[Layout, ...] = (
    Layout(cameras_json.FILE, lambda root: (root / cameras_json.FILE).is_file(), read_cameras_json),
    Layout(f"{llff.FILE} with videos", _is_llff_film, read_llff),
    Layout("a COLMAP model with frames of each camera", _is_colmap_film, read_colmap_film),
    Layout("a COLMAP model in sparse/0", lambda root: (root / "sparse").is_dir(), _read_colmap),
    Layout("transforms.json or transforms_train.json", has_transforms, read_transforms_capture),
)
"""In order of preference: a folder that holds several kinds is read as the first of them."""


def read_capture(
    root: str | Path,
    *,
    downscale: int = 1,
    test_every: int = TEST_EVERY,
    images: str = "images",
    masks: str = "masks",
    name: str | None = None,
    frames: Sequence[int] | None = None,
    near_plane: float | None = None,
) -> Capture:
    """Read the cameras and points of a capture; pixels are read when a view's ``source`` is.

    Args:
        root: folder of the capture; what lies in it chooses the reader.
        downscale: use photos reduced by this factor.
        test_every: every n-th photo by sorted name is held out, starting with the first, unless the capture
            names its own test photos; 0 holds out none of either kind.
        images: name of the photo folder, where the layout has one.
        masks: name of the folder of masks, where the layout has one.
        name: short name for reports; None takes the folder's.
        frames: start and stop (not included) of the frames to use of a capture that moves; None for all.
        near_plane: world units in front of each camera in which it sees nothing; None takes what the capture
            says, or ``cameras.NEAR_PLANE``.

    Raises:
        InputError: no such folder, of no known layout, not readable as what it looks like, or without those
            frames; or a near plane that is not positive.
    """
    root = Path(root)
    marks = " or ".join(layout.marks for layout in LAYOUTS)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, expected a capture ({marks}).")
    for layout in LAYOUTS:
        if layout.matches(root):
            capture = layout.read(root, ReadOptions(downscale, test_every, images, masks, name))
            capture = capture if frames is None else cut(capture, frames)
            return capture if near_plane is None else capture.with_near_plane(near_plane)
    found = "found none of that" if any(root.iterdir()) else "the folder is empty"
    raise InputError(f"{root}: {found}, expected a capture ({marks}).")
