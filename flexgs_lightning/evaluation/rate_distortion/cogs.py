"""The runner-up of COGS 2025: pruned a little at a time by the gradient, then stored in halves."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgs_lightning.codec.recipes.halves import read_halves, rounded, write_halves
from flexgs_lightning.codec.recipes.package import bytes_by_attribute
from flexgs_lightning.evaluation.iterative_pruning import FRACTION, next_count
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System, code
from flexgs_lightning.evaluation.rate_distortion.tuning import Tuning, start_of
from flexgs_lightning.evaluation.study import Study, file_digest
from flexgs_lightning.model.gaussians import Gaussians

log = logging.getLogger(__name__)

FIRST, ROUND, END = 1_000, 1_000, 5_000
"""Published iterations before the first pruning, after each, and at the end."""
SH_PENALTY = 0.05
"""Weight of the mean absolute value of view-dependent colour."""
CHAIN = "chain.pt"


@dataclass(frozen=True)
class Cogs(System):
    """Rounds of {prune 5 % by the gradient, fine-tune}, until training views lose a setting's decibels.

    The published rule stops by test views; this one by training views, of which each
    ``codec.views.JUDGE_EVERY``-th judges. All settings share one chain of rounds, and each has its own end.

    Attributes:
        start: checkpoint that it starts from; None for the one that is compared.
        scale: lengths as a share of the published ones.
    """

    start: Path | None
    scale: float

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return (
            "runner-up of COGS 2025: 5 % a round pruned by the gradient's norm with fine-tuning in between, "
            f"at {self.scale:g} of the published lengths, until training views lose so many dB; "
            "SH in 8 bits, halves, LZMA"
        )

    def facts(self, study: Study) -> dict[str, Any]:
        """Its start and lengths."""
        return {"scale": self.scale, "start": self.start and file_digest(self.start)}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Nothing: the chain of rounds is made as far as settings need it."""
        return partial(self._make, study, folder / CHAIN)

    def _make(self, study: Study, chain: Path, setting: str, cell: Path) -> Iterator[Coded]:
        tuning, seconds = self._pruned(study, chain, float(setting))
        started = time.perf_counter()
        tuning.train(self._steps(END), penalty=sh_penalty)
        seconds += time.perf_counter() - started
        with torch.no_grad():
            splats = tuning.splats().detach()
        yield code(
            setting,
            cell / "scene.halves",
            partial(write_halves, splats),
            read_halves,
            bytes_by_attribute,
            {"training": {"steps": tuning.step, "seconds": seconds}},
        )

    def _pruned(self, study: Study, chain: Path, allowed: float) -> tuple[Tuning, float]:
        """Rounds until the judging views have lost so much, from the saved one on if it has lost less."""
        splats = start_of(study, self.start)
        tuning = Tuning(splats, study)
        before = tuning.judged_psnr()
        tuning.rounding = rounded
        started = time.perf_counter()
        facts = {"loss": 0.0, "seconds": 0.0}
        if chain.is_file():
            facts = tuning.load(chain)
        if facts["loss"] >= allowed:  # a setting that was asked for later: the chain has passed it
            tuning, facts = Tuning(splats, study, rounded), {"loss": 0.0, "seconds": 0.0}
        if tuning.step == 0:
            tuning.train(self._steps(FIRST), penalty=sh_penalty)
        done, loss = facts["seconds"], facts["loss"]
        while loss < allowed and len(tuning) > 1:
            scores = tuning.gradient_scores()
            kept = torch.zeros(len(tuning), dtype=torch.bool, device=scores.device)
            kept[scores.topk(next_count(len(tuning), 1, FRACTION)).indices] = True
            tuning.keep(kept)
            tuning.train(self._steps(ROUND), penalty=sh_penalty)
            loss = before - tuning.judged_psnr()
            log.info(f"{len(tuning):,} Gaussians after {tuning.step:,} steps, {loss:.3f} dB lost")
            tuning.save(chain, {"loss": loss, "seconds": done + time.perf_counter() - started})
        return tuning, done + time.perf_counter() - started

    def _steps(self, published: int) -> int:
        return max(1, round(self.scale * published))


def sh_penalty(gaussians: Gaussians) -> Tensor:
    """The published penalty on view-dependent colour; 0 where there is none."""
    rest = gaussians.params["sh"][:, 1:]
    return SH_PENALTY * rest.abs().mean() if rest.numel() else rest.sum()
