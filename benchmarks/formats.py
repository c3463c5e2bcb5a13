"""Bytes, quality lost and time of every splat format, and of ``splat-transform`` from the same PLY.

    python -m benchmarks.formats --ckpt runs/fox/version_0/checkpoints/last.ckpt --ratios 0.1 1
    python -m benchmarks.formats … --splat-transform node_modules/@playcanvas/splat-transform/bin/cli.mjs

PSNR is the mean over the capture's test views of the file as read back; lost is that against the model's own.
Seconds are the processor's, of all threads; splat-transform's are the wall's, as it is a program of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from flexgs_lightning import load
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.deploy.formats.registry import FORMATS, read_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.opening import open_capture
from flexgs_lightning.deploy.quality import psnr_on_test_views
from flexgs_lightning.model.checkpoint import Model

OURS = ("ply", "glb", "compressed-ply", "splat", "sog", "spz3", "spz")
THEIRS = {"compressed-ply": ".compressed.ply", "sog": ".sog", "spz3": "_3.spz", "spz": ".spz"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0])
    parser.add_argument("--splat-transform", type=Path, help="its bin/cli.mjs")
    parser.add_argument("--their-formats", nargs="*", default=list(THEIRS), choices=list(THEIRS))
    options = parser.parse_args()
    model = load(options.ckpt)
    capture = open_capture(model.data)
    print("| Gaussians | file | bytes | bytes a Gaussian | PSNR lost | seconds to write | to read |")
    print("|---|---|---|---|---|---|---|")
    for ratio in options.ratios:
        measure(model, capture, ratio, options.splat_transform, options.their_formats)


def measure(model: Model, capture: Capture, ratio: float, program: Path | None, formats: list[str]) -> None:
    file = SplatFile(model.at(ratio), model.antialiased)
    own = quality(file, capture, model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for format in OURS:
            path = folder / f"ours_{format}{FORMATS[format].suffix}"
            start = time.process_time()
            FORMATS[format].write(file, path)
            row(format, path, time.process_time() - start, own, capture, model)
        for format in formats if program else []:
            path = folder / f"theirs{THEIRS[format]}"
            command = ["node", str(program), "-q", "-w", "-g", "cpu", str(folder / "ours_ply.ply"), str(path)]
            start = time.perf_counter()
            subprocess.run([*command, *(["--spz-version", "3"] if format == "spz3" else [])], check=True)
            row(f"{format} of splat-transform", path, time.perf_counter() - start, own, capture, model)


def row(what: str, path: Path, seconds: float, own: float, capture: Capture, model: Model) -> None:
    start = time.process_time()
    file = read_splats(path)
    reading = time.process_time() - start
    count, size = len(file.splats), path.stat().st_size
    lost = own - quality(SplatFile(file.splats, model.antialiased), capture, model)
    cells = (f"{count:,}", what, f"{size:,}", f"{size / count:.1f}", f"{lost:.3f} dB")
    print(f"| {' | '.join(cells)} | {seconds:.2f} | {reading:.2f} |", flush=True)


def quality(file: SplatFile, capture: Capture, model: Model) -> float:
    return psnr_on_test_views(file, capture, model.background, torch.device("cpu"))


if __name__ == "__main__":
    main()
