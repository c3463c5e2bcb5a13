"""Camera paths: an orbit fitted to a capture, and smooth interpolation through keyframes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from flexgs_lightning.cameras import Cameras, focus_point
from flexgs_lightning.errors import InputError

_TRUST_IN_MEAN_UP = 0.01
"""Weight of the mean up direction against level x axes: the two balance for photos over some 20 degrees."""
_CONCENTRATION = 10.0
"""Of the von Mises kernel over angles: a standard deviation of about 18 degrees."""
_LARGEST_GAP = math.radians(100)
"""A full turn needs photos all around; where they leave a wider gap, the orbit swings to and fro instead."""


MOST_FRAMES = 1_000_000
"""A flight of nine hours."""


def orbit(cameras: Cameras, frames: int = 120) -> Cameras:
    """A path around the capture's focus, always looking at it.

    Distance and height at each angle are those of the cameras near that angle (a kernel mean), so that the
    path follows the photographer's: a circle, an ellipse, along a room's walls.
    Size and intrinsics are the median camera's. Where the photos surround the focus, the path is a full
    turn that ends one step before its start. Where they leave a gap of more than 100 degrees, it swings
    once over the part that was photographed and back, slowing down at the turns.

    Args:
        cameras: the capture's cameras (at least two).
        frames: number of cameras to make.

    Raises:
        InputError: no frames; or all cameras look in one direction, lie in one place or look along the
            up direction.
    """
    _require_frames(frames)
    point = focus_point(cameras)
    if point is None:
        raise InputError("orbit: the capture's cameras all look in one direction; there is nothing to orbit.")
    focus = point.double()
    up = up_direction(cameras)
    offsets = cameras.positions.double() - focus
    heights = offsets @ up
    level = offsets - heights[:, None] * up
    east = _unit(level[level.norm(dim=-1).argmax()], "the cameras lie straight above the focus")
    north = torch.linalg.cross(up, east)
    photographed = torch.atan2(level @ north, level @ east)
    angles = _sweep(photographed, frames)
    nearby = (_CONCENTRATION * (angles[:, None] - photographed).cos()).softmax(dim=1)
    distances, heights = nearby @ offsets.norm(dim=-1), nearby @ heights
    radii = (distances.square() - heights.square()).clamp_min(0).sqrt()
    outward = angles.cos()[:, None] * east + angles.sin()[:, None] * north
    return _look_at(cameras, focus + radii[:, None] * outward + heights[:, None] * up, focus, up)


def interpolate(cameras: Cameras, frames: int) -> Cameras:
    """A smooth path of ``frames`` cameras through all of ``cameras`` in order, evenly spaced in time.

    Positions follow a Catmull-Rom spline, rotations the shortest arcs (slerp), intrinsics straight lines.

    Raises:
        InputError: fewer than one frame or camera.
    """
    _require_frames(frames)
    count = len(cameras)
    if count == 0:
        raise InputError("camera path: there are no cameras to interpolate.")
    times = np.linspace(0, count - 1, frames)
    before = np.minimum(times.astype(int), max(count - 2, 0))
    after, fraction = np.minimum(before + 1, count - 1), times - before
    positions = _catmull_rom(cameras.positions.double().cpu().numpy(), before, fraction)
    world_to_camera = Rotation.from_matrix(cameras.viewmats[:, :3, :3].double().cpu().numpy())
    turning = Slerp(np.arange(count), world_to_camera)(times) if count > 1 else world_to_camera[before]
    Ks = cameras.Ks.double().cpu().numpy()
    Ks = Ks[before] + fraction[:, None, None] * (Ks[after] - Ks[before])
    return _assemble(cameras, *map(torch.from_numpy, (turning.as_matrix(), positions, Ks)))


def up_direction(cameras: Cameras) -> Float[Tensor, " 3"]:
    """The direction that is up for people who hold their cameras level: across all the images' x axes.

    The mean of the images' up directions alone would lean towards the side that was photographed, because
    cameras look down on things. It decides the sign, and the rest where all cameras look one way.
    """
    across, upward = cameras.viewmats[:, 0, :3].double(), -cameras.viewmats[:, 1, :3].double().mean(dim=0)
    scatter = across.mT @ across / len(cameras) - _TRUST_IN_MEAN_UP * torch.outer(upward, upward)
    up = torch.linalg.eigh(scatter).eigenvectors[:, 0]
    return up if up @ upward > 0 else -up


def _sweep(angles: Float[Tensor, " C"], frames: int) -> Float[Tensor, " F"]:
    """Angles of the orbit for cameras seen at ``angles`` from the focus."""
    ordered = angles.sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    widest = int(gaps.argmax())
    turn = torch.arange(frames).double() / frames * 2 * math.pi
    start = ordered[(widest + 1) % len(ordered)]
    if gaps[widest] <= _LARGEST_GAP:
        return start + turn.to(angles)
    return start + (2 * math.pi - gaps[widest]) * (0.5 - 0.5 * turn.to(angles).cos())


def _look_at(
    cameras: Cameras, positions: Float[Tensor, "F 3"], focus: Float[Tensor, " 3"], up: Float[Tensor, " 3"]
) -> Cameras:
    """Cameras at ``positions`` that look at ``focus``, with the median intrinsics of ``cameras``."""
    forward = torch.nn.functional.normalize(focus - positions, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up.expand_as(forward)), dim=-1)
    rotations = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    Ks = cameras.Ks.median(dim=0).values.double().expand(len(positions), 3, 3)
    return _assemble(cameras, rotations, positions, Ks)


def _assemble(
    like: Cameras,
    rotations: Float[Tensor, "F 3 3"],
    positions: Float[Tensor, "F 3"],
    Ks: Float[Tensor, "F 3 3"],
) -> Cameras:
    """Cameras from world-to-camera rotations and centres, computed in float64, on the device of ``like``."""
    viewmats = torch.eye(4, dtype=torch.float64, device=positions.device).repeat(len(positions), 1, 1)
    viewmats[:, :3, :3] = rotations
    viewmats[:, :3, 3] = -(rotations @ positions[:, :, None]).squeeze(-1)
    return replace(
        like, viewmats=viewmats.float().to(like.device), Ks=Ks.float().contiguous().to(like.device)
    )


def _catmull_rom(
    points: Float[np.ndarray, "C 3"], before: np.ndarray, fraction: np.ndarray
) -> Float[np.ndarray, "F 3"]:
    """Uniform Catmull-Rom spline (Catmull & Rom 1974) with end points mirrored; straight for two points."""
    first, last = 2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1]
    if len(points) == 1:
        first = last = points
    p = np.concatenate([first, points, last, last])
    p0, p1, p2, p3 = (p[before + i] for i in range(4))
    t = fraction[:, None]
    return 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )


def _unit(vector: Float[Tensor, " 3"], fault: str) -> Float[Tensor, " 3"]:
    length = vector.norm()
    if not length > 1e-9:
        raise InputError(f"orbit: {fault}; give a camera path file instead.")
    return vector / length


def _require_frames(frames: int) -> None:
    if frames < 1:
        raise InputError(f"frames: expected at least 1, found {frames}.")
    if frames > MOST_FRAMES:
        raise InputError(f"frames: expected at most {MOST_FRAMES:,}, found {frames}.")
