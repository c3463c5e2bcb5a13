"""Small models that move as is known, for tests of what is done with them."""

from __future__ import annotations

from dataclasses import replace

import torch
from small_scene import ball

from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, moving_parts
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import Splats

POLYNOMIAL = MotionOptions(path="polynomial", opacity="varying")


def moving_model(
    splats: Splats | None = None,
    options: MotionOptions = POLYNOMIAL,
    seconds: float | None = 2.0,
    seed: int = 1,
) -> Model:
    """Gaussians whose every number of motion is something."""
    splats = ball()[:60] if splats is None else splats
    scene = Scene(Gaussians.from_splats(splats), parts=moving_parts(options)).eval()
    g, params = torch.Generator().manual_seed(1), scene.gaussians.params
    with torch.no_grad():
        for name, spread in (("motion", 0.5), ("omega", 0.5)):
            params[name].copy_(spread * torch.randn(params[name].shape, generator=g))
        if options.opacity == "varying":
            params["time_centers"].copy_(torch.rand(len(splats), generator=g))
            params["time_scales"].copy_(torch.randn(len(splats), generator=g) - 1.5)
    model = Model(scene, splats.sh_degree, False, torch.zeros(3), {}, 10, "ball")
    return replace(model, seconds=seconds)
