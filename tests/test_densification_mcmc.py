"""MCMC density control: relocation, growth, noise and regularisation."""

import math

import numpy as np
import pytest
import torch
from densification_scene import Scene, logit, started

from flexgs_lightning.errors import InputError
from flexgs_lightning.training.densification import (
    MCMC,
    AdaptiveDensityControl,
)
from flexgs_lightning.training.densification.mcmc import relocation, sample


def test_relocation_is_equation_9():
    opacities = torch.tensor([1e-4, 0.005, 0.1, 0.5, 0.9, 0.99, 0.9999])
    for count in (1, 2, 3, 7, 20, 51):
        new, factors = relocation(opacities, torch.full((7,), count))
        for i, old in enumerate(opacities.tolist()):
            expected = 1 - (1 - old) ** (1 / count)
            assert new[i].item() == pytest.approx(expected, rel=1e-9)
            series = math.fsum(
                math.comb(m - 1, k) * (-1) ** k * expected ** (k + 1) / math.sqrt(k + 1)
                for m in range(1, count + 1)
                for k in range(m)
            )
            assert factors[i].item() == pytest.approx(old / series, rel=1e-7)


@pytest.mark.parametrize("count", [1, 2, 5, 60, 1000, 10**6])
def test_relocated_copies_draw_what_one_drew(count):
    """Their opacities compose to the old one, and so does the profile's integral (the paper's premise)."""
    opacities = torch.tensor([0.01, 0.3, 0.8, 0.999, 1.0])
    new, factors = relocation(opacities, torch.full((5,), count))
    clamped = opacities.double().clamp(max=1 - torch.finfo(torch.float32).eps)
    torch.testing.assert_close(-torch.expm1(count * torch.log1p(-new)), clamped, rtol=1e-9, atol=0)
    x = torch.linspace(0, 60, 400_001, dtype=torch.float64)
    for old, opacity, factor in zip(clamped, new, factors, strict=True):
        profile = -torch.expm1(count * torch.log1p(-opacity * torch.exp(-0.5 * (x / factor) ** 2)))
        integral = torch.trapezoid(profile, x).item()
        assert integral == pytest.approx(old.item() * math.sqrt(math.pi / 2), rel=1e-6)


def test_dead_gaussians_move_onto_live_ones():
    count, dead = 100, torch.arange(100) % 4 == 0
    scene = Scene(count)
    control = started(MCMC(start_step=0, every=5, growth=0.0, noise_lr=0.0), scene)
    scene.train(control, range(3))
    scene.assign("opacities", torch.where(dead, logit(0.004), scene.params["opacities"].detach()))
    before = {name: param.detach().clone() for name, param in scene.params.items()}
    moments = scene.moments("means").clone()
    torch.manual_seed(0)
    report = control.after_step(4, scene.render())
    assert (report.relocated, report.added, report.count) == (25, 0, count)
    after = {name: param.detach() for name, param in scene.params.items()}
    assert after["opacities"].sigmoid().min() >= 0.005

    copies = torch.zeros(count, dtype=torch.long)
    for row in dead.nonzero().squeeze(1):
        (parent,) = (before["means"] == after["means"][row]).all(dim=1).nonzero()
        assert not dead[parent]
        copies[parent] += 1
        for name in after:
            assert torch.equal(after[name][row], after[name][parent.item()])
    alone = ~dead & (copies == 0)
    shared = ~dead & (copies > 0)
    assert shared.any()
    for name in after:
        assert torch.equal(after[name][alone], before[name][alone])
    for name in ("means", "quats", "sh"):
        assert torch.equal(after[name][shared], before[name][shared])
    composed = 1 - (1 - after["opacities"][shared].sigmoid().double()) ** (copies[shared] + 1)
    torch.testing.assert_close(composed, before["opacities"][shared].sigmoid().double(), rtol=1e-5, atol=0)
    assert torch.equal(scene.moments("means")[:, alone], moments[:, alone])
    assert (scene.moments("means")[:, ~alone] == 0).all()


def test_nothing_is_dead_after_relocation_even_among_the_faint():
    scene = Scene(100)
    scene.assign("opacities", torch.where(torch.arange(100) < 10, logit(0.006), logit(0.004)))
    control = started(MCMC(start_step=0, every=1, growth=0.05, noise_lr=0.0), scene)
    assert control.after_step(0, scene.render()).relocated == 90
    assert scene.params["opacities"].sigmoid().min().item() == pytest.approx(0.005, rel=1e-5)
    assert len(scene.params["means"].detach().unique(dim=0)) == 10  # the dead are no one's parents
    assert control.after_step(1, scene.render()).relocated == 0


def test_parents_are_drawn_in_proportion_to_opacity():
    torch.manual_seed(0)
    chances = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    frequencies = torch.bincount(sample(chances, 100_000), minlength=6) / 100_000
    assert (frequencies[chances == 0] == 0).all()
    assert (frequencies - chances).abs().max() < 0.01


def test_sampling_has_no_limit_of_categories():
    """torch.multinomial refuses more than 2^24."""
    chances = torch.zeros(2**24 + 10)
    chances[-2:] = 0.5
    assert set(sample(chances, 50).tolist()) == {2**24 + 8, 2**24 + 9}


def test_mcmc_grows_by_a_share_up_to_the_cap():
    scene = Scene(100)
    control = started(MCMC(start_step=10, stop_step=95, every=10, max_gaussians=120), scene, total=200)
    reports = scene.train(control, range(200))
    assert [report.count for report in reports] == [105, 110, 115, 120, 120, 120, 120, 120]
    assert [report.added for report in reports] == [5, 5, 5, 5, 0, 0, 0, 0]
    scene.check_consistent()


def test_all_dead_is_an_error():
    scene = Scene(100)
    scene.assign("opacities", torch.full((100,), -9.0))
    control = started(MCMC(start_step=0, every=1), scene)
    with pytest.raises(InputError, match=r"100 of 100 .*min_opacity = 0.005"):
        control.after_step(0, scene.render())


def test_noise_has_the_gaussians_shape_and_the_learning_rates_size():
    """Equation 8: lr noise_lr sigmoid(100 (0.005 - o)) Sigma eta; on to the end of the stage."""
    count, lr, opacity = 40_000, 2e-5, 0.01
    scene, scales = Scene(count), torch.tensor([0.3, 0.1, 0.05])
    scene.assign("quats", torch.tensor([2.0, 0.0, 0.0, 2.0]).expand(count, 4))  # x -> y, y -> -x
    scene.assign("scales", scales.log().expand(count, 3))
    scene.assign("opacities", torch.full((count,), logit(opacity)))
    scene.optimizers["means"].param_groups[0]["lr"] = lr
    before = scene.params["means"].detach().clone()
    control = started(MCMC(stop_step=600), scene, total=1000)
    torch.manual_seed(0)
    assert control.after_step(700, scene.render()) is None
    moved = (scene.params["means"].detach() - before).double().numpy()
    gate = 1 / (1 + math.exp(-100 * (0.005 - opacity)))
    spread = lr * 5e5 * gate * np.array([0.01, 0.09, 0.0025])
    normal = moved / spread
    assert np.abs(normal.mean(axis=0)).max() < 5 / math.sqrt(count)
    assert np.abs(np.cov(normal.T) - np.eye(3)).max() < 0.04

    scene.assign("opacities", torch.full((count,), logit(0.6)))
    before = scene.params["means"].detach().clone()
    control.after_step(701, scene.render())
    assert torch.equal(scene.params["means"], before)  # what the image needs stays put


def test_regularization_is_the_weighted_means():
    scene = Scene(50)
    control = started(MCMC(opacity_reg=0.02, scale_reg=0.3), scene)
    opacities = 1 / (1 + np.exp(-scene.params["opacities"].detach().double().numpy()))
    scales = np.exp(scene.params["scales"].detach().double().numpy())
    penalty = control.regularization()
    assert penalty.item() == pytest.approx(0.02 * opacities.mean() + 0.3 * scales.mean(), rel=1e-6)
    penalty.backward()
    np.testing.assert_allclose(scene.params["scales"].grad.numpy(), 0.3 * scales / 150, rtol=1e-5)
    assert started(MCMC(opacity_reg=0.0, scale_reg=0.0), Scene()).regularization() is None
    assert started(AdaptiveDensityControl(), Scene()).regularization() is None
