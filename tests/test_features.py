"""Features in place of spherical harmonics: what a network makes of them, and what baking makes of that."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from small_scene import around, ball

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.baking import baked, sphere
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, first_parts
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.training.module import FlexGSModule
from flexgs_lightning.training.moments import shader_of

MOVING = MotionOptions(path="polynomial", opacity="varying")


def featured(motion: MotionOptions = MotionOptions(), strength: float = 0.5) -> Scene:  # noqa: B008  (frozen)
    torch.manual_seed(0)
    gaussians = Gaussians.from_splats(ball().with_sh_degree(0))
    scene = Scene(gaussians, parts=first_parts(motion, "features"))
    with torch.no_grad():
        scene.gaussians.params["appearance"].normal_(std=strength)
        scene.gaussians.params["sh"].mul_(0.3)
        for weight in scene.parts["appearance"].parameters():
            weight.normal_(std=strength)
    return scene.eval()


def image(scene: Scene, conditions: Conditions = Conditions()) -> torch.Tensor:  # noqa: B008  (frozen)
    return rasterize(scene.at(conditions), around(2), shader=shader_of(scene)).image


def test_a_new_scene_looks_as_its_base_colours() -> None:
    gaussians = Gaussians.from_splats(ball().with_sh_degree(0))
    scene = Scene(gaussians, parts=first_parts(MotionOptions(), "features"))
    positive = scene.gaussians.params["sh"].abs()
    scene.gaussians.params["sh"].data.copy_(positive)
    expected = rasterize(
        Gaussians({n: scene.gaussians.params[n] for n in gaussians.params}).splats(), around(2)
    )
    torch.testing.assert_close(image(scene), expected.image, rtol=0, atol=1e-5)


def test_colours_are_times_their_coverage() -> None:
    shade = featured().parts["appearance"].shade
    features, rays = torch.randn(50, 6), torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    for alpha in (0.0, 0.3):
        torch.testing.assert_close(shade(alpha * features, alpha * rays), alpha * shade(features, rays))


def test_features_of_time_depend_on_it() -> None:
    scene = featured(MOVING)
    assert scene.gaussians.params["appearance"].shape == (400, 6)
    center = scene.gaussians.params["time_centers"].detach()
    early, late = (scene.drawn(400, Conditions(time=time)).features for time in (0.2, 0.7))
    torch.testing.assert_close(early[:, :6], late[:, :6])
    ratio = (0.7 - center) / (0.2 - center)
    torch.testing.assert_close(late[:, 6:], early[:, 6:] * ratio[:, None], rtol=1e-4, atol=1e-6)
    assert featured().gaussians.params["appearance"].shape == (400, 3)


def test_every_number_learns() -> None:
    scene = featured(MOVING).train()
    everyone = scene.drawn(400, Conditions(time=0.3))
    rasterize(everyone, around(1), shader=shader_of(scene)).image.square().mean().backward()
    learned = {name for name, p in scene.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {"gaussians.params.appearance", "parts.appearance.network.0.weight"}
    assert wanted | {"gaussians.params.sh", "parts.appearance.network.2.weight"} <= learned


def test_baking_states_how_far_colours_are_off(caplog: pytest.LogCaptureFixture) -> None:
    scene = featured()
    splats, shade = scene.at().detach(), scene.parts["appearance"].requires_grad_(False).shade
    rays = sphere(64)
    assert rays.norm(dim=1).allclose(torch.ones(64))
    assert rays.mean(dim=0).abs().max() < 0.02
    losses = []
    for degree in range(4):
        result, loss = baked(splats, shade, degree)
        assert result.sh_degree == degree
        losses.append(loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.5 * losses[0]

    # against what the package draws: one Gaussian at a time, from far away, fills its pixel with its colour
    result, loss = baked(splats, shade)
    camera, squares = around(1)[0], []
    for i in range(0, 400, 40):
        one = [
            rasterize(each[i : i + 1], camera, shader=shader).image
            for each, shader in ((splats, shader_of(scene)), (result, None))
        ]
        alpha = rasterize(result[i : i + 1], camera).alpha
        squares.append(float((one[0] - one[1]).square().sum() / (3 * alpha.square().sum().clamp_min(1e-9))))
    assert math.sqrt(sum(squares) / len(squares)) < 3 * loss

    with caplog.at_level(logging.INFO, logger="flexgs_lightning"):
        model = Model(scene, 0, False, torch.zeros(3), {}, 0)
        assert model.splats().sh_degree == 3
    assert f"colours differ by {loss:.4f} (rms)" in caplog.text


def test_harmonics_that_nobody_reads_are_refused() -> None:
    with pytest.raises(InputError, match=r"model\.sh_degree: expected 0 with model\.appearance features"):
        FlexGSModule(appearance="features", sh_degree=2)
