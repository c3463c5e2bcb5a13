"""Writing files whole or not at all, and folders that one process works in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexgs_lightning import files
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import LOCK, PARTIAL, atomic_path, locked, place_of, temporary_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_folder(path: Path, *members: str) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for member in members:
            (temporary / member).write_text(member)


def test_a_folder_with_files_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "frames", "old")
    write_folder(tmp_path / "frames", "new", "newer")
    assert names(tmp_path / "frames") == ["new", "newer"]
    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # a file system that cannot
    write_folder(tmp_path / "frames", "newest")
    assert names(tmp_path / "frames") == ["newest"]
    assert names(tmp_path) == ["frames"]


@pytest.mark.parametrize("exchange", [True, False])
def test_the_old_folder_is_there_until_the_new_one_is_in_its_place(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "frames", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if PARTIAL in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    if exchange:
        monkeypatch.setattr(files, "_put_in_place", lambda temporary, path: failing(temporary, path))
    else:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
        monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError, match=r"frames: could not be written \(Input/output error\)"):
        write_folder(tmp_path / "frames", "new")
    assert names(tmp_path) == ["frames"]
    assert names(tmp_path / "frames") == ["old"]


def test_a_failure_leaves_no_folder_that_was_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), atomic_path(tmp_path / "a" / "b" / "c.ply"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a" / "b" / "c.ply"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["a"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/c\.ply: could not be written"):
        write(tmp_path / "file" / "c.ply", "")


def test_what_killed_processes_left_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    script = (
        "import os, sys; from flexgs_lightning.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t: t.mkdir(); (t / 'x').touch(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "frames")], check=False)
    assert killed.returncode == -9
    (left,) = names(tmp_path)
    assert PARTIAL in left
    node, process = left.split(".")[2].split("-")[:2]
    assert process != str(os.getpid())
    mine = tmp_path / f".mine.{node}-{os.getppid()}-0{PARTIAL}.ply"
    elsewhere = tmp_path / f".other.{'0' * 8}-1-0{PARTIAL}.ply"
    old = tmp_path / f".old.{'0' * 8}-1-0{PARTIAL}.ply"
    others = [mine, elsewhere, old, tmp_path / ".hidden", tmp_path / f"notes{PARTIAL}.txt"]
    for path in others:
        path.touch()
    os.utime(old, (time.time() - 2e5,) * 2)
    with temporary_path(tmp_path / "one.ply") as open_one:
        open_one.touch()
        write(tmp_path / "scene.ply", "new")
        assert open_one.exists(), "its own that it still writes"
    expected = [mine.name, elsewhere.name, ".hidden", f"notes{PARTIAL}.txt", "scene.ply"]
    assert names(tmp_path) == sorted(expected)


@pytest.mark.parametrize(
    "name", ["x" * 250 + ".ply", "ä" * 120 + ".ply", "with spaces é 日本.ply", "no_suffix"]
)
def test_names_up_to_the_systems_limit(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, "content")
    assert names(tmp_path) == [name]
    with pytest.raises(InputError, match="too long"):
        write(tmp_path / ("x" * 300), "")
    with pytest.raises(InputError, match="expected the name of a file"):
        write(Path(tmp_path.anchor), "")


def test_the_path_of_an_error_in_whatever_form_it_comes() -> None:
    assert place_of(OSError(errno.ENOSPC, "full", "a/b")) == "a/b"
    assert place_of(OSError(errno.ENOSPC, "full", b"a/b")) == "a/b"
    assert place_of(OSError(errno.ENOSPC, "full", 3)) is None
    assert place_of(OSError(errno.ENOSPC, "full")) is None


def test_a_second_process_is_told_who_is_at_work_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from flexgs_lightning.files import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    folder = tmp_path / "a" / "comparison"
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            pytest.raises(InputError, match=rf"comparison: process {process.pid} on .*, is at work"),
            locked(folder),
        ):
            pass
        process.kill()
    assert names(folder) == [LOCK], "what a killed process leaves locks nothing"
    with locked(folder):
        (folder / "kept").touch()
    assert names(folder) == ["kept"]
    with locked(tmp_path / "b" / "c"):
        pass
    assert names(tmp_path) == ["a"], "nothing came into it"


def test_a_signal_while_a_lock_is_taken_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a" / "b"):
        pytest.fail("it was not taken")
    assert not list(tmp_path.iterdir())
