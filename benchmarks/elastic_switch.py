"""Milliseconds to switch an elastic model to another ratio, on the CPU, after the first ranking.

    python benchmarks/elastic_switch.py [--gaussians 1000000] [--ratio 0.05] [--threads 2]

The model has random parameters: the time depends on counts alone. Prints a Markdown table of medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import torch

from flexgs_lightning.model.attributes import ATTRIBUTES, residual_columns
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.scene import Scene

REPEATS = 15
UNITS = dict.fromkeys(residual_columns(), 1e-3)
VARIANTS = {
    "slicing alone": ElasticOptions(residual_anchors=()),
    "residuals at 4 anchors": ElasticOptions(),
    "transform field (64-wide heads, 3 attributes)": ElasticOptions(
        residual_anchors=(), field_heads=("means", "scales", "quats"), field_resolution=64
    ),
    "residuals and a field with linear heads for 5 attributes": ElasticOptions(
        field_heads=("means", "scales", "quats", "opacities", "sh"), field_head_width=0
    ),
    "GsNet ranking, then the field (paper)": ElasticOptions(
        selection="gsnet",
        residual_anchors=(),
        field_heads=("means", "scales", "quats"),
        field_resolution=64,
        field_ratio_resolution=100,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gaussians", type=int, default=1_000_000)
    parser.add_argument("--ratio", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.gaussians:,} Gaussians to {100 * options.ratio:g} %, {options.threads} threads\n")
    print("| model | ms, median | ms, least |\n|---|---|---|")
    for name, variant in VARIANTS.items():
        model = random_model(options.gaussians, variant)
        if name == "slicing alone":
            chosen = int(options.ratio * options.gaussians)
            params = model.gaussians.params
            report(name, lambda p=params, n=chosen: {key: value[:n] for key, value in p.items()})  # type: ignore[misc]
            name = "slicing and activating"
        report(name, lambda m=model: m.at(options.ratio))  # type: ignore[misc]


def random_model(count: int, options: ElasticOptions) -> Scene:
    torch.manual_seed(0)
    shapes = {name: attribute.shape_at(3) for name, attribute in ATTRIBUTES.items()}
    gaussians = Gaussians({name: torch.randn(count, *shape) for name, shape in shapes.items()})
    model = elastic_scene(gaussians, SceneFrame(torch.zeros(3), 1.0), options, UNITS).eval()
    model.sort()
    return model


@torch.no_grad()
def report(name: str, switch: Callable[[], object]) -> None:
    switch()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        switch()
        times.append(1e3 * (time.perf_counter() - start))
    print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
