"""Training: quality, exact counting, exact resuming, interruption, broken numbers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flexgs_lightning import load
from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.attributes import ATTRIBUTES
from flexgs_lightning.training.module import FlexGSModule

STEPS = 60
DENSE = tuple(f"--model.densification.{option}" for option in ("start_step=10", "stop_step=60", "every=20"))


def arguments(capture: Path, runs: Path, *extra: str, steps: int = STEPS) -> list[str]:
    """A short training that densifies at steps 20 and 40 and sees two SH degrees."""
    return [
        "fit",
        f"--data.root={capture}",
        f"--runs={runs}",
        f"--model.reconstruction_steps={steps}",
        "--model.sh_degree_interval=25",
        "--model.lpips=none",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        *DENSE,
        *extra,
    ]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    gaussians = load(folder / "checkpoints" / "last.ckpt").gaussians
    return {name: gaussians.params[name].detach() for name in ATTRIBUTES}


@pytest.fixture(scope="module")
def uninterrupted(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> FlexGSCLI:
    return FlexGSCLI(arguments(small_capture, tmp_path_factory.mktemp("runs")))


@pytest.mark.parametrize("stop", [1, 19, 20, 37])
def test_resuming_at_any_step_equals_the_uninterrupted_run(
    uninterrupted: FlexGSCLI, small_capture: Path, tmp_path: Path, stop: int
) -> None:
    """Bit for bit, before, at and after a densification, and in the middle of a pass over the views."""
    first = FlexGSCLI(
        arguments(small_capture, tmp_path, f"--checkpoint.every_n_steps={stop}", "--checkpoint.keep=true")
    )
    checkpoint = first.run_folder / "checkpoints" / f"step_{stop}.ckpt"
    second = FlexGSCLI(arguments(small_capture, tmp_path, f"--ckpt_path={checkpoint}"))
    assert second.run_folder == first.run_folder
    assert second.trainer.global_step == STEPS
    expected, found = parameters(uninterrupted.run_folder), parameters(second.run_folder)
    assert len(expected["means"]) > len(uninterrupted.datamodule.capture.points), "nothing was densified"
    for name in ATTRIBUTES:
        assert torch.equal(found[name], expected[name]), name


def test_the_same_seed_gives_the_same_scene_and_another_seed_another(
    uninterrupted: FlexGSCLI, small_capture: Path, tmp_path: Path
) -> None:
    expected = parameters(uninterrupted.run_folder)
    again = parameters(FlexGSCLI(arguments(small_capture, tmp_path)).run_folder)
    other = parameters(FlexGSCLI(arguments(small_capture, tmp_path, "--seed_everything=7")).run_folder)
    assert all(torch.equal(again[name], expected[name]) for name in ATTRIBUTES)
    assert not torch.equal(other["sh"][:100, :1], expected["sh"][:100, :1])


def test_training_makes_unseen_views_better(small_capture: Path, tmp_path: Path) -> None:
    def psnr(steps: int) -> float:
        sparingly = tuple(f"--model.densification.{option}=100" for option in ("every", "start_step"))
        sparingly = ("--model.densification.stop_step=300", *sparingly)
        cli = FlexGSCLI(arguments(small_capture, tmp_path / str(steps), *sparingly, steps=steps))
        return float(cli.trainer.callback_metrics["test/psnr"])

    start, end = psnr(1), psnr(400)
    assert end > start + 4, f"{start:.2f} -> {end:.2f} dB"
    assert end > 16


def test_mcmc_trains_on_the_cpu_within_its_cap(small_capture: Path, tmp_path: Path) -> None:
    cap = 2_000
    options = ("--model.densification=MCMC", f"--model.densification.max_gaussians={cap}")
    start = FlexGSCLI(arguments(small_capture, tmp_path / "a", *options, *DENSE, steps=1))
    end = FlexGSCLI(arguments(small_capture, tmp_path / "b", *options, *DENSE, steps=300))
    assert len(start.model.gaussians) < len(end.model.gaussians) <= cap
    gain = end.trainer.callback_metrics["test/psnr"] - start.trainer.callback_metrics["test/psnr"]
    assert gain > 4


def test_everything_counts_iterations(uninterrupted: FlexGSCLI) -> None:
    """Lightning's own counter would run six times as fast, once for each attribute's optimizer."""
    assert uninterrupted.trainer.global_step == STEPS
    assert load(uninterrupted.run_folder / "checkpoints" / "last.ckpt").iteration == STEPS
    events = EventAccumulator(str(uninterrupted.run_folder)).Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == list(range(10, STEPS + 1, 10))
    names = set(events.Tags()["scalars"])
    assert {"train/gaussians", "train/psnr", "train/steps_per_second", "learning_rate/means"} <= names
    rates = [event.value for event in events.Scalars("learning_rate/means")]
    extent = uninterrupted.datamodule.capture.extent
    assert rates == pytest.approx([1.6e-4 * extent * 0.01 ** (step / STEPS) for step in range(9, STEPS, 10)])


def test_validation_logs_metrics_and_pictures_at_iterations(small_capture: Path, tmp_path: Path) -> None:
    cli = FlexGSCLI(arguments(small_capture, tmp_path, "--trainer.val_check_interval=30"))
    events = EventAccumulator(str(cli.run_folder), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("val/psnr")] == [30, 60]
    assert [event.step for event in events.Scalars("test/psnr")] == [60]
    pictures = [name for name in events.Tags()["images"] if name.startswith("val/")]
    assert len(pictures) == len(cli.datamodule.capture.test_views)
    picture, last = events.Images(pictures[0])
    assert (picture.step, last.step) == (30, 60)
    assert (picture.width, picture.height) == (3 * 96, 64)


def test_a_run_that_logs_nothing_on_the_way_trains(small_capture: Path, tmp_path: Path) -> None:
    cli = FlexGSCLI(arguments(small_capture, tmp_path, "--trainer.log_every_n_steps", "0", steps=2))
    assert cli.trainer.global_step == 2


def test_curves_of_a_resumed_run_and_of_a_later_test_count_on(
    uninterrupted: FlexGSCLI, small_capture: Path, tmp_path: Path
) -> None:
    keep = ("--checkpoint.every_n_steps=25", "--checkpoint.keep=true")
    first = FlexGSCLI(arguments(small_capture, tmp_path / "first", *keep))
    copy = tmp_path / "step_25.ckpt"
    (first.run_folder / "checkpoints" / copy.name).rename(copy)  # elsewhere, so that it gets its own folder
    again = (f"--ckpt_path={copy}", "--trainer.val_check_interval=30")
    resumed = FlexGSCLI(arguments(small_capture, tmp_path / "resumed", *again))
    expected, found = (EventAccumulator(str(cli.run_folder)).Reload() for cli in (uninterrupted, resumed))
    for curve in ("train/loss", "train/psnr", "learning_rate/means"):
        points = [(event.step, event.value) for event in expected.Scalars(curve) if event.step > 25]
        assert [(event.step, event.value) for event in found.Scalars(curve)] == points
    assert [event.step for event in found.Scalars("val/psnr")] == [30, 60]

    options = ["--model.lpips=none", "--trainer.accelerator=cpu", f"--runs={tmp_path / 'tested'}"]
    tested = FlexGSCLI(["test", f"--data.root={small_capture}", f"--ckpt_path={copy}", *options])
    events = EventAccumulator(str(tested.run_folder)).Reload()
    assert [event.step for event in events.Scalars("test/psnr")] == [25]
    assert [event.step for event in events.Tensors("protocol/text_summary")] == [25]


def test_a_new_run_never_touches_an_earlier_one(small_capture: Path, tmp_path: Path) -> None:
    first = FlexGSCLI(arguments(small_capture, tmp_path, steps=2))
    before = {path: path.stat().st_mtime_ns for path in first.run_folder.rglob("*") if path.is_file()}
    second = FlexGSCLI(arguments(small_capture, tmp_path, steps=2))
    assert second.run_folder != first.run_folder
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {"config.yaml", "metrics.json"} <= {path.name for path in before}


@pytest.mark.parametrize(
    ("logger", "beside"),
    [
        (("--trainer.logger=false",), set()),
        (("--trainer.fast_dev_run=true",), set()),
        (("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"), {"logs"}),
    ],
)
def test_a_run_keeps_to_its_folder_whatever_logs(
    logger: tuple[str, ...],
    beside: set[str],
    small_capture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without TensorBoard's logger its files used to lie where the command was typed, over another run's."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = FlexGSCLI(arguments(small_capture, tmp_path, *logger, steps=2))
    assert run.run_folder == tmp_path / small_capture.name / "version_0"
    names = {path.name for path in run.run_folder.rglob("*") if path.is_file()}
    assert {"metrics.json", "last.ckpt"} <= names
    assert "config.yaml" in names or "fast_dev_run" in logger[0]
    assert any(name.startswith("events") for name in names) == bool(beside)
    assert {path.name for path in Path.cwd().iterdir()} == beside


def test_last_resumes_the_newest_run_and_refuses_to_start_afresh(small_capture: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        FlexGSCLI(arguments(small_capture, tmp_path, "--ckpt_path=last"))
    first = FlexGSCLI(arguments(small_capture, tmp_path, steps=3))
    second = FlexGSCLI(arguments(small_capture, tmp_path, "--ckpt_path=last", steps=5))
    assert second.run_folder == first.run_folder
    assert second.trainer.global_step == 5
    assert (first.run_folder / "config.resumed_1.yaml").is_file()


class _BreaksAt(FlexGSModule):
    """Poisons one attribute at a step."""

    def training_step(self, batch: ViewBatch, batch_idx: int) -> None:
        if self.iteration == 25:
            self.gaussians.params["scales"].data[7, 1] = float("nan")
        super().training_step(batch, batch_idx)


def test_broken_numbers_stop_with_step_and_attribute_and_keep_the_last_good_checkpoint(
    small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexgs_lightning.training.run.FlexGSModule", _BreaksAt)
    options = ("--checkpoint.every_n_steps=10", "--model.densification.every=1000")
    with pytest.raises(InputError, match=r"step 30: 'scales' holds NaN"):
        FlexGSCLI(arguments(small_capture, tmp_path, *options))
    (checkpoint,) = tmp_path.glob("**/last.ckpt")
    model = load(checkpoint)
    assert model.iteration == 20
    assert model.gaussians.first_non_finite() is None


def test_a_non_finite_loss_stops_before_the_step(
    small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        return torch.tensor(float("inf"), requires_grad=True)

    monkeypatch.setattr("flexgs_lightning.training.module.photometric_loss", broken)
    with pytest.raises(InputError, match=r"step 0: loss inf, all attributes are finite"):
        FlexGSCLI(arguments(small_capture, tmp_path))


def test_ctrl_c_saves_and_resumes_exactly(
    uninterrupted: FlexGSCLI, small_capture: Path, tmp_path: Path
) -> None:
    """The real program, the real signal."""
    options = arguments(small_capture, tmp_path)
    program = [sys.executable, "-m", "flexgs_lightning.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        [*program, *options], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        _wait_for(lambda: any(tmp_path.glob("**/config.yaml")))
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("training ended before the signal came")
    assert process.returncode == 130, errors
    assert "--ckpt_path last" in errors
    assert errors.count("Seed set to") == 1, "every message once"
    assert "Traceback" not in errors
    cli = FlexGSCLI([*options, "--ckpt_path=last"])
    expected, found = parameters(uninterrupted.run_folder), parameters(cli.run_folder)
    assert all(torch.equal(found[name], expected[name]) for name in ATTRIBUTES)


def _wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.reconstruction_steps=0", "model.reconstruction_steps"),
        ("--model.sh_degree=4", "model.sh_degree"),
        ("--model.ssim_weight=1.5", "model.ssim_weight"),
        ("--checkpoint.every_n_steps=0", "checkpoint.every_n_steps"),
        ("--data.batch_size=0", "batch_size"),
    ],
)
def test_impossible_options_are_named(small_capture: Path, tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FlexGSCLI(arguments(small_capture, tmp_path, option))
    assert not list(tmp_path.rglob("*.ckpt"))
