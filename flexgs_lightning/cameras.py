"""Pinhole cameras. The package's one camera convention is stated here and nowhere else.

Convention (OpenCV, as in COLMAP and gsplat): the camera looks along +z, +x points right in the image
and +y down. ``viewmats`` map homogeneous world points to camera space. Pixel (i, j) covers the square
[j, j + 1] x [i, i + 1], so its centre lies at (j + 0.5, i + 0.5); ``Ks`` are in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEAR_PLANE = 0.01
"""World units in front of a camera in which it sees nothing, unless its capture says otherwise."""
LEAST_SPREAD = 1e-4
"""Variance of the axes' directions below which no point is seen from two sides: about 0.6 degrees."""


@dataclass(frozen=True)
class Cameras:
    """A batch of C pinhole cameras that share one image size.

    Attributes:
        viewmats: [C, 4, 4] world-to-camera matrices, float32, in the units of the capture's world.
        Ks: [C, 3, 3] intrinsics in pixels, float32.
        width: image width in pixels.
        height: image height in pixels.
        near_plane: in world units; Gaussians whose centres lie at less depth than this are not drawn.
    """

    viewmats: Float[Tensor, "C 4 4"]
    Ks: Float[Tensor, "C 3 3"]
    width: int
    height: int
    near_plane: float = NEAR_PLANE

    def __post_init__(self) -> None:
        count = self.viewmats.shape[0]
        if self.viewmats.shape != (count, 4, 4) or self.Ks.shape != (count, 3, 3):
            raise ValueError(
                f"Cameras: expected viewmats [C, 4, 4] and Ks [C, 3, 3], "
                f"found {tuple(self.viewmats.shape)} and {tuple(self.Ks.shape)}."
            )
        if self.width < 1 or self.height < 1:
            raise ValueError(f"Cameras: image size must be positive, found {self.width}x{self.height}.")

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Cameras:
        """Select cameras; an int gives a batch of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):  # an IndexError also ends iteration
                raise IndexError(f"camera {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return replace(self, viewmats=self.viewmats[index], Ks=self.Ks[index])

    @property
    def device(self) -> torch.device:
        """Device of the matrices."""
        return self.viewmats.device

    @property
    def positions(self) -> Float[Tensor, "C 3"]:
        """[C, 3] camera centres in world space."""
        rotations, translations = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return -(rotations.mT @ translations[..., None]).squeeze(-1)

    def contain(self, points: Float[Tensor, "P 3"]) -> Bool[Tensor, "C P"]:
        """Whether world points [P, 3] lie in front of each camera and project into its image."""
        rotations, translations = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        projected = self.Ks @ (rotations @ points.T + translations[..., None])  # [C, 3, P]
        depths = projected[:, 2]
        size = self.Ks.new_tensor([self.width, self.height])[:, None]
        inside = (projected[:, :2] >= 0) & (projected[:, :2] < size * depths[:, None])
        return (depths > 0) & inside.all(dim=1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Cameras:
        """Move to a device."""
        viewmats = self.viewmats.to(device, non_blocking=non_blocking)
        return replace(self, viewmats=viewmats, Ks=self.Ks.to(device, non_blocking=non_blocking))

    def resized(self, width: int, height: int) -> Cameras:
        """The same cameras for images resampled to ``width`` x ``height``; each axis scales by itself."""
        factors = self.Ks.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, Ks=self.Ks * factors[:, None], width=width, height=height)

    @staticmethod
    def stack(cameras: Sequence[Cameras]) -> Cameras:
        """Concatenate batches of one image size and near plane.

        Raises:
            ValueError: no cameras, or image sizes or near planes differ.
        """
        sizes = {(camera.width, camera.height) for camera in cameras}
        if len(sizes) != 1:
            raise ValueError(f"Cameras.stack: expected one image size, found {sorted(sizes)}.")
        near_planes = {camera.near_plane for camera in cameras}
        if len(near_planes) != 1:
            raise ValueError(f"Cameras.stack: expected one near plane, found {sorted(near_planes)}.")
        viewmats = torch.cat([camera.viewmats for camera in cameras])
        return replace(cameras[0], viewmats=viewmats, Ks=torch.cat([camera.Ks for camera in cameras]))


def scene_extent(positions: Float[Tensor, "C 3"]) -> float:
    """Radius of the cameras' bounding ball with 10 % margin (Kerbl et al. 2023), in world units.

    Scale-dependent settings (learning rate of positions, densification thresholds) are relative to it,
    because the world frame itself is never re-normalised. One camera alone has extent 0; callers get
    1.0 then, so that such settings stay usable.
    """
    radius = 1.1 * (positions - positions.mean(dim=0)).norm(dim=-1).max().item()
    return radius if radius > 0 else 1.0


def focus_point(cameras: Cameras) -> Float[Tensor, " 3"] | None:
    """The point nearest to all optical axes, in the sense of least squares: what the photos look at.

    None if all cameras look in one direction, so that there is no such point.
    """
    positions, axes = cameras.positions.double(), cameras.viewmats[:, 2, :3].double()
    # Each matrix projects onto the plane across an axis: what remains is the distance from the axis.
    across = torch.eye(3).to(axes) - axes[:, :, None] * axes[:, None, :]
    spread = torch.linalg.eigvalsh(across.mean(dim=0))[0]
    if spread < LEAST_SPREAD:
        return None
    target = (across @ positions[:, :, None]).sum(dim=0)
    return torch.linalg.solve(across.sum(dim=0), target).squeeze(-1).float()
