"""Peak memory of a training step for each Gaussian, in each stage, by torch's own count of allocations.

    python benchmarks/memory.py [--gaussians 100000 1000000] [--size 480x270]

Gaussians are random; every tensor that torch allocates or frees is counted (``torch.profiler`` with
``profile_memory``), on the CPU, over a few steps after the first, in which Adam makes its moments. "Model" is
parameters, gradients and two moments. "One render" is what drawing the full model holds for its gradient.
Prints Markdown.
"""

import argparse
from collections.abc import Callable
from typing import Any

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import torch
from torch.profiler import ProfilerActivity, profile

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.elastic import ElasticTraining
from flexgs_lightning.training.elastic.stage import Iteration, descend, elastic_optimizer
from flexgs_lightning.training.losses import photometric_loss
from flexgs_lightning.training.optimization import LearningRates, gaussian_optimizers, residual_units


class Stage:
    """A scene with its optimizers, and one step of its training."""

    def __init__(self, count: int, elastic: bool, camera: Cameras, photo: torch.Tensor) -> None:
        torch.manual_seed(0)
        gaussians = Gaussians.from_splats(_splats(count))
        rates = LearningRates()
        self.camera, self.photo, self.elastic = camera, photo, elastic
        self.scene = Scene(gaussians)
        if elastic:
            frame, units = SceneFrame(torch.zeros(3), 1.0), residual_units(rates, 1.0)
            self.scene = elastic_scene(gaussians, frame, ElasticOptions(), units)
        self.optimizers = list(gaussian_optimizers(gaussians, rates, 1.0).values())
        added = elastic_optimizer(self.scene, ElasticTraining(), 1.0)
        self.optimizers += [] if added is None else [added]

    def photometric(self, splats: Splats) -> torch.Tensor:
        return photometric_loss(rasterize(splats, self.camera).image, self.photo)

    def gradients(self) -> None:
        if self.elastic:
            options = ElasticTraining()
            descend(self.scene, options, Iteration(0, self.photometric, torch.Tensor.backward))
        else:
            self.photometric(self.scene.at()).backward()

    def step(self) -> None:
        self.gradients()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def model_bytes(self) -> int:
        """Parameters, gradients and two moments."""
        return 4 * sum(parameter.nbytes for parameter in self.scene.parameters())

    def held_bytes(self) -> int:
        """Parameters and two moments: what is there before a step."""
        return 3 * sum(parameter.nbytes for parameter in self.scene.parameters())


def _splats(count: int) -> Splats:
    return Splats(
        torch.randn(count, 3) + torch.tensor([0.0, 0.0, 6.0]),
        torch.randn(count, 4),
        torch.rand(count, 3) * 0.01 + 0.002,
        torch.rand(count) * 0.9,
        torch.randn(count, 16, 3) * 0.1,
    )


def peak(work: Callable[[], object]) -> int:
    """Most bytes that ``work`` holds at once beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    sizes = [event.nbytes() for event in _allocations(found)]
    total = most = 0
    for size in sizes:
        total += size
        most = max(most, total)
    return most


def _allocations(found: profile) -> list[Any]:
    """Allocations and, as negative sizes, frees in their order."""
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sorted((e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gaussians", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--size", default="480x270")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    K = torch.tensor([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]])
    camera = Cameras(torch.eye(4)[None], K[None], width, height)
    photo = torch.rand(1, height, width, 3)
    print("| Gaussians | stage | model, bytes each | one render | peak | peak over (model + one render) |")
    print("|---|---|---|---|---|---|")
    for count in options.gaussians:
        for elastic in (False, True):
            stage = Stage(count, elastic, camera, photo)
            stage.step()
            model = stage.model_bytes()
            render = peak(lambda s=stage: s.photometric(s.scene.at()))  # type: ignore[misc]
            top = stage.held_bytes() + peak(stage.step)
            print(
                f"| {count:,} | {1 + elastic} | {model / count:.0f} | {render / count:.0f} "
                f"| {top / count:.0f} | {top / (model + render):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
