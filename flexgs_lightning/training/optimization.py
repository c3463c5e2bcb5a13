"""Optimizers and learning-rate schedules of the Gaussians."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.residuals import Permutation, reorder_rows
from flexgs_lightning.processes import Shards

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam knows of each number, by its name in a state."""


@dataclass(frozen=True)
class LearningRates:
    """Adam's learning rate for each attribute (the published values of 3DGS).

    Args:
        means: positions at the start, times the scene extent.
        means_final: positions at the end, times the scene extent; exponential in between.
        quats: rotations.
        scales: log-scales.
        opacities: opacity logits.
        sh0: constant colour.
        shN: view-dependent colour.
        batch_rule: what several views in an iteration (``data.batch_size`` times the number of processes) do
            to all learning rates of both stages: "constant" leaves them, "sqrt" multiplies them by the
            square root of the number of views (``scale_to_batch``).
    """

    means: float = 1.6e-4
    means_final: float = 1.6e-6
    quats: float = 1e-3
    scales: float = 5e-3
    opacities: float = 5e-2
    sh0: float = 2.5e-3
    shN: float = 2.5e-3 / 20  # noqa: N815
    batch_rule: Literal["constant", "sqrt"] = "constant"


def gaussian_optimizers(
    gaussians: Gaussians, rates: LearningRates, extent: float, decay: float = 1.0
) -> dict[str, torch.optim.Optimizer]:
    """One Adam for each attribute, as densification expects: its state must be resizable by name.

    Groups know the schedule of their rate (``set_rates``): positions that of ``rates``, the others fall
    exponentially to ``decay`` of their start.
    """
    schedules = {name: falling(getattr(rates, name), decay) for name in gaussians.params}
    schedules["means"] = falling(rates.means * extent, rates.means_final / rates.means)
    return {
        name: torch.optim.Adam(
            [{"params": [parameter], "name": name, "per_gaussian": True} | schedules[name]],
            eps=1e-15,
            fused=True,
        )
        for name, parameter in gaussians.params.items()
    }


def falling(rate: float, share: float) -> dict[str, float]:
    """Entries of a parameter group whose rate falls exponentially to ``share`` of its start over a stage."""
    return {"lr": rate, "initial": rate, "final": rate * share}


def set_rates(optimizers: Iterable[torch.optim.Optimizer], step: int, total: int) -> None:
    """Rates of a stage's iteration ``step`` of ``total``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = exponential_decay(group["initial"], group["final"], step, total)


def scale_to_batch(
    optimizers: Iterable[torch.optim.Optimizer], rule: Literal["constant", "sqrt"], views: int
) -> None:
    """Adjust Adam to the number of views B in an iteration; call once, on fresh optimizers.

    "sqrt": rates times sqrt(B), and both betas to the power of B, so that the moments look as far back in
    views as with one view at a time (Zhao et al. 2024, "On Scaling Up 3D Gaussian Splatting Training",
    section 4.2). It is meant for B times fewer iterations; "constant" for as many, with smoother gradients.
    """
    if rule == "constant" or views == 1:
        return
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial", "final"):
                group[name] *= views**0.5
            group["betas"] = tuple(beta**views for beta in group["betas"])


def step_all(optimizers: Sequence[LightningOptimizer]) -> None:
    """Step every optimizer, but only the first through Lightning, and clear the gradients.

    Lightning's ``global_step`` counts each step of a ``LightningOptimizer``; here it has to count
    iterations, because schedules, logs and checkpoints all read it.
    """
    counted, *others = optimizers
    for optimizer in others:
        optimizer.optimizer.step()
    counted.step()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


def exponential_decay(start: float, end: float, step: int, total: int) -> float:
    """Log-linear interpolation from ``start`` at step 0 to ``end`` at step ``total``.

    A function of the step alone, so that schedules need no state and resume exactly.
    """
    progress = min(max(step / max(total, 1), 0.0), 1.0)
    return float(start ** (1.0 - progress) * end**progress)


def reorder_moments(
    optimizers: Iterable[torch.optim.Optimizer], order: Int[Tensor, " N"], permute: Permutation = reorder_rows
) -> None:
    """Let Adam's moments follow a new order of the Gaussians.

    Parameters with N rows are permuted; those with fewer hold the first of the ranking (``RatioResiduals``),
    where rows that come from beyond start at zero. Parameters of networks have no group that says so.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if group.get("per_gaussian", False):
                for parameter in group["params"]:
                    for name in MOMENTS:
                        if name in optimizer.state[parameter]:
                            permute(optimizer.state[parameter][name], order)


def own_seed(shards: Shards) -> int:
    """A seed for draws that concern this process's own Gaussians, from the global generator.

    Where processes hold different Gaussians, global generators go alike, so that they agree on what concerns
    all, and must be asked for this in all processes.
    """
    return int(torch.randint(2**62, ())) + shards.rank


def seed_generators(seed: int) -> None:
    """Seed torch's generators of the CPU and, if it is in use, of the GPU.

    ``torch.manual_seed`` visits every kind of device, which takes up to a millisecond: too much for every
    iteration.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
