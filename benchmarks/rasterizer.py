"""Time the CPU rasterizer, forward + backward, against tiled torch-autograd code of the same meaning.

    python benchmarks/rasterizer.py [--threads 2] [--repeats 15]

Prints a Markdown table with medians (and minima, which say more on a busy machine). Both implementations
run in this process on the same scenes and must agree on the image and on every gradient.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import torch
import torch_tiled
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats

SCENES = ((10_000, 256, 256), (50_000, 480, 270), (200_000, 960, 540))
PARAMETERS = ("means", "quats", "scales", "opacities", "sh")
RADIUS = 4.0
"""Mean screen radius in pixels, as the rasterizer reports it (up to 3.33 standard deviations)."""


def make_scene(count: int, width: int, height: int) -> tuple[Splats, Cameras, Tensor]:
    """Random Gaussians that fill the view, a camera, and a gradient of the image."""
    random = torch.Generator().manual_seed(0)
    focal = 0.9 * width
    z = 2 + 6 * torch.rand(count, generator=random)
    size = torch.tensor([width, height]) / focal
    xy = (torch.rand(count, 2, generator=random) - 0.5) * size * z[:, None] * 1.05
    sigma = RADIUS / 4.5 * z / focal  # 4.5: radii follow the longer axes and are rounded up
    splats = Splats(
        means=torch.cat([xy, z[:, None]], 1),
        quats=torch.randn(count, 4, generator=random),
        scales=sigma[:, None] * torch.exp(0.4 * torch.randn(count, 3, generator=random)),
        opacities=torch.sigmoid(1.5 * torch.randn(count, generator=random)),
        sh=0.3 * torch.randn(count, 16, 3, generator=random),
    )
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    cameras = Cameras(torch.eye(4)[None], K[None], width, height)
    cotangent = torch.rand(1, height, width, 3, generator=random)
    return splats, cameras, cotangent


def differentiate(draw: Callable[[Splats], Tensor], splats: Splats, cotangent: Tensor) -> list[Tensor]:
    """The image and the gradients by all parameters."""
    leaves = {name: getattr(splats, name).clone().requires_grad_() for name in PARAMETERS}
    image = draw(Splats(**leaves))
    return [image.detach(), *torch.autograd.grad(image, list(leaves.values()), cotangent)]


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return times


def disagreement(found: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """99.9 % quantile of the image's error, and the largest relative error norm of a gradient.

    Not the maximum: where an alpha meets 1/255 within rounding, the two may decide differently.
    """
    error = (found[0] - expected[0]).abs().flatten()
    gradients = zip(found[1:], expected[1:], strict=True)
    quantile = error.kthvalue(int(0.999 * len(error))).values.item()
    return quantile, max(((a - b).norm() / b.norm()).item() for a, b in gradients)


def compare(count: int, width: int, height: int, repeats: int) -> str:
    """One row of the table."""
    splats, cameras, cotangent = make_scene(count, width, height)

    def ours() -> list[Tensor]:
        return differentiate(lambda leaves: rasterize(leaves, cameras).image, splats, cotangent)

    def yardstick() -> list[Tensor]:
        return differentiate(
            lambda leaves: torch_tiled.rasterize(leaves, cameras)[0][None], splats, cotangent
        )

    image_error, gradient_error = disagreement(ours(), yardstick())
    if not (image_error < 1e-4 and gradient_error < 1e-2):
        raise SystemExit(f"The two disagree: image {image_error:.1e}, gradients {gradient_error:.1e}.")
    radii = rasterize(splats, cameras).radii
    radius = radii[radii > 0].float().mean().item()
    mine, theirs = timed(ours, repeats), timed(yardstick, max(3, repeats // 5))
    ratio = statistics.median(theirs) / statistics.median(mine)
    return (
        f"| {count // 1000}k | {width}x{height} | {radius:.1f} px | {statistics.median(mine):.1f} ms"
        f" | {min(mine):.1f} ms | {statistics.median(theirs):.0f} ms | {min(theirs):.0f} ms | {ratio:.0f}x"
        f" | {image_error:.0e} / {gradient_error:.0e} |"
    )


def processor() -> str:
    """The processor's name where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}; forward + backward, SH 3\n")
    print(
        "| Gaussians | image | mean radius | median | min | torch median | torch min | ratio | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for scene in SCENES:
        print(compare(*scene, options.repeats), flush=True)


if __name__ == "__main__":
    main()
