"""A small model trained from scratch: settings of a first stage that ends with a budget of Gaussians."""

from __future__ import annotations

from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.training import Settings
from flexgs_lightning.training.densification import MCMC
from flexgs_lightning.training.initialization import Initialization

LARGER_GROWTH = 1.1
"""A growth that does not fill the budget is tried again times this."""


def scratch_settings(points: int, budget: int, steps: int) -> Settings:
    """MCMC with the budget as its cap; of more SfM points, as many as the budget are drawn by the run's seed.

    Where there are fewer, growth is the published 5 % at a refinement, or as much more as it takes to fill
    the budget before refinements end.

    Args:
        points: SfM points of the capture; 0 for a random start.
        budget: Gaussians to end with.
        steps: iterations of the training.

    Raises:
        InputError: the training is too short for a single refinement, and there are too few points.
    """
    start = min(points or Initialization().random_gaussians, budget)
    control = {"max_gaussians": budget, "growth": growth_needed(start, budget, refinements(steps))}
    return {
        "model": {
            "densification": {"class_path": "MCMC", "init_args": control},
            "initialization": {"max_gaussians": budget},
            "clearance": {"share": 0.0},  # or Gaussians near cameras would be missing from the budget
        }
    }


def refinements(steps: int) -> int:
    """How often MCMC grows in a stage of so many iterations."""
    published = MCMC()
    end = round(published.default_stop * steps)
    return len([step for step in range(0, end, published.every) if step > published.start_step])


def growth_needed(start: int, budget: int, rounds: int) -> float:
    """Growth at a refinement that leads from ``start`` to ``budget`` Gaussians: the published one or more.

    Raises:
        InputError: there is no refinement, and ``start`` is less than the budget.
    """
    growth = MCMC().growth
    if start < budget and not rounds:
        raise InputError(
            f"--scratch_steps: too few for MCMC to refine even once, hence {start} points cannot become "
            f"{budget} Gaussians; expected more than {first_refined()}."
        )
    while _grown(start, budget, growth, rounds) < budget:
        growth *= LARGER_GROWTH
    return growth


def first_refined() -> int:
    """The most iterations of a stage in which MCMC does not refine."""
    steps = 0
    while not refinements(steps + 1):
        steps += 1
    return steps


def _grown(start: int, budget: int, growth: float, rounds: int) -> int:
    """As MCMC counts."""
    count = start
    for _ in range(rounds):
        count = min(budget, int((1 + growth) * count))
    return count
