"""Scenes that move: speed of drawing at a time, images around a known moving point, at each camera.

    python benchmarks/moving.py speed last.ckpt
    python benchmarks/moving.py track last.ckpt still.ckpt --track data/basketball/ball_track.npz
    python benchmarks/moving.py views last.ckpt still.ckpt

``speed``: median CPU times, of all threads together, of drawing a model at times spread over its scene, from
raw parameters to the image, against a static scene of as many Gaussians as then live; a model that stands
still is given random motion and lives of which about half cover any moment. ``track``: PSNR of a square
around a tracked point (``frame``, ``xyz`` in the world) in the held-out views that show it. ``views``: mean
PSNR of each held-out camera. Both draw with the near plane of training, or with ``--near_plane``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import numpy as np
import torch

from flexgs_lightning import load
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, moving_parts
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.rasterizer import rasterize


def milliseconds(draw: Callable[[], object]) -> float:
    start = time.process_time()
    draw()
    return 1e3 * (time.process_time() - start)


def capture_of(model: Model, near_plane: float | None = None) -> Capture:
    return read_capture(**(model.data | ({} if near_plane is None else {"near_plane": near_plane})))


@torch.no_grad()
def animated(model: Model) -> Scene:
    """Its Gaussians, moving about and living for about half of the time."""
    options = MotionOptions(path="polynomial", opacity="varying", width=0.15)
    rows = {name: rows.detach() for name, rows in model.gaussians.params.items()}
    scene = Scene(Gaussians(rows), parts=moving_parts(options)).eval()
    torch.manual_seed(0)
    scene.gaussians.params["time_centers"].copy_(torch.rand(len(model)))
    scene.gaussians.params["motion"].normal_(std=1e-2)
    scene.gaussians.params["omega"].normal_(std=1e-2)
    return scene


@torch.no_grad()
def speed(path: Path, repeats: int) -> None:
    """Alternating, so that what else the machine does falls on both."""
    model = load(path)
    scene = model.scene if model.moves else animated(model)
    camera = capture_of(model).test_views[0].camera
    print(f"{len(model):,} Gaussians, {camera.width}x{camera.height}, {torch.get_num_threads()} threads\n")
    print("| time | alive | moving | static | ratio |\n|---|---|---|---|---|")
    for moment in (0.1, 0.3, 0.5, 0.7, 0.9):
        living = scene.at(Conditions(time=moment))
        still = Scene(Gaussians.from_splats(living)).eval()
        draws: dict[str, Callable[[], object]] = {
            "moving": lambda moment=moment: rasterize(scene.at(Conditions(time=moment)), camera),  # type: ignore[misc]
            "static": lambda still=still: rasterize(still.at(), camera),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {name: [] for name in draws}
        for repeat in range(repeats + 3):
            for name, draw in draws.items():
                took = milliseconds(draw)
                if repeat >= 3:
                    times[name].append(took)
        moving, static = (statistics.median(values) for values in times.values())
        print(f"| {moment} | {len(still):,} | {moving:.1f} ms | {static:.1f} ms | {moving / static:.2f} |")


def crops(capture: Capture, track: Path, frames: range, size: int) -> Iterator[tuple[View, int, int]]:
    """Held-out views of these frames that show the point, with the corner of the square around it."""
    known = np.load(track)
    places = dict(zip(known["frame"].tolist(), torch.from_numpy(known["xyz"]).float(), strict=True))
    frame_count = round(1 / min(view.time for view in capture.views if view.time))
    for view in capture.test_views:
        frame = round((view.time or 0.0) * frame_count)
        camera = view.camera
        if frame not in frames or not camera.contain(places[frame][None])[0, 0]:
            continue
        seen = camera.Ks[0] @ (camera.viewmats[0, :3, :3] @ places[frame] + camera.viewmats[0, :3, 3])
        x, y = (seen[:2] / seen[2]).tolist()
        left = min(max(round(x - size / 2), 0), camera.width - size)
        top = min(max(round(y - size / 2), 0), camera.height - size)
        yield view, left, top


@torch.no_grad()
def drawn(model: Model, view: View, ratio: float = 1.0) -> torch.Tensor:
    """[H, W, 3] the view as the model has it."""
    splats = model.at(ratio, view.time) if model.moves else model.at(ratio)
    return rasterize(splats, view.camera, background=model.background).image[0].clamp(0, 1)


def photo(view: View) -> torch.Tensor:
    return torch.from_numpy(view.source.read())[..., :3] / 255


@torch.no_grad()
def views(paths: list[Path], near_plane: float | None, every: int, ratios: list[float]) -> None:
    for path in paths:
        model = load(path)
        for ratio in ratios:
            found: dict[str, list[float]] = {}
            for view in capture_of(model, near_plane).test_views[::every]:
                error = psnr(drawn(model, view, ratio)[None], photo(view)[None])
                found.setdefault(view.taken_by, []).append(float(error.mean()))
            each = ", ".join(f"{name} {statistics.fmean(values):.2f}" for name, values in found.items())
            mean = statistics.fmean(value for values in found.values() for value in values)
            print(
                f"{path} at {ratio:g}: {mean:.2f} dB over {sum(map(len, found.values()))} views ({each})",
                flush=True,
            )


@torch.no_grad()
def track(paths: list[Path], file: Path, frames: range, size: int, near_plane: float | None) -> None:
    print("| model | views | PSNR of the square |\n|---|---|---|")
    for path in paths:
        model, found = load(path), []
        for view, left, top in crops(capture_of(model, near_plane), file, frames, size):
            window = (slice(top, top + size), slice(left, left + size))
            image, wanted = drawn(model, view)[window], photo(view)[window]
            found.append(float(psnr(image[None], wanted[None]).mean()))
        print(f"| {path} | {len(found)} | {statistics.fmean(found):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    of_speed = kinds.add_parser("speed")
    of_speed.add_argument("model", type=Path)
    of_speed.add_argument("--repeats", type=int, default=20)
    of_track = kinds.add_parser("track")
    of_track.add_argument("models", type=Path, nargs="+")
    of_track.add_argument("--track", type=Path, required=True)
    of_track.add_argument("--frames", type=int, nargs=2, default=(14, 35))
    of_track.add_argument("--size", type=int, default=64)
    of_track.add_argument("--near_plane", type=float)
    of_views = kinds.add_parser("views")
    of_views.add_argument("models", type=Path, nargs="+")
    of_views.add_argument("--near_plane", type=float)
    of_views.add_argument("--every", type=int, default=1)
    of_views.add_argument("--ratios", type=float, nargs="+", default=[1.0])
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.model, given.repeats)
    elif given.what == "track":
        track(given.models, given.track, range(*given.frames), given.size, given.near_plane)
    else:
        views(given.models, given.near_plane, given.every, given.ratios)


if __name__ == "__main__":
    main()
