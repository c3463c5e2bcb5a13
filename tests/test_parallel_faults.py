"""Processes that die, hang or are told to stop: one message, whole checkpoints, exact continuation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training_processes import Outcome, Processes, run, scene

from flexgs_lightning import load
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.training import module, slurm
from flexgs_lightning.training.callbacks.checkpointing import newest_checkpoint
from flexgs_lightning.training.parallel import ReplicaStrategy

STEPS = 40
FATAL_STEP = 25
TIMEOUT = 20


def arguments(capture: Path, runs: Path, *extra: str) -> list[str]:
    """A training with densification at 20 and a checkpoint after every tenth step."""
    return [
        "fit",
        f"--data.root={capture}",
        f"--runs={runs}",
        f"--model.reconstruction_steps={STEPS}",
        "--model.lpips=none",
        "--model.densification.start_step=10",
        "--model.densification.stop_step=40",
        "--model.densification.every=20",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--test_after_fit=false",
        "--checkpoint.every_n_steps=10",
        *extra,
    ]


@pytest.fixture(scope="module")
def uninterrupted(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The scene that two undisturbed processes train."""
    runs = tmp_path_factory.mktemp("uninterrupted")
    for outcome in run(2, arguments(small_capture, runs), runs / "logs"):
        assert outcome.status == 0, outcome.errors
    return scene(newest_checkpoint(runs))


def _before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Let ``act`` see the arguments of every call of ``owner.name`` first."""
    original = getattr(owner, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, called)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_fatal_step(act: Callable[[], None], train: module.FlexGSModule, *_: Any) -> None:
    if train.iteration == FATAL_STEP:
        act()


def _die_in_the_middle_of_a_step(rank: int) -> None:
    """Half of the attributes have taken their step."""

    def die(optimizers: Any) -> None:
        for optimizer in optimizers[1:4]:
            optimizer.optimizer.step()
        _die()

    if rank == 1:
        arm = partial(_before, module, "step_all", die)
        _before(module.FlexGSModule, "training_step", partial(_at_fatal_step, arm))


def _die_in_the_middle_of_an_all_reduce(rank: int) -> None:
    """The others have sent their part of the gradients and wait for this one's."""

    def die(tensor: torch.Tensor, *_: Any, **__: Any) -> None:
        original(tensor[: len(tensor) // 2].clone(), async_op=True)
        _die()

    original = torch.distributed.all_reduce
    if rank == 1:
        arm = partial(_before, torch.distributed, "all_reduce", die)
        _before(module.FlexGSModule, "_step", lambda train: _at_fatal_step(arm, train))


def _die_while_writing_a_checkpoint(rank: int) -> None:
    """The third one; half of its bytes are on the disk."""
    calls: list[Path] = []

    def die(content: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            original(content, path)
            os.truncate(path, path.stat().st_size // 2)
            _die()

    original = torch.save
    if rank == 0:
        _before(torch, "save", die)


def _hang(rank: int) -> None:
    """Alive, connected, and silent."""
    if rank == 1:
        hang = partial(time.sleep, 10 * TIMEOUT)
        _before(module.FlexGSModule, "training_step", partial(_at_fatal_step, hang))


SABOTAGES = {
    _die_in_the_middle_of_a_step: 1,
    _die_in_the_middle_of_an_all_reduce: 1,
    _die_while_writing_a_checkpoint: 0,
}
"""What happens, and to which process."""


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_killed_process_stops_the_others_and_the_last_checkpoint_continues(
    sabotage: Callable[[int], None],
    uninterrupted: dict[str, torch.Tensor],
    small_capture: Path,
    tmp_path: Path,
) -> None:
    victim = SABOTAGES[sabotage]
    start = time.monotonic()
    outcomes = run(2, arguments(small_capture, tmp_path), tmp_path / "logs", sabotage)
    assert outcomes[victim].status == -signal.SIGKILL
    _assert_lost(outcomes[1 - victim], 1 - victim)
    assert time.monotonic() - start < 100
    last = newest_checkpoint(tmp_path)
    assert load(last).iteration == 20
    resumed = run(2, arguments(small_capture, tmp_path, "--ckpt_path=last"), tmp_path / "logs")
    assert [outcome.status for outcome in resumed] == [0, 0], resumed
    assert newest_checkpoint(tmp_path) == last
    assert all(torch.equal(value, uninterrupted[name]) for name, value in scene(last).items())
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"], "half a checkpoint was left"


def _assert_lost(outcome: Outcome, rank: int) -> None:
    assert outcome.status == 1
    assert f"process {rank} of 2 lost the others" in outcome.message
    assert "--ckpt_path last" in outcome.message


def test_a_hanging_process_is_given_up_after_the_timeout(small_capture: Path, tmp_path: Path) -> None:
    strategy = (
        "--trainer.strategy=flexgs_lightning.training.parallel.ReplicaStrategy",
        f"--trainer.strategy.timeout={TIMEOUT}",
    )
    processes = Processes(2, arguments(small_capture, tmp_path, *strategy), tmp_path / "logs", _hang)
    processes.processes[0].join(100)
    assert processes.processes[1].is_alive(), "it did not hang"
    processes.processes[1].kill()
    _assert_lost(processes.wait()[0], 0)
    assert load(newest_checkpoint(tmp_path)).iteration == 20


def test_a_signal_to_one_process_stops_both_after_the_same_iteration(
    uninterrupted: dict[str, torch.Tensor], small_capture: Path, tmp_path: Path
) -> None:
    processes = Processes(2, arguments(small_capture, tmp_path), tmp_path / "logs", _terminated_at_step_25)
    outcomes = processes.wait()
    assert [outcome.status for outcome in outcomes] == [128 + signal.SIGTERM, 0], outcomes
    assert "Interrupted after step 26 of 40" in outcomes[0].errors
    assert all("Traceback" not in outcome.errors for outcome in outcomes)
    last = newest_checkpoint(tmp_path)
    assert load(last).iteration == 26
    resumed = run(2, arguments(small_capture, tmp_path, "--ckpt_path=last"), tmp_path / "logs")
    assert [outcome.status for outcome in resumed] == [0, 0], resumed
    assert all(torch.equal(value, uninterrupted[name]) for name, value in scene(last).items())


def _terminated_at_step_25(rank: int) -> None:
    """In the middle of the iteration, and only the second process."""
    if rank == 1:
        stop = partial(os.kill, os.getpid(), signal.SIGTERM)
        _before(module.FlexGSModule, "_step", lambda train: _at_fatal_step(stop, train))


def test_a_signal_that_comes_while_the_processes_agree_is_not_forgotten(
    small_capture: Path, tmp_path: Path
) -> None:
    outcomes = run(2, arguments(small_capture, tmp_path), tmp_path / "logs", _terminated_while_agreeing)
    assert [outcome.status for outcome in outcomes] == [128 + signal.SIGTERM, 0], outcomes
    assert load(newest_checkpoint(tmp_path)).iteration == FATAL_STEP + 2


def _terminated_while_agreeing(rank: int) -> None:
    """Each process has already said that nobody wants it to stop."""

    def terminate(strategy: ReplicaStrategy, *_: Any, **__: Any) -> None:
        if strategy.lightning_module.trainer.global_step == FATAL_STEP + 1:  # type: ignore[union-attr]
            os.kill(os.getpid(), signal.SIGTERM)

    _before(ReplicaStrategy, "reduce", terminate)


def test_the_program_starts_its_processes_and_loses_one(small_capture: Path, tmp_path: Path) -> None:
    """As a user types it: one command, --trainer.devices=2."""
    endless = "--model.reconstruction_steps=99999"
    options = arguments(small_capture, tmp_path, "--trainer.devices=2", endless)
    with subprocess.Popen(
        [sys.executable, "-m", "flexgs_lightning.cli", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as program:
        _wait_for(lambda: any(tmp_path.glob("**/last.ckpt")))
        (child,) = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        _, errors = program.communicate(timeout=60)
    _assert_lost(Outcome(program.returncode, errors), 0)


def _wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


# -- SLURM ---------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """A SLURM job in a state of one's choice; returns what ``scontrol`` was asked for."""
    calls = tmp_path / "calls.txt"
    calls.touch()

    def command(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def requeue_in(state: str) -> list[str]:
        command("squeue", f"echo {state}")
        slurm.requeue()
        return calls.read_text().splitlines()

    command("scontrol", f'echo "$@" >> {calls}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return requeue_in


def test_a_running_job_is_requeued_and_a_cancelled_one_is_not(job: Callable[[str], list[str]]) -> None:
    assert job("CANCELLED") == []
    assert job("COMPLETING") == []
    assert job("") == []
    assert job("RUNNING") == ["requeue 17"]


def test_only_the_own_task_of_an_array_is_requeued(
    job: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert job("RUNNING") == ["requeue 15_2"]


def test_a_failing_scontrol_costs_nothing(
    job: Callable[[str], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho Requeue is disabled >&2\nexit 1\n")
    assert job("RUNNING") == []
    assert "scontrol requeue 17 failed: Requeue is disabled" in caplog.text


def test_a_training_that_fails_gives_the_signals_back(
    small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(module.FlexGSModule, "_step", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        FlexGSCLI(arguments(small_capture, tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_ends_one_process_as_gracefully_as_ctrl_c(small_capture: Path, tmp_path: Path) -> None:
    def terminate(train: module.FlexGSModule) -> None:
        _at_fatal_step(partial(os.kill, os.getpid(), signal.SIGTERM), train)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FlexGSModule, "_step", module.FlexGSModule._step)  # restored afterwards
        _before(module.FlexGSModule, "_step", terminate)
        with pytest.raises(SystemExit) as ending:
            FlexGSCLI(arguments(small_capture, tmp_path / "stopped"))
    assert ending.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert load(newest_checkpoint(tmp_path)).iteration == FATAL_STEP + 1
    FlexGSCLI(arguments(small_capture, tmp_path / "stopped", "--ckpt_path=last"))
    whole = FlexGSCLI(arguments(small_capture, tmp_path / "whole")).run_folder / "checkpoints" / "last.ckpt"
    found = scene(newest_checkpoint(tmp_path / "stopped"))
    assert all(torch.equal(value, found[name]) for name, value in scene(whole).items())
