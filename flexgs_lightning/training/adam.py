"""Adam for Gaussians: on the CPU one pass over memory, which is all that a step's time consists of there."""

# mypy: disallow-untyped-defs=False
# Kernels are typed by numba, which compiles them for the arguments that it sees.
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from flexgs_lightning.jit import Work, compiler, next_item, run_all

_ITEM = 32_768
"""Numbers in one work item, about."""
_RUN = 1024
"""Numbers of one rate that stand together where all have it."""

_exactly = compiler(fastmath={"contract"})
"""A kernel whose operations stay in their order, as there are no sums to vectorise."""


class GaussianAdam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015) whose rate may be another for the first number of each Gaussian.

    A group's ``rest``, 1 unless given, is the share of its rate that all but the first along the second
    dimension have: the constant coefficients of [N, K, 3] spherical harmonics learn faster than the others.
    Splitting the tensor in two instead would cost a copy of all harmonics each time they are drawn.

    On the CPU a step is one kernel for each tensor. Torch's takes as long for the numbers, but before it
    begins looks for a GPU in each call, which lasts longer than the numbers of a small scene.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """Describe what is learned.

        Args:
            groups: as torch's optimizers take them, with ``rest`` where there are two rates.
        """
        super().__init__(groups, eps=1e-15, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move each parameter that has a gradient, at its group's ``lr``."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        if self.is_at_hand:
            run_all(self.moves())
        else:
            self._descend_elsewhere()

    @property
    def is_at_hand(self) -> bool:
        """Whether a step is ``moves``: all parameters are on the CPU."""
        return all(_is_at_hand(parameter) for group in self.param_groups for parameter in group["params"])

    def moves(self) -> list[Work]:
        """A step's work, counted as done; each parameter's is independent of the others'."""
        return [
            self._move_of(parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    def _move_of(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Work:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        step = float(state["step"].numpy())  # the host has it: nothing to wait for
        rates = _rates(parameter, group["lr"] / (1 - beta1**step), group.get("rest", 1.0))
        item = max(1, _ITEM // len(rates)) * len(rates)
        tensors = parameter.data, gradient.contiguous(), state["exp_avg"], state["exp_avg_sq"]
        arrays = [tensor.view(-1).numpy() for tensor in tensors]
        root = 1 / math.sqrt(1 - beta2**step)
        factors = (np.float32(value) for value in (1 - beta1, beta2, 1 - beta2, root, group["eps"]))
        return Work(_move, -(-parameter.numel() // item), (item, *arrays, rates, *factors))

    def _descend_elsewhere(self) -> None:
        """Torch's own step, at the smaller rate, prolonged for the first numbers where there are two.

        That is exact to the rounding of the step.
        """
        two = [group for group in self.param_groups if group.get("rest", 1.0) != 1.0]
        first = [(p, p[:, :1].clone(), group["rest"]) for group in two for p in group["params"]]
        rates = [group["lr"] for group in two]
        for group in two:
            group["lr"] *= group["rest"]
        super().step()
        for group, rate in zip(two, rates, strict=True):
            group["lr"] = rate
        for parameter, before, rest in first:
            parameter[:, :1] = before.lerp(parameter[:, :1], 1 / rest)


@torch.no_grad()
def step_together(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Step them all; those of Gaussians on the CPU as one piece of work."""
    moves: list[Work] = []
    for optimizer in optimizers:
        if isinstance(optimizer, GaussianAdam) and optimizer.is_at_hand:
            moves += optimizer.moves()
        else:
            optimizer.step()
    run_all(moves)


def _is_at_hand(parameter: Tensor) -> bool:
    return parameter.device.type == "cpu" and parameter.dtype == torch.float32 and parameter.is_contiguous()


def _rates(parameter: Tensor, rate: float, rest: float) -> Float32[np.ndarray, " R"]:
    """Rates of numbers that adjoin in memory; they repeat from there on."""
    if rest == 1.0:
        return np.full(_RUN, rate, np.float32)
    rates = np.full(parameter[0].numel() if len(parameter) else 1, rate * rest, np.float32)
    rates[: len(rates) // max(1, parameter.shape[1])] = rate
    return rates


@_exactly
def _move(
    counter, count, item, values, gradients, means, squares, rates, gain, keep, gain2, root, eps
):  # fmt: skip
    """Adam's step for flat arrays [M], in place; ``rates`` repeat, and divide ``item``."""
    period, total = np.uint64(len(rates)), np.uint64(len(values))
    i = next_item(counter)
    while i < count:
        start, stop = np.uint64(i * item), min(np.uint64((i + 1) * item), total)
        while start < stop:
            for j in range(min(period, stop - start)):
                k = start + j
                gradient = gradients[k]
                mean = means[k] + (gradient - means[k]) * gain
                square = squares[k] * keep + gradient * gradient * gain2
                means[k], squares[k] = mean, square
                values[k] -= rates[j] * mean / (np.sqrt(square) * root + eps)
            start += period
        i = next_item(counter)
