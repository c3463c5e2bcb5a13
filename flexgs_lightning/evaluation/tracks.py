"""Is it motion or fading? What a moving scene makes of an object whose path is known.

A scene can show a thing that moves in two ways: its Gaussians go along, or some fade out where it was while
others fade in where it is. The images may be equally good, but only the first knows where things go. So it is
asked who draws the object: those Gaussians that were on it some time earlier?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.deploy.render import draw, read_photo
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Outputs
from flexgs_lightning.splats import Splats

_DRAWN = 1 / 255
"""Gaussians that are less opaque are not drawn."""


@dataclass(frozen=True)
class Track:
    """The path of a round object.

    Attributes:
        centers: [F, 3] its centre at each frame of the capture, world units.
        radius: world units.
    """

    centers: Float[Tensor, "F 3"]
    radius: float

    @staticmethod
    def read(path: Path, radius: float) -> Track:
        """From an archive of NumPy's with ``xyz`` [F, 3].

        Raises:
            InputError: no such file, or it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                centers = np.asarray(arrays["xyz"], dtype=np.float32)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path}: expected NumPy arrays with 'xyz', found: {error}.") from error
        if centers.ndim != 2 or centers.shape[1] != 3 or not np.isfinite(centers).all():
            raise InputError(f"{path}: 'xyz' must be finite numbers [frames, 3], found {centers.shape}.")
        return Track(torch.from_numpy(centers), radius)


@dataclass(frozen=True)
class FilmedObject:
    """A trained scene, and an object in it.

    Attributes:
        model: the scene.
        capture: its film, whose test cameras look on.
        track: where the object is.
        ratio: share of the scene's Gaussians.
    """

    model: Model
    capture: Capture
    track: Track
    ratio: float = 1.0

    def __post_init__(self) -> None:
        moments = {view.time for view in self.capture.views}
        if None in moments or len(moments) != len(self.track.centers):
            raise InputError(
                f"{self.capture.name}: {len(moments)} frames, but the object's path has "
                f"{len(self.track.centers)}; expected one place for each frame."
            )

    @property
    def frames(self) -> int:
        """Frames of the film."""
        return len(self.track.centers)

    @torch.no_grad()
    def at(self, frame: int) -> Splats:
        """The Gaussians of the ratio at a frame, also those not to be seen: rows keep their place."""
        scene = self.model.scene
        time = frame / self.frames if scene.moves else None
        return scene.drawn(scene.first(self.ratio), Conditions(self.ratio, time))

    def on_object(self, splats: Splats, frame: int) -> Bool[Tensor, " N"]:
        """Which Gaussians are on the object: their centres lie in it, and they are drawn."""
        distances = (splats.means - self.track.centers[frame].to(splats.means)).norm(dim=1)
        return (distances < self.track.radius) & (splats.opacities >= _DRAWN)

    def weights(self, splats: Splats, frame: int) -> Float[Tensor, " N"]:
        """Blending weight of each Gaussian in the pixels of the object, over the test cameras that see it."""
        total = torch.zeros(len(splats), dtype=torch.float64, device=splats.device)
        for view in self.test_views(frame):
            inside = self._within(view.camera, frame)
            if inside is not None:
                drawn = rasterize(
                    splats,
                    inside.to(splats.device),
                    antialiased=self.model.antialiased,
                    outputs=Outputs(weights=True),
                    sh_degree=None if splats.has_features else 0,
                )
                total += drawn.weights[0].double()
        return total

    def crop(self, camera: Cameras, frame: int, side: int) -> tuple[int, int] | None:
        """Left and top of a square around the object, moved into the image; None if the centre is outside."""
        x, y, _ = self._projected(camera, frame)
        if not (0 <= x < camera.width and 0 <= y < camera.height):
            return None
        left, top = round(x - side / 2), round(y - side / 2)
        return max(0, min(left, camera.width - side)), max(0, min(top, camera.height - side))

    def _projected(self, camera: Cameras, frame: int) -> tuple[float, float, float]:
        """Centre in pixels, and depth; outside every image if it lies behind."""
        seen = camera.viewmats[0, :3, :3] @ self.track.centers[frame] + camera.viewmats[0, :3, 3]
        x, y, depth = (camera.Ks[0] @ seen).tolist()
        return (x / depth, y / depth, depth) if depth > 0 else (-1.0, -1.0, depth)

    def _within(self, camera: Cameras, frame: int) -> Cameras | None:
        """The camera of the largest square of pixels that only shows the object; None if it is outside."""
        x, y, depth = self._projected(camera, frame)
        half = int(self.track.radius * camera.Ks[0, 0, 0].item() / max(depth, 1e-9) / 2**0.5)
        left, top, side = round(x) - half, round(y) - half, 2 * half
        if depth <= 0 or half < 1 or min(left, top) < 0:
            return None
        if left + side > camera.width or top + side > camera.height:
            return None
        Ks = camera.Ks.clone()
        Ks[0, :2, 2] -= torch.tensor([float(left), float(top)])
        return replace(camera, Ks=Ks, width=side, height=side)

    def test_views(self, frame: int) -> list[View]:
        """What the test cameras took at a frame."""
        time, near = frame / self.frames, 0.5 / self.frames
        return [view for view in self.capture.test_views if abs((view.time or 0.0) - time) < near]


@torch.no_grad()
def carried(filmed: FilmedObject, frames: Sequence[int], earlier: int) -> dict[str, Any]:
    """Who draws the object, and where they were ``earlier`` frames before.

    Args:
        filmed: scene and object.
        frames: to look at.
        earlier: frames back, half a second's.

    Returns:
        "share": of the blending weight in the object's pixels, what comes from Gaussians on it before;
        "share_now": what comes from Gaussians that are on it at the frame itself, which is all that could;
        "track_error": by how far those that were on it before miss its displacement since, in world units, a
        mean by the weight they had; None if none were;
        "frames": the same for each frame.
    """
    if not frames or min(frames) - earlier < 0 or max(frames) >= filmed.frames:
        raise InputError(
            f"frames: expected some within {earlier} to {filmed.frames - 1}, found {list(frames) or 'none'}."
        )
    bar = tqdm(frames, desc="who draws it", leave=False)
    found = (_carried_at(filmed, frame, frame - earlier) for frame in bar)
    rows = [row for row in found if row is not None]
    if not rows:
        raise InputError("no test camera sees the object at any of the frames.")
    errors = [row["track_error"] for row in rows if row["track_error"] is not None]
    return {
        "share": float(np.mean([row["share"] for row in rows])),
        "share_now": float(np.mean([row["share_now"] for row in rows])),
        "track_error": float(np.mean(errors)) if errors else None,
        "frames": rows,
    }


def _carried_at(filmed: FilmedObject, frame: int, before: int) -> dict[str, Any] | None:
    now, then = filmed.at(frame), filmed.at(before)
    weights = filmed.weights(now, frame)
    total = weights.sum()
    if total == 0:
        return None
    was_there, is_there = filmed.on_object(then, before), filmed.on_object(now, frame)
    trusted = filmed.weights(then, before) * was_there
    error = None
    if trusted.sum() > 0:
        way = filmed.track.centers[frame] - filmed.track.centers[before]
        missed = (now.means - then.means - way.to(now.means)).norm(dim=1).double()
        error = float((trusted * missed).sum() / trusted.sum())
    return {
        "frame": frame,
        "share": float(weights[was_there].sum() / total),
        "share_now": float(weights[is_there].sum() / total),
        "track_error": error,
    }


@torch.no_grad()
def quality_around(filmed: FilmedObject, frames: Sequence[int], side: int) -> dict[str, Any]:
    """PSNR of a square of ``side`` pixels around the object, at every test camera that sees its centre.

    Returns:
        "psnr": mean over cameras and frames; "frames": mean over cameras at each frame.
    """
    model, rows = filmed.model, []
    for frame in tqdm(frames, desc="around the object", leave=False):
        found = []
        splats = model.at(filmed.ratio, frame / filmed.frames) if model.moves else model.at(filmed.ratio)
        for view in filmed.test_views(frame):
            place = filmed.crop(view.camera, frame, side)
            if place is None:
                continue
            left, top = place
            image = draw(splats, view.camera, model.background, model.antialiased).clamp(0, 1).cpu()
            photo = read_photo(view.source, model.background)
            square = (slice(top, top + side), slice(left, left + side))
            found.append(psnr(image[square][None], photo[square][None]).item())
        if found:
            rows.append({"frame": frame, "psnr": float(np.mean(found)), "cameras": len(found)})
    if not rows:
        raise InputError("no test camera sees the object at any of the frames.")
    counts = sum(row["cameras"] for row in rows)
    return {"psnr": sum(row["psnr"] * row["cameras"] for row in rows) / counts, "frames": rows}


def summary(carried_by: Mapping[int, Mapping[str, Any]], around: Mapping[str, Any]) -> str:
    """What ``carried`` found for numbers of frames, and ``quality_around``, as a Markdown table."""
    rows = []
    for earlier, found in carried_by.items():
        frames, error = f"{earlier} frame{'s' if earlier > 1 else ''}", found["track_error"]
        rows.append((f"weight of what was on it {frames} before", f"{100 * found['share']:.1f} %"))
        missed = "nothing was on it" if error is None else f"{100 * error:.1f} cm"
        rows.append((f"error of these tracks over {frames}", missed))
    now = next(iter(carried_by.values()))["share_now"]
    rows.append(("weight of what is on it", f"{100 * now:.1f} %"))
    rows.append(("PSNR around it", f"{around['psnr']:.2f} dB"))
    return "\n".join(["| of the object | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
