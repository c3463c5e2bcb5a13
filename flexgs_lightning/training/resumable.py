"""Whether training can go on from what a checkpoint holds: the loops of the trainer, the moments of Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import parsed, shown
from flexgs_lightning.training.callbacks.clock import ClockState, TrainingClock


def require_resumable(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse what Lightning would stumble over, or begin anew without a word.

    Raises:
        InputError: there are no optimizers' states or loops, these are not Lightning's, or count other steps.
    """
    path = trainer.ckpt_path
    for name in ("optimizer_states", "loops", "lr_schedulers"):
        if name not in checkpoint or (name == "optimizer_states" and not checkpoint[name]):
            raise InputError(
                f"{path}: there is no field {name}: a training cannot go on from it, but start anew "
                "from its scene with --start_from."
            )
    clock = checkpoint.get("callbacks", {}).get(TrainingClock.__qualname__)
    if clock is not None:
        parsed(f"{path}: callbacks.TrainingClock", clock, ClockState)
    loops = checkpoint["loops"].get("fit_loop")
    _require_like(f"{path}: loops.fit_loop", loops, trainer.fit_loop.state_dict())
    steps = loops["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"]
    if steps != checkpoint["global_step"]:
        raise InputError(
            f"{path}: global_step: {checkpoint['global_step']}, but its loops count {steps} steps."
        )


def _require_like(where: str, found: Any, expected: Any) -> None:
    """Refuse values of another make than those that Lightning itself has now; lists may have any length."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, value in expected.items():
            if name not in found:
                raise InputError(f"{where}: there is no field {name}.")
            _require_like(f"{where}.{name}", found[name], value)
    elif type(found) is not type(expected) or (type(found) is int and found < 0):
        kind = type(expected).__name__
        raise InputError(f"{where}: expected {kind} as Lightning writes it, found {str(found)[:40]!r}.")


def check_moments(
    path: Any, states: Sequence[Mapping[str, Any]], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Refuse optimizers' states that are not those of these optimizers, before fused kernels run over them.

    Raises:
        InputError: another number of optimizers or parameters; moments of other shapes, NaN, infinite, or
            below zero where there are squares. A parameter that was never drawn has none.
    """
    if len(states) != len(optimizers):
        raise InputError(f"{path}: optimizer_states: expected {len(optimizers)}, found {len(states)}.")
    for index, (state, optimizer) in enumerate(zip(states, optimizers, strict=True)):
        where = f"{path}: optimizer_states[{index}]"
        counts = [len(group["params"]) for group in optimizer.param_groups]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        found = [len(group["params"]) for group in state["param_groups"]]
        if found != counts or numbers != list(range(sum(counts))):
            raise InputError(f"{where}.param_groups: expected {counts} parameters, found {found}.")
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
            for name, value in own.items():
                if name != "params":
                    _require_setting(f"{where}.param_groups: {name}", group.get(name), value)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, moments in state["state"].items():
            if number >= len(parameters):
                raise InputError(f"{where}.state: there is no parameter {number} of {len(parameters)}.")
            _require_moments(f"{where}.state[{number}]", moments, parameters[number])


def _require_setting(where: str, found: Any, own: Any) -> None:
    """A group's number, flag or name is of its type, and a rate is one."""
    numbers = (int, float)
    if isinstance(own, numbers) and not isinstance(own, bool):
        good = isinstance(found, numbers) and not isinstance(found, bool) and 0 <= found < 1e30
    elif isinstance(own, tuple):
        good = isinstance(found, (list, tuple)) and len(found) == len(own)
        good = good and all(isinstance(beta, numbers) and 0 <= beta < 1 for beta in found)
    else:
        good = found == own or own is None
    if not good:
        raise InputError(f"{where}: expected {own!r} or another of its kind, found {str(found)[:40]!r}.")


def _require_moments(where: str, moments: Mapping[str, Any], parameter: Tensor) -> None:
    for name in ("step", "exp_avg", "exp_avg_sq"):
        value = moments.get(name)
        shape = torch.Size() if name == "step" else parameter.shape
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float32:
            found = tuple(value.shape) if isinstance(value, Tensor) else shown(value)
            raise InputError(f"{where}.{name}: expected {tuple(shape)} float32, found {found}.")
        if value.numel():
            low, high = (float(bound) for bound in value.aminmax())
            if not (abs(low) < float("inf") and abs(high) < float("inf")) or (name != "exp_avg" and low < 0):
                raise InputError(f"{where}.{name}: values from {low} to {high}; expected finite moments.")
