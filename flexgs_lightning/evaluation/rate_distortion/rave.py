"""RAVE (arXiv:2512.07052) on plain Gaussians: nested anchors tuned together, and every rate in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from flexgs_lightning.codec.recipes.halves import read_halves, rounded, write_halves
from flexgs_lightning.codec.recipes.package import bytes_by_attribute
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System, code
from flexgs_lightning.evaluation.rate_distortion.tuning import Tuning, start_of
from flexgs_lightning.evaluation.study import Study, file_digest
from flexgs_lightning.model.budget import count_at

log = logging.getLogger(__name__)

STEPS = 30_000
"""Published iterations of the tuning."""
SMALLEST, LARGEST = 0.05, 0.85
"""Shares of the Gaussians at the first and at the last anchor; what the last one leaves out is lost."""
FINEST_WEIGHT = 8.0
"""How much more often the last anchor is drawn than the first, geometrically in between."""
CONTEXT, GLOBAL = "context", "global"
STATE = "tuned.pt"
CHECKPOINTS = 10


@dataclass(frozen=True)
class Rave(System):
    """Anchors at fixed rates, nested, chosen from the finest down by the gradient in each one's own render.

    All are tuned together, each step drawing one of them at random as files will hold it. A rate between
    two anchors takes the smaller one and the best of what the larger adds, its context: those of largest
    gradient in the render of that larger anchor (setting "context", Eqs. 2 to 4) or, for comparison, in that
    of the whole scene ("global"). Each rate is a file of its own.

    Attributes:
        start: checkpoint that it starts from; None for the one that is compared.
        scale: length of the tuning as a share of the published one.
        levels: number of anchors.
        rates: number of rates, geometric from the first anchor to the last.
    """

    start: Path | None
    scale: float
    levels: int
    rates: int

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return (
            f"RAVE on plain Gaussians: {self.levels} nested anchors from {100 * SMALLEST:g} to "
            f"{100 * LARGEST:g} % tuned together at {self.scale:g} of the published length, rates in between "
            "ranked by the gradient in the anchor's or in the whole scene's render; a file for each rate: SH "
            "in 8 bits, halves, LZMA"
        )

    def facts(self, study: Study) -> dict[str, Any]:
        """Its start, length, anchors and rates."""
        return {
            "scale": self.scale,
            "start": self.start and file_digest(self.start),
            "levels": self.levels,
            "rates": self.rates,
        }

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Choose the anchors and tune them; goes on where it was stopped."""
        steps = max(1, round(self.scale * STEPS))
        tuning = Tuning(start_of(study, self.start), study)
        seconds = 0.0
        if (folder / STATE).is_file():
            facts = tuning.load(folder / STATE)
            anchors, seconds = facts["anchors"], facts["seconds"]
        else:
            started = time.perf_counter()
            anchors = anchor_counts(len(tuning), self.levels)
            order = nested_order(tuning, anchors)
            tuning.permute(order)
            tuning.keep(torch.arange(len(tuning), device=order.device) < anchors[-1])
            seconds = time.perf_counter() - started
            log.info(f"anchors: {', '.join(f'{count:,}' for count in anchors)}")
        tuning.rounding = rounded
        draw = partial(drawn_anchor, anchors, study.seed)
        while tuning.step < steps:
            started = time.perf_counter()
            tuning.train(min(steps - tuning.step, -(-steps // CHECKPOINTS)), draw)
            seconds += time.perf_counter() - started
            tuning.save(folder / STATE, {"anchors": anchors, "seconds": seconds})
            log.info(f"step {tuning.step:,} of {steps:,}")
        return partial(self._make, tuning, anchors, {"steps": steps, "seconds": seconds})

    def _make(
        self, tuning: Tuning, anchors: list[int], training: dict[str, Any], setting: str, cell: Path
    ) -> Iterator[Coded]:
        order = interpolated_order(tuning, anchors, setting)
        with torch.no_grad():
            splats = tuning.splats(order).detach()
        for count in rates_between(anchors[0], anchors[-1], self.rates):
            yield code(
                f"{count:,}",
                cell / f"{count}.halves",
                partial(write_halves, splats[:count]),
                read_halves,
                bytes_by_attribute,
                {"training": training, "anchor": count in anchors},
            )


def anchor_counts(total: int, levels: int) -> list[int]:
    """Gaussians of each anchor, a geometric progression; fewer anchors where they would be the same."""
    return rates_between(count_at(SMALLEST, total), count_at(LARGEST, total), levels)


def rates_between(least: int, most: int, number: int) -> list[int]:
    """Numbers of Gaussians, geometric from the least to the most; each once."""
    return sorted({int(count) for count in np.rint(np.geomspace(least, most, max(number, 2)))})


def nested_order(tuning: Tuning, anchors: Sequence[int]) -> Int[Tensor, " N"]:
    """[N] Gaussians so that each anchor is a prefix.

    From the finest anchor down: what has the smallest gradients in the render of what is left goes.
    """
    left = torch.arange(len(tuning), device=tuning.gaussians.device)
    behind: list[Tensor] = []
    for count in reversed(anchors):
        ranks = tuning.gradient_scores(left).argsort(descending=True, stable=True)
        behind.append(left[ranks[count:]])
        left = left[ranks[:count]]
    return torch.cat([left, *reversed(behind)])


def drawn_anchor(anchors: Sequence[int], seed: int, step: int) -> int:
    """Gaussians of the anchor that a step draws."""
    weights = np.geomspace(1.0, FINEST_WEIGHT, len(anchors))
    draw = np.random.Generator(np.random.PCG64([seed, step])).random()
    place = int(np.searchsorted(np.cumsum(weights) / weights.sum(), draw))
    return anchors[min(place, len(anchors) - 1)]


def interpolated_order(tuning: Tuning, anchors: Sequence[int], ranking: str) -> Int[Tensor, " N"]:
    """[N] Gaussians of the last anchor, those that each anchor adds in the order in which rates take them."""
    order = torch.arange(anchors[-1], device=tuning.gaussians.device)
    scores = tuning.gradient_scores(anchors[-1])
    for low, high in zip((0, *anchors), anchors, strict=False):
        own = tuning.gradient_scores(high) if ranking == CONTEXT else scores[:high]
        order[low:high] = low + own[low:].argsort(descending=True, stable=True)
    return order
