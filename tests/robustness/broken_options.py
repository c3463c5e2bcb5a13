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
    outcome = run([*arguments_of(case.command, samples, folder), f"--{case.option}={case.value}"], (name,))
    if outcome.fault is not None:
        return outcome
    if outcome.status == 0:
        return replace(outcome, fault="accepted")
    made = {path for path in folder.rglob("*") if path.name != ".lock"} - before
    if outcome.status != 0 and made:
        return replace(outcome, fault=f"made {sorted(made)[0].name} before the refusal")
    return outcome


def arguments_of(command: str, samples: Samples, folder: Path) -> list[str]:
    """A command line that ends well, to which a broken option is added."""
    last, ply = str(samples.checkpoints["last"]), str(samples.splats["ply"])
    given = {
        "fit": [f"--data.root={samples.binary}", f"--runs={folder / 'runs'}", *TRAINING],
        "export": ["--ckpt", last, "--output", str(folder / "out.ply")],
        "convert": [ply, str(folder / "out.spz")],
        "render": ["--ply", ply, "--data_root", str(samples.binary), "--output", str(folder / "frames")],
        "decompress": [str(samples.elastic), "--output", str(folder / "out.ply")],
        "info": [str(samples.elastic)],
        "compare": ["--ckpt", str(samples.checkpoints["first"]), "--methods", "prune", "--ratios", "1.0"],
    }
    if command == "compare":
        given["compare"] += [
            "--config",
            str(samples.run / "config.yaml"),
            "--output",
            str(folder / "compare"),
        ]
    return [command, *given[command]]


def _training_cases() -> Iterator[Case]:
    yield from _of_class("model", FlexGSModule)
    yield from _of_class("data", CaptureDataModule)
    for name, kind in WITH_OPTIONS.items():
        yield from _of_class(name, kind)
    for control in (AdaptiveDensityControl, MCMC):
        yield from _of_class(f"model.densification={control.__name__}", control)
    for name in ("seed_everything", "trainer.log_every_n_steps", "trainer.devices"):
        yield from (Case("fit", name, value) for value in ("-5", "1.5", "abc"))
    for name in ("max_steps", "max_epochs", "precision", "gradient_clip_val", "accumulate_grad_batches"):
        yield Case("fit", f"trainer.{name}", "7")


def _command_cases() -> Iterator[Case]:
    for command in ("export", "convert", "render", "decompress", "info", "compare"):
        function = getattr(import_module(f"flexgs_lightning.{COMMANDS[command]}"), command)
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
