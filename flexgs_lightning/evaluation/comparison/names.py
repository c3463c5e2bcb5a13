"""Methods by name: what ``--methods`` takes, and the configs behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.comparison.methods import (
    Elastic,
    Finetuning,
    IterativePruningMethod,
    Method,
    Pruning,
    Scratch,
    is_file,
)
from flexgs_lightning.evaluation.scores import Score
from flexgs_lightning.evaluation.training import Settings, merged
from flexgs_lightning.settings import read_config

ELASTIC_CONFIGS = {
    "flexgs": "flexgs.yaml",
    "flexgs-paper": "flexgs_paper.yaml",
    "matryoshka": "matryoshka.yaml",
}
"""Files below the folder of configs that hold the elastic methods' settings."""
ABLATIONS = "ablations"
SCRATCH = "scratch:mcmc"
ELASTIC_SETTINGS = ("elastic", "elastic_training")
SCHEDULES = ("importance_refresh", "temperature")


def parse_methods(names: Sequence[str], configs: Path) -> list[Method]:
    """Methods by name.

    ``prune`` and ``prune-finetune`` take a score after a colon (``prune:opacity``; removal by default).
    ``iterative``, ``scratch:mcmc``, ``matryoshka``, ``flexgs`` and ``flexgs-paper`` stand alone. A path of a
    YAML file is an elastic method of its own, and ``flexgs+name`` lays ``ablations/flexgs/name.yaml`` over
    ``flexgs``.

    Args:
        names: as they are asked for.
        configs: folder of the elastic methods' settings.

    Raises:
        InputError: an unknown or repeated name, or a config that cannot be read.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"--methods: expected different methods, found {' '.join(names) or 'none'}.")
    methods = [_method(name, configs) for name in names]
    folders = [method.folder for method in methods]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise InputError(f"--methods: two of them would share the folder '{twice}'; rename one config.")
    return methods


def ablations(bases: Sequence[str], configs: Path) -> list[str]:
    """Names of the bases, each followed by its ablations.

    Raises:
        InputError: a base without ablations.
    """
    names = []
    for base in bases:
        overlays = sorted((configs / ABLATIONS / base).glob("*.yaml"))
        if not overlays:
            raise InputError(f"{configs / ABLATIONS / base}: there are no ablations of '{base}'.")
        names += [base, *(f"{base}+{path.stem}" for path in overlays)]
    return names


def _method(name: str, configs: Path) -> Method:
    kind, colon, score = name.partition(":")
    if kind in ("prune", "prune-finetune"):
        if colon and score not in get_args(Score):
            raise InputError(
                f"--methods {name}: expected a score of {', '.join(get_args(Score))}, found '{score}'."
            )
        chosen: Any = score or "removal"
        return Pruning(name, chosen) if kind == "prune" else Finetuning(name, chosen)
    if name == "iterative":
        return IterativePruningMethod(name)
    if name == SCRATCH:
        return Scratch(name)
    return Elastic(name, elastic_settings(name, configs))


def elastic_settings(name: str, configs: Path) -> Settings:
    """What a config says of the second stage; capture, first stage and hardware are the study's."""
    base, *overlays = [name] if is_file(name) else name.split("+")
    files = [_config_file(name, base, configs)]
    for overlay in overlays:
        path = configs / ABLATIONS / base / f"{overlay}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml"))) or "none"
            raise InputError(f"--methods {name}: no such file {path}; ablations of '{base}': {known}.")
        files.append(path)
    config = merged({}, *(read_config(path) for path in files))
    model = {key: value for key, value in config.get("model", {}).items() if key in ELASTIC_SETTINGS}
    if "elastic_training" not in model:
        raise InputError(f"{files[0]}: expected a config with model.elastic_training, found none.")
    return {"model": model, **{key: config[key] for key in SCHEDULES if key in config}}


def _config_file(name: str, base: str, configs: Path) -> Path:
    if base in ELASTIC_CONFIGS:
        path = configs / ELASTIC_CONFIGS[base]
        if not path.is_file():
            raise InputError(f"{path}: no such file; --configs names the folder of the methods' settings.")
        return path
    if is_file(base):
        return Path(base)
    known = ("prune", "prune-finetune", "iterative", SCRATCH, *ELASTIC_CONFIGS)
    raise InputError(f"--methods {name}: expected {', '.join(known)} or a YAML file, found '{base}'.")
