"""Rounding to multiples of a step that gradients pass."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import shown

Rounding = Literal["noise", "straight_through"]
"""How training stands in for rounding.

"noise": uniform noise as wide as a step, v + U(-Q/2, Q/2) (Ballé et al. 2017), which also suits grids that
are not fixed; "straight_through": rounded values, with the gradient of the others (Bengio et al. 2013).
"""


def require_rounding(name: str) -> None:
    """Refuse what is none.

    Raises:
        InputError: with what there is.
    """
    if name not in get_args(Rounding):
        raise InputError(f"rounding: expected {' or '.join(get_args(Rounding))}, found {shown(name)}.")


def rounded(
    values: Tensor,
    steps: Tensor | float,
    rounding: Rounding = "noise",
    training: bool = True,
) -> Tensor:
    """Values as a coder with these steps would give them back.

    Differentiable in training, in the steps as well: a value that is n steps and a rest moves by n with its
    step ("straight_through", Esser et al. 2020), or by its noise.

    Args:
        values: any numbers.
        steps: positive, of a shape that broadcasts to that of the values.
        rounding: what training does; noise comes from torch's global generator.
        training: False for the nearest multiples of the steps.
    """
    if training and rounding == "noise":
        return values + (torch.rand_like(values) - 0.5) * steps
    share = values / steps
    whole = share.round()
    return whole * steps if not training else (share + (whole - share).detach()) * steps
