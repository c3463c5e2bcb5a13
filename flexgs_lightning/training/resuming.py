"""Going on from a checkpoint: which options may be others than before, and what becomes of the rest.

A checkpoint holds the options that it was trained with (``training_options``). ``check_resume`` compares them
with those given now, before the first iteration: what may change changes, what no longer matters is listed,
and everything else is refused with both values. Options that an older release did not have count as their
defaults, which leave everything as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY
from flexgs_lightning.training.callbacks import WITH_OPTIONS
from flexgs_lightning.training.options import plain_arguments, plain_defaults
from flexgs_lightning.training.resumable import require_resumable
from flexgs_lightning.training.scene_module import SceneModule

log = logging.getLogger(__name__)

Role = Literal["free", "fixed", "start", "first", "second", "third", "length", "place", "views"]

ROLES: dict[str, Role] = {
    "model.reconstruction_steps": "length",
    "model.sh_degree": "fixed",
    "model.sh_degree_interval": "first",
    "model.background": "fixed",
    "model.antialiased": "fixed",
    "model.ssim_weight": "fixed",
    "model.learning_rates": "fixed",
    "model.densification": "first",
    "model.guided_sampling": "first",
    "model.initialization": "start",
    "model.motion": "fixed",
    "model.appearance": "fixed",
    "model.elastic": "second",
    "model.elastic_training": "second",
    "model.elastic_training.steps": "length",
    "model.compression": "third",
    "model.compression_training": "third",
    "model.compression_training.steps": "length",
    "model.clearance": "first",
    "model.camera_colors": "fixed",
    "model.lpips": "free",
    "model.validation_lpips": "free",
    "model.lpips_weights": "free",
    "model.seed": "fixed",
    "data.root": "place",
    "data.downscale": "fixed",
    "data.test_every": "fixed",
    "data.protocol": "free",
    "data.batch_size": "free",
    "data.cache_megabytes": "free",
    "data.device_megabytes": "free",
    "data.num_workers": "free",
    "data.seed": "fixed",
    "data.images": "fixed",
    "data.masks": "fixed",
    "data.name": "free",
    "data.cameras": "fixed",
    "data.views": "fixed",
    "data.view_size": "fixed",
    "data.frames": "fixed",
    "data.near_plane": "fixed",
    "importance_refresh": "second",
    "temperature": "second",
    "validation_images": "free",
    "interruption": "free",
    "elastic_validation": "free",
    "replica_check": "free",
    "checkpoint": "free",
    "views": "views",
}
"""What a resume makes of each option, or of all options below a name unless they have a line of their own.

free    may change at any time: measuring, showing, saving, memory, how many processes share the work
fixed   shapes the whole training, learning rates included: they lie in the optimizers' states
start   has done its work when training begins
first   shapes the first stage; fixed in it, and without effect afterwards
second  shapes the elastic stage and what follows; free before it, and fixed in it
third   shapes the compression stage; free before it, and fixed in it
length  of a stage: may change as long as the stage is not over, to no less than what is done
place   a folder: may change if the capture has moved there
views   views of an iteration over all processes: free unless learning rates follow them
"""
_LENGTHS = ("model.reconstruction_steps", "model.elastic_training.steps", "model.compression_training.steps")
"""Lengths of the stages."""
_SHOWN = 8
"""Options that a refusal lists."""


def role_of(name: str) -> Role:
    """Role of an option, by its own line or that of what it belongs to.

    Raises:
        KeyError: it is in no line.
    """
    while name not in ROLES:
        if "." not in name:
            raise KeyError(name)
        name = name.rpartition(".")[0]
    return ROLES[name]


def training_options(module: SceneModule) -> dict[str, Any]:
    """All options of a training by dotted name, as plain values; for its checkpoints."""
    options = _options(module, module.options, plain_arguments)
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    place = {"data.root": str(Path(data.root).resolve())}
    return options | place | {"views": data.batch_size * module.trainer.world_size}


def _default_options(module: SceneModule) -> dict[str, Any]:
    """What these options are by default, for a module's kind of densification."""
    own = dict.fromkeys(module.options) | {"densification": module.densification}
    return _options(module, plain_defaults(SceneModule, own), plain_defaults)


def _options(
    module: SceneModule, own: dict[str, Any], plain: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """A module's options, and those of the data module and callbacks as ``plain`` finds them."""
    trainer: Trainer = module.trainer
    data = trainer.datamodule  # type: ignore[attr-defined]
    options: dict[str, Any] = {"model": own, "data": plain(type(data), vars(data))}
    for name, kind in WITH_OPTIONS.items():
        given = next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
        options[name] = {} if given is None else plain(kind, vars(given))
    return _flat(options)


def check_resume(module: SceneModule, checkpoint: Mapping[str, Any]) -> None:
    """Compare a checkpoint that training goes on from with the options given now.

    Raises:
        InputError: an option differs that cannot change any more.
    """
    if module.trainer.state.fn != TrainerFn.FITTING:
        return
    require_resumable(module.trainer, checkpoint)
    done = int(checkpoint["global_step"])
    recorded = checkpoint[CHECKPOINT_KEY].get("options")
    if recorded is None:
        log.warning(
            "The checkpoint does not say its options (it is older): they are taken as they are given."
        )
    else:
        now, defaults = training_options(module), _default_options(module)
        implied = {name: defaults[name] for name in now if name in defaults}  # of options that came later
        _compare(implied | recorded, now, done, module.trainer.ckpt_path)
    stages = module.stages
    if done >= stages.total:
        log.warning(
            "Nothing is left to train: the checkpoint is at step %d, and all stages have %d (%d, %d and %d).",
            done,
            stages.total,
            *astuple(stages),
        )


def _compare(then: Mapping[str, Any], now: Mapping[str, Any], done: int, path: Any) -> None:
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    second = done > then["model.reconstruction_steps"]
    refused = [name for name in changed if not _may_change(name, then, now, done, second)]
    if refused:
        raise InputError(_refusal(path, refused, then, now, done))
    for name in changed:
        role = role_of(name) if name in then and name in now else "free"
        if role == "start" or (role == "first" and second):
            log.warning("%s: %s comes too late, trained with %s.", name, now.get(name), then.get(name))
        elif role != "views":
            log.info("%s: %s from now on, %s before.", name, now.get(name), then.get(name))


def _may_change(name: str, then: Mapping[str, Any], now: Mapping[str, Any], done: int, second: bool) -> bool:
    """Whether the option may be another from iteration ``done`` on, in or before the second stage."""
    try:
        role = role_of(name)
    except KeyError:  # of another release, or of a class of the user's own
        return name not in then or name not in now
    if role == "first":
        return second
    if role == "second":
        return not second
    third = done > sum(then.get(stage, 0) for stage in _LENGTHS[:2])
    if role == "third":
        return not third
    if role == "place":
        old, new = Path(then[name]), Path(now[name])
        return old.name == new.name and not old.exists()
    if role == "views":
        return now["model.learning_rates.batch_rule"] == "constant"
    if role == "length":
        begun = (True, second, third)  # a stage that has begun may end no earlier than it has come
        place = _LENGTHS.index(name)
        over = any(begun[place + 1 :])
        end = sum(then.get(stage, 0) for stage in _LENGTHS[:place]) + now.get(name, 0)
        return not begun[place] or (not over and end >= done)
    return role in ("free", "start")


def _refusal(
    path: Any, names: Sequence[str], then: Mapping[str, Any], now: Mapping[str, Any], done: int
) -> str:
    names = sorted(names, key=lambda name: not name.endswith("steps"))  # lengths tell most
    listed = [f"{name} {_shown(then, name)}, found {_shown(now, name)}" for name in names[:_SHOWN]]
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    own = Path(path).resolve().parents[1] / "config.yaml"
    advice = f"--config {own} takes its options" if own.is_file() else "give the options that it had"
    return (
        f"{path}: after {done} steps, options of its training that cannot change are others now: "
        f"{'; '.join(listed)}{more}. Expected the same: {advice}. A new training can start from its scene "
        "with --start_from."
    )


def _shown(options: Mapping[str, Any], name: str) -> str:
    return str(options[name]) if name in options else "not there"


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in options.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result
