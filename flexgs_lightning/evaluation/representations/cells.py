"""Cells of a report of representations: one representation in one form, each in a folder of its own."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flexgs_lightning.codec.views import read_views
from flexgs_lightning.deploy.compress import compress
from flexgs_lightning.deploy.opening import load_any
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.cell_folders import ERROR, RESULT, CellFolder, keep_facts, run_cells
from flexgs_lightning.evaluation.comparison.methods import scaled
from flexgs_lightning.evaluation.comparison.names import SCHEDULES
from flexgs_lightning.evaluation.measure import measure
from flexgs_lightning.evaluation.options import image_metrics
from flexgs_lightning.evaluation.records import read_form, read_metrics
from flexgs_lightning.evaluation.representations.film import Film, Group
from flexgs_lightning.evaluation.representations.representation import Representation
from flexgs_lightning.evaluation.subject import subject_of
from flexgs_lightning.evaluation.tables import METRICS
from flexgs_lightning.evaluation.training import Settings, Training, merged, train
from flexgs_lightning.metrics.protocol import ImageMetrics
from flexgs_lightning.metrics.psnr import flicker_psnr
from flexgs_lightning.model.checkpoint import Model, load
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.records import shown
from flexgs_lightning.rendering.rasterizer import rasterize

Form = Literal["whole", "elastic", "coded"]
FILE = "scene.egs"
Result = dict[str, Any]


@dataclass(frozen=True)
class Cell(CellFolder):
    """One representation in one form.

    Attributes:
        representation: what the scene is made of.
        form: "whole", as its first stage leaves it; "elastic", after the elastic stage; "coded", the first
            stage's model from its file.
    """

    representation: Representation
    form: Form

    def result(self) -> Result:
        """What was measured."""
        found = read_form(self.folder / RESULT)
        if (found["representation"], found["form"]) != (self.representation.name, self.form):
            raise InputError(
                f"{self.folder / RESULT}: of {shown(found['representation'])}, {shown(found['form'])}, "
                f"expected {self}."
            )
        return found

    @property
    def whole(self) -> Path:
        """Folder of the representation's first stage."""
        return self.folder.parent / "whole"

    def __str__(self) -> str:
        return f"{self.representation.name}, {self.form}"


def plan_cells(
    film: Film, representations: Sequence[Representation], elastic: Settings, output: Path
) -> list[Cell]:
    """All cells: first the whole form of every representation, then the others.

    Raises:
        InputError: a folder that holds results made otherwise than they are asked for now.
    """
    facts: dict[Form, Mapping[str, Any]] = {"whole": {}}
    plan = film.plan
    if plan.elastic_steps:
        facts["elastic"] = {"stage": elastic, "elastic_steps": plan.elastic_steps, "ratios": plan.ratios}
    if plan.psnr_loss is not None:
        facts["coded"] = {"psnr_loss": plan.psnr_loss, "refine_steps": plan.refine_steps}
    cells = [
        Cell(output / representation.name / form, representation, form)
        for form in facts
        for representation in representations
        if not (form == "elastic" and representation.each_frame)
    ]
    for cell in cells:
        own = cell.representation.settings
        rankings = {name: own[name] for name in SCHEDULES if name in own and cell.form == "elastic"}
        keep_facts(cell.folder, {**film.facts(cell.representation), **rankings, **facts[cell.form]})
    return cells


def run(film: Film, cells: Sequence[Cell], elastic: Settings) -> None:
    """Finish every cell that is not; one that fails leaves ``error.txt`` and does not stop the others."""

    def work(cell: Cell) -> None:
        if cell.form == "elastic":
            result = _elastic(film, cell, elastic)
        else:
            result = _whole(film, cell) if cell.form == "whole" else _coded(film, cell)
        cell.finish({"representation": cell.representation.name, "form": cell.form, **result})

    run_cells(cells, work)


def _first_stages(film: Film, cell: Cell) -> list[tuple[Group | None, Training]]:
    """The trainings of a representation's first stage, made now or before, with the frames of each."""
    found, representation = [], cell.representation
    for group in film.groups(representation):
        folder = cell.whole if group is None else cell.whole / f"{group[0]:04d}"
        settings = film.training_settings(representation, group)
        found.append((group, train(folder, None, settings, film.steps(representation), tested=True)))
    return found


def _finished_first_stages(film: Film, cell: Cell) -> list[tuple[Group | None, Training]]:
    """The same for the other forms, which do not try again what failed."""
    if not CellFolder(cell.whole).finished:
        raise InputError(f"{cell.representation.name}: its first stage failed, see {cell.whole / ERROR}.")
    return _first_stages(film, cell)


def _whole(film: Film, cell: Cell) -> Result:
    """What the tests of its trainings found; sums are of all frames, also if only some were trained."""
    stages = _first_stages(film, cell)
    metrics = [read_metrics(training.metrics) for _, training in stages]
    models = [load(training.checkpoint) for _, training in stages]
    names = [name for name in metrics[0]["mean"] if all(name in one["mean"] for one in metrics)]
    of_all = film.frames / len(stages) if cell.representation.each_frame else 1.0
    flicker = metrics[0]["over_time"].get("flicker") if len(stages) == 1 else _flicker(film, stages, models)
    return {
        **{name: statistics.fmean(one["mean"][name] for one in metrics) for name in names},
        "worst": min((one["worst"] for one in metrics), key=lambda worst: worst["psnr"]),
        **({} if flicker is None else {"flicker": flicker}),
        "gaussians": round(of_all * sum(map(len, models))),
        "living": statistics.fmean(_living(model, film) for model in models),
        "frames": [
            {"frame": (0 if group is None else group[0] - film.first) + frame["frame"], "psnr": frame["psnr"]}
            for (group, _), one in zip(stages, metrics, strict=True)
            for frame in one["over_time"]["frames"]
        ],
        "trained": len(stages),
        "training": {
            "steps": round(of_all * sum(training.steps for _, training in stages)),
            "seconds": of_all * sum(training.seconds for _, training in stages),
        },
        "protocol": metrics[0]["protocol"],
        "device": metrics[0]["device"],
    }


def _elastic(film: Film, cell: Cell, elastic: Settings) -> Result:
    """The elastic stage, from the first stage's model."""
    ((_, first),) = _finished_first_stages(film, cell)
    steps = film.plan.elastic_steps
    measured = {"elastic_validation": {"ratios": list(film.plan.ratios), "views": 0}}
    own = merged(scaled(merged(elastic, cell.representation.settings), steps), film.settings, measured)
    training = train(cell.folder, first.checkpoint, own, steps, tested=True)
    metrics = read_metrics(training.metrics)
    return {
        **{name: value for name, value in metrics["mean"].items() if name in METRICS},
        "ratios": metrics["ratios"],
        "training": {"steps": training.steps, "seconds": training.seconds},
    }


def _coded(film: Film, cell: Cell) -> Result:
    """The first stage's models as elastic files, measured from these."""
    stages = _finished_first_stages(film, cell)
    sizes, uncoded, coded = [], [], []
    metrics = image_metrics(cell.representation.settings).to(film.device)
    for group, training in stages:
        path = cell.folder / (FILE if group is None else f"{group[0]:04d}.egs")
        if not path.is_file():
            asked = {"psnr_loss": film.plan.psnr_loss, "refine_steps": film.plan.refine_steps}
            compress(path, [training.checkpoint], device=film.device.type, **asked)  # type: ignore[arg-type]
        sizes.append(path.stat().st_size)
        uncoded.append(read_metrics(training.metrics)["mean"]["psnr"])
        coded.append(_quality(film, group, load(training.checkpoint), load_any(path), metrics))
    of_all = film.frames / len(stages) if cell.representation.each_frame else 1.0
    means = {name: statistics.fmean(one[name] for one in coded) for name in coded[0]}
    lost = statistics.fmean(uncoded) - means["psnr"]
    return {"bytes": round(of_all * sum(sizes)), **means, "lost": lost}


def _quality(
    film: Film, group: Group | None, trained: Model, decoded: Model, metrics: ImageMetrics
) -> dict[str, float]:
    """Of what a file holds, on the held-out views of its frames."""
    subject, data = subject_of(decoded.to(film.device)), film.data_of(group)
    background = trained.background.to(film.device)
    found = measure(subject, data, metrics, background, antialiased=trained.antialiased)
    return {name: found[name] for name in METRICS if name in found}


@torch.no_grad()
def _living(model: Model, film: Film) -> float:
    """Mean number of Gaussians that there are to see at a moment."""
    if not model.moves:
        return float(len(model))
    times = [k / film.frames for k in range(film.frames)]
    return statistics.fmean(len(model.scene.at(Conditions(time=time))) for time in times)


def _flicker(
    film: Film, stages: Sequence[tuple[Group | None, Training]], models: Sequence[Model]
) -> float | None:
    """From each frame's model to the next frame's, where both were trained; None of no such pair."""
    found = []
    for (before, model), (after, next_model) in itertools.pairwise(
        (group, model) for (group, _), model in zip(stages, models, strict=True)
    ):
        if before is not None and after is not None and before[1] == after[0]:
            first, second = _drawn(film, before, model), _drawn(film, after, next_model)
            found += [
                flicker_psnr(first[name][0], second[name][0], first[name][1], second[name][1]).item()
                for name in first.keys() & second.keys()
            ]
    return statistics.fmean(found) if found else None


@torch.no_grad()
def _drawn(film: Film, group: Group, model: Model) -> dict[str, tuple[Tensor, Tensor]]:
    """Render and photo of each held-out camera, by name, of a model of one frame."""
    views = film.data_of(group).capture.test_views
    judged = read_views(views, tuple(model.background.tolist()))
    splats, background = model.splats().to(film.device), model.background.to(film.device)
    images = (
        rasterize(splats, view.camera.to(film.device), background=background, antialiased=model.antialiased)
        for view in judged
    )
    return {
        view.taken_by: (image.image.cpu(), one.photo)
        for view, image, one in zip(views, images, judged, strict=True)
    }
