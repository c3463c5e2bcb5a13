"""The coarsest steps that keep a promise: a loss of PSNR at every level, or a number of bytes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.encoder import Encoding, Plan, encode, make_plan
from flexgs_lightning.codec.refinement import STEPS, refined
from flexgs_lightning.codec.sensitivity import measure_sensitivity
from flexgs_lightning.codec.steps import StepRule
from flexgs_lightning.codec.views import Judged, mean_psnr
from flexgs_lightning.errors import InputError

SAMPLES = 2
"""Random images a view for sensitivities."""
FIRST_LOSS = 0.05
"""Predicted loss in dB that the search starts from."""
PREFIX_LOSS = 0.2
"""Loss in dB allowed at levels below the full model, if the full model's is larger."""
ROUNDS = 6
FACTS_BYTES = 1024
"""Room left for a file's facts."""
CLOSE = 0.92
"""A loss from this share of what is allowed up to it ends the search."""
FURTHER = 1.5
"""How much more than allowed may be lost before a refinement, at first."""
REFINEMENTS = 2
"""Refinements that are tried."""
SLACK = 1.05
"""A smaller level may exceed what is allowed by this factor: with few views its loss is not smooth in the
steps. The full model may not."""
BALANCE = {"opacities": 1.25, "means": 1.0, "rotations": 1.1, "sh0": 1.3, "sh_rest": 0.82}
"""Steps of attributes relative to the predicted ones: errors of different numbers are not quite independent.
Where one more byte gains the same with each, found on training views of one capture."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a search ends with.

    Attributes:
        encoding: the file.
        psnr: of the uncoded and the coded model by level's ratio, on the judging views.
        rule: the steps.
    """

    encoding: Encoding
    psnr: dict[float, tuple[float, float]]
    rule: StepRule


def plan_for(
    arrays: ElasticModelArrays,
    measuring: Sequence[Judged],
    device: torch.device,
    seed: int = 0,
    loss: float = FIRST_LOSS,
    prefix_loss: float | None = None,
) -> Plan:
    """Measure sensitivities and fit everything but the quality.

    Args:
        arrays: a whole model.
        measuring: views, of training.
        device: where to draw.
        seed: of the random images.
        loss: predicted loss in dB of the plan's steps at full size.
        prefix_loss: the same at smaller levels; None for ``loss``.
    """
    sensitivities, harms = [], []
    smaller = [loss if prefix_loss is None else prefix_loss] * (len(arrays.levels) - 1)
    for level, allowed in zip(arrays.levels, [*smaller, loss], strict=True):
        sensitivities.append(
            measure_sensitivity(arrays, measuring, level.ratio, samples=SAMPLES, seed=seed, device=device)
        )
        error = 10 ** (-mean_psnr(arrays, level.ratio, measuring, device) / 10)
        numbers = len(level.values) * (level.values.shape[1] + 3 * arrays.sh_rest.shape[1])
        # Each number costs S step^2 / 24 if S is the second derivative and its error is uniform.
        harms.append(math.sqrt(error * (10 ** (allowed / 10) - 1) * 24 / numbers))
    return make_plan(arrays, sensitivities, tuple(harms), BALANCE)


def search_loss(
    plan: Plan,
    judging: Sequence[Judged],
    device: torch.device,
    psnr_loss: float,
    prefix_loss: float | None = None,
    report: Callable[[str], None] = log.info,
) -> Found:
    """The smallest file whose levels lose no more PSNR than allowed on the judging views.

    Levels hardly depend on each other's steps, and losses grow with the square of steps, so all levels are
    adjusted at once. If the last round is still above, the best round that was not is taken.

    Args:
        plan: see ``plan_for``.
        judging: training views that the plan has not seen.
        device: where to draw.
        psnr_loss: allowed at full size, in dB.
        prefix_loss: allowed at smaller levels; None for the smaller of ``psnr_loss`` and ``PREFIX_LOSS``.
        report: takes a line for people a round.

    Raises:
        InputError: a loss that is not positive.
    """
    prefix_loss = min(psnr_loss, PREFIX_LOSS) if prefix_loss is None else prefix_loss
    for name, loss in (("psnr_loss", psnr_loss), ("prefix_psnr_loss", prefix_loss)):
        if not (math.isfinite(loss) and loss > 0):
            raise InputError(f"{name}: expected a positive number of dB, found {loss}.")
    ratios = [level.ratio for level in plan.arrays.levels]
    uncoded = [mean_psnr(plan.arrays, ratio, judging, device) for ratio in ratios]
    allowed = [prefix_loss] * (len(ratios) - 1) + [psnr_loss]
    factors = [1.0] * len(ratios)
    best: Found | None = None
    for round_ in range(2 * ROUNDS):
        rule = plan.rule.scaled(tuple(factors))
        encoding = encode(plan, rule)
        coded = [mean_psnr(encoding.decoded, ratio, judging, device) for ratio in ratios]
        losses = [before - after for before, after in zip(uncoded, coded, strict=True)]
        size = encoding.size()
        report(_round_line(size, plan.arrays.total, ratios, losses))
        shares = [loss / limit for loss, limit in zip(losses, allowed, strict=True)]
        good = shares[-1] <= 1 and max(shares) <= SLACK
        if good and (best is None or size < best.encoding.size()):
            psnr = dict(zip(ratios, zip(uncoded, coded, strict=True), strict=True))
            best = Found(encoding, psnr, rule)
        if best is not None and (round_ + 1 >= ROUNDS or (good and min(shares) >= CLOSE)):
            return best
        aim = 0.97 if round_ < ROUNDS else 0.8
        factors = [
            factor * min(max(math.sqrt(aim / max(share, 0.05)), 0.5), 2.0)
            for factor, share in zip(factors, shares, strict=True)
        ]
    if best is None:
        raise InputError(
            f"psnr_loss: {psnr_loss} dB is not reached even with the finest steps; allow a larger loss."
        )
    return best


def search_refined(
    plan: Plan,
    measuring: Sequence[Judged],
    judging: Sequence[Judged],
    device: torch.device,
    psnr_loss: float,
    prefix_loss: float | None = None,
    steps: int = STEPS,
    report: Callable[[str], None] = log.info,
) -> Found:
    """As ``search_loss``, with spherical harmonics refined at the steps that it ends with.

    Refinement gains back a part of the loss, so the search before it may go further; how much further is
    tried, because a refinement is only good for the steps that it was made for.

    Args:
        plan: see ``plan_for``.
        measuring: views to refine on; not those that judge.
        judging: as in ``search_loss``.
        device: where to draw.
        psnr_loss: as in ``search_loss``.
        prefix_loss: as in ``search_loss``.
        steps: images that a refinement draws; 0 for none.
        report: as in ``search_loss``.

    Raises:
        InputError: as ``search_loss``.
    """
    if prefix_loss is None:
        prefix_loss = min(psnr_loss, PREFIX_LOSS)
    if steps == 0:
        return search_loss(plan, judging, device, psnr_loss, prefix_loss, report)
    further = FURTHER
    for _ in range(REFINEMENTS):
        found = search_loss(plan, judging, device, psnr_loss * further, prefix_loss, report)
        better = refined(plan, found.encoding, measuring, device, steps)
        encoding = encode(better, found.rule)
        coded = {ratio: mean_psnr(encoding.decoded, ratio, judging, device) for ratio in found.psnr}
        losses = [found.psnr[ratio][0] - after for ratio, after in coded.items()]
        report(f"refined: {_round_line(encoding.size(), plan.arrays.total, list(coded), losses)}")
        if losses[-1] <= psnr_loss and max(losses[:-1], default=0.0) <= SLACK * prefix_loss:
            psnr = {ratio: (found.psnr[ratio][0], after) for ratio, after in coded.items()}
            return Found(encoding, psnr, found.rule)
        further = max(1.0, 0.95 * further * psnr_loss / losses[-1])
    return search_loss(plan, judging, device, psnr_loss, prefix_loss, report)


def search_bytes(
    plan: Plan, limit: float, report: Callable[[str], None] = log.info
) -> tuple[Encoding, StepRule]:
    """The finest steps whose file keeps within a number of bytes, and the file; one factor for all levels.

    Raises:
        InputError: not even very coarse steps do.
    """
    total = plan.arrays.total
    levels = len(plan.arrays.levels)
    room = limit - FACTS_BYTES
    low, high = -8.0, 8.0  # log2 of the factor: the finest and the coarsest
    rule = plan.rule.scaled((2.0**high,) * levels)
    best = encode(plan, rule), rule
    if best[0].size() > room:
        raise InputError(
            f"max_megabytes: {limit / 1e6:g} is too little for {total:,} Gaussians; even coarse steps take "
            f"{best[0].size() / 1e6:.3f} MB. Export fewer Gaussians."
        )
    middle = 0.0
    for _ in range(2 * ROUNDS):
        rule = plan.rule.scaled((2.0**middle,) * levels)
        encoding = encode(plan, rule)
        size = encoding.size()
        report(f"{size / 1e6:.3f} MB, {size / total:.2f} bytes a Gaussian")
        if size <= room:
            best, high = (encoding, rule), middle
            if size >= 0.99 * room or high - low < 0.01:
                break
        else:
            low = middle
        # A step twice as large takes about 2.5 bytes off a Gaussian.
        middle = min(
            max(middle + (size - room) / total / 2.5 + 0.02, low + 0.2 * (high - low)),
            high - 0.1 * (high - low),
        )
    return best


def search_bytes_refined(
    plan: Plan,
    measuring: Sequence[Judged],
    device: torch.device,
    limit: float,
    steps: int = STEPS,
    report: Callable[[str], None] = log.info,
) -> Encoding:
    """As ``search_bytes``, with spherical harmonics refined at the steps that it ends with.

    Refined harmonics may take a little more; then steps are found for less, until the file keeps within its
    bytes.

    Args:
        plan: see ``plan_for``.
        measuring: views to refine on.
        device: where to draw.
        limit: bytes of the file.
        steps: images that the refinement draws; 0 for none.
        report: takes a line for people a round.

    Raises:
        InputError: as ``search_bytes``.
    """
    aim = limit
    for _ in range(REFINEMENTS if steps else 0):
        found, rule = search_bytes(plan, aim, report)
        encoding = encode(refined(plan, found, measuring, device, steps), rule)
        report(
            f"refined: {encoding.size() / 1e6:.3f} MB, {encoding.size() / plan.arrays.total:.2f} bytes each"
        )
        if encoding.size() <= limit - FACTS_BYTES:
            return encoding
        aim -= 1.1 * (encoding.size() - (limit - FACTS_BYTES))
    return search_bytes(plan, limit, report)[0]


def _round_line(size: int, total: int, ratios: Sequence[float], losses: Sequence[float]) -> str:
    lost = ", ".join(f"{100 * ratio:g} % {loss:.3f}" for ratio, loss in zip(ratios, losses, strict=True))
    return f"{size / 1e6:.3f} MB, {size / total:.2f} bytes a Gaussian; dB lost at {lost}"
