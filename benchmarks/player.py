"""The player in headless Chromium, from a site that flexgs publish wrote (with --data-root, for test views).

python -m benchmarks.player site --rate 2 --ratios 0.01 0.1 1
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from flexgs_lightning.codec.decoder import open_file, read_elastic
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.web.publish import PLAYER

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from browser import browse  # noqa: E402
from player_site import Line, Tab, troubled  # noqa: E402

LOG = """
window.log = [];
const watch = setInterval(() => {
  const player = window.flexgs?.player;
  if (!player) return;
  clearInterval(watch);
  const draw = player.draw.bind(player);
  player.draw = () => {
    draw();
    const { count, visible } = player.drawn;
    if (visible) log.push([performance.now(), count, 1e6 * player.scale.megabytes(count)]);
  };
}, 1);
"""
"""Notes of each frame: milliseconds since the page was asked for, Gaussians, bytes that they need."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--views", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--rate", type=float, default=2.0, help="of the network, in MB/s")
    options = parser.parse_args()
    files = [path for path in PLAYER.rglob("*") if path.suffix in (".js", ".css", ".html")]
    print(f"player: {sum(len(gzip.compress(path.read_bytes())) for path in files):,} bytes gzipped")
    rate = json.loads(subprocess.check_output(["node", HERE / "player_rate.mjs", options.site / "scene.egs"]))
    print(f"decoded and packed: {rate['first']:,} Gaussians a second of processor, {rate['warm']:,} warm")
    first_picture(options.site, 1e6 * options.rate)
    against_rasterizer(options.site, options.views, options.ratios)


@contextlib.contextmanager
def opened(site: Path, width: int, height: int, rate: float | None = None) -> Iterator[tuple[Tab, str, str]]:
    """A page of that size, the site's address, and the folder that the browser's processes name."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(troubled(site, Line(rate=rate)))
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        yield (
            Tab(stack.enter_context(browse("about:blank", Path(folder) / "b", width, height))),
            address,
            folder,
        )


def first_picture(site: Path, rate: float) -> None:
    """When and with which bytes the first Gaussians, 1 % and all of them are on the canvas."""
    size, total = (site / "scene.egs").stat().st_size, open_file(site / "scene.egs").header.total
    with opened(site, 240, 160, rate) as (tab, address, _), tab.prepared(LOG):
        tab.open(address)
        tab.settle(300)
        frames = json.loads(tab.page.run("JSON.stringify(log)"))
    for least in (1, total // 100, total):
        when, count, found = next(frame for frame in frames if frame[1] >= least)
        print(f"{count:>9,} Gaussians after {when:,.0f} ms; they are {found:,.0f} bytes ({found / size:.1%})")


def against_rasterizer(site: Path, views: list[int], ratios: list[float]) -> None:
    """PSNR of the canvas against our own render, and memory of the browser's processes."""
    arrays = read_elastic(site / "scene.egs")
    background = torch.tensor(arrays.background)
    view = json.loads((site / "scene.json").read_text())["start"]
    with opened(site, view["width"], view["height"]) as (tab, address, folder):
        tab.open(f"{address}#share=0.0001")
        tab.settle()
        print(f"memory with few Gaussians loaded: {memory(folder):,.0f} MB")
        for index in views:
            tab.get(f"window.flexgs.places.visit({index})")
            for ratio in ratios:
                tab.get(f"player.setShare({ratio})")
                tab.settle(600)
                share = tab.get("player.drawn.count") / len(arrays)
                own = draw(arrays.at(share), tab.camera(), background, arrays.antialiased).clamp(0, 1)
                error = np.square(tab.picture() - own.numpy()).mean()
                print(f"view {index}, {ratio:g}: {-10 * np.log10(error):.2f} dB against rasterize")
        tab.get("player.setShare(1)")
        tab.settle(600)
        print(f"memory with all loaded: {memory(folder):,.0f} MB")
        print(f"sorted in {tab.get('player.drawn.sorting'):.0f} ms")


def memory(folder: str) -> float:
    """Megabytes (proportional set size) of all processes of the browser whose profile lies in a folder."""
    processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    groups = {os.getpgid(int(path.name)) for path in processes if folder in _text(path / "cmdline")}
    total = 0
    for path in processes:
        try:
            if os.getpgid(int(path.name)) in groups:
                lines = _text(path / "smaps_rollup").splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except ProcessLookupError:
            continue
    return total * 1024 / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
