"""``--trainer.strategy sharded``: two processes with half of the Gaussians each train what one trains.

Clones and prunes are alike; splits draw random numbers in each process, so thresholds leave them out here.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from test_parallel import _copy, assert_same_scene, succeed
from torch import Tensor
from training_processes import run, scene

from flexgs_lightning import load, processes
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.training.module import FlexGSModule

RECONSTRUCTION, STEPS, KEPT = 24, 36, 6
"""Densification at 8 and 16, opacity reset at 12, elastic from 24 on, importance refresh at 30."""


def arguments(capture: Path, runs: Path, *extra: str) -> list[str]:
    dense = {"start_step": 4, "stop_step": 24, "every": 8, "reset_every": 12}
    dense |= {"grow_scale3d": 1000, "prune_scale3d": 2000, "max_gaussians": 1900}
    return [
        "fit",
        f"--data.root={capture}",
        f"--runs={runs}",
        "--data.test_every=6",
        f"--model.reconstruction_steps={RECONSTRUCTION}",
        f"--model.elastic_training.steps={STEPS - RECONSTRUCTION}",
        "--model.elastic_training.ratio_range=[0.05,1.0]",
        "--model.elastic.field_heads=[means,scales]",
        "--model.elastic.field_resolution=8",
        "--importance_refresh.every_n_steps=6",
        "--elastic_validation.ratios=[0.05,0.3]",
        "--model.sh_degree_interval=10",
        "--model.lpips=none",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.val_check_interval=18",
        f"--checkpoint.every_n_steps={KEPT}",
        "--checkpoint.keep=true",
        "--replica_check.every_n_steps=1",
        *(f"--model.densification.{name}={value}" for name, value in dense.items()),
        *extra,
    ]


SHARDED = "--trainer.strategy=sharded"


@pytest.fixture(scope="module")
def one(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of one process with two cameras an iteration."""
    runs = tmp_path_factory.mktemp("one")
    return FlexGSCLI(arguments(small_capture, runs, "--data.batch_size=2")).run_folder


@pytest.fixture(scope="module")
def sharded(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of two processes with one camera and half of the Gaussians each."""
    runs = tmp_path_factory.mktemp("sharded")
    succeed(run(2, arguments(small_capture, runs, SHARDED), runs / "logs"))
    return runs / "small" / "version_0"


def kept(folder: Path, step: int) -> Path:
    return folder / f"checkpoints/step_{step}.ckpt"


def last(runs: Path) -> Path:
    (path,) = runs.glob("small/**/last.ckpt")
    return path


def test_the_first_stage_ends_with_the_same_gaussians(one: Path, sharded: Path) -> None:
    """In another order, with the cap of all reached exactly."""
    found, expected = scene(kept(sharded, RECONSTRUCTION)), scene(kept(one, RECONSTRUCTION))
    assert len(found["scene.gaussians.params.means"]) == len(expected["scene.gaussians.params.means"]) == 1900
    assert len(scene(kept(sharded, KEPT))["scene.gaussians.params.means"]) < 1900
    distances = torch.cdist(_rows(found), _rows(expected), compute_mode="donot_use_mm_for_euclid_dist")
    tolerance = 5e-5  # sums in another order; the constant colour's step is prolonged twentyfold
    assert distances.min(dim=1).values.max() < tolerance
    assert distances.min(dim=0).values.max() < tolerance


def _rows(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in state.values() if value.ndim > 1], dim=1)


@pytest.mark.parametrize("step", [30, 36])
def test_the_second_stage_ends_in_the_same_order(one: Path, sharded: Path, step: int) -> None:
    """Ranked by removal, twice; residuals and the field learn alike."""
    assert_same_scene(kept(sharded, step), kept(one, step), tolerance=1e-3, exceptions=0.01)


def test_metrics_and_counts_are_those_of_all_gaussians(one: Path, sharded: Path) -> None:
    """Of three held-out views, so that one process draws one more than it measures."""
    expected, found = (json.loads((folder / "metrics.json").read_text()) for folder in (one, sharded))
    assert [image["name"] for image in found["images"]] == [image["name"] for image in expected["images"]]
    assert len(found["images"]) == 3
    assert found["mean"] == pytest.approx(expected["mean"], abs=2e-3)
    for ratio, values in expected["ratios"].items():
        worst, other = values.pop("worst"), found["ratios"][ratio].pop("worst")
        assert other["name"] == worst["name"]
        assert other["psnr"] == pytest.approx(worst["psnr"], abs=2e-3)
        assert found["ratios"][ratio] == pytest.approx(values, abs=2e-3)
    assert (found["gaussians"], found["megabytes"]) == (expected["gaussians"], expected["megabytes"])


def test_one_run_folder_and_one_checkpoint_for_all(one: Path, sharded: Path) -> None:
    names = [
        sorted(path.name for path in folder.rglob("*") if path.is_file() and "events" not in path.name)
        for folder in (one, sharded)
    ]
    assert names[0] == names[1]
    for step in (18, 36):
        written, expected = (torch.load(kept(folder, step), weights_only=True) for folder in (sharded, one))
        assert written["state_dict"].keys() == expected["state_dict"].keys()
        assert written["flexgs"].keys() - expected["flexgs"].keys() <= {"shares"}
        for found, wanted in zip(written["optimizer_states"], expected["optimizer_states"], strict=True):
            assert found["param_groups"] == wanted["param_groups"]
            shapes = [
                {n: {k: v.shape for k, v in state.items()} for n, state in part["state"].items()}
                for part in (found, wanted)
            ]
            assert shapes[0] == shapes[1]
    assert len(load(kept(sharded, STEPS)).at(0.3)) == len(load(kept(one, STEPS)).at(0.3))


@pytest.mark.parametrize("step", [18, 30])
def test_a_resumed_run_ends_with_the_same_bits(
    step: int, sharded: Path, small_capture: Path, tmp_path: Path
) -> None:
    """From the first stage, with unequal shares and half of the statistics gathered; from the second."""
    start = f"--ckpt_path={_copy(kept(sharded, step), tmp_path)}"
    options = (SHARDED, start, "--test_after_fit=false")
    succeed(run(2, arguments(small_capture, tmp_path, *options), tmp_path / "logs"))
    expected = scene(kept(sharded, STEPS))
    for name, value in scene(last(tmp_path)).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("processes", "strategy"), [(1, "auto"), (2, "ddp"), (2, "sharded")])
def test_checkpoints_go_on_with_either_strategy_and_any_number_of_processes(
    processes: int, strategy: str, one: Path, sharded: Path, small_capture: Path, tmp_path: Path
) -> None:
    """What a sharded run wrote on one process and on replicas; what one process wrote, sharded."""
    source = one if strategy == "sharded" else sharded
    start = f"--ckpt_path={_copy(kept(source, 30), tmp_path)}"
    options = (start, f"--trainer.strategy={strategy}", f"--data.batch_size={2 // processes}")
    options = (*options, "--test_after_fit=false")
    succeed(run(processes, arguments(small_capture, tmp_path, *options), tmp_path / "logs"))
    assert_same_scene(last(tmp_path), kept(source, STEPS), tolerance=1e-3, exceptions=0.01)


def test_masks_and_networks_train_on_shards(small_capture: Path, tmp_path: Path) -> None:
    """The paper's stage: each process samples its own masks; networks stay alike, compared at every step."""
    options = (
        SHARDED,
        "--model.reconstruction_steps=2",
        "--model.elastic_training.steps=6",
        "--model.elastic.selection=gsnet",
        "--model.elastic.residual_anchors=[]",
        "--model.elastic_training.importance=global",
        "--model.elastic_training.sampling=list",
        "--trainer.val_check_interval=8",
        "--elastic_validation.ratios=[0.3]",
    )
    succeed(run(2, arguments(small_capture, tmp_path, *options), tmp_path / "logs"))
    model = load(last(tmp_path))
    assert len(model.at(0.3)) == int(0.3 * len(model))
    metrics = json.loads(next(tmp_path.glob("small/**/metrics.json")).read_text())
    assert metrics["ratios"]["0.3"]["gaussians"] == int(0.3 * len(model))


def test_mcmc_trains_on_shards_up_to_its_cap(small_capture: Path, tmp_path: Path) -> None:
    options = (
        SHARDED,
        "--model.reconstruction_steps=20",
        "--model.elastic_training.steps=0",
        "--model.densification=MCMC",
        "--model.densification.max_gaussians=1600",
        "--trainer.val_check_interval=20",
    )
    plain = [o for o in arguments(small_capture, tmp_path) if "densification" not in o]
    dense = [f"--model.densification.{name}" for name in ("start_step=4", "stop_step=18", "every=5")]
    succeed(run(2, [*plain, *options, *dense], tmp_path / "logs"))
    state = torch.load(last(tmp_path), weights_only=True)
    assert len(state["state_dict"]["scene.gaussians.params.means"]) == sum(state["flexgs"]["shares"]) == 1600


def test_one_process_with_all_gaussians_is_the_plain_path(
    one: Path, small_capture: Path, tmp_path: Path
) -> None:
    options = (SHARDED, "--data.batch_size=2", f"--ckpt_path={_copy(kept(one, 30), tmp_path)}")
    succeed(run(1, arguments(small_capture, tmp_path, *options), tmp_path / "logs"))
    expected = scene(kept(one, STEPS))
    assert all(torch.equal(value, expected[name]) for name, value in scene(last(tmp_path)).items())


def _die_in_the_middle_of_an_exchange(rank: int) -> None:
    """Going backward, in the tenth iteration: the other has sent its gradients and waits for this one's."""
    original = processes._all_to_all
    calls: list[int] = []

    def exchange(rows: Tensor, *splits: list[int]) -> Tensor:
        calls.append(1)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(rows, *splits)

    if rank == 1:
        processes._all_to_all = exchange


def test_a_killed_process_stops_the_others_with_one_message(small_capture: Path, tmp_path: Path) -> None:
    outcomes = run(
        2, arguments(small_capture, tmp_path, SHARDED), tmp_path / "logs", _die_in_the_middle_of_an_exchange
    )
    assert [outcome.status for outcome in outcomes] == [1, -signal.SIGKILL]
    assert "process 0 of 2 lost the others" in outcomes[0].message
    assert load(last(tmp_path)).iteration == 6


def test_a_shard_that_breaks_stops_all(small_capture: Path, tmp_path: Path) -> None:
    outcomes = run(2, arguments(small_capture, tmp_path, SHARDED), tmp_path / "logs", _break_a_number)
    assert [outcome.status for outcome in outcomes] == [1, 1]
    assert "No checkpoint written at step 6: 'sh' holds NaN or infinity." in outcomes[0].message
    assert not list(tmp_path.glob("small/**/last.ckpt"))


def _break_a_number(rank: int) -> None:
    """Of a Gaussian that no camera sees, so that no loss shows it."""
    save = FlexGSModule.on_save_checkpoint

    def on_save_checkpoint(self: FlexGSModule, *args: object) -> None:
        if rank == 1:
            self.gaussians.params["sh"].data[3] = torch.nan
        save(self, *args)  # type: ignore[arg-type]

    FlexGSModule.on_save_checkpoint = on_save_checkpoint  # type: ignore[method-assign, assignment]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_process_on_the_cpu(one: Path, small_capture: Path, tmp_path: Path) -> None:
    options = (SHARDED, "--trainer.accelerator=cuda")
    succeed(run(2, arguments(small_capture, tmp_path, *options), tmp_path / "logs"))
    expected = json.loads((one / "metrics.json").read_text())
    found = json.loads(next(tmp_path.glob("small/**/metrics.json")).read_text())
    assert found["gaussians"] == expected["gaussians"]
    assert found["mean"] == pytest.approx(expected["mean"], rel=0.02)
