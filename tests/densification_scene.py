"""A small scene to try density control on, trained on an analytic loss in place of a rendering."""

import math

import numpy as np
import torch

from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.scene import Scene as LearnedScene
from flexgs_lightning.rendering.types import Picture, Projection, Rendering
from flexgs_lightning.training.clearance import ClearSpace
from flexgs_lightning.training.densification import Densification, DensificationReport
from flexgs_lightning.training.optimization import LearningRates, gaussian_optimizers

WIDTH, HEIGHT = 64, 48


class Scene:
    """Gaussians with their optimizers."""

    def __init__(self, count: int = 40, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.gaussians = Gaussians(
            {
                "means": torch.randn(count, 3, generator=draw),
                "quats": torch.randn(count, 4, generator=draw),
                "scales": torch.randn(count, 3, generator=draw) * 0.5 - 4.0,
                "opacities": torch.randn(count, generator=draw),
                "sh": torch.cat([torch.randn(count, 1, 3, generator=draw), torch.zeros(count, 3, 3)], dim=1),
            }
        )
        self.learned = LearnedScene(self.gaussians)
        self.optimizers = gaussian_optimizers(self.gaussians, LearningRates(means=1e-3), extent=1.0)

    @property
    def params(self) -> torch.nn.ParameterDict:
        return self.gaussians.params

    def assign(self, name: str, values: object) -> None:
        with torch.no_grad():
            self.params[name].copy_(torch.as_tensor(values, dtype=torch.float32))

    def render(self, cameras: int = 1) -> Rendering:
        """Screen positions that depend on the means; far ones count as culled."""
        shifts = torch.linspace(0.0, 0.5, cameras)[:, None, None]
        means2d = (self.params["means"][None, :, :2] + shifts) * 10 + 30
        visible = (means2d.detach()[..., :1] > 20).expand(-1, -1, 2)
        return fake_rendering(means2d, visible.int() * 3)

    def train(self, control: Densification, steps: range, cameras: int = 1) -> list[DensificationReport]:
        """Iterate as the LightningModule does; return what was reported."""
        reports = []
        for step in steps:
            torch.manual_seed(1000 + step)
            rendering = self.render(cameras)
            target = 30 + 10 * torch.randn(2)
            loss = self._loss(rendering, target)
            penalty = control.regularization()
            control.before_backward(step, rendering)
            (loss if penalty is None else loss + penalty).backward()
            for optimizer in self.optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            report = control.after_step(step, rendering)
            if report is not None:
                assert report.count == len(self.gaussians)
                reports.append(report)
        return reports

    def _loss(self, rendering: Rendering, target: torch.Tensor) -> torch.Tensor:
        distance = ((rendering.means2d - target) / 30).square().sum(dim=-1)
        colour = self.params["sh"].sum(dim=(1, 2))
        shape = self.params["scales"].sum(dim=1) + 0.1 * self.params["quats"].sum(dim=1)
        wanted = (2 * (7 * self.params["means"][:, 0].detach()).sin()).sigmoid()
        opacities = self.params["opacities"].sigmoid()
        drawn = (opacities * (-distance).exp()).mean() + (opacities - wanted).square().mean()
        return drawn + (0.01 * colour * shape).tanh().mean()

    def check_consistent(self) -> None:
        """Parameters and optimizers belong together, row by row."""
        count = len(self.gaussians)
        for name, param in self.params.items():
            assert isinstance(param, torch.nn.Parameter)
            assert param.is_leaf
            assert param.requires_grad
            (group,) = self.optimizers[name].param_groups
            assert len(group["params"]) == 1
            assert group["params"][0] is param
            assert group["name"] == name
            assert list(self.optimizers[name].state) == [param]
            state = self.optimizers[name].state[param]
            assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
            assert param.shape[0] == count
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == param.shape

    def moments(self, name: str, fill: float | None = None) -> torch.Tensor:
        """[2, N, ...] a copy of Adam's moments, filled with a value first if one is given."""
        state = self.optimizers[name].state[self.params[name]]
        if fill is not None:
            state["exp_avg"].fill_(fill)
            state["exp_avg_sq"].fill_(fill)
        return torch.stack([state["exp_avg"], state["exp_avg_sq"]])

    def steps(self) -> set[float]:
        """Adam's step counts."""
        return {float(self.optimizers[name].state[param]["step"]) for name, param in self.params.items()}


def fake_rendering(means2d: torch.Tensor, radii: torch.Tensor) -> Rendering:
    cameras = means2d.shape[0]
    pixel = torch.zeros(cameras, 1, 1, 1)
    projection = Projection(means2d, torch.zeros(*means2d.shape[:2], 8), radii.float(), radii)
    return Rendering(Picture(pixel.expand(-1, -1, -1, 3), pixel), projection, WIDTH, HEIGHT)


def rendering_with_gradient(gradient: np.ndarray, visible: np.ndarray) -> Rendering:
    """A rendering after backward: gradient [C, N, 2] per pixel, visible [C, N]."""
    means2d = torch.zeros(gradient.shape, requires_grad=True)
    means2d.grad = torch.as_tensor(gradient, dtype=torch.float32)
    radii = torch.as_tensor(visible, dtype=torch.int32)[..., None].repeat(1, 1, 2) * 4
    return fake_rendering(means2d, radii)


def started(
    control: Densification,
    scene: Scene,
    extent: float = 1.0,
    total: int = 1000,
    clear_space: ClearSpace | None = None,
) -> Densification:
    """Bind ``control``; it refines to the stage's end unless it was told otherwise."""
    if getattr(control, "stop_step", None) is None:  # a lazy default has no attributes before it starts
        control.stop_step = total
    optimizers = list(scene.optimizers.values())
    control.start(scene.learned, optimizers, scene_extent=extent, total_steps=total, clear_space=clear_space)
    return control


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
