"""The viewer's pictures, without a browser: its cameras, and a render beside its photo on one canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.spatial.transform import Rotation

from flexgs_lightning.cameras import Cameras

_GAP = 8
"""Pixels around the pictures on a canvas."""
_BACKDROP = (24, 24, 27)


@dataclass(frozen=True)
class BrowserCamera:
    """A browser's camera as viser states it.

    Attributes:
        wxyz: [4] camera-to-world rotation as a quaternion (w, x, y, z); axes as in ``cameras`` (OpenCV).
        position: [3] centre in world space.
        fov: vertical field of view in radians.
        width: canvas width in pixels.
        height: canvas height in pixels.
    """

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    width: int
    height: int

    @property
    def forward(self) -> Float[np.ndarray, " 3"]:
        """[3] unit vector of the optical axis in world space."""
        return self._rotation().as_matrix()[:, 2]

    def cameras(self) -> Cameras:
        """The same as a batch of one: square pixels, principal point in the middle."""
        viewmat = np.eye(4)
        viewmat[:3, :3] = self._rotation().as_matrix().T
        viewmat[:3, 3] = -viewmat[:3, :3] @ np.asarray(self.position)
        focal = 0.5 * self.height / math.tan(0.5 * self.fov)
        K = np.array([[focal, 0, 0.5 * self.width], [0, focal, 0.5 * self.height], [0, 0, 1]])
        viewmats, Ks = (torch.from_numpy(matrix).float()[None] for matrix in (viewmat, K))
        return Cameras(viewmats, Ks, self.width, self.height)

    def near(self, position: Float[np.ndarray, " 3"], forward: Float[np.ndarray, " 3"], unit: float) -> bool:
        """Whether the camera stands there and looks that way, within 0.1 % of ``unit`` and 0.1 degrees."""
        apart = float(np.linalg.norm(np.asarray(self.position) - position))
        # The chord of an angle, because its cosine loses small angles to rounding.
        turned = float(np.linalg.norm(self.forward - forward))
        return apart <= 1e-3 * unit and turned <= math.radians(0.1)

    def _rotation(self) -> Rotation:
        return Rotation.from_quat(np.roll(np.asarray(self.wxyz), -1))


def reduced(camera: Cameras, divisor: int) -> Cameras:
    """The same view with width and height divided, rounded, at least one pixel."""
    if divisor == 1:
        return camera
    return camera.resized(max(1, round(camera.width / divisor)), max(1, round(camera.height / divisor)))


def framing_fov(camera: Cameras, aspect: float) -> float:
    """Vertical field of view in radians of a canvas that shows all that one camera (C = 1) shows.

    Args:
        camera: the camera to contain.
        aspect: width of the canvas divided by its height.
    """
    half_width = 0.5 * camera.width / camera.Ks[0, 0, 0].item()
    half_height = 0.5 * camera.height / camera.Ks[0, 1, 1].item()
    return 2 * math.atan(max(half_height, half_width / aspect))


def tiles(
    canvas: tuple[int, int], picture: tuple[int, int], count: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Places for ``count`` pictures of one size on a canvas: in a row or a column, whichever is larger.

    Args:
        canvas: (width, height) in pixels.
        picture: (width, height) in any unit; its proportions are kept.
        count: number of pictures.

    Returns:
        for each picture its (left, top) corner and its (width, height).
    """

    def scale(columns: int, rows: int) -> float:
        across = (canvas[0] - (columns + 1) * _GAP) / (columns * picture[0])
        return min(across, (canvas[1] - (rows + 1) * _GAP) / (rows * picture[1]))

    columns, rows = max((count, 1), (1, count), key=lambda shape: scale(*shape))
    factor = max(scale(columns, rows), 0.0)
    width, height = (max(1, round(factor * extent)) for extent in picture)
    left = (canvas[0] - columns * width - (columns - 1) * _GAP) // 2
    top = (canvas[1] - rows * height - (rows - 1) * _GAP) // 2
    corners = [(left + i * (width + _GAP), top) for i in range(count)]
    if rows > 1:
        corners = [(left, top + i * (height + _GAP)) for i in range(count)]
    return [(corner, (width, height)) for corner in corners]


def depth_picture(
    depth: Float[torch.Tensor, "H W 1"], alpha: Float[torch.Tensor, "H W 1"]
) -> Float[torch.Tensor, "H W 3"]:
    """Depths as colours: near is bright, far is dark, nothing is black.

    Colours follow 1 / depth, over the range that the middle 96 % of what is seen takes.

    Args:
        depth: camera-space z; only read where something is seen.
        alpha: accumulated opacity.
    """
    seen = alpha[..., 0] > 0.5
    if not seen.any():
        return torch.zeros(*depth.shape[:2], 3)
    nearness = 1.0 / depth[..., 0].clamp_min(1e-6)
    low, high = np.quantile(nearness[seen].cpu().numpy(), (0.02, 0.98))
    shade = ((nearness - low) / max(high - low, 1e-12)).clamp(0, 1).cpu()
    from matplotlib import colormaps  # slow to import, and only needed here

    colours = torch.from_numpy(colormaps["magma"](0.15 + 0.85 * shade.numpy())[..., :3]).float()
    return colours * seen.cpu()[..., None]


def compose(
    canvas: tuple[int, int],
    pictures: list[UInt8[np.ndarray, "h w 3"]],
    proportions: tuple[int, int],
) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures of one scene part on one canvas, all resampled in the same way so that they compare.

    Args:
        canvas: (width, height) in pixels.
        pictures: a render, or a render and its photo; each fills its place, whatever its size.
        proportions: (width, height) of the picture at full size.
    """
    sheet = Image.new("RGB", canvas, _BACKDROP)
    for picture, (corner, size) in zip(pictures, tiles(canvas, proportions, len(pictures)), strict=True):
        shrinks = size[0] < picture.shape[1]
        filter_ = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
        sheet.paste(Image.fromarray(picture).resize(size, filter_), corner)
    return np.asarray(sheet)
