"""``flexgs benchmark``: train and measure every scene of a benchmark, and report it beside the paper."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import contextlib
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from filelock import FileLock

from flexgs_lightning.data.benchmarks import BenchmarkScene, find_benchmark, find_protocol, find_scene
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.benchmark.codec import write_elastic_files
from flexgs_lightning.evaluation.benchmark.report import write_report
from flexgs_lightning.evaluation.benchmark.scene import HEADER, SceneRun
from flexgs_lightning.evaluation.scheduling import Task, run_side_by_side
from flexgs_lightning.files import BusyError, atomic_path, locked
from flexgs_lightning.records import read_yaml
from flexgs_lightning.settings import find_config, read_config
from flexgs_lightning.signals import Stopped, keeping

log = logging.getLogger(__name__)

SETTINGS = "settings.yaml"


def benchmark(
    benchmark: str,
    root: Path | None = None,
    config: list[str] = ["flexgs"],  # noqa: B006 (never changed)
    protocol: str | None = None,
    scenes: list[str] | None = None,
    runs: Path = Path("runs/benchmark"),
    gpus: int | None = None,
    shard: int | None = None,
    shards: int | None = None,
    codec: bool = False,
) -> None:
    """Train and measure every scene of a benchmark, and report the means beside the paper's.

    Runs lie in RUNS/PROTOCOL/SCENE, the report in RUNS/PROTOCOL/benchmark.md and benchmark.json. The same
    command again skips finished scenes, resumes interrupted ones and tries failed ones again.

    Args:
        benchmark: mipnerf360, tanks_and_temples (with Deep Blending) or zipnerf.
        root: Folder of the scenes; data/BENCHMARK by default, where `flexgs data download` puts them.
        config: Configs of the trainings (files or names), merged in order after that of the protocol.
        protocol: How images are reduced and what lies behind the scene; the benchmark's own by default.
            The paper's Tanks & Temples rows are tanks_and_temples_quarter.
        scenes: Scenes to train; all by default.
        runs: Folder of the runs.
        gpus: GPUs to use, one scene on each at a time; all there are by default. 0 trains on the CPU, one
            scene after another.
        shard: Number of this share of the scenes, from 0; by default that of the SLURM array task, if any.
        shards: Number of shares that the scenes are dealt out to; by default the array's size, or 1.
        codec: Also write each finished scene as an elastic file beside its runs (flexgs compress), and report
            the megabytes that each ratio takes of it.
    """
    published = find_benchmark(benchmark)
    protocol = benchmark if protocol is None else protocol
    if find_protocol(protocol).benchmark != benchmark:
        raise InputError(f"--protocol {protocol}: it is for {find_protocol(protocol).benchmark}.")
    chosen = _chosen(published.scenes, benchmark, scenes)
    mine = chosen[slice(*_share(shard, shards, os.environ))]
    root = Path("data") / benchmark if root is None else root
    _require_scenes(mine, root)
    folder = runs / protocol
    configs = [find_config(name) for name in (protocol, *config)]
    places = _places(gpus)
    _settle(configs, folder / SETTINGS)
    accelerator = "cuda" if places[0] else "cpu"
    fit = [sys.executable, "-m", "flexgs_lightning.cli", "fit"]
    for path in configs:
        fit += ["--config", str(path)]
    fit += [f"--trainer.accelerator={accelerator}", "--trainer.devices=1"]
    failures: dict[str, str] = {}
    scene_runs = [SceneRun(scene.name, root / scene.name, folder) for scene in mine]
    stopped = run_side_by_side([_task(run, fit, failures) for run in scene_runs], places)
    if codec and stopped is None:
        write_elastic_files(scene_runs)
    with FileLock(folder / ".report.lock"):  # the last of several processes to come here sees all scenes
        path = write_report(published, protocol, folder, failures)
    log.info("Report: %s", path)
    if stopped is not None:
        with keeping(f"Checkpoints and finished scenes are kept in {folder}; the same command goes on."):
            raise Stopped(stopped)
    if failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise InputError(
            f"{len(failures)} of {len(mine)} scenes failed ({reasons}). {path} holds the others; "
            "the same command tries again."
        )


def _chosen(
    all_scenes: Sequence[BenchmarkScene], benchmark: str, names: Sequence[str] | None
) -> list[BenchmarkScene]:
    if names is None:
        return list(all_scenes)
    return [find_scene(name, benchmark) for name in dict.fromkeys(names)]


def _share(shard: int | None, shards: int | None, environment: Mapping[str, str]) -> tuple[int, None, int]:
    """Start, stop and step of this process's share: as asked for, or of the SLURM array task."""
    if (shard is None) != (shards is None):
        raise InputError("--shard and --shards: expected both or none.")
    if shard is None or shards is None:
        if "SLURM_ARRAY_TASK_ID" not in environment:
            return 0, None, 1
        number, first, step, shards = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", "0"), ("MIN", "0"), ("STEP", "1"), ("COUNT", "1"))
        )
        shard = (number - first) // step
    if not 0 <= shard < shards:
        raise InputError(
            f"--shard: expected 0 to {shards - 1} with {shards} shares, found {shard}; "
            "a SLURM array must be regular, such as --array=0-3."
        )
    return shard, None, shards


def _require_scenes(scenes: Sequence[BenchmarkScene], root: Path) -> None:
    missing = [scene.name for scene in scenes if not (root / scene.name).is_dir()]
    if missing:
        raise InputError(
            f"--root {root}: expected a folder for each scene, found none for {', '.join(missing)}; "
            "--scenes names those to train, and flexgs data download fetches them."
        )


def _settle(configs: Sequence[Path], record: Path) -> None:
    """Record the settings of the runs in this folder: none of other settings may be averaged with them."""
    found = [read_config(path) for path in configs]
    if not record.is_file():
        with atomic_path(record) as temporary:
            temporary.write_text(yaml.safe_dump(found, sort_keys=False))
    elif read_yaml(record) != found:
        raise InputError(
            f"{record}: the runs there were made with other settings; choose another folder with --runs."
        )


def _places(gpus: int | None) -> list[dict[str, str]]:
    """For each process at a time the environment that shows it its GPU alone; one empty one for the CPU."""
    there = torch.cuda.device_count()
    wanted = there if gpus is None else gpus
    if not 0 <= wanted <= there:
        raise InputError(f"--gpus {wanted}: this machine shows {there}.")
    if wanted == 0:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(there)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:wanted]]


def _task(run: SceneRun, fit: Sequence[str], failures: dict[str, str]) -> Task:
    """Train ``run`` unless it is finished, or another process is at it."""
    claim = contextlib.ExitStack()
    started = 0.0

    def start(place: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
        nonlocal claim, started
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(run.folder))
            except BusyError:
                log.info("%s: another process trains it.", run.name)
                return None
            if run.finished() is not None:
                log.info("%s: finished already.", run.name)
                return None
            started = time.monotonic()
            process = _train(run, fit, place)
            claim = held.pop_all()
            return process

    def done(status: int) -> None:
        claim.close()
        reason = run.failure(status)
        minutes = (time.monotonic() - started) / 60
        if reason is None:
            log.info("%s: done after %.1f min.", run.name, minutes)
        else:
            log.warning("%s: stopped after %.1f min: %s", run.name, minutes, reason)
            failures[run.name] = reason

    return Task(run.name, start, done)


def _train(run: SceneRun, fit: Sequence[str], place: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the training of a scene, or go on with it, where no terminal's Ctrl-C reaches it by itself."""
    checkpoint = run.checkpoint()
    log.info(
        "%s: %s on %s; output goes to %s",
        run.name,
        "training" if checkpoint is None else f"resuming {checkpoint}",
        f"GPU {place['CUDA_VISIBLE_DEVICES']}" if place else "the CPU",
        run.log,
    )
    options = [*fit, *run.arguments(checkpoint)]
    with run.log.open("ab") as output:
        output.write(f"{HEADER}{shlex.join(options[4:])}\n".encode())
        output.flush()
        return subprocess.Popen(
            options,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=os.environ | place,
            start_new_session=True,
        )
