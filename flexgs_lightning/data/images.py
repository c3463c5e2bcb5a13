"""Photos on disk: decode, reduce, undistort. Everything here runs in worker processes too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import plain_size

Size = tuple[int, int]
"""Width and height in pixels."""
Pinhole = tuple[float, float, float, float]
"""fx, fy, cx, cy in pixels."""

SMALLEST_SIDE = 2
"""Pixels: less is no picture."""
_PIXELS_A_BYTE, _ALWAYS_PIXELS = 8192, 1 << 24
"""What an image file may unpack to: one colour packed well, and any file."""
_OPAQUE_MODES = ("RGB", "RGBX", "CMYK", "YCbCr", "1", "L", "P", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("RGBA", "LA", "PA")


@dataclass(frozen=True)
class Lens:
    """A distorting camera as calibrated, and the pinhole that its photos are resampled to.

    Attributes:
        model: COLMAP's name of the camera model.
        parameters: the model's parameters, in the pixels of its calibration.
        extent: width and height that the photos cover, in the pixels of the calibration.
        pinhole: intrinsics of the undistorted image.
        size: size of the undistorted image.
    """

    model: str
    parameters: tuple[float, ...]
    extent: tuple[float, float]
    pinhole: Pinhole
    size: Size

    def undistort(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "H W c"]:
        """Resample a distorted photo of any resolution bilinearly, as COLMAP's undistorter does.

        Colours are weighted by alpha (c = 4).
        """
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        if image.shape[1] == 4:
            image[:, :3] *= image[:, 3:] / 255.0
        image = torch.nn.functional.grid_sample(
            image, _sampling_grid(self), mode="bilinear", padding_mode="border", align_corners=False
        )
        if image.shape[1] == 4:
            image[:, :3] *= 255.0 / image[:, 3:].clamp_min(1e-3)
        return image[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8).contiguous().numpy()

    def outside(self) -> float:
        """Share of the undistorted image that the photo does not cover, in [0, 1], on a lattice."""
        x, y = (np.linspace(0.5, side - 0.5, 65) for side in self.size)
        return float((np.abs(_photo_coordinates(self, x, y)) > 1.0).any(axis=-1).mean())


@lru_cache(maxsize=2)
def _sampling_grid(lens: Lens) -> Float[Tensor, "1 H W 2"]:
    """Where each undistorted pixel centre lies in the photo, in ``grid_sample``'s coordinates."""
    coordinates = _photo_coordinates(lens, *(np.arange(side) + 0.5 for side in lens.size))
    return torch.from_numpy(coordinates.astype(np.float32))[None]


def _photo_coordinates(
    lens: Lens, x: Float[np.ndarray, " W"], y: Float[np.ndarray, " H"]
) -> Float[np.ndarray, "H W 2"]:
    """Distort undistorted pixels: the result runs from -1 to 1 between the photo's edges.

    Relative coordinates serve every resolution of the photo, and let ``images_N`` of rounded size scale
    each axis by itself, which the parameters of most camera models could not express.
    """
    from flexgs_lightning.data.colmap_library import (
        pycolmap,  # here, so that workers that decode pinhole photos need not load it
    )

    camera = pycolmap.Camera(model=lens.model, width=1, height=1, params=list(lens.parameters))
    fx, fy, cx, cy = lens.pinhole
    columns, rows = np.meshgrid((x - cx) / fx, (y - cy) / fy)
    rays = np.stack([columns.ravel(), rows.ravel(), np.ones(columns.size)], axis=1)
    distorted = np.asarray(camera.img_from_cam(rays), dtype=np.float64)
    relative = 2.0 * distorted / lens.extent - 1.0
    return np.nan_to_num(relative, nan=2.0, posinf=2.0, neginf=-2.0).reshape(len(y), len(x), 2)


@dataclass(frozen=True)
class ImageFile:
    """An ``ImageSource`` that reads one photo: decode, join alpha, reduce by area, undistort.

    Attributes:
        path: the photo. An EXIF orientation is ignored, as COLMAP ignores it.
        stored_size: size of the photo on disk.
        has_alpha: whether ``read`` returns four channels.
        reduction: each pixel becomes the mean of a square of so many pixels a side; an incomplete square
            at the right or bottom is left out, so that the intrinsics scale by exactly this factor.
        mask: a grey image used as alpha instead of the photo's own; None without one.
        lens: how to undistort the reduced photo; None for a pinhole camera.
    """

    path: Path
    stored_size: Size
    has_alpha: bool
    reduction: int = 1
    mask: Path | None = None
    lens: Lens | None = None

    @property
    def reduced_size(self) -> Size:
        """Size after reduction, before undistortion."""
        return self.stored_size[0] // self.reduction, self.stored_size[1] // self.reduction

    def read(self) -> UInt8[np.ndarray, "H W 3|4"]:
        """Decode to uint8 RGB, or RGBA with straight alpha.

        Raises:
            InputError: the photo or its mask is missing, unreadable, or has changed its size.
        """
        image = _decode(self.path, "RGBA" if self.has_alpha else "RGB")
        if image.size != self.stored_size:
            raise InputError(f"{self.path}: found {_text(image.size)}, expected {_text(self.stored_size)}.")
        if self.mask is not None:
            mask = _decode(self.mask, "L")
            # not Pillow's box filter: it takes whole pixels only, which shifts edges
            image.putalpha(mask.resize(image.size, Image.Resampling.BILINEAR))
        if self.reduction > 1:
            width, height = self.reduced_size
            whole = (0, 0, width * self.reduction, height * self.reduction)
            image = image.reduce(self.reduction, whole)  # weights colours by alpha
        pixels = np.array(image)
        return pixels if self.lens is None else self.lens.undistort(pixels)


@dataclass(frozen=True)
class ImageHeader:
    """What an image file states before its pixels are decoded."""

    size: Size
    has_alpha: bool


def read_header(path: Path) -> ImageHeader:
    """Read an image's header, which takes a fraction of a millisecond.

    Raises:
        InputError: the file is missing, empty, no image, or of a pixel type without 8-bit meaning.
    """
    with _opened(path) as image:
        if image.mode not in _OPAQUE_MODES + _ALPHA_MODES:
            raise InputError(
                f"{path}: pixels of type {image.mode} have no defined brightness; "
                "expected 8-bit colour or 8- or 16-bit grey."
            )
        if min(image.size) < SMALLEST_SIDE:
            raise InputError(f"{path}: found {_text(image.size)}, expected at least {SMALLEST_SIDE} a side.")
        return ImageHeader(image.size, image.mode in _ALPHA_MODES or "transparency" in image.info)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; every way in which reading it can fail becomes an ``InputError``."""
    if not path.exists():
        raise InputError(f"{path}: no such file, expected an image.")
    size = plain_size(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > max(_PIXELS_A_BYTE * size, _ALWAYS_PIXELS):
                raise InputError(
                    f"{path}: states {_text(image.size)}, far more than its {size:,} bytes can hold."
                )
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        found = "an empty file" if size == 0 else str(error)
        raise InputError(f"{path}: expected a readable image, found: {found}.") from error


def _decode(path: Path, mode: str) -> Image.Image:
    with _opened(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would clip at 255
            grey = np.asarray(image).astype(np.float32) * (255.0 / 65535.0)
            return Image.fromarray(np.round(grey).astype(np.uint8)).convert(mode)
        return image.convert(mode)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]} pixels"
