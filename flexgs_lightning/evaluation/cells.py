"""Cells of a comparison: one method at one ratio, each in a folder of its own."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flexgs_lightning.deploy.formats.ply import ply_bytes
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.measure import measure, switch_milliseconds
from flexgs_lightning.evaluation.methods import Maker, Method
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.files import atomic_path
from flexgs_lightning.images import to_uint8
from flexgs_lightning.model.budget import MEGABYTE, count_at

log = logging.getLogger(__name__)

RESULT, VIEW, ERROR, FACTS = "cell.json", "view.png", "error.txt", "facts.json"


@dataclass(frozen=True)
class Cell:
    """One method at one ratio.

    Attributes:
        method: what makes the scene.
        ratio: in (0, 1].
        folder: holds ``cell.json`` and ``view.png`` when it is finished, ``error.txt`` if it failed.
    """

    method: Method
    ratio: float
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return (self.folder / RESULT).is_file()

    @property
    def error(self) -> str | None:
        """Why it failed; None if it did not."""
        path = self.folder / ERROR
        return path.read_text().splitlines()[0] if path.is_file() else None

    def result(self) -> dict[str, Any]:
        """What was measured."""
        return json.loads((self.folder / RESULT).read_text())

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
        _keep_facts(study, method, output / method.folder)
    return [
        Cell(method, ratio, output / method.folder / f"{ratio:g}")
        for method in methods
        for ratio in sorted(ratios)
    ]


def run(study: Study, cells: Sequence[Cell]) -> None:
    """Finish every cell that is not; one that fails leaves ``error.txt`` and does not stop the others."""
    makers: dict[str, Maker] = {}
    broken: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        log.info("[%d/%d] %s%s", number, len(cells), cell, ": finished before" if cell.finished else "")
        if cell.finished:
            continue
        try:
            _run_cell(study, cell, _maker(study, cell, makers, broken))
            (cell.folder / ERROR).unlink(missing_ok=True)
        except Exception as error:  # whatever it is, the other cells go on
            _note_error(cell, error)


def _maker(study: Study, cell: Cell, makers: dict[str, Maker], broken: dict[str, str]) -> Maker:
    """What the method's ratios have in common; where that fails they all do, and it is not tried again."""
    name = cell.method.name
    if name in broken:
        raise InputError(f"what all ratios of {name} have in common failed: {broken[name]}")
    if name not in makers:
        try:
            makers.clear()  # models of methods that are done
            makers[name] = cell.method.prepare(study, cell.folder.parent)
        except Exception as error:
            broken[name] = _summary(error)
            raise
    return makers[name]


def _run_cell(study: Study, cell: Cell, maker: Maker) -> None:
    outcome = maker(cell.ratio, cell.folder)
    expected = count_at(cell.ratio, len(study))
    if len(outcome.splats) != expected:
        raise InputError(f"{cell}: expected exactly {expected} Gaussians, found {len(outcome.splats)}.")
    splats = outcome.splats.detach()
    measured = measure(splats, study.data, study.metrics, study.background, antialiased=study.antialiased)
    images = measured.pop("images")
    training = outcome.training
    result = {
        "method": cell.method.name,
        "ratio": cell.ratio,
        "gaussians": len(splats),
        "megabytes": ply_bytes(len(splats), splats.sh_degree) / MEGABYTE,
        **measured,
        "switch_milliseconds": switch_milliseconds(outcome.switch, study.device),
        "training": None if training is None else {"steps": training.steps, "seconds": training.seconds},
        "images": images,
    }
    view = study.picture_view
    picture = to_uint8(draw(splats, view.camera, study.background, study.antialiased))
    with atomic_path(cell.folder / VIEW) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    _write_json(cell.folder / RESULT, result)


def _keep_facts(study: Study, method: Method, folder: Path) -> None:
    """Write down what a method's results depend on, or check that it is still the same."""
    facts = json.loads(json.dumps(_flat({**study.facts, **method.facts(study)})))
    path = folder / FACTS
    if not path.is_file():
        _write_json(path, facts)
        return
    kept = json.loads(path.read_text())
    for name in {**kept, **facts}:
        if kept.get(name) != facts.get(name):
            raise InputError(
                f"{folder}: holds results of {name} {_short(kept.get(name))}, but now it is "
                f"{_short(facts.get(name))}. Choose another --output, or remove this folder."
            )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts by dotted names, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _note_error(cell: Cell, error: Exception) -> None:
    log.error("%s failed: %s", cell, _summary(error))
    details = "" if isinstance(error, InputError) else "".join(traceback.format_exception(error))
    with atomic_path(cell.folder / ERROR) as temporary:
        temporary.write_text(f"{_summary(error)}\n{details}")


def _summary(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
