"""Going on from a checkpoint with other options: what changes, what is refused, what is said."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch

from flexgs_lightning import MCMC, AdaptiveDensityControl, CaptureDataModule, FlexGSModule, TrainingRun, load
from flexgs_lightning.cli import main
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint_record import sealed
from flexgs_lightning.training.callbacks import WITH_OPTIONS
from flexgs_lightning.training.callbacks.checkpointing import newest_checkpoint
from flexgs_lightning.training.options import plain_arguments
from flexgs_lightning.training.resuming import ROLES, role_of

FIRST, SECOND = 8, 6
OPTIONS = (
    f"--model.reconstruction_steps={FIRST}",
    f"--model.elastic_training.steps={SECOND}",
    "--model.lpips=none",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_n_steps=4",
    "--checkpoint.keep=true",
)


@pytest.fixture(scope="module")
def run(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both stages with checkpoints at 4, 8 (stage 1), 12 and 14 (stage 2)."""
    folder = tmp_path_factory.mktemp("runs")
    training = TrainingRun([f"--data.root={small_capture}", f"--runs={folder}", *OPTIONS])
    training.train()
    return training.run_folder


def resume(run: Path, step: int, folder: Path, *options: str) -> TrainingRun:
    """Go on from a copy, in a folder of its own."""
    copy = folder / f"from_{step}.ckpt"
    shutil.copy(run / "checkpoints" / f"step_{step}.ckpt", copy)
    data = load(copy).data["root"]
    runs = [f"--data.root={data}", f"--runs={folder / 'runs'}", "--test_after_fit=false"]
    training = TrainingRun([*runs, *OPTIONS, f"--ckpt_path={copy}", *options])
    training.train()
    return training


def refusal(run: Path, step: int, folder: Path, *options: str) -> str:
    with pytest.raises(InputError) as error:
        resume(run, step, folder, *options)
    assert not (folder / "runs").exists(), "a refused run left its trace"
    return str(error.value)


# -- every option has a role ---------------------------------------------------------------------------


def constructors() -> dict[str, type]:
    return {"model": FlexGSModule, "data": CaptureDataModule, **WITH_OPTIONS}


def test_every_option_has_a_role_and_every_role_its_option() -> None:
    names = {
        f"{group}.{name}"
        for group, kind in constructors().items()
        for name in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
        if name != "self"
    }
    for name in names:
        assert role_of(name) in ROLES.values(), name
    nested = {"model.elastic_training.steps", "model.compression_training.steps"}
    assert set(ROLES) <= names | set(WITH_OPTIONS) | nested | {"views"}
    with pytest.raises(KeyError, match="model"):
        role_of("model.something_new")


def test_every_option_is_recorded(run: Path) -> None:
    """Also those of dataclasses and of the density control."""
    recorded = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["flexgs"]["options"]
    for group, kind in constructors().items():
        for name, parameter in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]
            if name != "self" and not is_dataclass(parameter.default) and name != "densification":
                assert f"{group}.{name}" in recorded
            if is_dataclass(parameter.default):
                assert {f"{group}.{name}.{field.name}" for field in fields(parameter.default)} <= set(
                    recorded
                )
    for control in (AdaptiveDensityControl(), MCMC()):
        options = plain_arguments(type(control), vars(control))
        assert set(options) == set(inspect.signature(type(control)).parameters)
    assert recorded["model.densification.kind"] == "AdaptiveDensityControl"
    assert recorded["model.densification.every"] == 100
    assert recorded["elastic_validation.ratios"] == [0.01, 0.02, 0.05, 0.1, 0.15, 0.3]


# -- refused -------------------------------------------------------------------------------------------

IN_BOTH = (
    ("--seed_everything=7", "model.seed 42, found 7"),
    ("--data.downscale=2", "data.downscale 1, found 2"),
    ("--data.test_every=5", "data.test_every 8, found 5"),
    ("--model.sh_degree=2", "model.sh_degree 3, found 2"),
    ("--model.background=white", "model.background black, found white"),
    ("--model.antialiased=true", "model.antialiased False, found True"),
    ("--model.ssim_weight=0.3", "model.ssim_weight 0.2, found 0.3"),
    ("--model.learning_rates.scales=0.01", "model.learning_rates.scales 0.005, found 0.01"),
)
IN_THE_FIRST = (
    ("--model.densification=MCMC", "model.densification.kind AdaptiveDensityControl, found MCMC"),
    ("--model.densification.every=50", "model.densification.every 100, found 50"),
    ("--model.reconstruction_steps=3", "model.reconstruction_steps 8, found 3"),
)
IN_THE_SECOND = (
    ("--model.reconstruction_steps=30", "model.reconstruction_steps 8, found 30"),
    ("--model.elastic_training.steps=0", "model.elastic_training.steps 6, found 0"),
    ("--model.elastic_training.rate_decay=1", "model.elastic_training.rate_decay 0.1, found 1.0"),
    (
        "--model.elastic.residual_anchors=[0.1]",
        "model.elastic.residual_anchors [0.01, 0.03, 0.1, 0.3], found [0.1]",
    ),
    ("--importance_refresh.every_n_steps=3", "importance_refresh.every_n_steps 1000, found 3"),
)


@pytest.mark.parametrize(
    ("step", "option", "message"),
    [(4, *case) for case in (*IN_BOTH[:1], *IN_THE_FIRST)]
    + [(12, *case) for case in (*IN_BOTH, *IN_THE_SECOND)],
)
def test_what_cannot_change_is_refused_with_both_values(
    step: int, option: str, message: str, run: Path, tmp_path: Path
) -> None:
    found = refusal(run, step, tmp_path, option)
    assert message in found
    assert found.startswith(f"{tmp_path / f'from_{step}.ckpt'}: after {step} steps")


def test_a_forgotten_config_is_refused_with_the_way_to_it(
    run: Path, small_capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended the run at once without a word."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.*") if "events" not in path.name}
    last = run / "checkpoints" / "last.ckpt"
    options = [f"--data.root={small_capture}", "--trainer.accelerator=cpu"]
    assert main(["fit", *options, f"--ckpt_path={last}"]) == 1
    message = capsys.readouterr().err
    assert "model.elastic_training.steps 6, found 0" in message
    assert f"--config {run.resolve() / 'config.yaml'}" in message
    assert "Traceback" not in message
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*.*") if "events" not in path.name}
    assert after == before


def test_another_capture_is_refused_but_not_the_same_one_elsewhere(
    run: Path, small_capture: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_capture, tmp_path / "moved" / "small")
    shutil.copytree(small_capture, tmp_path / "other")
    for place in ("other", "moved/small"):  # as long as the first is there, another folder is another capture
        assert "data.root " in refusal(run, 4, tmp_path, f"--data.root={tmp_path / place}")
    small_capture.rename(small_capture.with_name("away"))
    try:
        assert "data.root " in refusal(run, 4, tmp_path, f"--data.root={tmp_path / 'other'}")
        moved = resume(run, 12, tmp_path, f"--data.root={tmp_path / 'moved' / 'small'}")
        assert moved.trainer.global_step == FIRST + SECOND
    finally:
        small_capture.with_name("away").rename(small_capture)


# -- changed, and said ---------------------------------------------------------------------------------


def test_what_may_change_changes_and_is_said(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    longer = [
        "--model.elastic_training.steps=9",
        "--data.cache_megabytes=100",
        "--checkpoint.every_n_steps=5",
    ]
    late = ["--model.densification.every=50", "--model.initialization.opacity=0.5"]
    training = resume(run, 12, tmp_path, *longer, *late)
    assert load(training.run_folder / "checkpoints" / "last.ckpt").iteration == FIRST + 9
    said = [record.getMessage() for record in caplog.records if record.name.endswith("training.resuming")]
    assert sorted(said) == [
        "checkpoint.every_n_steps: 5 from now on, 4 before.",
        "data.cache_megabytes: 100 from now on, 2048 before.",
        "model.densification.every: 50 comes too late, trained with 100.",
        "model.elastic_training.steps: 9 from now on, 6 before.",
        "model.initialization.opacity: 0.5 comes too late, trained with 0.1.",
    ]


def test_the_second_stages_options_are_free_in_the_first(run: Path, tmp_path: Path) -> None:
    options = ["--model.elastic.residual_anchors=[0.1]", "--model.elastic_training.steps=2"]
    training = resume(run, 4, tmp_path, *options, "--model.reconstruction_steps=6")
    assert training.trainer.global_step == 8
    model = load(training.run_folder / "checkpoints" / "last.ckpt")
    assert model.elastic


def test_equal_options_say_nothing_and_end_bit_for_bit_as_uninterrupted(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    training = resume(run, 12, tmp_path)
    assert not [record for record in caplog.records if record.name.endswith("training.resuming")]
    expected, found = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (run, training.run_folder)
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_options_of_a_later_release_count_as_their_defaults(run: Path, tmp_path: Path) -> None:
    """As from a checkpoint that was written before they existed."""
    later = (
        "model.motion.path",
        "model.learning_rates.omega",
        "model.densification.every",
        "data.near_plane",
    )
    old = tmp_path / "checkpoints" / "step_12.ckpt"
    old.parent.mkdir()
    checkpoint = torch.load(run / "checkpoints" / old.name, weights_only=True)
    for name in later:
        del checkpoint["flexgs"]["options"][name]
    torch.save(sealed(checkpoint), old)
    found = refusal(tmp_path, 12, tmp_path, "--model.learning_rates.omega=0.5")
    assert "model.learning_rates.omega 0.0001, found 0.5" in found
    assert resume(tmp_path, 12, tmp_path).trainer.global_step == FIRST + SECOND


def test_a_finished_training_says_so(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resume(run, 14, tmp_path)
    assert "Nothing is left to train: the checkpoint is at step 14, and all stages have 14" in caplog.text


# -- reports, and "last" -------------------------------------------------------------------------------


def test_a_test_of_a_kept_checkpoint_leaves_the_finished_runs_report(run: Path) -> None:
    config, kept = ["--config", str(run / "config.yaml")], run / "checkpoints" / "step_4.ckpt"
    before = (run / "metrics.json").read_bytes()
    assert main(["test", *config, f"--ckpt_path={kept}"]) == 0
    assert (run / "metrics.json").read_bytes() == before
    assert json.loads((run / "metrics_step_4.json").read_text())["iteration"] == 4
    assert json.loads(before)["iteration"] == FIRST + SECOND


def test_last_is_the_run_that_was_started_last(tmp_path: Path) -> None:
    def begin(version: int, time: float, *, saved: bool) -> Path:
        folder = tmp_path / f"version_{version}"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (time, time))
        last = folder / "checkpoints" / "last.ckpt"
        if saved:
            last.touch()
            os.utime(last, (time + 100, time + 100))
        return last

    with pytest.raises(InputError, match="there is no run to resume"):
        newest_checkpoint(tmp_path)
    first = begin(0, 1000, saved=True)
    assert newest_checkpoint(tmp_path) == first
    begin(1, 1050, saved=False)  # while the first still wrote its checkpoints
    with pytest.raises(InputError, match=rf"{tmp_path}/version_1, ended before .* --ckpt_path {first}"):
        newest_checkpoint(tmp_path)
    second = begin(1, 1050, saved=True)
    assert newest_checkpoint(tmp_path) == second
