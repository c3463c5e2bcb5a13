"""Broken settings and camera paths; see ``kinds``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import yaml
from kinds import accepted, break_file, break_json, judged_call, kind
from mutations import Rng, broken_record
from outcomes import Outcome, run
from samples import TRAINING, Samples

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.opening import read_cameras
from flexgs_lightning.training.callbacks import WITH_OPTIONS

SETTINGS = (
    *("option", "key", "seed", "protocol"),
    *(f"{name}{end}" for name in ("model", "data", "trainer", *WITH_OPTIONS) for end in ".:"),
)
"""Words of which a refusal of settings holds one."""


# -- records -------------------------------------------------------------------------------------------


@kind(6)
def camera_path(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    path = folder / "path.json"
    path.write_bytes(samples.path.read_bytes())
    break_json(path, rng)
    output = folder / "frames"
    options = ["--ply", str(samples.splats["ply"]), "--path", str(path), "--output", str(output)]
    return accepted(run(["render", *options], (path.name,)), lambda: bool(list(output.glob("*.png"))))


@kind(2)
def trainer_cameras(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """What a trainer leaves beside its splat file."""
    path = Path(shutil.copy(samples.trainer_cameras, folder / "cameras.json"))
    break_json(path, rng)
    cameras: list[Cameras] = []
    outcome = judged_call(lambda: cameras.extend(read_cameras(path)), (path.name,))
    return accepted(outcome, lambda: all(bool(each.viewmats.isfinite().all()) for each in cameras))


@kind(3)
def config(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """A YAML file of settings."""
    path = folder / "settings.yaml"
    source = samples.run / "config.yaml"
    if rng.random() < 0.3:
        path.write_bytes(source.read_bytes())
        break_file(path, rng)
    else:
        settings = yaml.safe_load(source.read_text())
        settings.pop("ckpt_path", None)
        path.write_text(yaml.safe_dump(broken_record(settings, rng)))
    options = ["--config", str(path), f"--runs={folder / 'runs'}", f"--data.root={samples.binary}", *TRAINING]
    outcome = run(["fit", *options], (path.name, *SETTINGS))
    if outcome.status != 0 and (folder / "runs").exists():
        return replace(outcome, fault=outcome.fault or "a run folder after a refusal")
    return outcome


@kind(2)
def comparison_config(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """The same file, given to a command that trains by it later."""
    path = folder / "settings.yaml"
    settings = yaml.safe_load((samples.run / "config.yaml").read_text())
    if rng.random() < 0.3:
        path.write_bytes((samples.run / "config.yaml").read_bytes())
        break_file(path, rng)
    else:
        part = {
            "data": {**settings["data"], "test_every": 2},
            "model": {**settings["model"], "lpips": "none"},
        }
        path.write_text(yaml.safe_dump(broken_record(part, rng)))
    ckpt = samples.checkpoints["first"]
    options = [
        "--ckpt",
        str(ckpt),
        "--config",
        str(path),
        "--methods",
        "prune",
        "--ratios",
        "1.0",
        "--steps",
        "1",
    ]
    return run(["compare", *options, "--output", str(folder / "compare")], (path.name, *SETTINGS))
