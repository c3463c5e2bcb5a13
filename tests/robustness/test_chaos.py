"""Commands that are killed or told to stop at random moments: nothing half-written, and the next run goes on.

``make test`` runs a few cases, ``make fuzz`` two hundred signals over all commands and two hundred kills of a
training. Moments are fractions of what the command takes when it is let alone, drawn by the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Ending, Launcher
from length import FUZZ, SEED, cases

from flexgs_lightning.files import LOCK, PARTIAL
from flexgs_lightning.settings import CONFIGS

pytestmark = pytest.mark.timeout(900)  # the first waits for a program that imports everything

LAST = Path("runs/run/version_0/checkpoints/last.ckpt")
MODEL = "model.ckpt"
TRAINING = (
    "--model.lpips=none",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--data.test_every=3",
)
FIT = (
    *("fit", "--data.root=capture", "--name=run", *TRAINING),
    *("--model.reconstruction_steps=12", "--model.elastic_training.steps=4", "--checkpoint.every_n_steps=2"),
    *("--model.densification.start_step=2", "--model.densification.stop_step=10"),
    *("--model.densification.every=3", "--trainer.val_check_interval=8", "--elastic_validation.ratios=0.3"),
    "--importance_refresh.every_n_steps=100",
)
BESIDE = (*FIT, "--data.num_workers=2", "--data.cache_megabytes=0")
"""Processes of its own decode, all the time."""
PHOTOS = "photos"


@dataclass(frozen=True)
class Command:
    """What is typed, in a folder with the capture, a trained model and files made from it.

    Attributes:
        typed: arguments.
        result: what the command has made in a folder, comparable with ``==``.
        keeps: whether what it does in part stays, for the same command to go on with.
        resumed: arguments that go on; by default the same.
    """

    typed: tuple[str, ...]
    result: Callable[[Path], Any]
    keeps: bool = False
    resumed: tuple[str, ...] | None = None


def bytes_below(*names: str) -> Callable[[Path], dict[str, str]]:
    """Digest of each file below ``names``."""

    def read(folder: Path) -> dict[str, str]:
        paths = [path for name in names for path in (folder / name, *(folder / name).rglob("*"))]
        found = {path for path in paths if path.is_file()}
        return {str(path.relative_to(folder)): _digest(path) for path in sorted(found)}

    return read


def parameters(folder: Path) -> dict[str, Any]:
    """Everything that a training ends with, bit for bit, but the time that it took."""
    content = torch.load(folder / LAST, weights_only=True, map_location="cpu")
    state = {name: _digest_of(value) for name, value in content["state_dict"].items()}
    moments = [_digest_of(value) for value in _tensors(content["optimizer_states"])]
    measured = json.loads((folder / LAST.parents[1] / "metrics.json").read_text())
    return {"step": content["global_step"], **state, "moments": moments, "mean": measured["mean"]}


def metrics(pattern: str, *keys: str) -> Callable[[Path], Any]:
    """What was measured, in one JSON file."""

    def read(folder: Path) -> Any:
        found = json.loads(sorted(folder.glob(pattern))[-1].read_text())
        return [_without_times(found[key]) for key in keys]

    return read


COMMANDS: dict[str, Command] = {
    "export": Command(("export", f"--ckpt={MODEL}", "--output=a.ply"), bytes_below("a.ply")),
    "export to a folder": Command(
        ("export", f"--ckpt={MODEL}", "--output=sizes", "--ratio", "0.2", "1", "--overwrite=true"),
        bytes_below("sizes"),
    ),
    "export by size": Command(
        ("export", f"--ckpt={MODEL}", "--output=a.spz", "--max_megabytes=0.004"), bytes_below("a.spz")
    ),
    "convert": Command(("convert", "scene.ply", "a.sog"), bytes_below("a.sog")),
    "render": Command(
        ("render", f"--ckpt={MODEL}", "--output=frames", "--path=orbit", "--frames=20", "--overwrite=true"),
        bytes_below("frames"),
    ),
    "render a video": Command(
        ("render", f"--ckpt={MODEL}", "--output=a.mp4", "--path=orbit", "--frames=20"),
        lambda folder: (folder / "a.mp4").is_file(),
    ),
    "compress": Command(
        ("compress", f"--ckpt={MODEL}", "--output=a.egs", "--refine_steps=2"), bytes_below("a.egs")
    ),
    "decompress": Command(("decompress", "scene.egs", "--output=a.ply"), bytes_below("a.ply")),
    "publish": Command(("publish", "--ckpt=scene.egs", "--output=public"), bytes_below("public")),
    "test": Command(
        ("test", "--data.root=capture", "--name=run", f"--ckpt_path={MODEL}", *TRAINING),
        metrics("runs/run/version_*/metrics.json", "mean", "images"),
    ),
    "validate": Command(
        ("validate", "--data.root=capture", "--name=run", f"--ckpt_path={MODEL}", *TRAINING), lambda _: None
    ),
    "compare": Command(
        (
            *("compare", f"--ckpt={MODEL}", "--methods", "prune", "matryoshka", "--ratios", "0.3", "1"),
            *("--steps=4", "--output=comparison"),
        ),
        metrics("comparison/comparison.json", "cells"),
        keeps=True,
    ),
    "ablate": Command(
        (
            *("ablate", f"--ckpt={MODEL}", "--bases=flexgs", "--configs=configs", "--ratios=0.3"),
            *("--steps=3", "--output=ablation"),
        ),
        metrics("ablation/comparison.json", "cells"),
        keeps=True,
    ),
    "unseen": Command(
        (
            *("unseen", f"--ckpts={MODEL}", "--points=3", "--trained=0.2", "--tested=0.5"),
            "--output=unseen",
        ),
        metrics("unseen/unseen.json", "models"),
    ),
    "benchmark": Command(
        ("benchmark", "zipnerf", "--root=scenes", "--scenes=berlin", "--config=tiny.yaml", "--gpus=0"),
        metrics("runs/benchmark/zipnerf/berlin/version_*/metrics.json", "mean"),
        keeps=True,
    ),
    "rd": Command(
        (
            *("rd", f"--ckpt={MODEL}", "--systems", "ply", "sog", "--ratios", "0.3", "1"),
            *("--output=rates", "--device=cpu"),
        ),
        metrics("rates/rd.json", "cells"),
        keeps=True,
    ),
    "profile": Command(
        ("profile", f"--ckpt={MODEL}", "--output=profile.json", "--device=cpu"),
        lambda folder: (folder / "profile.json").is_file(),
    ),
    "info": Command(("info", "scene.egs"), lambda _: None),
    "data process": Command(
        ("data", "process", PHOTOS, "--output=processed", "--threads=1"),
        bytes_below("processed"),
        keeps=True,
    ),
    "data download": Command(
        ("data", "download", "mipnerf360", "--scene=garden", "--mirror=MIRROR"),
        bytes_below("data/mipnerf360/garden", "data/mipnerf360/archives"),
        keeps=True,
    ),
    "demo": Command(
        ("demo", "--config=tiny.yaml", "--root=capture"),
        lambda folder: sorted({path.name for path in folder.glob("runs/capture/version_*/*.p*")}),
        keeps=True,
    ),
    "fit": Command(FIT, parameters, keeps=True, resumed=(*FIT, "--ckpt_path=last")),
    "fit with workers": Command(BESIDE, parameters, keeps=True, resumed=(*BESIDE, "--ckpt_path=last")),
}
QUICK = (
    "export",
    "export to a folder",
    "export by size",
    "convert",
    "render",
    "decompress",
    "compress",
    "test",
)
"""Commands of the few cases in every run of the tests, beside trainings."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


class Stage:
    """A folder to start from, and what each command makes of it when nobody interferes."""

    def __init__(self, launcher: Launcher, origin: Path, mirror: str) -> None:
        self.launcher, self.origin, self.mirror = launcher, origin, mirror
        self._undisturbed: dict[str, tuple[Any, float]] = {}

    def folder(self) -> Path:
        """A fresh copy; always of the same name, which is part of what some commands write."""
        folder = self.origin.parent / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.origin, folder)
        return folder

    def take_photos(self, source: Path) -> None:
        """Have five photos that structure from motion makes something of."""
        if not (self.origin / PHOTOS).is_dir():
            (self.origin / PHOTOS).mkdir()
            for path in sorted(source.iterdir())[:5]:
                shutil.copy(path, self.origin / PHOTOS)

    def run(self, typed: tuple[str, ...], folder: Path, **options: Any) -> Ending:
        """Run a command."""
        words = [word.replace("MIRROR", self.mirror) for word in typed]
        return self.launcher.run(words, folder, **options)

    def undisturbed(self, name: str) -> tuple[Any, float]:
        """Result of a command and its seconds, the shorter of two runs."""
        if name not in self._undisturbed:
            command, endings = COMMANDS[name], []
            for _ in range(2 if SEED else 1):
                folder = self.folder()
                endings.append(self.run(command.typed, folder))
                assert endings[-1].status == 0, endings[-1].said
            seconds = min(ending.seconds for ending in endings)
            self._undisturbed[name] = command.result(folder), seconds
        return self._undisturbed[name]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The launcher, and a folder with a capture of six small photos and what is made from it."""
    from flexgs_lightning.demo.capture import write_demo_capture

    origin = tmp_path_factory.mktemp("chaos") / "origin"
    write_demo_capture(origin / "capture", views=6, width=48, height=32, points_per_view=300)
    (origin / "scenes").mkdir()
    shutil.copytree(origin / "capture", origin / "scenes" / "berlin")
    steps = {
        "model.reconstruction_steps": 4,
        "model.elastic_training.steps": 2,
        "checkpoint.every_n_steps": 2,
    }
    options = [word[2:].split("=") for word in TRAINING] + [list(item) for item in steps.items()]
    (origin / "tiny.yaml").write_text("".join(f"{name}: {value}\n" for name, value in options))
    (origin / "configs" / "ablations" / "flexgs").mkdir(parents=True)
    for name in ("flexgs.yaml", "ablations/flexgs/equal_weights.yaml"):
        shutil.copy(CONFIGS / name, origin / "configs" / name)
    launcher = Launcher()
    try:
        with _mirror(origin) as mirror:
            _make(launcher, origin)
            yield Stage(launcher, origin, mirror)
    finally:
        launcher.close()


def _make(launcher: Launcher, origin: Path) -> None:
    """A trained model and files of it; fitted in the folder's place, so that paths are the same."""
    for typed in (
        (*FIT, "--test_after_fit=false"),
        ("export", f"--ckpt={LAST}", "--output=scene.ply"),
        ("export", f"--ckpt={LAST}", "--output=sizes", "--ratio", "0.1", "0.9", "--measure=false"),
        ("compress", f"--ckpt={LAST}", "--output=scene.egs", "--refine_steps=0"),
        ("publish", "--ckpt=scene.egs", "--output=site"),
    ):
        ending = launcher.run(typed, origin)
        assert ending.status == 0, ending.said
    (origin / LAST).rename(origin / MODEL)
    shutil.rmtree(origin / "runs")


class _mirror:  # noqa: N801 (a context)
    """A server of the archive that ``data download`` fetches, in pieces and with pauses."""

    def __init__(self, origin: Path) -> None:
        self.folder = origin.parent / "mirror"
        self.folder.mkdir()
        with zipfile.ZipFile(self.folder / "360_v2.zip", "w") as archive:
            for path in sorted((origin / "capture").rglob("*.*")):
                archive.write(path, f"garden/{path.relative_to(origin / 'capture')}")

    def __enter__(self) -> str:
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(self.folder)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


# -- the tests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases(16, 200))
def test_a_command_that_is_stopped_anywhere_leaves_nothing_half_done(
    case: int, stage: Stage, request: pytest.FixtureRequest
) -> None:
    draw = random.Random(f"{SEED} {case}")
    names = tuple(COMMANDS) if FUZZ else QUICK
    number = SIGNALS[(case + case // len(names)) % len(SIGNALS)]
    name, fraction, group = names[case % len(names)], draw.random(), draw.random() < 0.5
    if name == "data process":
        stage.take_photos(request.getfixturevalue("shared_data") / "fox" / "images_8")
    check(stage, name, number, fraction, group)


@pytest.mark.parametrize("case", cases(1, 200))
def test_a_training_that_is_killed_anywhere_ends_bit_for_bit_as_if_it_had_not_been(
    case: int, stage: Stage
) -> None:
    check(stage, "fit", signal.SIGKILL, random.Random(f"{SEED} fit {case}").random())


@pytest.mark.parametrize("number", SIGNALS[:2])
@pytest.mark.parametrize("typed", [("view", f"--ckpt={MODEL}", "--port=0"), ("serve", "site", "--port=0")])
def test_a_server_ends(typed: tuple[str, ...], number: signal.Signals, stage: Stage) -> None:
    folder = stage.folder()
    ending = stage.run(typed, folder, signal_=number, when=lambda said: "Ctrl-C" in said)
    check_told(ending, number)
    assert snapshot(folder) == snapshot(stage.origin)


FULL = {
    "export": 20_000,
    "export to a folder": 200_000,  # the first file has room
    "render": 1_000,
    "decompress": 20_000,
    "fit": 60_000,  # enough for all but checkpoints
    "fit from its first file on": 500,
}
"""Bytes that a file may have: what a disk is full with, for one who need not be root to fill it."""


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_message_and_what_was_there_stays(name: str, stage: Stage) -> None:
    command, folder = COMMANDS[name.partition(" from")[0]], stage.folder()
    ending = stage.run(command.typed, folder, limits=[(resource.RLIMIT_FSIZE, FULL[name])])
    check_refused(
        ending, r"could not be written \(.*(File too large|file write failed|stored \d+ of|is the disk full)"
    )
    assert not leftovers(folder)
    left = {path for path in snapshot(folder).keys() - snapshot(stage.origin).keys() if "/config" not in path}
    assert not left
    assert snapshot(folder).items() >= snapshot(stage.origin).items()


@pytest.mark.parametrize("place", ["scene.ply", "scene.ply/runs", "/proc/runs"])
def test_runs_that_cannot_be_a_folder_are_one_message(place: str, stage: Stage) -> None:
    folder = stage.folder()
    check_refused(stage.run((*FIT, f"--runs={place}"), folder), place)
    assert snapshot(folder) == snapshot(stage.origin)


@pytest.mark.parametrize(("photo", "workers"), [("to train on", 2), ("held out", 0)])
def test_a_photo_that_is_damaged_inside_is_one_message_and_training_goes_on_with_a_sound_one(
    photo: str, workers: int, stage: Stage
) -> None:
    """The one is found before the first checkpoint, the other in the first validation."""
    folder, first = stage.folder(), 100 if photo == "to train on" else 2
    options = (*FIT, f"--data.num_workers={workers}", f"--checkpoint.every_n_steps={first}")
    path = sorted((folder / "capture" / "images").iterdir())[1 if photo == "to train on" else 3]
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    check_refused(stage.run(options, folder), f"{path.name}: expected a readable image, .*the same command")
    if first == 100:
        assert not (folder / "runs").exists()
        return
    path.write_bytes(sound)
    ending = stage.run((*options, "--ckpt_path=last"), folder)
    assert ending.status == 0, ending.said
    assert parameters(folder) == stage.undisturbed("fit")[0]


def check_refused(ending: Ending, message: str) -> None:
    """One line on standard error, and it is the last."""
    assert ending.status == 1, ending.said
    assert "Traceback" not in ending.said, ending.said
    told = [line for line in ending.said.splitlines() if line.startswith("flexgs: error: ")]
    assert len(told) == 1, ending.said
    assert re.search(message, told[0]), told


def check(stage: Stage, name: str, number: signal.Signals, fraction: float, group: bool = False) -> None:
    """Interrupt a command at a fraction of its time; then let it go on, and compare with the undisturbed."""
    command, (expected, seconds) = COMMANDS[name], stage.undisturbed(name)
    folder = stage.folder()
    ending = stage.run(command.typed, folder, signal_=number, when=fraction * seconds, group=group)
    context = f"{name}, {number.name} at {fraction:.3f} of {seconds:.2f} s:\n{ending.said}"
    if ending.status != 0:  # it had not ended before
        assert ending.status == (-number if number == signal.SIGKILL else 128 + number), context
        if number != signal.SIGKILL:
            check_told(ending, number)
            assert not leftovers(folder), context
            assert not list(folder.rglob(LOCK)), context  # after a kill one may stay, and locks nothing
            if not command.keeps:
                check_whole(stage, folder, command, expected, context)
    overwrites = "--overwrite=true" in command.typed
    if not command.keeps and not overwrites and made(command, folder) == expected:  # just before its end
        assert number == signal.SIGKILL or not leftovers(folder), context
        return
    again = go_on(stage, command, folder)
    assert again.status == 0, f"{context}\nand then:\n{again.said}"
    assert command.result(folder) == expected, f"{context}\nand then:\n{again.said}"
    assert not leftovers(folder), context


def go_on(stage: Stage, command: Command, folder: Path) -> Ending:
    """Run the command again as its message says; from the beginning where there is no checkpoint yet."""
    if command.resumed is not None and (folder / LAST).is_file():
        return stage.run(command.resumed, folder)
    if command.resumed is not None:
        refused = stage.run(command.resumed, folder)
        assert refused.status == 1, refused.said
        assert "before its first checkpoint" in refused.said or "no run to resume" in refused.said
        shutil.rmtree(folder / "runs", ignore_errors=True)
    return stage.run(command.typed, folder)


def check_told(ending: Ending, number: signal.Signals) -> None:
    """One line says what is kept, and nothing else speaks of the signal."""
    assert ending.status == 128 + number, ending.said
    assert "Traceback" not in ending.said, ending.said
    assert "stack trace" not in ending.said, ending.said
    told = re.findall(
        r"^(?:flexgs: stopped by \w+\. .+|Interrupted after step .+)$", ending.said, re.MULTILINE
    )
    assert len(told) == 1, ending.said
    assert re.search("same command|goes on|open it", told[0]), told


def check_whole(stage: Stage, folder: Path, command: Command, expected: Any, context: str) -> None:
    """All that a command of one piece leaves is what was there before, or the whole result."""
    if snapshot(folder) != snapshot(stage.origin):
        assert made(command, folder) == expected, context


def made(command: Command, folder: Path) -> Any:
    """The command's result; None if it is not there yet."""
    try:
        return command.result(folder)
    except (OSError, LookupError):
        return None


def leftovers(folder: Path) -> list[Path]:
    """Temporary files."""
    return [path for path in folder.rglob("*") if PARTIAL in path.name]


def snapshot(folder: Path) -> Mapping[str, str]:
    """Every file and its content, but TensorBoard's logs, of which the beginning is worth having, too."""
    return {name: found for name, found in bytes_below(".")(folder).items() if "tfevents" not in name}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.reshape(-1)
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_times(item)
            for name, item in value.items()
            if not re.search("milliseconds|seconds|checkpoint", name)
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value
