"""Guided sampling: what photos show and the scene lacks is found, with its place, colour and speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_scene import FRAMES, STILL, Pixels, capture, options, place, truth
from small_scene import around
from training_processes import scene as state_of

from flexgs_lightning.data import datamodule
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, moving_parts
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.processes import Shards
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Outputs
from flexgs_lightning.splats import SH_C0, Splats
from flexgs_lightning.training import scene_module
from flexgs_lightning.training.guided_sampling import Evidence, GuidedSampling, sample_missing

MOVES = MotionOptions(path="polynomial", opacity="varying")
BALL = torch.tensor([1.0, 0.7, 0.1])
RADIUS = 0.25


def still() -> Splats:
    """All but the ball."""
    splats = truth()
    rows = (splats.means, splats.quats, splats.scales, splats.opacities, splats.sh)
    return Splats(*(values[:STILL] for values in rows))


def with_ball(time: float) -> Splats:
    """And an opaque ball of two colours, which flies as in ``place``."""
    rest = still()
    g = torch.Generator().manual_seed(1)
    around_it = torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=1)
    colors = torch.where(around_it[:, :1] > 0, BALL, BALL.flip(0))
    return Splats(
        torch.cat([rest.means, place(time) + RADIUS * around_it]),
        torch.cat([rest.quats, torch.tensor([1.0, 0, 0, 0]).expand(300, 4)]),
        torch.cat([rest.scales, torch.full((300, 3), 0.03)]),
        torch.cat([rest.opacities, torch.full((300,), 0.99)]),
        torch.cat([rest.sh, ((colors - 0.5) / SH_C0)[:, None]]),
    )


def found(drawn: Callable[[float], Splats], how: GuidedSampling) -> Gaussians:
    """What is missing where a scene looks like that at a time, in photos of ten cameras at eight moments."""
    cameras = around(10, 112, 84)
    views = [
        View(f"{frame}/{i}", cameras[i], Pixels(np.zeros(0)), time=frame / FRAMES)
        for frame in range(FRAMES)
        for i in range(len(cameras))
    ]

    def look(chosen: list[int]) -> Evidence:
        time = views[chosen[0]].time or 0.0
        photos = rasterize(with_ball(time), cameras).image.clamp(0, 1)
        rendering = rasterize(drawn(time), cameras, outputs=Outputs(depth=True))
        return Evidence(cameras, rendering.image, photos, rendering.depth, how)

    torch.manual_seed(0)
    scene = Scene(Gaussians.from_splats(still()), parts=moving_parts(MOVES))
    return sample_missing(scene, views, look, how, capture().extent)


def test_a_ball_that_the_scene_lacks_is_found_with_its_speed() -> None:
    new = found(lambda time: still(), GuidedSampling(every=1, stride=2, rays=40))
    rows = {name: values.detach() for name, values in new.params.items()}
    assert set(rows["time_centers"].tolist()) == {0.0, 0.25, 0.5, 0.75}
    for time in rows["time_centers"].unique():
        here = rows["time_centers"] == time
        distances = (rows["means"][here] - place(float(time))).norm(dim=1)
        colors = SH_C0 * rows["sh"][here, 0] + 0.5
        nearest = torch.cdist(colors, torch.stack([BALL, BALL.flip(0)]), p=float("inf")).amin(dim=1)
        speed = torch.tensor([0.9, 2.4 * (float(time) - 0.5), -0.3])
        wrong = (rows["motion"][here, 0].mean(dim=0) - speed).norm() / speed.norm()
        assert (distances.median() - RADIUS).abs() < 0.1 * RADIUS
        assert (distances < 1.3 * RADIUS).float().mean() > 0.75
        assert nearest.median() < 0.05
        assert wrong < (0.5 if time > 0 else 0.8), "of the first moment only the next one is known"
    assert rows["time_scales"].exp().allclose(torch.tensor(2 / FRAMES))
    assert not rows["motion"][:, 1:].any()


def test_nothing_is_found_where_nothing_is_missing() -> None:
    assert len(found(with_ball, GuidedSampling(every=1))) == 0


def test_no_moment_brings_more_than_it_may() -> None:
    new = found(lambda time: still(), GuidedSampling(every=1, stride=4, rays=40, max_gaussians=5))
    assert new.params["time_centers"].tolist() == [0.0] * 5 + [0.5] * 5


@pytest.fixture
def without_the_ball(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """The ball's capture with points of what stands still alone."""
    whole = capture()
    bare = replace(whole, points=whole.points[torch.arange(STILL)])
    monkeypatch.setattr(datamodule, "read_capture", lambda **options: bare)
    return bare


def test_training_with_it_learns_what_no_point_leads_to(without_the_ball: Capture, tmp_path: Path) -> None:
    steps = ["--model.reconstruction_steps=120", "--model.densification.max_gaussians=600"]
    steps += ["--checkpoint.every_n_steps=60", "--checkpoint.keep=true"]
    guided = [*steps, "--model.guided_sampling.every=40", "--model.guided_sampling.stop_step=100"]
    plain = FlexGSCLI(options(tmp_path, *steps))
    run = FlexGSCLI(options(tmp_path, *guided))
    metrics = [float(each.trainer.callback_metrics["test/psnr"]) for each in (run, plain)]
    assert metrics[0] > metrics[1] + 2.0, metrics
    folder = run.run_folder / "checkpoints"
    expected = state_of(folder / "last.ckpt")
    assert STILL < len(expected["scene.gaussians.params.means"]) <= 600
    again = FlexGSCLI(options(tmp_path, *guided, f"--ckpt_path={folder / 'step_60.ckpt'}"))
    resumed = state_of(again.run_folder / "checkpoints" / "last.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "values",
    [{"every": -1}, {"stop_step": 0}, {"stride": 0}, {"rays": 0}, {"error": 1.0}, {"agreement": 0.0}],
)
def test_options_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"model\.guided_sampling\.{next(iter(values))}: expected"):
        GuidedSampling(**values)  # type: ignore[arg-type]


def test_processes_that_share_out_the_gaussians_are_refused(
    without_the_ball: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_module, "shards_of", lambda strategy: Shards(0, 2))
    with pytest.raises(InputError, match=r"guided_sampling: expected every 0 where several processes share"):
        FlexGSCLI(options(tmp_path, "--model.guided_sampling.every=10"))


def test_gaussians_that_never_go_cannot_be_of_a_moment(without_the_ball: Capture, tmp_path: Path) -> None:
    for motion in ("--model.motion.path=bases", "--model.motion.opacity=constant"):
        with pytest.raises(
            InputError, match=r"model\.guided_sampling: expected model\.motion\.path polynomial"
        ):
            FlexGSCLI(options(tmp_path, "--model.guided_sampling.every=10", motion))
    assert not list(tmp_path.iterdir())
