"""What density control refuses: impossible options, optimizers that do not fit, ruinous prunes."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from flexgs_lightning.errors import InputError

MIN_GAUSSIANS = 10
"""A scene of fewer Gaussians is a training gone wrong: nothing is pruned below this."""
MIN_KEPT_FRACTION = 0.01
"""No single prune may leave less than this part of the Gaussians."""

REQUIRED_PARAMETERS = ("means", "quats", "scales", "opacities")


def check_option(name: str, value: object, valid: bool, expected: str) -> None:
    """Raise InputError that names the option unless ``valid``."""
    if not valid:
        raise InputError(f"model.densification.{name}: expected {expected}, found {value}.")


def check_number(name: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    """Raise InputError unless ``value`` is finite and ``low <= value < high``."""
    bounds = f"a number of at least {low:g}" + (f" and below {high:g}" if high < math.inf else "")
    check_option(name, value, math.isfinite(value) and low <= value < high, bounds)


def check_optimizers(
    params: nn.ParameterDict, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, torch.optim.Optimizer]:
    """The optimizer of each trainable parameter, by its name.

    Raises:
        ValueError: a parameter has no optimizer to itself.
    """
    missing = [name for name in REQUIRED_PARAMETERS if name not in params]
    if missing:
        raise ValueError(f"densification: expected parameters {REQUIRED_PARAMETERS}, missing {missing}.")
    own = {}
    for name, param in params.items():
        if not param.requires_grad:
            continue
        holders = [o for o in optimizers if any(p is param for g in o.param_groups for p in g["params"])]
        if len(holders) != 1 or [len(group["params"]) for group in holders[0].param_groups] != [1]:
            raise ValueError(f"densification: expected one optimizer for params['{name}'] and nothing else.")
        own[name] = holders[0]
    return own


def check_enough_left(count: int, lost: int, completed: int, reason: str) -> None:
    """Raise InputError if losing ``lost`` of ``count`` Gaussians means that training has failed."""
    left, needed = count - lost, max(MIN_GAUSSIANS, math.ceil(MIN_KEPT_FRACTION * count))
    if left < needed:
        raise InputError(
            f"densification: at step {completed}, {lost} of {count} Gaussians would go ({reason}), "
            f"leaving {left}; expected at least {needed}. Training has degenerated: check the learning "
            f"rates, the cameras and the densification thresholds."
        )
