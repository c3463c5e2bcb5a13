"""What all density controls share: optimizers follow, resuming is exact, bad options are named."""

import io
import math

import pytest
import torch
from densification_scene import Scene, started
from jsonargparse import ArgumentParser, lazy_instance

from flexgs_lightning.errors import InputError
from flexgs_lightning.training.densification import (
    MCMC,
    AdaptiveDensityControl,
    Densification,
)
from flexgs_lightning.training.optimization import LearningRates, gaussian_optimizers


def controls() -> list[Densification]:
    return [
        AdaptiveDensityControl(10, None, 10, grow_grad2d=1e-3, reset_every=25, prune_opacity=0.05),
        MCMC(10, None, 10, max_gaussians=200, min_opacity=0.2),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_optimizers_follow_the_gaussians(kind):
    scene, control = Scene(), controls()[kind]
    started(control, scene, total=100)
    for step in range(100):
        scene.train(control, range(step, step + 1))
        scene.check_consistent()
        assert scene.steps() == {step + 1}
    assert len(scene.gaussians) != 40


@pytest.mark.parametrize("kind", [0, 1])
def test_new_gaussians_start_without_momentum(kind):
    scene, control = Scene(), controls()[kind]
    started(control, scene, total=100)
    scene.train(control, range(19))
    assert all((scene.moments(name).flatten(2) != 0).any(-1).all() for name in ("means", "scales"))
    (report,) = scene.train(control, range(19, 20))
    still = (scene.moments("scales") == 0).flatten(2).all(dim=-1).all(dim=0)
    if kind == 0:
        assert report.grown > 0
        assert still[-2 * report.split or len(still) :].all()
        assert report.cloned <= int(still.sum()) <= report.cloned + 2 * report.split
    else:  # parents start anew as well
        assert report.added > 0
        assert report.relocated > 0
        assert still[-report.added :].all()
        assert report.added + report.relocated < int(still.sum()) <= 2 * (report.added + report.relocated)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("interrupted", [7, 25, 33])
def test_resuming_is_bit_exact(kind, interrupted):
    whole, control = Scene(), controls()[kind]
    started(control, whole, total=80)
    whole.train(control, range(80))

    first, control = Scene(), controls()[kind]
    started(control, first, total=80)
    first.train(control, range(interrupted))
    file = io.BytesIO()
    optimizers = {name: optimizer.state_dict() for name, optimizer in first.optimizers.items()}
    torch.save((first.gaussians.state_dict(), optimizers, control.state_dict()), file)
    first.train(control, range(interrupted, interrupted + 3))  # what was saved is a copy

    file.seek(0)
    parameters, optimizers, state = torch.load(file, weights_only=True)
    resumed, control = Scene(seed=9), controls()[kind]
    resumed.gaussians.load_state_dict(parameters)
    resumed.optimizers = gaussian_optimizers(resumed.gaussians, LearningRates(means=1e-3), extent=1.0)
    started(control, resumed, total=80)
    for name, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(optimizers[name])
    control.load_state_dict(state)
    resumed.train(control, range(interrupted, 80))

    assert len(whole.gaussians) != 40
    for name in whole.params:
        assert torch.equal(whole.params[name], resumed.params[name])
        assert torch.equal(whole.moments(name), resumed.moments(name))


def test_a_state_is_a_copy():
    scene, control = Scene(), AdaptiveDensityControl()
    scene.train(started(control, scene), range(3))
    state = control.state_dict()
    kept = {name: value.clone() for name, value in state["statistics"].items()}
    assert kept["views"].sum() > 0
    scene.train(control, range(3, 6))
    assert all(torch.equal(state["statistics"][name], value) for name, value in kept.items())
    control.load_state_dict(state)
    scene.train(control, range(6, 9))
    assert all(torch.equal(state["statistics"][name], value) for name, value in kept.items())


def test_a_state_of_another_run_is_refused():
    adaptive = started(AdaptiveDensityControl(), Scene(40))
    with pytest.raises(InputError, match="'adaptive' density control, but this run asks for 'mcmc'"):
        started(MCMC(), Scene(40)).load_state_dict(adaptive.state_dict())
    with pytest.raises(InputError, match=r"'grad2d' has shape \(40,\).*\(41,\)"):
        started(AdaptiveDensityControl(), Scene(41)).load_state_dict(adaptive.state_dict())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdaptiveDensityControl, {"start_step": -1}, "start_step: expected 0 or more, found -1"),
        (AdaptiveDensityControl, {"start_step": 500, "stop_step": 500}, r"stop_step: .*start_step \(500\)"),
        (AdaptiveDensityControl, {"every": 0}, "every: expected 1 or more, found 0"),
        (AdaptiveDensityControl, {"grow_grad2d": -1e-4}, "grow_grad2d: .*at least 0, found -0.0001"),
        (AdaptiveDensityControl, {"grow_grad2d": math.nan}, "grow_grad2d: .*found nan"),
        (AdaptiveDensityControl, {"grow_scale3d": -1.0}, "grow_scale3d"),
        (AdaptiveDensityControl, {"prune_opacity": 0.5}, "prune_opacity: .*below 0.5, found 0.5"),
        (AdaptiveDensityControl, {"prune_scale3d": 0.01}, r"prune_scale3d: .*grow_scale3d \(0.01\)"),
        (AdaptiveDensityControl, {"reset_every": -1}, "reset_every"),
        (AdaptiveDensityControl, {"max_gaussians": 0}, "max_gaussians: expected null or 1 or more"),
        (MCMC, {"stop_step": 400}, "stop_step"),
        (MCMC, {"max_gaussians": 0}, "max_gaussians: expected 1 or more"),
        (MCMC, {"growth": -0.1}, "growth"),
        (MCMC, {"min_opacity": 0.0}, "min_opacity: expected a number between 0 and 1, found 0.0"),
        (MCMC, {"noise_lr": math.inf}, "noise_lr"),
        (MCMC, {"opacity_reg": -1.0}, "opacity_reg"),
        (MCMC, {"scale_reg": -1.0}, "scale_reg"),
    ],
)
def test_invalid_options_are_named(kind, options, message):
    with pytest.raises(InputError, match=rf"densification\.{message}"):
        kind(**options)


@pytest.mark.parametrize("kind", [AdaptiveDensityControl, MCMC])
def test_impossible_starts_are_refused(kind):
    with pytest.raises(InputError, match=r"densification\.max_gaussians: .*the 40 Gaussians.*found 39"):
        started(kind(max_gaussians=39), Scene(40))
    started(kind(max_gaussians=40), Scene(40))
    with pytest.raises(InputError, match="starts with 9 Gaussians"):
        started(kind(), Scene(9))
    scene = Scene()
    del scene.optimizers["quats"]
    with pytest.raises(ValueError, match=r"one optimizer for params\['quats'\]"):
        started(kind(), scene)
    scene = Scene()
    scene.optimizers["quats"] = Scene().optimizers["quats"]
    with pytest.raises(ValueError, match=r"params\['quats'\]"):
        started(kind(), scene)


def test_the_command_line_chooses_the_kind():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--densification", type=Densification, default=lazy_instance(AdaptiveDensityControl))
    options = parser.parse_args(["--densification", "MCMC", "--densification.max_gaussians", "200000"])
    control = parser.instantiate(options).densification
    assert type(control) is MCMC
    assert control.max_gaussians == 200_000
    control = parser.instantiate(parser.parse_args(["--densification.reset_every=0"])).densification
    assert type(control) is AdaptiveDensityControl
    assert control.reset_every == 0


def test_a_lazy_default_shares_its_checkpoints_with_an_explicit_choice():
    lazy = started(lazy_instance(AdaptiveDensityControl), Scene())
    started(AdaptiveDensityControl(), Scene()).load_state_dict(lazy.state_dict())


@pytest.mark.parametrize(("kind", "published"), [(0, 50), (1, 83)])
def test_by_default_refinement_stops_at_the_published_share_of_the_stage(kind, published):
    def count(stop: int | None) -> int:
        scene, control = Scene(), controls()[kind]
        control.stop_step = stop
        control.start(scene.learned, list(scene.optimizers.values()), scene_extent=1.0, total_steps=100)
        scene.train(control, range(100))
        return len(scene.gaussians)

    assert count(None) == count(published)
    assert count(None) != count(20)
