"""Broken options, found by looking at the commands: each is refused by name, before any file is made.

Every option of a number, of a list of numbers, or of a few words gets values that it cannot have.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from outcomes import Outcome, run
from samples import TRAINING, Samples

from flexgs_lightning.cli import COMMANDS
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.training.callbacks import WITH_OPTIONS
from flexgs_lightning.training.densification import MCMC, AdaptiveDensityControl
from flexgs_lightning.training.module import FlexGSModule

WORDS = ("abc", "\x1b[31m", "[[1]]", "{a: 1}", "é" * 300)
INTEGERS = ("-1", "-1000000000000", "1.5", "nan")
FLOATS = ("-1", "nan", "inf", "-inf")
WITH_MCMC = "fit MCMC"
"""``fit`` with the other densification."""


class Case(NamedTuple):
    """A command, one of its options, and a value that it cannot have."""

    command: str
    option: str
    value: str


def all_cases() -> list[Case]:
    """Every option of every command that ``arguments_of`` knows, with each broken value."""
    return [*_training_cases(), *_command_cases()]


def run_case(case: Case, samples: Samples, folder: Path) -> Outcome:
    """Run a command with a broken option; what it makes is made in ``folder``."""
    name = case.option.rpartition(".")[2]
    before = set(folder.rglob("*"))
    arguments = [*arguments_of(case.command, samples, folder), f"--{case.option}={case.value}"]
    outcome = run(arguments, (name, name.replace("_", "-")))
    if outcome.fault is not None:
        return outcome
    if outcome.status == 0:
        return replace(outcome, fault="accepted")
    made = {path for path in folder.rglob("*") if path.name != ".lock"} - before
    if outcome.status != 0 and made:
        return replace(outcome, fault=f"made {sorted(made)[0].name} before the refusal")
    return outcome


def arguments_of(command: str, samples: Samples, folder: Path) -> list[str]:
    """A command line that ends well (or for a server, begins well), to which a broken option is added."""
    first, last = (str(samples.checkpoints[name]) for name in ("first", "last"))
    ply, capture, own = str(samples.splats["ply"]), str(samples.binary), str(samples.run / "config.yaml")
    out = str(folder / "out")
    study = ["--config", own, "--output", out, "--device", "cpu"]
    fit = [f"--data.root={capture}", f"--runs={folder / 'runs'}", *TRAINING]
    given = {
        "fit": fit,
        "export": ["--ckpt", last, "--output", f"{out}.ply"],
        WITH_MCMC: [*fit, "--model.densification=MCMC"],
        "convert": [ply, f"{out}.spz"],
        "render": ["--ply", ply, "--data_root", capture, "--output", out],
        "compress": ["--ckpt", last, "--output", f"{out}.egs"],
        "decompress": [str(samples.elastic), "--output", f"{out}.ply"],
        "info": [str(samples.elastic)],
        "view": ["--ply", ply, "--data_root", capture, "--port", "0"],
        "publish": ["--ckpt", last, "--output", out],
        "serve": [str(samples.site), "--port", "0"],
        "profile": ["--ckpt", last, "--output", f"{out}.json"],
        "data process": [str(samples.video), "--output", out],
        "benchmark": ["mipnerf360", "--root", str(samples.scenes), "--scenes", "garden", "--runs", out],
        "compare": ["--ckpt", first, "--methods", "prune", "--ratios", "1.0", *study],
        "ablate": ["--ckpt", first, "--ratios", "1.0", *study],
        "represent": ["--root", str(samples.films["frames"]), *study],
        "unseen": ["--ckpts", last, *study],
        "rd": ["--ckpt", last, "--systems", "ply", *study],
    }
    words = ["fit"] if command == WITH_MCMC else command.split()
    return [*words, *given[command]]


def _training_cases() -> Iterator[Case]:
    yield from _of_class("model", FlexGSModule)
    yield from _of_class("data", CaptureDataModule)
    for name, kind in WITH_OPTIONS.items():
        yield from _of_class(name, kind)
    yield from _of_class("model.densification", AdaptiveDensityControl)
    yield from (case._replace(command=WITH_MCMC) for case in _of_class("model.densification", MCMC))
    for name in ("seed_everything", "trainer.log_every_n_steps", "trainer.devices"):
        yield from (Case("fit", name, value) for value in ("-5", "1.5", "abc"))
    for name in ("max_steps", "max_epochs", "precision", "gradient_clip_val", "accumulate_grad_batches"):
        yield Case("fit", f"trainer.{name}", "5")


def _command_cases() -> Iterator[Case]:
    for command in COMMANDS:
        if command in ("demo", "data download"):
            continue  # the one has no numbers, the other asks a server
        function = getattr(import_module(f"flexgs_lightning.{COMMANDS[command]}"), command.split()[-1])
        for option, parameter in inspect.signature(function).parameters.items():
            for value in _values(parameter.annotation):
                yield Case(command, option, value)
    for option in ("ratio", "max_gaussians", "max_megabytes"):
        yield from (Case("export", option, value) for value in (*FLOATS, "0", "abc", "1k2"))


def _of_class(prefix: str, kind: type) -> Iterator[Case]:
    hints: dict[str, Any] = (
        {field.name: field.type for field in fields(kind)}
        if is_dataclass(kind)
        else {name: each.annotation for name, each in inspect.signature(kind).parameters.items()}
    )
    for name, hint in hints.items():
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _of_class(f"{prefix}.{name}", hint)
        elif name != "seed":
            yield from (Case("fit", f"{prefix}.{name}", value) for value in _values(hint))


def _values(hint: Any) -> Iterator[str]:
    """Values that an option of this type cannot have."""
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
    kinds |= {item for kind in kinds if get_origin(kind) in (list, tuple) for item in get_args(kind)}
    if kinds & {int, float}:
        yield from (*(FLOATS if float in kinds else INTEGERS), *WORDS)
    elif bool in kinds or any(get_origin(kind) is Literal for kind in kinds):
        yield from ("abc", "7", "nan")
