"""``flexgs profile``, and measuring what a frame costs on this device."""

# The signature and docstring of `profile` are the command line's help, so no lazy annotations here.
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.budgets import Budget, with_profile
from flexgs_lightning.deploy.opening import choose_device, given, open_capture, open_model
from flexgs_lightning.deploy.render import draw, require_free
from flexgs_lightning.deploy.vantage import vantage_of_splats
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.profile import Profile

log = logging.getLogger(__name__)

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the Gaussians, at which frames are timed."""
MOST_VIEWS = 8
_REPEATS = 3
_MOMENT = 0.5
"""When a scene that moves is timed."""


def profile(
    output: Path = Path("profile.json"),
    ckpt: Path | None = None,
    ply: Path | None = None,
    data_root: Path | None = None,
    downscale: int | None = None,
    test_every: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> None:
    """Measure milliseconds a frame against the number of Gaussians on this device.

    Views of the capture are drawn at seven sizes. The file is what --profile takes on "export", "render" and
    "view" for --max-milliseconds. The player's page writes such files, too ("Measure this device").

    Args:
        output: The JSON file to write.
        ckpt: Checkpoint of an elastic training, or an elastic file (.egs).
        ply: Splat file, instead of a checkpoint; it has one size, so this is refused with the reason.
        data_root: COLMAP folder of the capture; by default the one that the checkpoint was trained on.
        downscale: Reduction of the capture's photos, and so size of the frames; by default as trained, or 1.
        test_every: Every n-th photo is a test view; by default as trained, or 8.
        device: What to measure; "auto" takes CUDA where there is a device.
        overwrite: Replace the file if it exists.
    """
    if output.suffix.lower() != ".json":
        raise InputError(f"{output}: expected the name of a .json file.")
    require_free(output, overwrite, (".json",))
    model = open_model(ckpt, ply)
    data = model.data | given(root=data_root, downscale=downscale, test_every=test_every)
    found = measure(model, views_to_time(model, data), choose_device(device))
    found.write(output)
    late = dict(found.p95)
    for count, median in found.points:
        log.info(f"{count:>12,} Gaussians  {median:8.2f} ms, 95 % within {late[count]:8.2f} ms")
    cost = found.cost
    log.info(f"fit: {cost.fixed:.3g} ms + {cost.each:.3g} ms x count^{cost.exponent:g}")
    sizes = {milliseconds: cost.count(milliseconds) for milliseconds in (1000 / 60, 1000 / 30)}
    holds = ", ".join(
        f"{milliseconds:.1f} ms hold {min(n, len(model)):,.0f}" for milliseconds, n in sizes.items()
    )
    log.info(f"{output}: {found.device}; {holds} Gaussians")


def views_to_time(model: Model, data: dict[str, Any]) -> list[Cameras]:
    """Test views of the capture that ``data`` names, or any of its views; without it, in front of the splats.

    Raises:
        InputError: see ``open_capture``.
    """
    if data.get("root") is None or not Path(data["root"]).is_dir():
        return [vantage_of_splats(model.splats(0.0 if model.moves else None)).camera]
    capture = open_capture(data)
    views = capture.test_views or capture.views
    every = -(-len(views) // MOST_VIEWS)
    return [view.camera for view in views[::every]]


def timed(budgets: Sequence[Budget], model: Model, data: dict[str, Any], device: str) -> list[Budget]:
    """Budgets as parsed, with this device measured where a time has no profile.

    Raises:
        InputError: see ``measure``.
    """
    return with_profile(budgets, lambda: measure(model, views_to_time(model, data), choose_device(device)))


def measure(model: Model, cameras: Sequence[Cameras], device: torch.device) -> Profile:
    """Time frames of an elastic model through each of ``cameras``, warm, at the counts of ``SHARES``.

    Raises:
        InputError: the model has one size.
    """
    if not model.elastic:
        raise InputError(
            "milliseconds: the scene has one size; --model.elastic_training.steps trains one with all."
        )
    counts = sorted({max(1, int(share * len(model))) for share in SHARES})
    points, p95 = [], []
    for count in tqdm(counts, desc="timing", unit="size", leave=False):
        splats = model.at(time=_MOMENT if model.moves else None, max_gaussians=count).to(device)
        times = []
        for camera in cameras:
            for repeat in range(_REPEATS + 1):
                start = time.perf_counter()
                draw(splats, camera, model.background, model.antialiased)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat > 0:  # the first one warms up
                    times.append(1e3 * (time.perf_counter() - start))
        points.append((count, round(float(np.median(times)), 4)))
        p95.append((count, round(float(np.quantile(times, 0.95)), 4)))
    size = {"width": cameras[0].width, "height": cameras[0].height}
    return Profile(_name(device), tuple(points), tuple(p95), {"scene": model.name, **size})


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
