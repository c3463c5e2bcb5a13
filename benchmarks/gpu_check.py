"""What the CUDA backend does on this machine: speed of drawing, ranking and switching, and trainings.

    make gpu-check                                    agreement with the CPU (tests), then speed
    make gpu-check ROOT=data/bonsai                   and trainings on that capture
    make gpu-check ROOT=data/bonsai ARGS="--steps 2000 --elastic_steps 2000 --data.downscale 4"
    make gpu-check ROOT=data/mipnerf360/garden ARGS="--config configs/mipnerf360.yaml"

A first stage is trained, and from it the elastic stages of configs/flexgs.yaml and configs/flexgs_paper.yaml.
Photos are used at full size unless options say otherwise. Options that are not this script's own go to
``flexgs fit``. Results: a table, and ``gpu_check.json``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.elastic_switch import VARIANTS, random_model
from flexgs_lightning.cameras import Cameras
from flexgs_lightning.files import atomic_path
from flexgs_lightning.rendering.gsplat_backend import require_kernels
from flexgs_lightning.rendering.importance import removal_importance
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Outputs
from flexgs_lightning.splats import Splats

WIDTH, HEIGHT = 1600, 1060
REPEATS = 30
RATIO = 0.05
CONFIGS = Path(__file__).parent.parent / "configs"


def main() -> int:
    arguments, fit_options = parse_arguments()
    if not torch.cuda.is_available():
        print("gpu_check: no CUDA device.", file=sys.stderr)
        return 1
    start = time.perf_counter()
    require_kernels()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "gsplat": version("gsplat")},
        "seconds to load the kernels": round(time.perf_counter() - start, 1),
        "rasterizer": [measure_rasterizer(count) for count in (100_000, 1_000_000)],
        "switching": [measure_switching(count) for count in (1_000_000, 2_000_000, 5_000_000)],
    }
    if arguments.root is not None:
        report["training"] = train(arguments, fit_options)
    with atomic_path(arguments.output) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return max((training["status"] for training in report.get("training", {}).values()), default=0)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, help="capture to train on; without it, no training")
    parser.add_argument("--steps", type=int, default=15_000, help="of the first stage")
    parser.add_argument("--elastic_steps", type=int, default=20_000, help="of each elastic stage; 0 for none")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    return parser.parse_known_args()


def scene(count: int) -> tuple[Splats, Cameras]:
    """Gaussians in a ball that fills the view, about 4 pixels large, SH degree 3."""
    generator = torch.Generator().manual_seed(0)
    fields = {
        "means": torch.randn(count, 3, generator=generator),
        "quats": torch.randn(count, 4, generator=generator),
        "scales": 0.012 * torch.exp(0.3 * torch.randn(count, 3, generator=generator)),
        "opacities": torch.rand(count, generator=generator),
        "sh": 0.3 * torch.randn(count, 16, 3, generator=generator),
    }
    viewmat = torch.eye(4)
    viewmat[2, 3] = 5.0
    K = torch.tensor([[1400.0, 0, WIDTH / 2], [0, 1400.0, HEIGHT / 2], [0, 0, 1]])
    splats = Splats(**{name: field.cuda().requires_grad_() for name, field in fields.items()})
    return splats, Cameras(viewmat[None], K[None], WIDTH, HEIGHT).to("cuda")


def measure_rasterizer(count: int) -> dict[str, Any]:
    """Median milliseconds and peak memory at 1600x1060."""
    splats, cameras = scene(count)

    def forward() -> None:
        with torch.no_grad():
            rasterize(splats, cameras)

    def importance() -> None:
        with torch.no_grad():
            rasterize(splats, cameras, outputs=Outputs(weights=True, hits=True))

    def forward_and_backward() -> None:
        rasterize(splats, cameras).image.sum().backward()

    torch.cuda.reset_peak_memory_stats()
    return {
        "gaussians": count,
        "size": f"{WIDTH}x{HEIGHT}",
        "forward ms": milliseconds(forward),
        "forward + backward ms": milliseconds(forward_and_backward),
        "forward with weights and hits ms": milliseconds(importance),
        "removal importance ms": milliseconds(lambda: removal_importance(splats, cameras)),
        "peak MiB": round(torch.cuda.max_memory_allocated() / 2**20),
    }


def milliseconds(function: Any) -> float:
    times = []
    for _ in range(REPEATS + 5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times[5:]), 2)


def measure_switching(count: int) -> dict[str, Any]:
    """Median milliseconds to switch to 5 % after the first ranking, for each kind of model."""
    result: dict[str, Any] = {"gaussians": count, "ratio": RATIO}
    for name, options in VARIANTS.items():
        model = random_model(count, options).cuda()
        with torch.no_grad():
            result[f"{name} ms"] = milliseconds(lambda model=model: model.at(RATIO))
    return result


def train(arguments: argparse.Namespace, fit_options: list[str]) -> dict[str, dict[str, Any]]:
    """Train a first stage, and both elastic stages from it, as far as they succeed."""
    first = ["--model.reconstruction_steps", str(arguments.steps)]
    results = {"first": fit(arguments, "first", [*fit_options, *first])}
    if arguments.elastic_steps == 0 or results["first"]["status"] != 0:
        return results
    start = newest(arguments.runs / "first", "checkpoints/last.ckpt")
    for config in ("flexgs", "flexgs_paper"):
        own = ["--start_from", str(start), "--model.reconstruction_steps", "0"]
        own += ["--model.elastic_training.steps", str(arguments.elastic_steps)]
        results[config] = fit(
            arguments, config, ["--config", str(CONFIGS / f"{config}.yaml"), *fit_options, *own]
        )
    return results


def fit(arguments: argparse.Namespace, name: str, options: list[str]) -> dict[str, Any]:
    """Run ``flexgs fit``; its metrics, wall time and the device's peak memory in use."""
    own = ["--data.root", str(arguments.root), "--runs", str(arguments.runs), "--name", name]
    command = ["fit", *options, *own, "--trainer.accelerator", "cuda"]  # what comes later wins
    torch.cuda.empty_cache()
    before = device_memory()
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "flexgs_lightning.cli", *command])
    while process.poll() is None:
        peak = max(peak, device_memory() - before)
        time.sleep(0.5)
    result: dict[str, Any] = {
        "command": " ".join(command),
        "status": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "peak MiB": round(peak / 2**20),
    }
    if process.returncode == 0:
        report = json.loads(newest(arguments.runs / name, "metrics.json").read_text())
        keys = ("mean", "ratios", "gaussians", "milliseconds", "protocol")
        result |= {key: report[key] for key in keys if key in report}
    return result


def newest(folder: Path, file: str) -> Path:
    """A file of the last run in a folder."""
    return max(folder.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime)


def device_memory() -> int:
    """Bytes in use on the device, by all processes."""
    free, total = torch.cuda.mem_get_info()
    return total - free


if __name__ == "__main__":
    sys.exit(main())
