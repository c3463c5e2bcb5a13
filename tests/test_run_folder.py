"""One process trains in a run folder, and what is refused leaves nothing in it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flexgs_lightning.errors import InputError
from flexgs_lightning.files import LOCK
from flexgs_lightning.training.callbacks.checkpointing import FOLDER, LAST, newest_checkpoint
from flexgs_lightning.training.run_folder import RunLogger

HOLDER = """
import sys, time
from pathlib import Path
from flexgs_lightning.files import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(100)
"""


def logger(folder: Path, version: str | None = None) -> RunLogger:
    return RunLogger(folder, name="scene", version=version, default_hp_metric=False)


def test_a_resumed_run_is_refused_while_another_process_trains_it_and_a_new_one_is_numbered_on(
    tmp_path: Path,
) -> None:
    run = tmp_path / "scene" / "version_0"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        told = rf"version_0: process {holder.pid} on .*, is at work there"
        with pytest.raises(InputError, match=told), logger(tmp_path, "version_0").claimed():
            pass
        fresh, late = logger(tmp_path), logger(tmp_path)
        assert fresh.version == late.version == 1  # both looked before either began
        with fresh.claimed():
            (Path(fresh.log_dir) / "config.yaml").touch()
            with late.claimed():
                assert Path(late.log_dir) == run.with_name("version_2")
        holder.kill()
    assert sorted(path.name for path in run.parent.iterdir()) == ["version_0", "version_1"]
    with logger(tmp_path, "version_0").claimed():
        pass


def test_the_event_file_is_opened_by_the_first_event(tmp_path: Path) -> None:
    quiet = logger(tmp_path)
    assert quiet.experiment is quiet.experiment
    quiet.save()
    quiet.finalize("failed")
    assert list(tmp_path.rglob("*")) == []
    spoken = logger(tmp_path)
    spoken.experiment.add_scalar("loss", 1.0, 1)
    spoken.finalize("success")
    (event,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert event.name.startswith("events.out.tfevents")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_no_second_failure_when_the_first_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    for status in ("success", "failed"):
        opened = logger(tmp_path)
        opened.experiment.add_scalar("loss", 1.0, 1)
        opened.experiment.flush()
        writer = opened.experiment._get_file_writer().event_writer._async_writer._writer

        def full(_: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writer, "write", full)
        opened.experiment._get_file_writer().event_writer._async_writer._byte_queue.put(b"event")
        end = time.monotonic() + 30
        while opened.experiment._get_file_writer().event_writer._async_writer._worker.is_alive():
            assert time.monotonic() < end
            time.sleep(0.01)
        if status == "success":
            with pytest.raises(OSError, match="No space left"):
                opened.finalize(status)
        else:
            opened.finalize(status)


@pytest.mark.parametrize("sign", ["config.yaml", LOCK])
def test_last_is_the_run_that_was_started_last_even_if_it_left_no_checkpoint(
    sign: str, tmp_path: Path
) -> None:
    old, new = (tmp_path / "scene" / name for name in ("version_0", "version_1"))
    for run in (old, new):
        run.mkdir(parents=True)
    (old / FOLDER).mkdir()
    for path in (old / "config.yaml", old / FOLDER / LAST, new / sign):
        path.touch()
        os.utime(path, (time.time() + (60 if path.parent == new else 0),) * 2)
    with pytest.raises(
        InputError, match=r"newest run, .*version_1, ended before its first checkpoint.*version_0"
    ):
        newest_checkpoint(tmp_path / "scene")
    (new / sign).unlink()
    (new / "metrics.json").touch()  # a test alone is no run
    assert newest_checkpoint(tmp_path / "scene") == old / FOLDER / LAST
