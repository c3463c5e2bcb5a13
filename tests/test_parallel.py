"""Data parallelism: two processes with one camera each train what one process with two cameras trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from training_processes import Outcome, run, scene

from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.processes import gather, sum_over_processes
from flexgs_lightning.training.module import FlexGSModule
from flexgs_lightning.training.optimization import scale_to_batch
from flexgs_lightning.training.parallel import checksum, sum_gradients

RECONSTRUCTION, STEPS, KEPT = 50, 75, 15
"""Densification at 20 and 40, opacity reset at 25, elastic from 50 on, importance refresh at 60."""


def arguments(capture: Path, runs: Path, *extra: str) -> list[str]:
    dense = {"start_step": 10, "stop_step": 50, "every": 20, "reset_every": 25}
    return [
        "fit",
        f"--data.root={capture}",
        f"--runs={runs}",
        f"--model.reconstruction_steps={RECONSTRUCTION}",
        f"--model.elastic_training.steps={STEPS - RECONSTRUCTION}",
        "--importance_refresh.every_n_steps=10",
        "--elastic_validation.ratios=[0.05,0.3]",
        "--model.sh_degree_interval=25",
        "--model.lpips=none",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.val_check_interval=60",
        f"--checkpoint.every_n_steps={KEPT}",
        "--checkpoint.keep=true",
        "--replica_check.every_n_steps=1",
        *(f"--model.densification.{name}={value}" for name, value in dense.items()),
        *extra,
    ]


@pytest.fixture(scope="module")
def one(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of one process with two cameras an iteration."""
    runs = tmp_path_factory.mktemp("one")
    return FlexGSCLI(arguments(small_capture, runs, "--data.batch_size=2")).run_folder


@pytest.fixture(scope="module")
def two(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of two processes with one camera each; their replicas are compared at every step."""
    runs = tmp_path_factory.mktemp("two")
    succeed(run(2, arguments(small_capture, runs), runs / "logs"))
    return runs / "small" / "version_0"


def succeed(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.status == 0, outcome.errors


def assert_same_scene(found: Path, expected: Path, tolerance: float, exceptions: float = 0.0) -> None:
    """Tensors agree in relative norm, but for a share of Gaussians that a threshold decided otherwise."""
    found_tensors, expected_tensors = scene(found), scene(expected)
    assert found_tensors.keys() == expected_tensors.keys()
    for name, wanted in expected_tensors.items():
        value = found_tensors[name]
        assert value.shape == wanted.shape, name
        if wanted.ndim == 0 or not wanted.is_floating_point():
            assert (value != wanted).float().mean() <= exceptions, name
            continue
        errors = (value - wanted).flatten(1).norm(dim=1) if wanted.ndim > 1 else (value - wanted).abs()
        allowed = tolerance * float(wanted.norm()) / len(wanted) ** 0.5
        assert (errors > allowed).float().mean() <= exceptions, (name, errors.max().item(), allowed)


@pytest.mark.parametrize("step", range(KEPT, STEPS + 1, KEPT))
def test_two_processes_train_what_one_with_twice_the_cameras_trains(one: Path, two: Path, step: int) -> None:
    """The sum over cameras is rounded in another order (1e-7 a step); Adam's first steps, which are of the
    size of the learning rate whatever the gradient's, and ties of the ranking make more of it."""
    name = f"checkpoints/step_{step}.ckpt"
    assert_same_scene(two / name, one / name, tolerance=1e-3, exceptions=0.01)


def test_that_training_densified_and_became_elastic(two: Path) -> None:
    sizes = [len(scene(two / f"checkpoints/step_{step}.ckpt")[name]) for step, name in _means((15, 30, 45))]
    assert sizes[0] < sizes[1] < sizes[2]
    assert any("residuals" in name for name in scene(two / "checkpoints" / "last.ckpt"))


def _means(steps: tuple[int, ...]) -> list[tuple[int, str]]:
    return [(step, "scene.gaussians.params.means") for step in steps]


def test_masks_and_networks_are_trained_alike(small_capture: Path, tmp_path: Path) -> None:
    """The paper's stage: sampled masks, the selector, the transform field."""
    options = (
        "--model.reconstruction_steps=2",
        "--model.elastic_training.steps=10",
        "--model.elastic.selection=gsnet",
        "--model.elastic.residual_anchors=[]",
        "--model.elastic.field_heads=[means,scales,quats]",
        "--model.elastic.field_resolution=8",
        "--model.elastic_training.importance=global",
        "--model.densification.start_step=0",
        "--model.densification.stop_step=2",
        "--trainer.val_check_interval=12",
        "--test_after_fit=false",
    )
    succeed(run(2, arguments(small_capture, tmp_path / "two", *options), tmp_path / "logs"))
    FlexGSCLI(arguments(small_capture, tmp_path / "one", *options, "--data.batch_size=2"))
    (two,), (one,) = (list((tmp_path / name).glob("**/last.ckpt")) for name in ("two", "one"))
    assert any("selection.network" in name for name in scene(two))
    assert_same_scene(two, one, tolerance=1e-2, exceptions=0.02)


def test_metrics_count_every_held_out_view_once(one: Path, two: Path) -> None:
    expected, found = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert [image["name"] for image in found["images"]] == [image["name"] for image in expected["images"]]
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-3)
    for ratio, values in expected["ratios"].items():
        worst, other = values.pop("worst"), found["ratios"][ratio].pop("worst")
        assert other["name"] == worst["name"]
        assert other["psnr"] == pytest.approx(worst["psnr"], abs=1e-3)
        assert found["ratios"][ratio] == pytest.approx(values, abs=1e-3)
    curves = [EventAccumulator(str(folder), size_guidance={"images": 0}).Reload() for folder in (one, two)]
    for name in ("val/psnr", "val_ssim/5%", "train/loss", "train/psnr"):
        expected_curve, found_curve = ([(e.step, e.value) for e in curve.Scalars(name)] for curve in curves)
        assert len(expected_curve) > 0
        assert found_curve == [(step, pytest.approx(value, abs=1e-3)) for step, value in expected_curve]
    assert curves[0].Tags()["images"] == curves[1].Tags()["images"] != []


def test_one_run_folder_and_one_checkpoint(one: Path, two: Path) -> None:
    names = [
        sorted(path.name for path in folder.rglob("*") if path.is_file() and "events" not in path.name)
        for folder in (one, two)
    ]
    assert names[0] == names[1]
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]
    assert len(list(two.glob("events*"))) == len(list(one.glob("events*")))


def test_a_checkpoint_of_two_processes_continues_on_one_and_on_two(
    one: Path, two: Path, small_capture: Path, tmp_path: Path
) -> None:
    """From between two refinements, with half of the statistics gathered; on two, bit for bit."""
    start = f"--ckpt_path={_copy(two / 'checkpoints' / 'step_30.ckpt', tmp_path)}"
    alone = FlexGSCLI(arguments(small_capture, tmp_path / "a", start, "--data.batch_size=2"))
    assert_same_scene(alone.run_folder / "checkpoints/last.ckpt", one / "checkpoints/last.ckpt", 1e-3, 0.01)
    succeed(run(2, arguments(small_capture, tmp_path / "b", start), tmp_path / "logs"))
    (last,) = (tmp_path / "b").glob("**/last.ckpt")
    expected = scene(two / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, expected[name]) for name, value in scene(last).items())


def test_a_checkpoint_of_one_process_continues_on_two(one: Path, small_capture: Path, tmp_path: Path) -> None:
    start = f"--ckpt_path={_copy(one / 'checkpoints' / 'step_60.ckpt', tmp_path)}"
    succeed(run(2, arguments(small_capture, tmp_path, start), tmp_path / "logs"))
    (last,) = tmp_path.glob("small/**/last.ckpt")
    assert_same_scene(last, one / "checkpoints" / "last.ckpt", tolerance=1e-3, exceptions=0.01)


def _copy(checkpoint: Path, folder: Path) -> Path:
    """Outside of its run folder, so that a new one is made."""
    target = folder / checkpoint.name
    target.write_bytes(checkpoint.read_bytes())
    return target


@pytest.mark.parametrize(("test_every", "views"), [(16, 1), (6, 3)])
def test_views_that_the_processes_cannot_share_evenly(
    test_every: int, views: int, two: Path, small_capture: Path, tmp_path: Path
) -> None:
    checkpoint = _copy(two / "checkpoints" / "last.ckpt", tmp_path)

    def options(runs: Path) -> list[str]:
        fit = [
            o
            for o in arguments(small_capture, runs)
            if not o.startswith(("fit", "--checkpoint", "--replica"))
        ]
        return ["test", *fit, f"--ckpt_path={checkpoint}", f"--data.test_every={test_every}"]

    succeed(run(2, options(tmp_path), tmp_path / "logs"))
    (report,) = tmp_path.glob("small/**/metrics.json")
    metrics = json.loads(report.read_text())
    assert len({image["name"] for image in metrics["images"]}) == len(metrics["images"]) == views
    alone = FlexGSCLI(options(tmp_path / "alone"))
    means = {name: float(value) for name, value in alone.trainer.callback_metrics.items()}
    assert metrics["mean"]["psnr"] == pytest.approx(means["test/psnr"], abs=1e-5)
    assert metrics["ratios"]["0.05"]["ssim"] == pytest.approx(means["test_ssim/5%"], abs=1e-6)
    (report,) = (tmp_path / "alone").glob("small/**/metrics.json")
    single = json.loads(report.read_text())
    lowest = min(metrics["images"], key=lambda image: image["psnr"])
    assert metrics["worst"] == {"name": lowest["name"], "psnr": lowest["psnr"]}
    assert metrics["ratios"]["0.05"]["worst"]["name"] == single["ratios"]["0.05"]["worst"]["name"]


def _drift(rank: int) -> None:
    """The second process's scene changes by one bit at step 7."""
    step = FlexGSModule.training_step

    def training_step(self: FlexGSModule, *args: object) -> None:
        if rank == 1 and self.iteration == 7:
            self.gaussians.params["quats"].data.view(torch.int32)[5, 2] ^= 1
        step(self, *args)  # type: ignore[arg-type]

    FlexGSModule.training_step = training_step  # type: ignore[method-assign, assignment]


def test_drifting_replicas_stop_training(small_capture: Path, tmp_path: Path) -> None:
    outcomes = run(2, arguments(small_capture, tmp_path), tmp_path / "logs", _drift)
    for outcome in outcomes:
        assert outcome.status == 1
        assert "step 8: 'gaussians.params.quats' is no longer the same in all 2" in outcome.message or (
            "step 8: 'params.quats' is no longer the same in all 2 processes" in outcome.message
        )


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "nonsense"])
def test_other_strategies_are_refused(strategy: str, small_capture: Path, tmp_path: Path) -> None:
    options = ("--trainer.devices=2", f"--trainer.strategy={strategy}")
    with pytest.raises(InputError, match="strategy"):
        FlexGSCLI(arguments(small_capture, tmp_path, *options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_auto_and_ddp_are_the_replica_strategy(
    strategy: str, small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlexGSCLI, "_run_subcommand", lambda *_: None)
    options = ("--trainer.devices=2", f"--trainer.strategy={strategy}")
    cli = FlexGSCLI(arguments(small_capture, tmp_path, *options))
    assert type(cli.trainer.strategy).__name__ == "ReplicaStrategy"
    assert cli.trainer.world_size == 2


def test_checksum_sees_values_places_and_shapes() -> None:
    tensor = torch.randn(3000, 3)
    assert checksum(tensor) == checksum(tensor.clone())
    flipped = tensor.clone()
    flipped.view(torch.int32)[1234, 1] ^= 1
    swapped = tensor.clone()
    swapped[[10, 2000]] = swapped[[2000, 10]]
    longer = torch.cat([tensor, torch.zeros(1, 3)])
    for other in (flipped, swapped, longer, tensor[:0]):
        assert checksum(tensor) != checksum(other)


def test_one_process_needs_no_process_group() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    sum_gradients([parameter])
    sum_over_processes(parameter.grad)
    assert parameter.grad.tolist() == [1.0, 2.0, 3.0]
    assert gather("alone") == ["alone"]


def test_the_rule_for_larger_batches() -> None:
    def group(rule: str, views: int) -> dict[str, object]:
        optimizer = torch.optim.Adam(
            [{"params": [nn.Parameter(torch.ones(3))], "lr": 0.1, "initial": 0.1, "final": 0.01}]
        )
        scale_to_batch([optimizer], rule, views)  # type: ignore[arg-type]
        return optimizer.param_groups[0]

    assert group("constant", 4)["lr"] == group("sqrt", 1)["lr"] == 0.1
    scaled = group("sqrt", 4)
    assert (scaled["lr"], scaled["initial"], scaled["final"]) == pytest.approx((0.2, 0.2, 0.02))
    assert scaled["betas"] == pytest.approx((0.9**4, 0.999**4))
