"""Adaptive density control: who is cloned, split and pruned, and when opacities are reset."""

import logging
import math

import gsplat.strategy
import numpy as np
import pytest
import torch
from densification_scene import HEIGHT, WIDTH, Scene, fake_rendering, logit, rendering_with_gradient, started

from flexgs_lightning.errors import InputError
from flexgs_lightning.training.densification import (
    AdaptiveDensityControl,
    Densification,
)


def test_clones_splits_and_prunes_whom_an_independent_count_predicts():
    """Three iterations of two cameras; every combination of gradient, size, opacity and visibility."""
    rng = np.random.default_rng(3)
    count, extent, cameras = 200, 2.0, 2
    scene = Scene(count)
    scales = np.exp(rng.uniform(np.log(1e-3), np.log(0.6), (count, 3)))
    opacities = np.where(rng.random(count) < 0.2, 0.003, rng.uniform(0.01, 0.9, count))
    scene.assign("scales", np.log(scales))
    scene.assign("opacities", np.log(opacities / (1 - opacities)))
    scene.assign(
        "sh", np.arange(count)[:, None, None].repeat(4, axis=1).repeat(3, axis=2)
    )  # who is who afterwards
    control = AdaptiveDensityControl(start_step=0, every=3, reset_every=5, grow_grad2d=0.002)
    started(control, scene, extent, total=9)  # too short for a reset, but large ones are pruned after 5

    total, views = np.zeros(count), np.zeros(count)
    for step in range(3, 6):
        strength = np.exp(rng.uniform(np.log(1e-6), np.log(1e-3), (1, count, 1)))
        gradient = rng.normal(size=(cameras, count, 2)) * strength
        visible = rng.random((cameras, count)) < 0.6
        report = control.after_step(step, rendering_with_gradient(gradient, visible))
        per_camera = np.hypot(gradient[..., 0] * WIDTH / 2 * cameras, gradient[..., 1] * HEIGHT / 2 * cameras)
        total += (per_camera * visible).sum(axis=0)
        views += visible.sum(axis=0)

    mean = np.divide(total, views, out=np.zeros(count), where=views > 0)
    assert np.abs(mean / 0.002 - 1).min() > 1e-4  # float32 decides as float64 does
    grows, large = mean > 0.002, scales.max(axis=1) > 0.01 * extent
    clones, splits = grows & ~large, grows & large
    widest = scales.max(axis=1) / np.where(splits, 1.6, 1.0)
    dies = (opacities < 0.005) | (widest > 0.1 * extent)
    copies = np.where(dies, 0, np.where(grows, 2, 1))
    assert min(clones.sum(), splits.sum(), dies.sum(), (dies & splits).sum(), (dies & clones).sum()) > 3

    assert report.cloned == clones.sum()
    assert report.split == splits.sum()
    assert report.pruned == (np.where(grows, 2, 1) * dies).sum()
    assert report.count == copies.sum() == len(scene.gaussians)
    assert not report.opacity_reset
    tags = scene.params["sh"][:, 0, 0].detach().numpy().astype(int)
    np.testing.assert_array_equal(np.bincount(tags, minlength=count), copies)
    expected = scales[tags] / np.where(splits[tags], 1.6, 1.0)[:, None]
    np.testing.assert_allclose(scene.params["scales"].exp().detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        scene.params["opacities"].sigmoid().detach().numpy(), opacities[tags], rtol=1e-5
    )


def test_a_batch_counts_as_its_cameras_would_alone():
    """The loss is a mean over the batch, so each camera's gradient arrives divided by their number."""
    rng = np.random.default_rng(0)
    gradient, visible = rng.normal(size=(4, 30, 2)), rng.random((4, 30)) < 0.5
    together = started(AdaptiveDensityControl(), Scene(30))
    together.after_step(0, rendering_with_gradient(gradient / 4, visible))
    alone = started(AdaptiveDensityControl(), Scene(30))
    for camera in range(4):
        one = slice(camera, camera + 1)
        alone.after_step(camera, rendering_with_gradient(gradient[one], visible[one]))
    for name, value in together.state_dict()["statistics"].items():
        torch.testing.assert_close(value, alone.state_dict()["statistics"][name])


def test_children_of_a_split_are_drawn_from_the_parent():
    count = 20_000
    scene, scales = Scene(count), torch.tensor([0.3, 0.1, 0.02])
    quaternion = torch.nn.functional.normalize(torch.tensor([0.9, 0.3, -0.2, 0.4]), dim=0)
    scene.assign("means", torch.tensor([1.0, 2.0, 3.0]).expand(count, 3))
    scene.assign("quats", 3.0 * quaternion.expand(count, 4))
    scene.assign("scales", scales.log().expand(count, 3))
    before = {name: param.detach().clone() for name, param in scene.params.items()}
    control = started(AdaptiveDensityControl(start_step=0, every=1, prune_scale3d=1.0), scene)
    torch.manual_seed(0)
    report = control.after_step(0, rendering_with_gradient(np.ones((1, count, 2)), np.ones((1, count))))
    assert report.split == count
    assert report.count == 2 * count

    w, x, y, z = quaternion.double().tolist()
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    offsets = scene.params["means"].detach().double().numpy() - [1.0, 2.0, 3.0]
    local = offsets @ rotation / scales.numpy()  # standard normal if drawn from the parent
    assert np.abs(local.mean(axis=0)).max() < 5 / math.sqrt(2 * count)
    assert np.abs(np.cov(local.T) - np.eye(3)).max() < 5 * math.sqrt(2 / (2 * count))
    torch.testing.assert_close(scene.params["scales"].exp(), (scales / 1.6).expand(2 * count, 3))
    for name in ("quats", "opacities", "sh"):
        repeated = before[name].repeat(2, *[1] * (before[name].ndim - 1))
        torch.testing.assert_close(scene.params[name].detach(), repeated, rtol=0, atol=0)


@pytest.mark.parametrize("cameras", [1, 3])
def test_trains_as_gsplats_own_strategy_does(cameras, monkeypatch):
    """Parameters and Adam states after many refinements; gsplat's strategy never resets, so nor do we."""
    randn = torch.randn  # split children may lie anywhere: here, on their parent
    options = {"grow_grad2d": 1e-3, "grow_scale3d": 0.02, "prune_scale3d": 0.035}

    class Reference(Densification):
        kind = "reference"
        _cap = None

        def start(self, scene, optimizers, scene_extent, total_steps, clear_space=None):
            super().start(scene, optimizers, scene_extent, total_steps, clear_space)
            self.strategy = gsplat.strategy.DefaultStrategy(
                refine_start_iter=20, refine_every=10, refine_stop_iter=100, reset_every=60, **options
            )
            self.state = self.strategy.initialize_state(scene_extent)

        def before_backward(self, step, rendering):
            rendering.means2d.retain_grad()

        def after_step(self, step, rendering):
            info = {"means2d": rendering.means2d, "radii": rendering.radii, "gaussian_ids": None}
            info |= {"width": WIDTH, "height": HEIGHT, "n_cameras": cameras}
            self.strategy.step_post_backward(self._params, self._optimizers, self.state, step + 1, info)

        def _refine(self, completed, report):
            raise AssertionError

    ours = AdaptiveDensityControl(start_step=20, every=10, reset_every=60, **options)
    scenes = []
    for control in (ours, Reference()):
        scene = Scene(60)
        started(control, scene, extent=1.5, total=100)
        monkeypatch.setattr(
            torch,
            "randn",
            lambda *size, **kw: randn(*size, **kw) if size == (2,) else torch.zeros(*size, **kw),
        )
        reports = scene.train(control, range(100), cameras)
        monkeypatch.undo()
        scenes.append(scene)
        if control is ours:
            assert sum(report.cloned for report in reports) > 5
            assert sum(report.split for report in reports) > 5
            assert sum(report.pruned for report in reports) > 0
    exact = {"rtol": 0, "atol": 0} if cameras == 1 else {}  # sums over cameras are ordered differently
    for name in scenes[0].params:
        torch.testing.assert_close(scenes[0].params[name], scenes[1].params[name], **exact)
        torch.testing.assert_close(scenes[0].moments(name), scenes[1].moments(name), **exact)


@pytest.mark.parametrize(
    ("total", "stop", "reset_every", "expected"),
    [
        (150, None, 30, [30, 60, 90, 120]),  # the published schedule, 15k steps, at 1 : 100
        (300, 150, 30, [30, 60, 90, 120]),  # 30k steps, densified until 15k
        (300, 121, 30, [30, 60, 90, 120]),
        (300, 120, 30, [30, 60, 90]),
        (60, None, 30, [30]),
        (59, None, 30, []),  # no interval left to recover in
        (100, None, 0, []),
    ],
)
def test_opacities_are_reset_on_schedule(total, stop, reset_every, expected):
    scene = Scene()
    control = AdaptiveDensityControl(10, stop, 7, grow_grad2d=1e9, reset_every=reset_every)
    scene.train(started(control, scene, total=total), range(3))
    opacities = torch.linspace(-4.0, 3.0, len(scene.gaussians))  # faint ones, but none to prune
    nothing = rendering_with_gradient(np.zeros((1, 40, 2)), np.ones((1, 40)))
    found = []
    for step in range(3, total):
        scene.assign("opacities", opacities)
        scene.moments("opacities", fill=1.0)
        report = control.after_step(step, nothing)
        if report is not None and report.opacity_reset:
            found.append(step + 1)
            assert scene.params["opacities"].sigmoid().max().item() == pytest.approx(0.01)
            assert (scene.moments("opacities") == 0).all()
        else:
            assert torch.equal(scene.params["opacities"], opacities)
            assert (scene.moments("opacities") == 1).all()
    assert found == expected
    assert (scene.moments("means")[1] != 0).any()
    assert scene.steps() == {3}


def test_reset_only_lowers():
    scene = Scene(20)
    control = started(AdaptiveDensityControl(reset_every=5), scene)
    opacities = torch.linspace(0.006, 0.5, 20)
    scene.assign("opacities", opacities.logit())
    report = control.after_step(4, rendering_with_gradient(np.zeros((1, 20, 2)), np.ones((1, 20))))
    assert report.opacity_reset
    torch.testing.assert_close(scene.params["opacities"].sigmoid(), opacities.clamp(max=0.01))


def test_reset_stays_above_the_pruning_threshold():
    """Or the next refinement would prune the whole scene."""
    scene = Scene(20)
    control = started(AdaptiveDensityControl(reset_every=5, prune_opacity=0.05), scene)
    scene.assign("opacities", torch.full((20,), 2.0))
    control.after_step(4, rendering_with_gradient(np.zeros((1, 20, 2)), np.ones((1, 20))))
    torch.testing.assert_close(scene.params["opacities"].sigmoid(), torch.full((20,), 0.1))


def test_refines_only_between_start_and_stop():
    scene = Scene()
    control = started(AdaptiveDensityControl(20, 50, 10, reset_every=0, grow_grad2d=0.0), scene, total=100)
    counts = []
    for step in range(100):
        scene.train(control, range(step, step + 1))
        counts.append(len(scene.gaussians))
    changes = [step + 1 for step in range(1, 100) if counts[step] != counts[step - 1]]
    assert changes == [30, 40]


def test_the_cap_keeps_the_highest_gradients():
    count, room = 50, 7
    scene, strength = Scene(count), np.random.default_rng(1).permutation(count) + 1.0
    scene.assign("sh", np.arange(count)[:, None, None].repeat(4, axis=1).repeat(3, axis=2))
    scene.assign("scales", np.log(np.where(np.arange(count) % 2, 0.001, 0.05))[:, None].repeat(3, axis=1))
    control = AdaptiveDensityControl(start_step=0, every=1, max_gaussians=count + room)
    started(control, scene)
    gradient = np.zeros((1, count, 2))
    gradient[0, :, 0] = strength
    report = control.after_step(0, rendering_with_gradient(gradient, np.ones((1, count))))
    assert report.count == count + room
    assert report.cloned + report.split == report.grown == room
    assert min(report.cloned, report.split) > 0
    tags = scene.params["sh"][:, 0, 0].detach().numpy().astype(int)
    grown = np.flatnonzero(np.bincount(tags) == 2)
    assert set(grown) == set(np.argsort(strength)[-room:])


def test_the_cap_is_never_exceeded_and_pruning_goes_on():
    scene = Scene(60)
    control = AdaptiveDensityControl(
        start_step=5, every=5, grow_grad2d=1e-5, max_gaussians=80, prune_opacity=0.1, reset_every=0
    )
    reports = scene.train(started(control, scene, total=200), range(150))
    counts = [report.count for report in reports]
    assert max(counts) <= 80
    assert 80 in counts or 80 in [report.count + report.pruned for report in reports]
    assert sum(report.pruned for report in reports[3:]) > 0
    assert sum(report.grown for report in reports[3:]) > 0
    scene.check_consistent()


def test_a_ruinous_prune_is_refused():
    scene = Scene(2000)
    scene.assign("opacities", torch.where(torch.arange(2000) < 15, 0.0, logit(0.001)))
    control = started(AdaptiveDensityControl(start_step=0, every=1), scene)
    nothing = rendering_with_gradient(np.zeros((1, 2000, 2)), np.ones((1, 2000)))
    with pytest.raises(InputError, match=r"step 1, 1985 of 2000 .*prune_opacity = 0.005.*leaving 15.*20"):
        control.after_step(0, nothing)
    assert len(scene.gaussians) == 2000


def test_non_finite_gaussians_are_removed_aloud(caplog):
    scene = Scene(40)
    control = started(AdaptiveDensityControl(stop_step=600), scene, total=1000)
    scene.train(control, range(3))
    with torch.no_grad():
        scene.params["means"][5, 1] = math.nan
        scene.params["sh"][7, 0, 2] = math.inf
    nothing = rendering_with_gradient(np.zeros((1, 40, 2)), np.ones((1, 40)))
    with caplog.at_level(logging.WARNING):
        report = control.after_step(899, nothing)  # long after the last refinement
    assert report.pruned == 2
    assert report.count == len(scene.gaussians) == 38
    assert scene.gaussians.first_non_finite() is None
    assert "removing 2 of 40 Gaussians, non-finite means, sh" in caplog.text
    scene.check_consistent()

    with torch.no_grad():
        scene.params["quats"][:, 0] = math.nan
    with pytest.raises(InputError, match=r"38 of 38 Gaussians would go .non-finite quats"):
        control.after_step(999, nothing)


def test_missing_gradient_is_an_error():
    control = started(AdaptiveDensityControl(), Scene())
    with pytest.raises(RuntimeError, match="before_backward"):
        control.after_step(0, fake_rendering(torch.zeros(1, 40, 2), torch.ones(1, 40, 2, dtype=torch.int32)))
