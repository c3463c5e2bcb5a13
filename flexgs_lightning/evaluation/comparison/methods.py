"""Methods: ways to have a scene at a ratio."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flexgs_lightning.deploy.formats.ply import read_ply, write_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.contenders import Contender
from flexgs_lightning.evaluation.iterative_pruning import rounds_needed
from flexgs_lightning.evaluation.scores import Score
from flexgs_lightning.evaluation.scratch import scratch_settings
from flexgs_lightning.evaluation.study import Schedule, Study
from flexgs_lightning.evaluation.subject import Moving, Still, Subject, subject_of
from flexgs_lightning.evaluation.training import Settings, Training, merged, train
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import load

PUBLISHED_ROUND, PUBLISHED_END = 1_000, 5_000
"""Iterations after each pruning and at the end (COGS 2025 runner-up)."""


@dataclass(frozen=True)
class Outcome:
    """A scene at a ratio.

    Attributes:
        subject: exactly floor(e N) Gaussians.
        switch: what a device that holds the method's model does to come from another ratio to this one.
        training: what it took; None if nothing was trained. Ratios of one training share it.
    """

    subject: Subject
    switch: Callable[[], object]
    training: Training | None


Maker = Callable[[float, Path], Outcome]
"""Makes the scene at a ratio; the folder is that cell's own."""


@dataclass(frozen=True)
class Method(Contender[Maker]):
    """A way to have a scene at any ratio; its cells are ratios."""

    per_ratio: ClassVar[bool]
    """Whether something is trained for each ratio."""

    @property
    @abstractmethod
    def cost(self) -> str:
        """What its seconds of training contain, for reports."""

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return Path(self.name).stem.replace(":", "-") if is_file(self.name) else super().folder


@dataclass(frozen=True)
class Pruning(Method):
    """The first stage's Gaussians of highest score, as they are (LightGS* in the FlexGS paper)."""

    score: Score
    per_ratio: ClassVar[bool] = False

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return f"pruned by {self.score} score, not trained"

    @property
    def cost(self) -> str:
        """Nothing."""
        return "nothing; neither the first stage nor the score is counted"

    def facts(self, study: Study) -> dict[str, Any]:
        """Its score."""
        return {"score": self.score}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Sort once; every ratio is a slice."""
        if not isinstance(study.subject, Still):
            return self._of_a_film(study)
        ranked = study.splats[study.order(self.score)]

        def make(ratio: float, cell: Path) -> Outcome:
            count = count_at(ratio, len(ranked))
            return Outcome(Still(ranked[:count]), lambda: ranked[:count], None)

        return make

    def _of_a_film(self, study: Study) -> Maker:
        """Rows of all that moves are taken, for there is no file of a part of them."""
        order = study.order(self.score)

        def make(ratio: float, cell: Path) -> Outcome:
            kept = order[: count_at(ratio, len(study))]
            return Outcome(study.subject.chosen(kept), lambda: study.subject.chosen(kept), None)

        return make


@dataclass(frozen=True)
class Finetuning(Method):
    """Pruned, then trained for this ratio alone: LightGS in the FlexGS paper, the specialist.

    Its training is an elastic stage that draws nothing but ratio 1 of the pruned scene, at the published
    rates of 3DGS. At ratio 1 it is the first stage continued without densification.
    """

    score: Score
    per_ratio: ClassVar[bool] = True

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return f"pruned by {self.score} score, then trained for each ratio alone"

    @property
    def cost(self) -> str:
        """Its trainings alone."""
        return "the trainings of all ratios; neither the first stage nor the score is counted"

    def facts(self, study: Study) -> dict[str, Any]:
        """Its score and steps."""
        return {"score": self.score, "finetune_steps": study.schedule.finetune_steps}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Sort once; for each ratio prune, train, and keep the file that a device would load."""
        order = study.order(self.score)

        def make(ratio: float, cell: Path) -> Outcome:
            pruned = study.subject.chosen(order[: count_at(ratio, len(study))])
            training = train(cell, pruned.start, one_ratio(study.settings), study.schedule.finetune_steps)
            return _from_file(training, cell, study)

        return make


@dataclass(frozen=True)
class IterativePruningMethod(Method):
    """Pruned a few at a time by the gradient, trained in between (the runner-up of COGS 2025)."""

    per_ratio: ClassVar[bool] = True

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return "pruned 5 % at a time by the gradient's norm with training in between, for each ratio alone"

    @property
    def cost(self) -> str:
        """Its trainings, prunings included."""
        return "the trainings of all ratios with their prunings; the first stage is not counted"

    def facts(self, study: Study) -> dict[str, Any]:
        """Its schedule."""
        schedule = study.schedule
        return {"finetune_steps": schedule.finetune_steps, "iterative_scale": schedule.iterative_scale}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """For each ratio train and prune at once, and store the file that a device would load."""

        def make(ratio: float, cell: Path) -> Outcome:
            keep = count_at(ratio, len(study))
            every, steps = iterative_schedule(study.schedule, rounds_needed(len(study), keep))
            pruning = {"iterative_pruning": {"keep": keep, "every": every}}
            training = train(cell, study.checkpoint, merged(one_ratio(study.settings), pruning), steps)
            return _from_file(training, cell, study)

        return make


@dataclass(frozen=True)
class Scratch(Method):
    """A small model for each ratio, trained with MCMC from the SfM points: it has no shared first stage."""

    per_ratio: ClassVar[bool] = True

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return (
            "for each ratio a model of that many Gaussians, trained from scratch with MCMC; of more SfM "
            "points, as many are drawn at random"
        )

    @property
    def cost(self) -> str:
        """Everything: it shares nothing."""
        return "the whole trainings of all ratios, from SfM points on: there is no first stage to add"

    def facts(self, study: Study) -> dict[str, Any]:
        """Its steps."""
        return {"scratch_steps": study.scratch_steps}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """For each ratio train, and store the file that a device would load."""

        def make(ratio: float, cell: Path) -> Outcome:
            if study.model.moves:
                raise InputError("scratch:mcmc: expected a scene that stands still, found one that moves.")
            steps = study.scratch_steps
            own = scratch_settings(len(study.capture.points), count_at(ratio, len(study)), steps)
            return _from_file(train(cell, None, merged(study.settings, own), steps), cell, study)

        return make


@dataclass(frozen=True)
class Elastic(Method):
    """One training for all ratios.

    Attributes:
        settings: of its elastic stage, as in a config of ``flexgs fit``.
    """

    settings: Settings
    per_ratio: ClassVar[bool] = False

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return "one elastic training for all ratios"

    @property
    def cost(self) -> str:
        """Its training, rankings included."""
        return "the one training with its rankings; the first stage is not counted"

    def facts(self, study: Study) -> dict[str, Any]:
        """Its steps and settings."""
        return {"steps": study.schedule.steps, "settings": self.settings}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Train once, and draw the model at each ratio."""
        steps = study.schedule.steps
        settings = merged(study.settings, scaled(self.settings, steps))
        training = train(folder, study.checkpoint, settings, steps)
        model = load(training.checkpoint).to(study.device)

        def make(ratio: float, cell: Path) -> Outcome:
            return Outcome(subject_of(model, ratio), lambda: subject_of(model, ratio), training)

        return make


def is_file(name: str) -> bool:
    """Whether a method is named by its config's path."""
    return Path(name).suffix in (".yaml", ".yml")


def iterative_schedule(schedule: Schedule, rounds: int) -> tuple[int, int]:
    """Iterations from one pruning to the next, and of the whole training.

    Raises:
        InputError: there are fewer iterations than prunings.
    """
    if schedule.iterative_scale is not None:
        every = max(1, round(PUBLISHED_ROUND * schedule.iterative_scale))
        return every, rounds * every + max(1, round(PUBLISHED_END * schedule.iterative_scale))
    steps = schedule.finetune_steps
    if steps <= rounds:
        raise InputError(
            f"--finetune_steps: iterative pruning needs more than {rounds} steps, one after each pruning; "
            f"found {steps}."
        )
    return max(1, steps * PUBLISHED_ROUND // (rounds * PUBLISHED_ROUND + PUBLISHED_END)), steps


def one_ratio(settings: Settings) -> Settings:
    """An elastic stage that draws nothing but the full model: fine-tuning with the published rates of 3DGS.

    They stay as they are, but for those of positions: letting them fall, as the elastic methods do, made
    specialists worse at small ratios (benchmarks/elastic_log.md).
    """
    stage = {
        "elastic": {"selection": "ordered", "residual_anchors": [], "field_heads": []},
        "elastic_training": {
            "sampling": "list",
            "ratios": [1.0],
            "prefixes": 1,
            "full_weight": 0.0,
            "importance": "blending",
            "rate_decay": 1.0,
        },
    }
    return merged(settings, {"model": stage, "importance_refresh": {"stop_after": 0.0}})


def scaled(settings: Settings, steps: int) -> Settings:
    """The same method in another number of steps: intervals keep their share of the stage."""
    published = settings["model"]["elastic_training"].get("steps", steps)
    refresh = settings.get("importance_refresh", {})
    if "every_n_steps" not in refresh:
        return settings
    every = math.ceil(refresh["every_n_steps"] * steps / published)
    return merged(settings, {"importance_refresh": {"every_n_steps": every}})


def _from_file(training: Training, cell: Path, study: Study) -> Outcome:
    if study.model.moves:
        film = load(training.checkpoint).to(study.device)
        return Outcome(Moving(film), lambda: load(training.checkpoint).to(study.device), training)
    path = cell / "scene.ply"
    splats = load(training.checkpoint).splats()
    write_ply(splats, path)
    return Outcome(Still(splats.to(study.device)), lambda: read_ply(path).to(study.device), training)
