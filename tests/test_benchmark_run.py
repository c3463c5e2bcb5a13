"""``flexgs benchmark``: scheduling, shares of a cluster's array, the report, and the whole command."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from flexgs_lightning.cli import main
from flexgs_lightning.codec.decoder import open_file
from flexgs_lightning.data.benchmarks import find_benchmark
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.benchmark.command import _share
from flexgs_lightning.evaluation.benchmark.report import as_markdown, summarise
from flexgs_lightning.evaluation.scheduling import Task, run_side_by_side

CHECKOUT = Path(__file__).parents[1]
STEPS, ELASTIC_STEPS = 200, 20


# -- scheduling ----------------------------------------------------------------------------------------


def program(name: str, code: str, statuses: dict[str, int]) -> Task:
    def start(place: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-S", "-c", code], env=os.environ | place, start_new_session=True
        )

    return Task(name, start, lambda status: statuses.__setitem__(name, status))


def test_tasks_share_places_and_a_failure_stops_no_other(tmp_path: Path) -> None:
    """Each notes when it ran and where: never two at once on one place, and both places used."""
    statuses: dict[str, int] = {}
    code = (
        "import os, sys, time; begin = time.time(); time.sleep(0.3);"
        "open(r'{}', 'w').write(f'{{os.environ[\"PLACE\"]}} {{begin}} {{time.time()}}'); sys.exit({})"
    )
    tasks = [program(str(i), code.format(tmp_path / str(i), i == 1), statuses) for i in range(5)]
    tasks.insert(2, Task("nothing to do", lambda place: None, lambda status: pytest.fail("never ran")))
    assert run_side_by_side(tasks, [{"PLACE": "a"}, {"PLACE": "b"}]) is None
    assert statuses == {"0": 0, "1": 1, "2": 0, "3": 0, "4": 0}
    spans: dict[str, list[tuple[float, float]]] = {}
    for i in range(5):
        place, begin, end = (tmp_path / str(i)).read_text().split()
        spans.setdefault(place, []).append((float(begin), float(end)))
    assert set(spans) == {"a", "b"}
    for times in spans.values():
        ordered = sorted(times)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ordered))


def test_a_signal_reaches_the_running_and_starts_no_more() -> None:
    statuses: dict[str, int] = {}
    tasks = [program(str(i), "import time; time.sleep(60)", statuses) for i in range(3)]
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert run_side_by_side(tasks, [{}, {}]) == signal.SIGTERM
    assert statuses == {"0": -signal.SIGTERM, "1": -signal.SIGTERM}


def test_a_signal_that_comes_while_a_program_is_started_reaches_it_once() -> None:
    statuses: dict[str, int] = {}
    code = (
        "import signal, sys, time; seen = []; signal.signal(signal.SIGTERM, lambda *_: seen.append(1));"
        "time.sleep(1.5); sys.exit(100 + len(seen))"
    )
    task = program("0", code, statuses)

    def start(place: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
        process = task.start(place)
        time.sleep(0.5)  # until it has its handler
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    assert run_side_by_side([Task("0", start, task.done)], [{}]) == signal.SIGTERM
    assert statuses == {"0": 101}


def test_a_task_that_cannot_start_leaves_no_program_behind() -> None:
    statuses: dict[str, int] = {}

    def start(place: Mapping[str, str]) -> subprocess.Popen[bytes]:
        raise OSError("no space left")

    broken = Task("1", start, lambda status: pytest.fail("never ran"))
    tasks = [program("0", "import time; time.sleep(60)", statuses), broken]
    with pytest.raises(OSError, match="no space left"):
        run_side_by_side([*tasks, program("2", "pass", statuses)], [{}, {}])
    assert statuses == {"0": -signal.SIGTERM}


# -- shares of an array --------------------------------------------------------------------------------


def test_shares_cover_all_scenes_once() -> None:
    scenes = [scene.name for scene in find_benchmark("mipnerf360").scenes]
    parts = [scenes[slice(*_share(i, 4, {}))] for i in range(4)]
    assert sorted(itertools.chain.from_iterable(parts)) == scenes
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def array_task(number: int, first: int = 0, step: int = 1, count: int = 3) -> dict[str, str]:
    values = {"ID": number, "MIN": first, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_an_array_task_takes_its_share() -> None:
    assert _share(None, None, {}) == (0, None, 1)
    assert _share(None, None, array_task(2)) == (2, None, 3)
    assert _share(None, None, array_task(5, first=1, step=2)) == (2, None, 3)
    assert _share(1, 2, array_task(2)) == (1, None, 2), "what is asked for wins"


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(InputError, match="expected both or none"):
        _share(1, None, {})
    with pytest.raises(InputError, match="expected 0 to 2 with 3 shares, found 7"):
        _share(None, None, array_task(7, count=3))


# -- the report ----------------------------------------------------------------------------------------


def measured(psnr: float, images: str = "images_2/ as shipped") -> dict[str, Any]:
    """A scene's ``metrics.json`` as far as the report reads it."""
    values = {"psnr": psnr, "ssim": psnr / 40, "lpips": 0.25}
    ratios = {ratio: {"gaussians": 10, **values} for ratio in ("0.01", "0.05", "0.02")}
    mean = {"psnr": psnr + 5, "ssim": 0.9, "lpips": 0.1}
    protocol = {"name": "zipnerf", "images": images, "background": "black"}
    return {"ratios": ratios, "mean": mean, "gaussians": 1000, "protocol": protocol}


ZIPNERF = {"alameda": 20.0, "berlin": 21.0, "london": 22.0, "nyc": 24.5}


def test_megabytes_are_those_of_the_elastic_files_first_chunks() -> None:
    path = Path(__file__).parent / "known_answers" / "levels.egs"
    header = open_file(path).header
    found = measured(20.0)
    found["gaussians"] = header.total
    found["ratios"] = {"0.01": found["ratios"]["0.01"] | {"gaussians": 1}}
    report = summarise("zipnerf", "zipnerf", {"nyc": found}, {}, {"nyc": path})
    row = report["scenes"]["nyc"]
    assert row["1"]["megabytes"] == path.stat().st_size / 1e6
    assert row["0.01"]["megabytes"] == header.indexed_lengths()[0] / 1e6
    page = as_markdown("Zip-NeRF", report)
    assert "100 % MB" in page
    assert f"{row['1']['megabytes']:.2f} |" in page
    assert "MB" not in as_markdown("", summarise("zipnerf", "zipnerf", {"nyc": measured(20.0)}, {}))


def test_the_mean_is_over_scenes_and_stands_beside_the_papers() -> None:
    report = summarise("zipnerf", "zipnerf", {name: measured(psnr) for name, psnr in ZIPNERF.items()}, {})
    assert report["mean"]["0.01"]["psnr"] == pytest.approx(87.5 / 4)
    assert report["mean"]["1"]["psnr"] == pytest.approx(87.5 / 4 + 5)
    assert set(report["difference"]) == {"0.01", "0.05"}, "the paper has no row at 2 % in this table"
    assert report["difference"]["0.01"]["psnr"] == pytest.approx(87.5 / 4 - 20.963)
    assert "lpips" not in report["difference"]["0.01"], "not printed in the paper"
    lines = as_markdown("Zip-NeRF", report).splitlines()
    ours = next(line for line in lines if line.startswith("| ours"))
    assert ours.startswith("| ours, mean of 4 scenes | 21.88 | 0.5469 | 0.2500 |")
    difference = next(line for line in lines if line.startswith("| difference"))
    assert "| +0.91 |" in difference
    assert any(line.startswith("| FlexGS (paper) | 20.96 | 0.6722 | – |") for line in lines)
    assert any(line.startswith("| LightGS* (paper) |") for line in lines)
    assert "- images: images_2/ as shipped" in lines
    assert not any("not one of methods alone" in line for line in lines)


def test_records_without_a_protocol_or_with_fields_of_others_are_reported() -> None:
    other, plain = measured(20.0), measured(22.0)
    del plain["protocol"]
    for scene in (other, plain):
        scene["ratios"]["0.01"]["notes"] = {"by": "hand"}
    report = summarise("zipnerf", "zipnerf", {"alameda": other, "nyc": plain}, {})
    assert report["mean"]["0.01"]["psnr"] == pytest.approx(21.0)
    assert "notes" not in report["mean"]["0.01"]


def test_missing_scenes_are_named_and_leave_no_difference() -> None:
    scenes = {"alameda": measured(20.0), "nyc": measured(21.0, "images/ reduced by 2 (area filter)")}
    missing = {"berlin": "exit status 1, no memory", "london": "not run"}
    report = summarise("zipnerf", "zipnerf", scenes, missing)
    assert report["difference"] == {}
    text = as_markdown("Zip-NeRF", report)
    assert "2 of 4 scenes are finished" in text
    assert "- berlin: exit status 1, no memory" in text
    assert "images_2/ as shipped (alameda); images/ reduced by 2 (area filter) (nyc)" in text


def test_the_worst_views_are_stated_where_the_scenes_state_them() -> None:
    told, older = measured(20.0), measured(21.0)
    told["worst"] = {"name": "a.png", "psnr": 7.4}
    told["ratios"]["0.01"]["worst"] = {"name": "b.png", "psnr": 7.1}
    report = summarise("zipnerf", "zipnerf", {"alameda": told, "nyc": older}, {})
    lines = as_markdown("Zip-NeRF", report).splitlines()
    table = lines[lines.index("## Worst views") + 2 :][:4]
    assert table[0] == "| | 1 % | 2 % | 5 % | 100 % |"
    assert table[2] == "| alameda | 7.10 (b.png) | – | – | 7.40 (a.png) |"
    assert table[3] == "| nyc | – | – | – | – |"
    assert set(report["mean"]["0.01"]) == {"gaussians", "psnr", "ssim", "lpips"}


def test_a_metric_that_a_scene_lacks_has_no_mean() -> None:
    scenes = {"alameda": measured(20.0), "nyc": measured(21.0)}
    del scenes["nyc"]["mean"]["lpips"]
    report = summarise("zipnerf", "zipnerf", scenes, {})
    assert set(report["mean"]["1"]) == {"gaussians", "psnr", "ssim"}
    assert "LPIPS" not in as_markdown("Zip-NeRF", report).split("## Scenes")[0].splitlines()[2]


def test_the_papers_table_of_a_scene_stands_below_it_and_another_protocol_is_pointed_out() -> None:
    scenes = {"train": measured(20.0), "playroom": measured(25.0)}
    missing = {"truck": "not run", "drjohnson": "not run"}
    report = summarise("tanks_and_temples", "tanks_and_temples", scenes, missing)
    assert set(report["scene_differences"]) == {"train"}, "no table of playroom is printed"
    assert report["scene_differences"]["train"]["0.01"]["psnr"] == pytest.approx(20.0 - 19.189)
    text = as_markdown("Tanks & Temples", report)
    _, overview, train = re.split("\n## Scenes|\n### train", text)
    assert "| playroom | 25.00 |" in overview
    rows = [line for line in train.splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| train | 20.00 |")
    assert rows[2].startswith("| difference to FlexGS (paper) | +0.81 | -0.16")
    assert rows[3].startswith("| FlexGS (paper) | 19.19 | 0.6607 | 0.3726 |")
    assert [row.split(" (")[0] for row in rows[4:]] == ["| EAGLES", "| C3DGS", "| LightGS", "| LightGS*"]
    assert "Paper: arXiv:2506.04174, Table 9." in train
    assert "measured under the protocol tanks_and_temples_quarter, this run under tanks_and_temples" in text


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def zipnerf(small_capture: Path, tmp_path: Path) -> Path:
    """Two scenes laid out as Zip-NeRF ships them; the second one has no cameras yet."""
    root = tmp_path / "zipnerf"
    for name in ("alameda", "berlin"):
        scene = root / name
        scene.mkdir(parents=True)
        (scene / "images").symlink_to(small_capture / "images")
        (scene / "images_2").mkdir()
        for photo in sorted((small_capture / "images").iterdir()):
            Image.open(photo).resize((48, 32), Image.Resampling.BOX).save(scene / "images_2" / photo.name)
    (root / "alameda" / "sparse").symlink_to(small_capture / "sparse")
    return root


@pytest.fixture
def command(zipnerf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(CHECKOUT)
    settings = {
        "model": {
            "reconstruction_steps": STEPS,
            "elastic_training": {"steps": ELASTIC_STEPS},
            "elastic": {"residual_anchors": [0.1]},
            "lpips": "none",
        },
        "elastic_validation": {"ratios": [0.05, 0.1]},
        "checkpoint": {"every_n_steps": 1},
        "trainer": {"enable_progress_bar": False},
    }
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(settings))
    config = f"configs/flexgs.yaml,{tmp_path / 'short.yaml'}"
    return [
        "benchmark",
        "zipnerf",
        f"--root={zipnerf}",
        f"--runs={tmp_path / 'runs'}",
        "--config",
        config,
        "--gpus=0",
    ]


@pytest.mark.timeout(900)
def test_scenes_are_resumed_skipped_and_retried_and_one_failure_loses_no_other(
    command: list[str],
    zipnerf: Path,
    small_capture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "runs" / "zipnerf"
    checkpoint = folder / "alameda" / "version_0" / "checkpoints" / "last.ckpt"

    def interrupt() -> None:
        end = time.monotonic() + 200
        while not checkpoint.is_file() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert main([*command, "--scenes=alameda"]) == 130
    assert capsys.readouterr().err.endswith(f"are kept in {folder}; the same command goes on.\n")
    report = json.loads((folder / "benchmark.json").read_text())
    assert report["missing"]["alameda"] == "interrupted"
    assert torch.load(checkpoint, weights_only=True)["global_step"] < STEPS + ELASTIC_STEPS

    assert main([*command, "--scenes=alameda,berlin"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("flexgs: error: 1 of 2 scenes failed (berlin: ")
    assert str(zipnerf / "berlin") in message
    assert f"resuming {checkpoint}" in caplog.text
    assert not (folder / "alameda" / "version_1").exists()
    metrics = json.loads((folder / "alameda" / "version_0" / "metrics.json").read_text())
    assert metrics["iteration"] == STEPS + ELASTIC_STEPS
    assert metrics["protocol"]["images"] == "images_2/ as shipped"
    report = json.loads((folder / "benchmark.json").read_text())
    assert report["scenes"]["alameda"]["0.1"] == metrics["ratios"]["0.1"]
    assert report["scenes"]["alameda"]["1"]["psnr"] == metrics["mean"]["psnr"] > 10
    assert set(report["missing"]) == {"berlin", "london", "nyc"}
    assert "berlin" in report["missing"]["berlin"]
    assert report["missing"]["nyc"] == "not run"

    (zipnerf / "berlin" / "sparse").symlink_to(small_capture / "sparse")
    assert main([*command, "--scenes=alameda,berlin"]) == 0
    assert "alameda: finished already." in caplog.text
    report = json.loads((folder / "benchmark.json").read_text())
    assert set(report["scenes"]) == {"alameda", "berlin"}
    assert report["mean"]["1"]["psnr"] == pytest.approx(
        (report["scenes"]["alameda"]["1"]["psnr"] + report["scenes"]["berlin"]["1"]["psnr"]) / 2
    )
    assert "mean of 2 scenes" in (folder / "benchmark.md").read_text()

    (tmp_path / "short.yaml").write_text("model: {reconstruction_steps: 7}\n")
    assert main([*command, "--scenes=alameda"]) == 1
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenes=garden"], "unknown scene of zipnerf 'garden'"),
        ([], "expected a folder for each scene, found none for london, nyc"),
        (["--protocol=mipnerf360"], "--protocol mipnerf360: it is for mipnerf360"),
        (["--scenes=alameda", "--config=nothing.yaml"], "nothing.yaml: no such config"),
        (["--scenes=alameda", "--gpus=99"], "--gpus 99: this machine shows"),
        (["--shard=2", "--shards=2"], "expected 0 to 1 with 2 shares, found 2"),
    ],
)
def test_impossible_requests_are_refused_before_anything_runs(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*command, *options]) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("version_*"))


def test_a_scene_that_another_process_trains_is_left_to_it(
    command: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lock = tmp_path / "runs" / "zipnerf" / "alameda" / ".lock"
    lock.parent.mkdir(parents=True)
    holder = (
        "import filelock, sys; l = filelock.FileLock(sys.argv[1]); l.acquire(); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert main([*command, "--scenes=alameda"]) == 0
        other.kill()
    assert "alameda: another process trains it." in caplog.text
    assert not list(lock.parent.glob("version_*"))
