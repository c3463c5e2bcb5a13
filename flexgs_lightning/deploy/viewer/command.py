"""``flexgs view``. Signature and docstring here are the command line's help."""

import logging
from pathlib import Path
from typing import Literal

from flexgs_lightning.deploy.budgets import parse_budget
from flexgs_lightning.deploy.opening import choose_device, given, open_capture, open_model
from flexgs_lightning.deploy.profile import timed
from flexgs_lightning.model.budget import count_at

log = logging.getLogger(__name__)


def view(
    ckpt: Path | None = None,
    ply: Path | None = None,
    ratio: str | None = None,
    max_gaussians: str | None = None,
    max_megabytes: str | None = None,
    max_milliseconds: str | None = None,
    profile: Path | None = None,
    data_root: Path | None = None,
    downscale: int | None = None,
    test_every: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    origins: list[str] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Show a checkpoint or splat file in the browser, at any share of its Gaussians.

    Args:
        ckpt: Checkpoint to show, or an elastic file (.egs); one of elastic training can be drawn at any
            ratio.
        ply: Splat file to show, instead of a checkpoint: PLY, SPZ or any other that flexgs convert reads.
        ratio: Share of an elastic scene's Gaussians to begin with, in (0, 1]; by default all.
        max_gaussians: Instead, their number, such as 120000 or 50k.
        max_megabytes: Instead, the size in megabytes of the PLY file that holds them.
        max_milliseconds: Instead, the time of a frame, on the device of the profile.
        profile: What "flexgs profile" wrote on a device; by default this device is measured.
        data_root: COLMAP folder of the capture, for its test views and photos; by default the one that the
            checkpoint was trained on, if it is still there.
        downscale: Reduction of the capture's photos; by default as trained, or 1.
        test_every: Every n-th photo is a test view; by default as trained, or 8.
        host: Address to listen at; 0.0.0.0 also lets other machines in.
        port: Port to listen at; 0 takes any free one.
        origins: Addresses under which a proxy shows the viewer, such as https://lab.example.org; pages of
            other sites may not connect.
        device: Where to draw; "auto" takes CUDA where there is a device.
    """
    wanted = parse_budget(ratio, max_gaussians, max_megabytes, max_milliseconds, profile)
    model = open_model(ckpt, ply)
    data = model.data | given(root=data_root, downscale=downscale, test_every=test_every)
    (budget,) = timed([wanted], model, data, device)
    count = count_at(budget.share(model), len(model))
    capture = None
    if data_root is not None or ("root" in data and Path(data["root"]).exists()):
        capture = open_capture(data)
    elif "root" in data:
        log.info(f"{data['root']}: the capture is not there any more, so there are no test views to visit")

    from flexgs_lightning.deploy.viewer.viewer import Viewer  # viser is slow to import, and only needed here

    Viewer(
        model,
        capture,
        device=choose_device(device),
        host=host,
        port=port,
        count=count,
        origins=origins or (),
    ).wait()
