"""Densification: the interface of every density control, and what all of them share."""

# No `from __future__ import annotations` here: jsonargparse reads the constructors' types.
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.processes import Shards, sum_over_processes
from flexgs_lightning.rendering.rasterizer import Rendering
from flexgs_lightning.training.clearance import TOO_CLOSE, ClearSpace
from flexgs_lightning.training.densification.checks import (
    MIN_GAUSSIANS,
    check_enough_left,
    check_optimizers,
    check_option,
)
from flexgs_lightning.training.optimization import own_seed, seed_generators

logger = logging.getLogger(__name__)


@dataclass
class DensificationReport:
    """What one call of :meth:`Densification.after_step` did.

    Attributes:
        count: Gaussians afterwards.
        cloned: Gaussians that were duplicated in place.
        split: Gaussians that were replaced by two smaller ones.
        added: Gaussians that MCMC drew from the opacity distribution.
        relocated: dead Gaussians that MCMC moved onto live ones.
        pruned: Gaussians removed, non-finite ones included.
        too_close: Gaussians removed because they lay too close to a training camera, beside ``pruned``.
        opacity_reset: whether all opacities were lowered.
    """

    count: int = 0
    cloned: int = 0
    split: int = 0
    added: int = 0
    relocated: int = 0
    pruned: int = 0
    too_close: int = 0
    opacity_reset: bool = False

    @property
    def grown(self) -> int:
        """Gaussians that this step brought, before pruning."""
        return self.cloned + self.split + self.added

    def counts(self) -> dict[str, int]:
        """Every attribute by name, as a number to log."""
        return {name: int(value) for name, value in asdict(self).items()}


class Densification(ABC):
    """Adds, moves and removes Gaussians while they are trained.

    Steps: iterations are counted from 0, and ``after_step(step)`` ends iteration ``step``, so that
    ``step + 1`` iterations are complete. All options count *completed* iterations: refinements happen at
    multiples of ``every`` that lie strictly between ``start_step`` and ``stop_step``.

    Random numbers come from the global generator of the parameters' device: a bit-exact continuation needs
    that generator in the same state, beside :meth:`state_dict`.

    Parameters and optimizers are the scene's own and change together (``model.surgery``): Adam's moments
    follow their Gaussian and start at zero for new ones, and Adam's step count stays.

    Where several processes hold the Gaussians, each changes its own; limits, reports and what leaves too few
    count all.
    """

    kind: ClassVar[str]
    """Name in checkpoints."""
    default_stop: ClassVar[float]
    """Share of the stage after which the published schedule stops refining."""

    def __init__(self, start_step: int = 500, stop_step: int | None = None, every: int = 100) -> None:
        check_option("start_step", start_step, start_step >= 0, "0 or more")
        check_option(
            "stop_step",
            stop_step,
            stop_step is None or stop_step > start_step,
            f"null (the published share of the stage) or more than start_step ({start_step})",
        )
        check_option("every", every, every >= 1, "1 or more")
        self.start_step, self.stop_step, self.every = start_step, stop_step, every

    def start(
        self,
        scene: Scene,
        optimizers: Sequence[torch.optim.Optimizer],
        scene_extent: float,
        total_steps: int,
        clear_space: ClearSpace | None = None,
    ) -> None:
        """Bind to what is trained, before the first step.

        Args:
            scene: whose Gaussians change.
            optimizers: of all that the scene learns; each attribute of the Gaussians has one to itself, whose
                one group is named after it.
            scene_extent: radius of the cameras' ball in world units (``cameras.scene_extent``).
            total_steps: iterations of the stage; ``stop_step: null`` means ``default_stop`` of these.
            clear_space: where no Gaussian may lie; None for no such place.

        Raises:
            ValueError: parameters and optimizers do not fit together.
            InputError: fewer than :data:`MIN_GAUSSIANS`, or more than ``max_gaussians``.
        """
        self._scene, self._everything = scene, list(optimizers)
        self._optimizers = check_optimizers(scene.gaussians.params, optimizers)
        self._scene_extent, self._total_steps = scene_extent, total_steps
        self._clear_space, self._too_close = clear_space, 0
        stop = round(self.default_stop * total_steps) if self.stop_step is None else self.stop_step
        self._stop = min(stop, total_steps)
        self._check_count()
        self._statistics = self._initial_statistics()

    def end(self) -> None:
        """Let go of the scene and its optimizers, whose moments take twice the memory of the parameters."""
        del self._scene, self._optimizers, self._everything
        self._statistics = {}

    def before_backward(self, step: int, rendering: Rendering) -> None:  # noqa: B027 (a hook)
        """Ask for what :meth:`after_step` reads; call between rendering and ``backward``."""

    @torch.no_grad()
    def after_step(self, step: int, rendering: Rendering) -> DensificationReport | None:
        """Grow, move, prune and reset; call after ``backward`` and the optimizers of iteration ``step``.

        Returns:
            What changed, or None where nothing was due.

        Raises:
            InputError: a prune would leave (almost) nothing.
        """
        if self._shards.several:
            seed_generators(own_seed(self._shards))
        completed = step + 1
        report = DensificationReport()
        self._observe(completed, rendering)
        due = self.start_step < completed < self._stop and completed % self.every == 0
        searched = completed % self.every == 0 or completed == self._total_steps
        if searched:
            report.pruned = self._remove_non_finite(completed)
        if due:
            self._refine(completed, report)
        self._finish(completed, report)
        if searched:
            report.too_close = self._remove_too_close(completed)
        report.count = self._count
        if searched or report.opacity_reset:
            self._add_up(report)
        self._too_close += report.too_close
        if completed == self._total_steps and self._clear_space is not None:
            logger.info("Removed %d Gaussians too close to a training camera, in all.", self._too_close)
        changed = report.pruned or report.too_close or report.opacity_reset
        return report if due or changed else None

    def _add_up(self, report: DensificationReport) -> None:
        """Replace counts by their sums over the shards."""
        if self._shards.several:
            names = [field.name for field in fields(report) if field.name != "opacity_reset"]
            counts = torch.tensor([getattr(report, name) for name in names], device=self._device)
            sum_over_processes(counts)
            for name, count in zip(names, counts.tolist(), strict=True):
                setattr(report, name, count)
            self._scene.elsewhere = report.count - self._count

    @torch.no_grad()
    def add(self, gaussians: Gaussians) -> int:
        """Take in Gaussians that were made elsewhere, the first that there is room for; returns how many."""
        room = len(gaussians) if self._cap is None else max(0, self._cap - self._count)
        added = min(room, len(gaussians))
        if added:
            self._surgery.append({name: rows[:added] for name, rows in gaussians.own().items()})
        return added

    def regularization(self) -> Tensor | None:
        """A differentiable scalar to add to the loss; None for nothing."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """A copy of what lies between refinements; tensors and plain values only."""
        statistics = {name: value.clone() for name, value in self._statistics.items()}
        return {"kind": self.kind, "statistics": statistics, "too_close": self._too_close}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; call after :meth:`start`.

        Raises:
            InputError: the state comes from another kind of density control, or belongs to another number
                of Gaussians.
        """
        if state["kind"] != self.kind:
            raise InputError(
                f"densification: the checkpoint was trained with '{state['kind']}' density control, "
                f"but this run asks for '{self.kind}'."
            )
        for name, value in state["statistics"].items():
            expected = self._statistics[name].shape
            if value.shape != expected:
                raise InputError(
                    f"densification: the checkpoint's statistic '{name}' has shape {tuple(value.shape)}, "
                    f"but the Gaussians ask for {tuple(expected)}."
                )
            self._statistics[name] = value.detach().to(self._device, copy=True)
        self._too_close = state.get("too_close", 0)

    # What kinds of density control fill in.

    def _initial_statistics(self) -> dict[str, Tensor]:
        """Per-Gaussian tensors [N, ...] that are gathered between refinements."""
        return {}

    def _observe(self, completed: int, rendering: Rendering) -> None:  # noqa: B027 (a hook)
        """Gather statistics of one iteration."""

    @abstractmethod
    def _refine(self, completed: int, report: DensificationReport) -> None:
        """Change the set of Gaussians."""

    def _finish(self, completed: int, report: DensificationReport) -> None:  # noqa: B027 (a hook)
        """Act after every iteration, refinement or not."""

    @property
    @abstractmethod
    def _cap(self) -> int | None:
        """Most Gaussians allowed, None for any number."""

    # What they share.

    @property
    def _params(self) -> nn.ParameterDict:
        return self._scene.gaussians.params

    @property
    def _shards(self) -> Shards:
        """Who holds the Gaussians."""
        return self._scene.shards

    @property
    def _surgery(self) -> Surgery:
        return Surgery(self._scene, self._everything, self._statistics)

    @property
    def _device(self) -> torch.device:
        return self._params["means"].device

    @property
    def _count(self) -> int:
        """Gaussians that are here."""
        return self._params["means"].shape[0]

    def _total(self, number: int) -> int:
        """Sum of a number over all shards; for all processes to ask."""
        return self._shards.total(number, self._device)

    def _check_count(self) -> None:
        count = self._total(self._count)
        if count < MIN_GAUSSIANS:
            raise InputError(
                f"densification: training starts with {count} Gaussians, "
                f"expected at least {MIN_GAUSSIANS}; add points to the capture."
            )
        if self._cap is not None and count > self._cap:
            raise InputError(
                f"densification.max_gaussians: expected at least the {count} Gaussians that training "
                f"starts with, found {self._cap}; model.initialization.max_gaussians starts with fewer."
            )

    def _remove_non_finite(self, completed: int) -> int:
        """Remove Gaussians that the rasterizer would silently skip for ever."""
        broken = {}
        for name, param in self._scene.gaussians.own().items():
            rows = param.reshape(self._count, math.prod(param.shape[1:]))
            broken[name] = ~rows.isfinite().all(dim=1)
        mask = torch.stack(list(broken.values())).any(dim=0)
        names = ", ".join(name for name, rows in broken.items() if rows.any())
        if names:
            number = int(mask.sum())
            logger.warning(
                "step %d: removing %d of %d Gaussians, non-finite %s", completed, number, self._count, names
            )
        return self._prune(mask, completed, f"non-finite {names}")

    def _remove_too_close(self, completed: int) -> int:
        """Clear the space around the training cameras."""
        if self._clear_space is None:
            return 0
        inside = self._clear_space.contains(self._params["means"])
        return self._prune(inside, completed, TOO_CLOSE)

    def _prune(self, mask: Bool[Tensor, " N"], completed: int, reason: str) -> int:
        """Remove the Gaussians in ``mask`` [N] and return how many they were here."""
        pruned = int(mask.sum())
        self._check_enough_left(pruned, completed, reason)
        if pruned:
            self._surgery.keep(~mask)
        return pruned

    def _check_enough_left(self, lost: int, completed: int, reason: str) -> None:
        lost_of_all = self._total(lost)
        if lost_of_all:
            check_enough_left(self._total(self._count), lost_of_all, completed, reason)
