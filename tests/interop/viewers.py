"""How a splat file looks in other people's viewers, against how it looks here.

    python tests/interop/viewers.py scene.ply --data_root data/fox --downscale 8 [--photos 7]

Draws the file through the capture's held-out cameras at the photos' size in Spark, in the PlayCanvas engine
and in the viewer of superspl.at, as they come, in headless Chromium, and prints the PSNR of each picture
against our emulation of the viewer (``flexgs_lightning.deploy.dialects.emulation``; it is good from 42 dB
on), against our own render of the file, and against the photo. Needs node and npm, which fetches them into a
temporary folder, and chromium.
With --spark_lod 9847, Spark also draws each file by its own tree of levels of detail, with so many Gaussians
at most.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import imageio.v3 as iio
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser import Page, browse, eventually

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.dialects.table import DIALECTS
from flexgs_lightning.deploy.opening import open_model
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.rendering.rasterizer import rasterize

PACKAGES = (
    "@sparkjsdev/spark@2.2.0",
    "three@0.187.0",
    "playcanvas@2.23.3",
    "@playcanvas/supersplat-viewer@1.36.2",
)
PAGES = Path(__file__).parent / "viewers"
NEAR, FAR = 0.01, 1000.0
PATIENCE = 900.0
"""Seconds for a frame, which software draws."""
SETTLING = 8.0
"""Seconds after which a picture that is still the same is taken for sorted."""


def pose(camera: Cameras) -> list[float]:
    """Camera to world in OpenGL's axes (y up, looking along -z), by rows."""
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    matrix = torch.linalg.inv(camera.viewmats[0].double()) @ flip.double()
    return matrix.flatten().tolist()


def projection(camera: Cameras) -> list[float]:
    """OpenGL's projection of the camera's intrinsics, by rows."""
    (fx, _, cx), (_, fy, cy), _ = camera.Ks[0].tolist()
    w, h = camera.width, camera.height
    depth = (FAR + NEAR) / (NEAR - FAR), 2 * FAR * NEAR / (NEAR - FAR)
    return [
        2 * fx / w, 0, 1 - 2 * cx / w, 0,
        0, 2 * fy / h, 2 * cy / h - 1, 0,
        0, 0, *depth,
        0, 0, -1, 0,
    ]  # fmt: skip


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of a folder's files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def awaited(page: Page, call: str) -> Any:
    """What a promise comes to; without a GPU that may take minutes."""
    page.patience = PATIENCE
    page.run(
        f"window.found = undefined; {call}.then((value) => {{ window.found = {{ value }} }},"
        " (error) => { window.found = { error: String(error) } }); 0"
    )
    found = eventually(lambda: page.run("window.found"), PATIENCE)
    if "error" in found:
        raise SystemExit(f"{call[:60]}: {found['error']}")
    return found.get("value")


def pictures(page: Page, file: str, cameras: list[Cameras], lod: int = 0) -> list[Tensor]:
    """[H, W, 3] in [0, 1] of each camera; with ``lod``, of as many Gaussians of Spark's own tree."""
    eventually(lambda: page.run("window.ready === true"), 120)
    width, height = cameras[0].width, cameras[0].height
    awaited(page, f"open_scene({file!r}, {width}, {height}, {lod})")
    found = []
    for camera in (cameras[-1], *cameras):  # the first time, sorting in a worker begins
        call = f"draw({pose(camera)}, {projection(camera)})"
        before, url = "", awaited(page, call)
        while url != before:
            time.sleep(SETTLING)
            before, url = url, awaited(page, call)
        image = iio.imread(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        found.append(torch.from_numpy(image[..., :3].copy()) / 255.0)
    return found[1:]


def agreement(pictures: list[Tensor], others: list[Tensor]) -> float:
    """Mean PSNR in dB."""
    return statistics.mean(psnr(a[None], b[None]).item() for a, b in zip(pictures, others, strict=True))


def install(folder: Path) -> None:
    """The viewers' packages, and our pages beside them."""
    command = ("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES)
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    for path in PAGES.iterdir():
        shutil.copy(path, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--data_root", required=True)
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--photos", type=int, default=7, help="how many held-out views")
    parser.add_argument("--viewers", nargs="*", default=["spark", "playcanvas", "supersplat"])
    parser.add_argument("--spark_lod", type=int, nargs="*", default=[], help="Gaussians of Spark's own tree")
    parser.add_argument("--packages", type=Path, help="folder with the packages installed, to save time")
    parser.add_argument("--pictures", type=Path, help="folder for what was drawn")
    options = parser.parse_args()
    views = read_capture(root=options.data_root, downscale=options.downscale).test_views[: options.photos]
    cameras = [view.camera for view in views]
    photos = [torch.from_numpy(view.source.read()[..., :3].copy()) / 255.0 for view in views]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.packages or Path(temporary)
        install(folder)
        print("| file | viewer | against its emulation | our render | the photo | ours against the photo |")
        print("|---|---|---|---|---|---|")
        for file in options.files:
            model = open_model(ckpt=None, ply=file)
            splats = model.splats()
            ours = [rasterize(splats, c, antialiased=model.antialiased).image[0].clamp(0, 1) for c in cameras]
            here = agreement(ours, photos)
            shutil.copy(file, folder / file.name)
            drawings = [(viewer, 0) for viewer in options.viewers] + [("spark", n) for n in options.spark_lod]
            for viewer, lod in drawings:
                with (
                    served(folder) as address,
                    tempfile.TemporaryDirectory() as profile,
                    browse(f"{address}/{viewer}.html", Path(profile) / "b") as page,
                ):
                    drawn = pictures(page, file.name, cameras, lod)
                    count = f", {page.run('window.drawn()'):,} of its tree" if lod else ""
                if options.pictures is not None:
                    options.pictures.mkdir(parents=True, exist_ok=True)
                    for i, image in enumerate(drawn):
                        strip = torch.cat([image, ours[i], photos[i]], 1)
                        iio.imwrite(
                            options.pictures / f"{file.stem}_{viewer}_{lod}_{i}.png",
                            (strip * 255).byte().numpy(),
                        )
                emulation = DIALECTS[viewer].emulation
                emulated = "" if lod else f"{agreement([emulation(splats, c) for c in cameras], drawn):.2f}"
                us, photo = agreement(drawn, ours), agreement(drawn, photos)
                print(f"| {file.name} | {viewer}{count} | {emulated} | {us:.2f} | {photo:.2f} | {here:.2f} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
