"""Memory and speed of streaming a capture that does not fit its cache.

    python benchmarks/data_memory.py

Writes 300 JPEGs of 1600x1060 (1.5 GB decoded) into a temporary folder, streams two passes over the
training views with a 256 MB cache and prints Markdown. Memory is the proportional set size of this
process and its workers, so that what they share counts once. "Idle" is after the workers have started
and loaded their libraries, before any photo is decoded.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from flexgs_lightning.data.capture import View
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.images import ImageFile
from flexgs_lightning.data.ordering import HeldOutOrder
from flexgs_lightning.data.streaming import ImageCache, ViewDataset, ViewLoader, WorkerContext

WIDTH, HEIGHT = 1600, 1060


def write_capture(root: Path, count: int) -> None:
    """A COLMAP folder of ``count`` photos with the detail, and so the decoding time, of real ones."""
    random = np.random.default_rng(0)
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        camera_id=1, model="PINHOLE", width=WIDTH, height=HEIGHT, params=[1400, 1400, WIDTH / 2, HEIGHT / 2]
    )
    model.add_camera_with_trivial_rig(camera)
    (root / "images").mkdir()
    coarse = random.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    photo.save(root / "images" / "000.jpg", quality=90)
    encoded = (root / "images" / "000.jpg").read_bytes()
    for i in range(count):
        (root / "images" / f"{i:03d}.jpg").write_bytes(encoded)
        image = pycolmap.Image(name=f"{i:03d}.jpg", camera_id=1, image_id=i + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    model.add_point3D(np.ones(3), pycolmap.Track(), np.zeros(3, np.uint8))
    (root / "sparse" / "0").mkdir(parents=True)
    model.write_binary(str(root / "sparse" / "0"))


def resident_bytes() -> int:
    """Proportional set size of this process and its children."""
    processes = ["self", *(str(process.pid) for process in multiprocessing.active_children())]
    return sum(_proportional_set_size(Path("/proc") / process) for process in processes)


def _proportional_set_size(process: Path) -> int:
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Peak:
    """Samples resident memory in a thread and keeps the highest."""

    def __init__(self, interval: float = 0.05) -> None:
        self.bytes = 0
        self.interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self.interval):
            self.bytes = max(self.bytes, resident_bytes())


def idle_bytes(views: tuple[View, ...], num_workers: int, folder: Path) -> int:
    """Resident memory with as many workers that have loaded everything and hold no photo."""
    pixel = folder / "pixel.jpg"
    Image.new("RGB", (1, 1)).save(pixel)
    tiny = [View(view.name, view.camera, ImageFile(pixel, (1, 1), has_alpha=False)) for view in views[:16]]
    context = WorkerContext()
    dataset = ViewDataset(tiny, ImageCache(tiny, 0, context))
    loader = ViewLoader(dataset, HeldOutOrder(len(tiny)), num_workers, context)
    list(loader)
    idle = resident_bytes()
    loader.close()
    return idle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--budget", type=int, default=256, help="cache in MB")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_capture(Path(folder), options.images)
        datamodule = CaptureDataModule(
            folder, test_every=0, cache_megabytes=options.budget, num_workers=options.workers
        )
        datamodule.setup("fit")
        views = datamodule.capture.train_views
        idle = idle_bytes(views, options.workers, Path(folder))
        with Peak() as peak:
            batches = iter(datamodule.train_dataloader())
            next(batches)
            begin = time.perf_counter()
            rates = []
            for _ in range(2):
                for _ in itertools.islice(batches, len(views)):
                    pass
                rates.append(len(views) / (time.perf_counter() - begin))
                begin = time.perf_counter()
        datamodule.teardown("fit")
    growth = peak.bytes - idle
    limit = options.budget + 400
    print(
        f"{options.images} images of {WIDTH}x{HEIGHT}, cache {options.budget} MB, {options.workers} workers\n"
    )
    print("| idle, MB | peak, MB | growth, MB | allowed, MB | images/s, 1st pass | images/s, 2nd pass |")
    print("|---|---|---|---|---|---|")
    megabytes = [value / 2**20 for value in (idle, peak.bytes, growth)]
    print(
        f"| {megabytes[0]:.0f} | {megabytes[1]:.0f} | {megabytes[2]:.0f} | {limit} "
        f"| {rates[0]:.0f} | {rates[1]:.0f} |"
    )


if __name__ == "__main__":
    main()
