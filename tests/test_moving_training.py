"""Training scenes that move: better than standing still, resumable, shared out, refused where nothing can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from moving_scene import ball_capture, capture, options, use_capture  # noqa: F401  (a fixture)
from test_parallel import succeed
from training_processes import run, scene

from flexgs_lightning import load
from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, moving_parts
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.importance import removal_importance
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Rendering
from flexgs_lightning.training.densification import AdaptiveDensityControl
from flexgs_lightning.training.initialization import Initialization, initial_scene
from flexgs_lightning.training.optimization import LearningRates, gaussian_optimizers
from flexgs_lightning.training.ranking import rank_by_removal

BLACK = torch.zeros(3)
SHORT = (
    "--data.batch_size=2",
    "--model.appearance=features",
    "--model.reconstruction_steps=12",
    "--model.elastic_training.steps=8",
    "--model.elastic_training.ratio_range=[0.1,1.0]",
    "--importance_refresh.every_n_steps=4",
    "--elastic_validation.ratios=[0.3]",
    "--model.densification.start_step=2",
    "--model.densification.every=4",
    "--model.densification.stop_step=12",
    "--model.densification.max_gaussians=90",
    "--model.learning_rates.motion=0.01",
    "--checkpoint.every_n_steps=6",
    "--checkpoint.keep=true",
    "--trainer.val_check_interval=20",
)


def trained(runs: Path, *extra: str) -> FlexGSCLI:
    return FlexGSCLI(options(runs, *extra))


def psnr_of(run: FlexGSCLI) -> float:
    return float(run.trainer.callback_metrics["test/psnr"])


def test_what_moves_is_learned(ball_capture: Capture, tmp_path: Path) -> None:  # noqa: F811
    """The held-out camera's images, at all times, against a model that stands still and one that fades."""
    steps = ["--model.reconstruction_steps=300", "--model.densification.start_step=1000"]
    steps += [f"--model.learning_rates.{name}" for name in ("opacities=0.1", "scales=0.02")]
    steps += ["--model.learning_rates.motion=0.005", "--model.learning_rates.means=0.001"]
    moves = psnr_of(trained(tmp_path, *steps))
    stands = psnr_of(trained(tmp_path, *steps, "--model.motion.path=none", "--model.motion.opacity=constant"))
    assert moves > stands + 3.0
    shared = [
        "--model.motion.path=bases",
        "--model.motion.bases_rate=1.6e-3",
        "--model.motion.opacity=constant",
    ]
    assert psnr_of(trained(tmp_path, *steps, *shared)) > stands + 3.0


def test_motion_is_trained_densified_resumed_and_made_elastic(
    ball_capture: Capture,  # noqa: F811
    tmp_path: Path,
) -> None:
    whole = trained(tmp_path / "whole", *SHORT)
    folder = whole.run_folder / "checkpoints"
    expected = scene(folder / "last.ckpt")
    motion = expected["scene.gaussians.params.motion"]
    assert len(motion) == len(expected["scene.gaussians.params.means"]) > len(capture().points), "densified"
    assert motion.abs().max() > 0.01, "learned"
    assert expected["scene.parts.appearance.network.2.weight"].any()
    again = trained(tmp_path / "whole", *SHORT, f"--ckpt_path={folder / 'step_6.ckpt'}")
    resumed = scene(again.run_folder / "checkpoints" / "last.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())

    model = load(folder / "last.ckpt")
    assert model.moves
    assert 0 < len(model.at(0.3, 0.5)) <= int(0.3 * len(model))
    assert model.at(0.3, 0.5).sh_degree == 3, "baked"
    with pytest.raises(InputError, match="this scene moves"):
        model.at(0.3)
    with pytest.raises(InputError, match="an elastic one that moves"):
        trained(tmp_path / "anew", *SHORT, f"--start_from={folder / 'last.ckpt'}")
    assert not (tmp_path / "anew").exists()


def test_two_processes_that_share_the_gaussians_draw_each_its_own_time(
    ball_capture: Capture,  # noqa: F811
    tmp_path: Path,
) -> None:
    """In the first stage the same scene as one process with both views; and both make it elastic."""
    steps = ["--model.reconstruction_steps=6", "--model.elastic_training.steps=2"]
    steps += ["--model.elastic_training.ratio_range=[0.1,1.0]", "--model.densification.start_step=1000"]
    steps += ["--checkpoint.every_n_steps=6", "--checkpoint.keep=true", "--elastic_validation.ratios=[0.3]"]
    one = trained(tmp_path / "one", *steps, "--data.batch_size=2").run_folder
    two = options(tmp_path / "two", *steps, "--trainer.strategy=sharded")
    succeed(run(2, two, tmp_path / "logs", use_capture))
    files = [one / "checkpoints", next((tmp_path / "two").glob("**/checkpoints"))]
    first = [scene(folder / "step_6.ckpt") for folder in files]
    start = "scene.gaussians.params."
    order = [values[start + "time_centers"].argsort() for values in first]
    for name in ("means", "motion", "time_scales", "opacities"):
        mine, theirs = (values[start + name][places] for values, places in zip(first, order, strict=True))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)
    last = [scene(folder / "last.ckpt") for folder in files]
    assert {name: value.shape for name, value in last[0].items()} == {
        name: value.shape for name, value in last[1].items()
    }


def test_a_capture_without_times_is_refused(small_capture: Path, tmp_path: Path) -> None:
    arguments = [
        "fit",
        f"--data.root={small_capture}",
        f"--runs={tmp_path}",
        "--trainer.accelerator=cpu",
        "--model.motion.path=polynomial",
    ]
    with pytest.raises(InputError, match="does not say when its views were taken"):
        FlexGSCLI(arguments)


# -- initialisation ------------------------------------------------------------------------------------------


def test_points_of_several_frames_start_at_their_times() -> None:
    points = capture().points
    times = torch.linspace(0, 0.99, len(points))
    parts = moving_parts(MotionOptions(path="polynomial", opacity="varying", width=0.3))
    several = initial_scene(
        _with_points(times), Initialization(max_gaussians=50), sh_degree=0, start=None, parts=parts
    ).gaussians.params
    assert len(several["means"]) == 50
    nearest = torch.cdist(several["means"], points.positions).argmin(dim=1)
    torch.testing.assert_close(several["time_centers"].detach(), times[nearest])
    torch.testing.assert_close(several["time_scales"].exp(), torch.full((50,), 0.3))
    assert not several["motion"].any()
    one = initial_scene(capture(), Initialization(), sh_degree=0, start=None, parts=parts)
    centers = one.gaussians.params["time_centers"]
    assert 0 <= centers.min() < 0.1 < 0.9 < centers.max() <= 1


def _with_points(times: torch.Tensor) -> Capture:
    return replace(capture(), points=replace(capture().points, times=times))


# -- density control and ranking -----------------------------------------------------------------------------


def test_who_lives_outside_the_scenes_time_is_pruned() -> None:
    points = capture().points
    parts = moving_parts(MotionOptions(opacity="varying"))
    model = Scene(Gaussians.from_points(points.positions, points.colors, opacity=0.5), parts=parts)
    optimizers = list(gaussian_optimizers(model.gaussians, LearningRates(), 1.0).values())
    with torch.no_grad():
        model.gaussians.params["time_scales"].fill_(-2.0)
        model.gaussians.params["time_centers"][:7] = 3.0
    control = AdaptiveDensityControl(start_step=0, every=1, grow_grad2d=1e9)
    control.start(model, optimizers, 1.0, 100)
    rendering = _seen(model)
    control.before_backward(0, rendering)
    rendering.image.sum().backward()
    report = control.after_step(0, rendering)
    assert report is not None
    assert report.pruned == 7
    assert len(model) == len(points) - 7


def _seen(model: Scene) -> Rendering:
    return rasterize(model.drawn(len(model), Conditions(time=0.5)), capture().views[0].camera)


def test_removal_counts_for_all_of_a_life() -> None:
    """Over views and times; who lives when no view looks counts for nothing."""
    points = capture().points
    parts = moving_parts(MotionOptions(opacity="varying"))
    model = Scene(Gaussians.from_points(points.positions, points.colors, opacity=0.5), parts=parts)
    with torch.no_grad():
        model.gaussians.params["time_scales"].fill_(-3.0)
        model.gaussians.params["time_centers"].fill_(0.25)
        model.gaussians.params["time_centers"][::2] = 0.75
    views = [view for view in capture().views if view.name.endswith(("2.png", "6.png"))]
    cameras: list[Cameras] = [view.camera for view in views]
    times = [view.time or 0.0 for view in views]
    assert set(times) == {0.25, 0.75}
    early = [0.25] * len(views)
    order = rank_by_removal(model.drawn, len(model), cameras, 1.0, background=BLACK, times=early).order
    assert (order[: len(order) // 2] % 2 == 1).all(), "the others do not live then"
    ranked = rank_by_removal(model.drawn, len(model), cameras, 1.0, background=BLACK, times=times)
    each = torch.zeros(len(model), dtype=torch.float64)
    for i, (camera, time) in enumerate(zip(cameras, times, strict=True)):
        splats = model.drawn(len(model), Conditions(time=time))
        generator = torch.Generator().manual_seed(i)
        each += removal_importance(
            splats, camera, probes=-(-200 // len(views)), generator=generator, background=BLACK
        )
    torch.testing.assert_close(ranked.importance, each[ranked.order])
