"""Cells of a comparison: one method at one ratio, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flexgs_lightning.deploy.render import draw
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.cell_folders import RESULT, CellFolder, Shared, keep_facts, run_cells
from flexgs_lightning.evaluation.comparison.methods import Maker, Method
from flexgs_lightning.evaluation.measure import measure, switch_milliseconds
from flexgs_lightning.evaluation.records import read_cell
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.files import atomic_path
from flexgs_lightning.images import to_uint8
from flexgs_lightning.model.budget import MEGABYTE, count_at
from flexgs_lightning.records import shown

VIEW = "view.png"


@dataclass(frozen=True)
class Cell(CellFolder):
    """One method at one ratio; its folder also holds ``view.png`` when it is finished.

    Attributes:
        method: what makes the scene.
        ratio: in (0, 1].
    """

    method: Method
    ratio: float

    def result(self) -> dict[str, Any]:
        """What was measured."""
        found = read_cell(self.folder / RESULT)
        if (found["method"], found["ratio"]) != (self.method.name, self.ratio):
            raise InputError(
                f"{self.folder / RESULT}: of {shown(found['method'])} at {found['ratio']}, expected {self}."
            )
        return found

    def __str__(self) -> str:
        return f"{self.method.name} at {100 * self.ratio:g} %"


def plan(study: Study, methods: Sequence[Method], ratios: Sequence[float], output: Path) -> list[Cell]:
    """All cells, method by method; refuses what cannot be done before anything is.

    Raises:
        InputError: a ratio that is out of range, repeated or holds no Gaussian; a folder that holds results
            made otherwise than they are asked for now.
    """
    study.check_ratios(ratios, "--ratios")
    for method in methods:
        keep_facts(output / method.folder, {**study.facts, **method.facts(study)})
    return [
        Cell(output / method.folder / f"{ratio:g}", method, ratio)
        for method in methods
        for ratio in sorted(ratios)
    ]


def run(study: Study, cells: Sequence[Cell]) -> None:
    """Finish every cell that is not; one that fails leaves ``error.txt`` and does not stop the others."""
    makers: Shared[Maker] = Shared()

    def work(cell: Cell) -> None:
        method = cell.method
        _run_cell(study, cell, makers.get(method.name, lambda: method.prepare(study, cell.folder.parent)))

    run_cells(cells, work)


def _run_cell(study: Study, cell: Cell, maker: Maker) -> None:
    outcome = maker(cell.ratio, cell.folder)
    expected = count_at(cell.ratio, len(study))
    subject = outcome.subject
    if len(subject) != expected:
        raise InputError(f"{cell}: expected exactly {expected} Gaussians, found {len(subject)}.")
    measured = measure(subject, study.data, study.metrics, study.background, antialiased=study.antialiased)
    images = measured.pop("images")
    training = outcome.training
    result = {
        "method": cell.method.name,
        "ratio": cell.ratio,
        "gaussians": len(subject),
        "megabytes": subject.nbytes / MEGABYTE,
        **measured,
        "switch_milliseconds": switch_milliseconds(outcome.switch, study.device),
        "training": None if training is None else {"steps": training.steps, "seconds": training.seconds},
        "images": images,
    }
    view = study.picture_view
    picture = to_uint8(draw(subject.at(view.time), view.camera, study.background, study.antialiased))
    with atomic_path(cell.folder / VIEW) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    cell.finish(result)
