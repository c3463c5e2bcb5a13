"""Quality over time: what a test says of a capture that moves, frame by frame."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from flexgs_lightning.data.capture import View, ViewBatch
from flexgs_lightning.data.streaming import ImageCache, ViewDataset
from flexgs_lightning.metrics.psnr import flicker_psnr
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.sequence import SceneSequence
from flexgs_lightning.training.scene_module import SceneModule

FLICKER = "flicker"
_NOT_METRICS = ("name", "milliseconds")


class FlickerMeter:
    """Compares what changes from a held-out frame to the next, in the render and in the photo.

    Frames come camera after camera and in order, so that the one before is at hand; with several processes
    they are dealt out, and the one before is read and drawn again.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self._views = views
        self._frames = ViewDataset(views, ImageCache((), 0))
        self._last: tuple[int, Tensor, Tensor] | None = None

    def measure(
        self, module: SceneModule, batch: ViewBatch, outputs: Mapping[str, Any] | None
    ) -> float | None:
        """Flicker of the one view of a batch in dB; None of a camera's first frame, and of a repeated view.

        If several processes hold the Gaussians, all must call.
        """
        index = int(batch.indices[0])
        before = index - 1 if index and self._follows(index) else None
        if module.shards.several or (before is not None and (self._last is None or self._last[0] != before)):
            other = index if before is None else before
            self._last = (other, *self._drawn(module, other))
        if outputs is None:
            return None
        last, self._last = self._last, (index, outputs["render"], outputs["photo"].image)
        if before is None or last is None:
            return None
        return flicker_psnr(last[1], self._last[1], last[2], self._last[2]).item()

    def _follows(self, index: int) -> bool:
        before, view = self._views[index - 1], self._views[index]
        return view.filmed_by is not None and view.filmed_by == before.filmed_by

    def _drawn(
        self, module: SceneModule, index: int
    ) -> tuple[Float[Tensor, "1 H W 3"], Float[Tensor, "1 H W 3"]]:
        """Render and photo of another held-out view."""
        batch = self._frames[[index]]
        if not isinstance(batch, ViewBatch):
            raise batch
        batch, background = batch.to(module.device), module.evaluation_background
        return module.render(batch, background).image.clamp(0, 1), batch.targets(background)


def over_time(
    images: Sequence[Mapping[str, Any]], views: Sequence[View], scene: Scene | None = None
) -> dict[str, Any]:
    """Means over the held-out cameras at each moment, and over the frames of each camera.

    Args:
        images: "name" and metrics of each held-out view; "flicker" where there is a frame before.
        views: the held-out views, all with a time.
        scene: what was measured; of a sequence there is more to say.

    Returns:
        "frames": a list with "frame" (the moment's number), "time" and the means of that moment;
        "worst_frame": the one of the lowest PSNR;
        "cameras": means by camera, where cameras stand still;
        "flicker": mean over all pairs of frames; left out where there are none;
        and of a sequence "groups" and "flicker_between_groups", see ``_by_group``.
    """
    by_name = {view.name: view for view in views}
    moments: dict[float, list[Mapping[str, Any]]] = {}
    cameras: dict[str, list[Mapping[str, Any]]] = {}
    for image in images:
        view = by_name[image["name"]]
        moments.setdefault(view.time or 0.0, []).append(image)
        if view.filmed_by is not None:
            cameras.setdefault(view.filmed_by, []).append(image)
    frames = [
        {"frame": number, "time": time, **_means(moments[time])}
        for number, time in enumerate(sorted(moments))
    ]
    worst = min(frames, key=lambda frame: frame["psnr"], default=None)
    flicker = [image[FLICKER] for image in images if FLICKER in image]
    return {
        "frames": frames,
        "worst_frame": worst,
        "cameras": {name: _means(cameras[name]) for name in sorted(cameras)},
        **({FLICKER: statistics.fmean(flicker)} if flicker else {}),
        **(_by_group(images, by_name, frames, scene) if isinstance(scene, SceneSequence) else {}),
    }


def _by_group(
    images: Sequence[Mapping[str, Any]],
    views: Mapping[str, View],
    frames: Sequence[Mapping[str, Any]],
    scene: SceneSequence,
) -> dict[str, Any]:
    """What each group of frames of a sequence is worth, and how much the picture jumps from one to the next.

    Returns:
        "groups": a list with "frames" (the first, and the one after the last), "gaussians" and means, flicker
        of them that of pairs of frames within the group;
        "flicker_between_groups": mean over the pairs of frames of which the second begins a group.
    """
    numbers = {frame["time"]: frame["frame"] for frame in frames}
    first = {scene.group_at(time): numbers[time] for time in sorted(numbers, reverse=True)}
    joints = {first[group] for group in first if first[group] > 0}
    within: dict[int, list[Mapping[str, Any]]] = {group: [] for group in sorted(first)}
    between = []
    for image in images:
        time = views[image["name"]].time or 0.0
        if numbers[time] in joints and FLICKER in image:
            between.append(image[FLICKER])
            image = {name: value for name, value in image.items() if name != FLICKER}
        within[scene.group_at(time)].append(image)
    stops = [*(first[group] for group in list(within)[1:]), len(numbers)]
    groups = [
        {"frames": [first[group], stop], "gaussians": len(scene.each_group()[group]), **_means(within[group])}
        for group, stop in zip(within, stops, strict=True)
    ]
    jumps = {"flicker_between_groups": statistics.fmean(between)} if between else {}
    return {"groups": groups, **jumps}


def _means(images: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for image in images:
        for name, value in image.items():
            if name not in _NOT_METRICS:
                values.setdefault(name, []).append(value)
    return {name: statistics.fmean(numbers) for name, numbers in values.items()}


def as_table(report: Mapping[str, Any]) -> str:
    """What ``over_time`` found by camera and by group, and its worst frame, as a Markdown table."""
    cameras = report["cameras"]
    groups = {
        f"frames {found['frames'][0]} to {found['frames'][1] - 1}": found
        for found in report.get("groups", ())
    }
    rows = [
        *cameras.items(),
        *groups.items(),
        (f"worst frame ({report['worst_frame']['frame']})", report["worst_frame"]),
    ]
    names = [name for name in report["frames"][0] if name not in ("frame", "time", FLICKER)]
    names += [FLICKER] if FLICKER in report else []
    lines = [f"| camera | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for title, values in rows:
        cells = (f"{values[name]:.3f}" if name in values else "" for name in names)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curves(report: Mapping[str, Any], writer: SummaryWriter) -> None:
    """Curves named ``test_over_time/psnr`` and so on, over frames instead of training steps."""
    for frame in report["frames"]:
        for name, value in frame.items():
            if name not in ("frame", "time") and torch.isfinite(torch.tensor(value)):
                writer.add_scalar(f"test_over_time/{name}", value, frame["frame"])
