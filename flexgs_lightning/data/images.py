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

Size = tuple[int, int]
"""Width and height in pixels."""

_COLOUR_MODES = ("RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_GREY_MODES = ("1", "L", "P", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


@dataclass(frozen=True)
class Lens:
    """A distorting camera as calibrated, and the pinhole that its photos are resampled to.

    Attributes:
        model: COLMAP's name of the camera model.
        parameters: the model's parameters, in pixels of a photo of ``calibrated_size``.
        calibrated_size: image size that the parameters refer to.
        pinhole: fx, fy, cx, cy of the undistorted image, in pixels of ``size``.
        size: size of the undistorted image.
    """

    model: str
    parameters: tuple[float, ...]
    calibrated_size: Size
    pinhole: tuple[float, float, float, float]
    size: Size

    def undistort(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "H W c"]:
        """Resample a distorted photo of any resolution bilinearly, as COLMAP's undistorter does.

        Colours are weighted by alpha (c = 4), so that hidden ones do not bleed into visible ones.
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
        """Share of the undistorted image that the photo does not cover, in [0, 1]."""
        grid = _sampling_grid(self)
        return (~(grid.abs() <= 1.0).all(dim=-1)).float().mean().item()


@lru_cache(maxsize=2)
def _sampling_grid(lens: Lens) -> Float[Tensor, "1 H W 2"]:
    """Where each undistorted pixel centre lies in the photo, from -1 to 1 between the photo's edges.

    Relative coordinates serve every resolution of the photo, and let ``images_N`` of rounded size scale
    each axis by itself, which the parameters of most camera models could not express.
    """
    import pycolmap  # here, so that workers that decode pinhole photos need not load it

    camera = pycolmap.Camera(
        model=lens.model,
        width=lens.calibrated_size[0],
        height=lens.calibrated_size[1],
        params=list(lens.parameters),
    )
    (width, height), (fx, fy, cx, cy) = lens.size, lens.pinhole
    x, y = np.meshgrid((np.arange(width) + 0.5 - cx) / fx, (np.arange(height) + 0.5 - cy) / fy)
    rays = np.stack([x.ravel(), y.ravel(), np.ones(width * height)], axis=1)
    relative = 2.0 * camera.img_from_cam(rays) / np.array(lens.calibrated_size) - 1.0
    relative = np.nan_to_num(relative, nan=2.0, posinf=2.0, neginf=-2.0)
    return torch.from_numpy(relative.astype(np.float32)).reshape(1, height, width, 2)


@dataclass(frozen=True)
class ImageFile:
    """An ``ImageSource`` that reads one photo: decode, join alpha, reduce by area, undistort.

    Attributes:
        path: the photo. An EXIF orientation is ignored, as COLMAP ignores it.
        stored_size: size of the photo on disk.
        size: size after the area filter (and before undistortion).
        has_alpha: whether ``read`` returns four channels.
        mask: a grey image used as alpha instead of the photo's own; None without one.
        lens: how to undistort; None for a pinhole camera.
    """

    path: Path
    stored_size: Size
    size: Size
    has_alpha: bool
    mask: Path | None = None
    lens: Lens | None = None

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
            image.putalpha(mask.resize(image.size, Image.Resampling.BOX) if mask.size != image.size else mask)
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BOX)  # weights colours by alpha itself
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
        known = _COLOUR_MODES + _GREY_MODES + _ALPHA_MODES
        if image.mode not in known:
            raise InputError(
                f"{path}: pixels of type {image.mode} have no defined brightness; "
                "expected 8-bit colour or 8- or 16-bit grey."
            )
        return ImageHeader(image.size, image.mode in _ALPHA_MODES or "transparency" in image.info)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; every way in which reading it can fail becomes an ``InputError``."""
    try:
        with Image.open(path) as image:
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected an image.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        found = "an empty file" if path.is_file() and path.stat().st_size == 0 else str(error)
        raise InputError(f"{path}: expected a readable image, found: {found}.") from error


def _decode(path: Path, mode: str) -> Image.Image:
    with _opened(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would clip at 255
            grey = np.asarray(image).astype(np.float32) * (255.0 / 65535.0)
            return Image.fromarray(np.round(grey).astype(np.uint8)).convert(mode)
        if mode == "RGB" and image.mode in ("P", "PA"):
            return image.convert("RGBA").convert("RGB")
        return image.convert(mode)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]} pixels"
