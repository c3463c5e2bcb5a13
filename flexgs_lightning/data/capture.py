"""Capture: photos of a scene with their cameras. Knows no file format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from flexgs_lightning.cameras import NEAR_PLANE, Cameras, scene_extent
from flexgs_lightning.errors import InputError

TEST_EVERY = 8
"""Every 8th image by sorted name is held out: the field's protocol since Mip-NeRF 360."""
MAX_POINTS_TRIED = 100_000
"""Most SfM points that are projected into a view whose observations are not known."""


class ImageSource(Protocol):
    """Where a view's pixels come from. Picklable, so that worker processes can decode."""

    @property
    def has_alpha(self) -> bool:
        """Whether ``read`` returns four channels."""
        ...

    def read(self) -> UInt8[np.ndarray, "H W 3|4"]:
        """Decode to the size and lens of the view's camera: uint8 RGB, or RGBA (straight alpha).

        Raises:
            InputError: the file is missing, unreadable, or not of the size that its camera states.
        """
        ...


@runtime_checkable
class GroupedSource(ImageSource, Protocol):
    """A source of a video: others come for free with it."""

    def read_group(self) -> Iterator[tuple[ImageSource, UInt8[np.ndarray, "H W 3"]]]:
        """This source and those that are decoded together with it, each with its pixels; see ``read``."""
        ...


@dataclass(frozen=True)
class View:
    """One photo.

    Attributes:
        name: file name relative to the capture's image folder.
        camera: one camera (C = 1, on the CPU) whose size and intrinsics match what ``source`` reads.
        source: the pixels.
        observed: rows of the capture's points that structure from motion matched in this photo, int32;
            None where nothing is known about that.
        time: when it was taken, in [0, 1) over the capture; None where nothing is said to move.
        filmed_by: name of the camera that took it and others at other times; None where each photo counts as
            taken by a camera of its own.
    """

    name: str
    camera: Cameras
    source: ImageSource
    observed: Int[Tensor, " n"] | None = None
    time: float | None = None
    filmed_by: str | None = None

    @property
    def taken_by(self) -> str:
        """Name of the camera, whose colours and exposure are its own."""
        return self.filmed_by or self.name


@dataclass(frozen=True)
class Points:
    """SfM points.

    Attributes:
        positions: [P, 3] float32 in world units.
        colors: [P, 3] uint8.
        times: [P] float32, the moments in [0, 1) at which they were there; None if at all times, or unknown.
    """

    positions: Float[Tensor, "P 3"]
    colors: UInt8[Tensor, "P 3"]
    times: Float[Tensor, " P"] | None = None

    def __len__(self) -> int:
        return self.positions.shape[0]

    def __getitem__(self, chosen: Int[Tensor, " p"] | Bool[Tensor, " P"]) -> Points:
        """Some of the points, by their rows or a mask."""
        times = None if self.times is None else self.times[chosen]
        return Points(self.positions[chosen], self.colors[chosen], times)


@dataclass(frozen=True)
class Capture:
    """A scene as photographed: views sorted by name, and SfM points (possibly none).

    Attributes:
        name: short name for reports.
        views: all views, sorted by name.
        points: SfM points in the same world frame.
        protocol: how the images were obtained, for reports ("images_4 as shipped", "images/ reduced by
            4, area filter").
        test_every: every n-th view, starting with the first, is held out; 0 holds out none.
        test_names: views that the capture itself names as test views, in place of every n-th.
        test_rule: how these were chosen, for reports.
        seconds: what the moments from 0 to 1 last; None of a still capture, or where that is unknown.
    """

    name: str
    views: tuple[View, ...]
    points: Points
    protocol: str
    test_every: int = TEST_EVERY
    test_names: frozenset[str] | None = None
    test_rule: str = "the capture's own test images are held out"
    seconds: float | None = None

    @property
    def train_views(self) -> tuple[View, ...]:
        """Views to fit."""
        return tuple(view for i, view in enumerate(self.views) if not self._is_held_out(i, view))

    @property
    def test_views(self) -> tuple[View, ...]:
        """Held-out views."""
        return tuple(view for i, view in enumerate(self.views) if self._is_held_out(i, view))

    def _is_held_out(self, index: int, view: View) -> bool:
        if self.test_every == 0:
            return False
        return index % self.test_every == 0 if self.test_names is None else view.name in self.test_names

    @property
    def split(self) -> str:
        """Which views are held out, for reports."""
        if self.test_every == 0:
            return "no image is held out"
        if self.test_names is None:
            return f"every {self.test_every}th image by sorted name is held out"
        return self.test_rule

    @property
    def moves(self) -> bool:
        """Whether its views are of different moments."""
        return any(view.time is not None for view in self.views)

    def points_seen(self, view: View) -> Float[Tensor, "n 3"]:
        """SfM points that a view observes; where that is not known, those inside its image (of many, some).

        The latter include what other things hide. They are taken from an even choice of at most
        ``MAX_POINTS_TRIED`` points, so that asking for each of thousands of views stays cheap.
        """
        if view.observed is not None and len(view.observed):
            return self.points.positions[view.observed.long()]
        step = -(-len(self.points) // MAX_POINTS_TRIED) or 1
        positions = self.points.positions[::step]
        return positions[view.camera.contain(positions)[0]]

    @property
    def near_plane(self) -> float:
        """That of its cameras, which share one."""
        return self.views[0].camera.near_plane if self.views else NEAR_PLANE

    def with_near_plane(self, near_plane: float) -> Capture:
        """The same, of cameras that see nothing nearer than that (world units).

        Raises:
            InputError: it is not a positive number.
        """
        if not (near_plane > 0 and math.isfinite(near_plane)):
            raise InputError(f"near_plane of {self.name}: expected a positive number, found {near_plane}.")
        cameras = {id(view.camera): view.camera for view in self.views}  # frames of a film share one
        changed = {key: replace(camera, near_plane=near_plane) for key, camera in cameras.items()}
        return replace(
            self, views=tuple(replace(view, camera=changed[id(view.camera)]) for view in self.views)
        )

    @property
    def extent(self) -> float:
        """Scene extent from all cameras; see ``cameras.scene_extent``."""
        return scene_extent(torch.cat([view.camera.positions for view in self.views]))


@dataclass(frozen=True)
class ViewBatch:
    """C views of one image size.

    Attributes:
        cameras: C cameras.
        images: [C, H, W, 3] uint8 RGB.
        alphas: [C, H, W, 1] uint8 coverage, or None where the photos have no alpha.
        indices: [C] int64 position in the split's tuple of views.
        names: C view names.
        times: [C] float32 moments of the views in [0, 1), or None where nothing is said to move.
    """

    cameras: Cameras
    images: UInt8[Tensor, "C H W 3"]
    alphas: UInt8[Tensor, "C H W 1"] | None
    indices: Int[Tensor, " C"]
    names: tuple[str, ...]
    times: Float[Tensor, " C"] | None = None

    def __len__(self) -> int:
        return len(self.cameras)

    def each(self) -> list[ViewBatch]:
        """Batches of one view each."""
        return [
            ViewBatch(
                self.cameras[i],
                self.images[i : i + 1],
                None if self.alphas is None else self.alphas[i : i + 1],
                self.indices[i : i + 1],
                self.names[i : i + 1],
                None if self.times is None else self.times[i : i + 1],
            )
            for i in range(len(self))
        ]

    @staticmethod
    def cat(batches: Sequence[ViewBatch]) -> ViewBatch:
        """One batch of several of one image size; those without alpha are opaque where others have any."""
        if len(batches) == 1:
            return batches[0]
        alphas = [batch.alphas for batch in batches]
        if any(alpha is not None for alpha in alphas):
            alphas = [
                torch.full_like(batch.images[..., :1], 255) if batch.alphas is None else batch.alphas
                for batch in batches
            ]
        times = [batch.times for batch in batches if batch.times is not None]
        return ViewBatch(
            Cameras.stack([batch.cameras for batch in batches]),
            torch.cat([batch.images for batch in batches]),
            None if alphas[0] is None else torch.cat([alpha for alpha in alphas if alpha is not None]),
            torch.cat([batch.indices for batch in batches]),
            tuple(name for batch in batches for name in batch.names),
            None if not times else torch.cat(times),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the pixels."""
        return self.images.nbytes + (0 if self.alphas is None else self.alphas.nbytes)

    def pinned(self) -> ViewBatch:
        """In memory that a GPU copies from while the host goes on; the same batch where there is no GPU."""
        if not torch.cuda.is_available():
            return self
        cameras = replace(
            self.cameras, viewmats=self.cameras.viewmats.pin_memory(), Ks=self.cameras.Ks.pin_memory()
        )
        alphas = None if self.alphas is None else self.alphas.pin_memory()
        return replace(
            self,
            cameras=cameras,
            images=self.images.pin_memory(),
            alphas=alphas,
            indices=self.indices.pin_memory(),
            times=None if self.times is None else self.times.pin_memory(),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """Move to a device."""
        return ViewBatch(
            self.cameras.to(device, non_blocking),
            self.images.to(device, non_blocking=non_blocking),
            None if self.alphas is None else self.alphas.to(device, non_blocking=non_blocking),
            self.indices.to(device, non_blocking=non_blocking),
            self.names,
            None if self.times is None else self.times.to(device, non_blocking=non_blocking),
        )

    def targets(self, background: Float[Tensor, " 3"]) -> Float[Tensor, "C H W 3"]:
        """Photos in [0, 1], composited over ``background`` where they have alpha."""
        images = self.images / 255.0  # to float32 in one pass
        if self.alphas is None:
            return images
        alphas = self.alphas / 255.0
        return images * alphas + background * (1.0 - alphas)
