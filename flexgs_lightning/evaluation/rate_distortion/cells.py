"""Cells of a rate-distortion report: a system at a setting, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.cell_folders import RESULT, CellFolder, Shared, keep_facts, run_cells
from flexgs_lightning.evaluation.measure import measure
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System
from flexgs_lightning.evaluation.records import read_rates
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.metrics.protocol import worst_view
from flexgs_lightning.records import shown


@dataclass(frozen=True)
class RateCell(CellFolder):
    """One system at one setting.

    Attributes:
        system: what codes the scene.
        setting: what its rate is set by.
    """

    system: System
    setting: str

    def result(self) -> dict[str, Any]:
        """What was measured.

        Raises:
            InputError: the record is damaged, or that of another cell.
        """
        found = read_rates(self.folder / RESULT)
        if (found["system"], found["setting"]) != (self.system.name, self.setting):
            raise InputError(
                f"{self.folder / RESULT}: of {shown(found['system'])} at {shown(found['setting'])}, "
                f"expected {self}."
            )
        return found

    def __str__(self) -> str:
        return f"{self.system.name} at {self.setting}"


def plan(study: Study, systems: Sequence[System], output: Path) -> list[RateCell]:
    """All cells, system by system.

    Raises:
        InputError: a folder that holds results made otherwise than they are asked for now.
    """
    for system in systems:
        keep_facts(output / system.folder, {**study.facts, **system.facts(study)})
    return [
        RateCell(output / system.folder / setting, system, setting)
        for system in systems
        for setting in system.settings
    ]


def run(study: Study, cells: Sequence[RateCell]) -> None:
    """Finish every cell that is not; one that fails leaves ``error.txt`` and does not stop the others."""
    makers: Shared[Maker] = Shared()

    def work(cell: RateCell) -> None:
        system, folder = cell.system, cell.folder.parent
        maker = makers.get(system.name, lambda: system.prepare(study, folder))
        cell.folder.mkdir(parents=True, exist_ok=True)
        points = [_measured(study, coded) for coded in maker(cell.setting, cell.folder)]
        cell.finish({"system": system.name, "setting": cell.setting, "points": points})

    run_cells(cells, work)


def _measured(study: Study, coded: Coded) -> dict[str, Any]:
    """A point as plain values: what was read back, on held-out views."""
    scene = coded.subject.to(study.device)
    measured = measure(scene, study.data, study.metrics, study.background, antialiased=study.antialiased)
    worst = worst_view(measured.pop("images"))
    return {
        "label": coded.label,
        "gaussians": len(scene),
        "bytes": coded.size,
        **measured,
        "worst": worst,
        "attributes": coded.attributes,
        "encode_seconds": coded.encode_seconds,
        "decode_seconds": coded.decode_seconds,
        **coded.facts,
    }
