"""The public Python API: names, and training with a plain ``lightning.Trainer``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

import flexgs_lightning
from flexgs_lightning import CaptureDataModule, ElasticTraining, FlexGSModule, TrainingRun, load
from flexgs_lightning.errors import InputError
from flexgs_lightning.training.callbacks import (
    DEFAULTS,
    Checkpointing,
    GracefulInterruption,
    ImportanceRefresh,
    SafeCheckpointIO,
    TrainingProgress,
)

STEPS, ELASTIC = 12, 6


def module(**options: Any) -> FlexGSModule:
    """Both stages, short."""
    settings: dict[str, Any] = {"reconstruction_steps": STEPS, "sh_degree_interval": 5, "lpips": "none"}
    settings["elastic_training"] = ElasticTraining(steps=ELASTIC)
    return FlexGSModule(**settings | options)


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    """As plain as it can be in a test."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(default_root_dir=folder, accelerator="cpu", **quiet | options)


def scene(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def trained(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> lightning.Trainer:
    plain = trainer(tmp_path_factory.mktemp("plain"))
    plain.fit(module(), datamodule=CaptureDataModule(str(small_capture), seed=42))
    return plain


def checkpoint(plain: lightning.Trainer) -> Path:
    assert plain.log_dir is not None
    return Path(plain.log_dir) / "checkpoints" / "last.ckpt"


def test_every_public_name_is_there_and_known_to_completion() -> None:
    for name in flexgs_lightning.__all__:
        assert getattr(flexgs_lightning, name).__name__ == name
    assert set(flexgs_lightning.__all__) <= set(dir(flexgs_lightning))
    with pytest.raises(AttributeError, match="nonsense"):
        flexgs_lightning.nonsense  # noqa: B018


def test_a_plain_trainer_trains_both_stages(trained: lightning.Trainer) -> None:
    assert trained.global_step == STEPS + ELASTIC
    model = load(checkpoint(trained))
    assert model.elastic
    assert model.iteration == STEPS + ELASTIC
    assert len(model.at(0.1)) == len(model) // 10
    kinds = [type(callback) for callback in trained.callbacks]  # type: ignore[attr-defined]
    assert set(DEFAULTS) | {Checkpointing} == set(kinds)
    assert len(kinds) == len(set(kinds))
    assert isinstance(trained.strategy.checkpoint_io, SafeCheckpointIO)
    assert "val_psnr/10%" in trained.callback_metrics, "the callbacks of the elastic stage were not there"


def test_it_is_the_training_of_the_command_line(
    trained: lightning.Trainer, small_capture: Path, tmp_path: Path
) -> None:
    """Bit for bit, though Lightning's own trainer also checks two views before it begins."""
    lengths = [f"--model.reconstruction_steps={STEPS}", f"--model.elastic_training.steps={ELASTIC}"]
    options = ["--model.sh_degree_interval=5", "--model.lpips=none", "--trainer.accelerator=cpu"]
    places = [f"--data.root={small_capture}", f"--runs={tmp_path}", "--trainer.enable_progress_bar=false"]
    run = TrainingRun([*lengths, *options, *places, "--test_after_fit=false"])
    run.train()
    expected, found = scene(run.run_folder / "checkpoints" / "last.ckpt"), scene(checkpoint(trained))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_plain_trainer_resumes_and_tests(
    trained: lightning.Trainer, small_capture: Path, tmp_path: Path
) -> None:
    data = CaptureDataModule(str(small_capture), seed=42)
    first = trainer(tmp_path, callbacks=[Checkpointing(every_n_steps=7, keep=True)])
    first.fit(module(), datamodule=data)
    assert sum(isinstance(callback, Checkpointing) for callback in first.callbacks) == 1  # type: ignore[attr-defined]
    stop = checkpoint(first).with_name("step_14.ckpt")
    again, resumed = trainer(tmp_path), module()
    again.fit(resumed, datamodule=data, ckpt_path=stop)
    assert again.global_step == STEPS + ELASTIC
    expected, found = scene(checkpoint(trained)), scene(checkpoint(again))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again.test(resumed, datamodule=data, verbose=False)
    assert (Path(str(again.log_dir)) / "metrics.json").is_file()


def test_a_saved_checkpoint_is_complete_when_the_call_returns(
    trained: lightning.Trainer, tmp_path: Path
) -> None:
    trained.save_checkpoint(tmp_path / "mine.ckpt")
    assert len(load(tmp_path / "mine.ckpt")) == len(load(checkpoint(trained)))


def test_what_the_user_gives_wins(small_capture: Path, tmp_path: Path) -> None:
    """A callback of a default's kind or of a subclass, a checkpoint plugin, another ModelCheckpoint."""

    class MyRefresh(ImportanceRefresh):
        pass

    mine = [MyRefresh(every_n_steps=3), GracefulInterruption(requeue=False), Checkpointing(every_n_steps=5)]
    other = ModelCheckpoint(dirpath=tmp_path / "best", save_top_k=0)
    plugin = TorchCheckpointIO()

    class MyIO(TorchCheckpointIO):
        pass

    plain = trainer(tmp_path, callbacks=[*mine, other], plugins=[MyIO()])
    plain.fit(module(), datamodule=CaptureDataModule(str(small_capture)))
    callbacks = plain.callbacks  # type: ignore[attr-defined]
    assert all(callback in callbacks for callback in [*mine, other])
    for kind in (ImportanceRefresh, GracefulInterruption, Checkpointing):
        assert sum(isinstance(callback, kind) for callback in callbacks) == 1
    assert type(plain.strategy.checkpoint_io) is MyIO
    assert type(plugin) is not MyIO
    assert load(checkpoint(plain)).iteration == STEPS + ELASTIC


def test_without_checkpoints_and_progress_there_are_none(small_capture: Path, tmp_path: Path) -> None:
    plain = trainer(tmp_path, enable_checkpointing=False, logger=False)
    plain.fit(module(), datamodule=CaptureDataModule(str(small_capture)))
    assert not any(isinstance(c, (Checkpointing, TrainingProgress)) for c in plain.callbacks)  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 1000}, f"trainer.max_steps: .*{STEPS + ELASTIC} steps.*found 1000"),
        ({"max_epochs": 30}, "trainer.max_epochs: .* found 30"),
        ({"precision": "bf16-mixed"}, "trainer.precision: expected 32-true, found bf16-mixed"),
        ({"precision": "bf16-true"}, "trainer.precision: .* found bf16-true"),
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val: .* found 1.0"),
        ({"accumulate_grad_batches": 4}, "trainer.accumulate_grad_batches: .*data.batch_size"),
        ({"overfit_batches": 2}, "trainer.overfit_batches: .* found 2"),
    ],
)
def test_what_a_trainer_would_do_wrong_in_silence_is_refused(
    options: dict[str, Any], message: str, small_capture: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, **options).fit(module(), datamodule=CaptureDataModule(str(small_capture)))
    assert list(tmp_path.iterdir()) == []


def test_the_right_number_of_steps_may_be_said(small_capture: Path, tmp_path: Path) -> None:
    plain = trainer(tmp_path, max_epochs=-1, max_steps=STEPS + ELASTIC)
    plain.fit(module(), datamodule=CaptureDataModule(str(small_capture)))
    assert plain.global_step == STEPS + ELASTIC


def test_ctrl_c_saves_and_a_failed_training_gives_the_signals_back(
    small_capture: Path, tmp_path: Path
) -> None:
    """Lightning puts the callback's handlers back when a training fails; they must not swallow what comes."""

    class At(lightning.Callback):
        def __init__(self, step: int, error: Exception | None = None) -> None:
            self.step, self.error = step, error

        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == self.step and self.error is None:
                os.kill(os.getpid(), signal.SIGINT)
            elif trainer.global_step == self.step:
                raise self.error  # type: ignore[misc]

    data = CaptureDataModule(str(small_capture))
    stopped = trainer(tmp_path, callbacks=[At(4)])
    stopped.fit(module(), datamodule=data)
    assert load(checkpoint(stopped)).iteration == 5
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callbacks=[At(4, ZeroDivisionError())]).fit(module(), datamodule=data)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_two_modules_share_no_state(small_capture: Path, tmp_path: Path) -> None:
    """Today's defaults are made anew for each; training one leaves the other as it was."""
    first, second = module(), module()
    before = dict(vars(second.densification))
    assert second.densification is not first.densification
    trainer(tmp_path).fit(first, datamodule=CaptureDataModule(str(small_capture)))
    assert vars(second.densification) == before
    assert vars(first.densification).keys() != before.keys(), "nothing was bound: the test shows nothing"
    assert len(second.gaussians) == 0
    assert not second.scene.elastic
    trainer(tmp_path).fit(second, datamodule=CaptureDataModule(str(small_capture)))
    for name, value in first.gaussians.params.items():
        assert torch.equal(value, second.gaussians.params[name]), "the second training knew of the first"


def test_two_runs_share_no_state(small_capture: Path, tmp_path: Path) -> None:
    options = [f"--data.root={small_capture}", f"--runs={tmp_path}", "--trainer.accelerator=cpu"]
    first, second = TrainingRun(options), TrainingRun(options)
    assert first.model.densification is not second.model.densification
