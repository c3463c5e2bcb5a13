"""Optimizers and learning-rate schedules of the Gaussians."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import ATTRIBUTES, Attribute
from flexgs_lightning.model.basis_motion import COEFFICIENTS_RATE
from flexgs_lightning.model.feature_appearance import FEATURES_RATE
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.lifespan import WIDTH_RATE
from flexgs_lightning.model.motion import CENTER, OMEGA, motion_attribute
from flexgs_lightning.processes import Shards
from flexgs_lightning.training.adam import GaussianAdam, step_together

MOST_STEPS = 10**9
"""Iterations of a stage."""
LARGEST_RATE = 1e6
"""Learning rates and weights of losses beyond this are mistakes."""
MEANS, SH = ATTRIBUTES["means"], ATTRIBUTES["sh"]


@dataclass(frozen=True)
class LearningRates:
    """Adam's learning rate for each attribute (the published values of 3DGS and of Spacetime Gaussians).

    Args:
        means: positions at the start, times the scene extent.
        means_final: positions at the end, times the scene extent; exponential in between.
        quats: rotations.
        scales: log-scales.
        opacities: opacity logits.
        sh0: constant colour.
        shN: view-dependent colour.
        motion: coefficients of moving Gaussians' polynomials, times the scene extent.
        omega: their rotation per unit of time.
        time_centers: their own times.
        time_scales: logarithms of their widths in time.
        coefficients: their parts in shared trajectories.
        appearance: features that a network makes colours of.
        batch_rule: what several views in an iteration (``data.batch_size`` times the number of processes) do
            to all learning rates of all stages: "constant" leaves them, "sqrt" multiplies them by the
            square root of the number of views (``scale_to_batch``).
    """

    means: float = MEANS.rate
    means_final: float = MEANS.final_rate or MEANS.rate
    quats: float = ATTRIBUTES["quats"].rate
    scales: float = ATTRIBUTES["scales"].rate
    opacities: float = ATTRIBUTES["opacities"].rate
    sh0: float = SH.rate
    shN: float = SH.rest_rate or SH.rate  # noqa: N815
    motion: float = motion_attribute(3).rate
    omega: float = OMEGA.rate
    time_centers: float = CENTER.rate
    time_scales: float = WIDTH_RATE
    coefficients: float = COEFFICIENTS_RATE
    appearance: float = FEATURES_RATE
    batch_rule: Literal["constant", "sqrt"] = "constant"

    def __post_init__(self) -> None:
        rates = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "batch_rule"
        }
        for name, rate in rates.items():
            if not 0 <= rate < LARGEST_RATE:
                raise InputError(
                    f"model.learning_rates.{name}: expected 0 or more, below {LARGEST_RATE:g}, found {rate}."
                )
        for name in ("means", "sh0", "shN"):  # others are shares of these
            if rates[name] == 0:
                raise InputError(f"model.learning_rates.{name}: expected a positive number, found 0.")

    def of(self, attribute: Attribute) -> tuple[float, float | None, float | None]:
        """Rates of an attribute: at the start, at the end and of the rest; those of the table unless set."""
        if attribute is MEANS:
            return self.means, self.means_final, None
        if attribute is SH:
            return self.sh0, None, self.shN
        rate = getattr(self, attribute.name, attribute.rate)
        return rate, attribute.final_rate, attribute.rest_rate


def gaussian_optimizers(
    gaussians: Gaussians, rates: LearningRates, extent: float, decay: float = 1.0
) -> dict[str, torch.optim.Optimizer]:
    """One Adam for each attribute, by name: density control resets and forgets moments of one of them.

    Groups know the schedule of their rate (``set_rates``): an attribute with a final rate has its own, the
    others fall exponentially to ``decay`` of their start.
    """
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, parameter in gaussians.params.items():
        attribute = gaussians.attributes[name]
        rate, final, rest = rates.of(attribute)
        factor = extent if attribute.times_extent else 1.0
        group = {"params": [parameter], "name": name, "per_gaussian": attribute.per_gaussian}
        group |= falling(rate * factor, decay if final is None else final / rate)
        if rest is not None:
            group["rest"] = rest / rate
        optimizers[name] = GaussianAdam([group])
    return optimizers


def residual_units(
    rates: LearningRates, extent: float, table: Mapping[str, Attribute] = ATTRIBUTES
) -> dict[str, float]:
    """One Adam step of each attribute that can be displaced, as ``RatioResiduals`` wants it."""
    attributes = [attribute for attribute in table.values() if attribute.residual]
    return {a.name: rates.of(a)[0] * (extent if a.times_extent else 1.0) for a in attributes}


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
    step_together(optimizer.optimizer for optimizer in others)
    counted.step()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


def exponential_decay(start: float, end: float, step: int, total: int) -> float:
    """Log-linear interpolation from ``start`` at step 0 to ``end`` at step ``total``.

    A function of the step alone, so that schedules need no state and resume exactly.
    """
    progress = min(max(step / max(total, 1), 0.0), 1.0)
    return float(start ** (1.0 - progress) * end**progress)


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
