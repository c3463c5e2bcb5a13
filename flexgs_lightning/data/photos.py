"""What all captures of photos share: options, the view of a photo, and what reports say of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flexgs_lightning.data.calibration import check_shape, fit_camera
from flexgs_lightning.data.capture import TEST_EVERY, Capture, View
from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.images import ImageFile, read_header
from flexgs_lightning.errors import InputError

logger = logging.getLogger(__name__)

MIN_VIEWS = 3
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_LEAST_KEPT = 0.5
_TOLERATED_OUTSIDE = 0.001


@dataclass(frozen=True)
class ReadOptions:
    """What every reader of captures is asked for; see ``reading.read_capture``.

    Raises:
        InputError: a factor below 1, or a split that leaves nothing to train on.
    """

    downscale: int = 1
    test_every: int = TEST_EVERY
    images: str = "images"
    masks: str = "masks"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.downscale < 1:
            raise InputError(f"downscale: found {self.downscale}, expected 1 or more.")
        if self.test_every < 0 or self.test_every == 1:
            raise InputError(
                f"test_every: found {self.test_every}, expected 2 or more, or 0 to hold out none."
            )

    def name_of(self, root: Path) -> str:
        """Short name of the capture for reports: the folder's, if none is given."""
        return self.name or root.resolve().name


def photo_view(
    name: str,
    path: Path,
    camera: pycolmap.Camera,
    cam_from_world: Float[np.ndarray, "3 4"],
    *,
    reduction: int = 1,
    mask: Path | None = None,
) -> View:
    """The view of one photo; its header and its mask's are read here, so that bad files are found early.

    Args:
        name: the view's.
        path: the photo, at the calibration's size or another scale of it.
        camera: the photo's calibration.
        cam_from_world: world-to-camera matrix, in the convention of ``cameras``.
        reduction: factor by which the photo is still to be reduced.
        mask: grey image that serves as alpha.

    Raises:
        InputError: see ``read_header`` and ``fit_camera``.
    """
    header = read_header(path)
    if mask is not None:
        check_shape(mask, read_header(mask).size, camera)
    fitted = fit_camera(cam_from_world, camera, header.size, reduction, path)
    has_alpha = header.has_alpha or mask is not None
    return View(name, fitted.camera, ImageFile(path, header.size, has_alpha, reduction, mask, fitted.lens))


def processing(views: Sequence[View], masks: str) -> str:
    """How the pixels differ from the files', for reports; empty if they do not.

    Args:
        views: all of a capture.
        masks: where masks come from.
    """
    sources = [view.source for view in views if isinstance(view.source, ImageFile)]
    models = sorted({source.lens.model for source in sources if source.lens is not None})
    undistorted = f", undistorted from {' and '.join(models)}" if models else ""
    masked = any(source.mask is not None for source in sources)
    return undistorted + (f", alpha from {masks}" if masked else "")


def log_capture(capture: Capture, unused: int) -> None:
    """One line of what was read, and a warning where undistortion loses much.

    Args:
        capture: what was read.
        unused: image files beside it that it does not name.
    """
    _warn_of_wide_lenses(capture)
    sizes = Counter(f"{view.camera.width}x{view.camera.height}" for view in capture.views)
    logger.info(
        "%s: %s; %d images (%s), %d to train and %d to test; %d points; %d files not in the model ignored",
        capture.name,
        capture.protocol,
        len(capture.views),
        ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3)),
        len(capture.train_views),
        len(capture.test_views),
        len(capture.points),
        unused,
    )


def _warn_of_wide_lenses(capture: Capture) -> None:
    """COLMAP's undistorter keeps the focal length, so what it keeps of a very wide photo can be little."""
    sources = {view.source for view in capture.views if isinstance(view.source, ImageFile)}
    undistorted = {(source.lens, source.reduced_size) for source in sources if source.lens is not None}
    for lens, (width, height) in undistorted:
        if lens.size[0] < _LEAST_KEPT * width or lens.size[1] < _LEAST_KEPT * height:
            kept = f"only {lens.size[0]}x{lens.size[1]} of {width}x{height} pixels are kept"
        elif (outside := lens.outside()) > _TOLERATED_OUTSIDE:
            kept = f"{100 * outside:.1f} % of the image lie beyond the photo, whose edge is repeated there"
        else:
            continue
        logger.warning("%s: undistorting %s: %s.", capture.name, lens.model, kept)
        return  # the photos of one capture are alike
