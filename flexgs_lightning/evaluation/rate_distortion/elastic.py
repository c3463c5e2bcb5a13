"""The elastic file: one file for every size, cut wherever it can be; and what it costs beside one size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flexgs_lightning.codec.container import UPDATE
from flexgs_lightning.codec.conversion import arrays_of, trained_quantization
from flexgs_lightning.codec.decoder import cut_file, open_file, stream_sizes
from flexgs_lightning.codec.encoder import Plan
from flexgs_lightning.codec.film import cut_film, film_sizes, is_film, open_film, read_film, write_film
from flexgs_lightning.codec.film_model import model_of_film
from flexgs_lightning.codec.rate_search import Found, plan_for, search_refined
from flexgs_lightning.codec.refinement import STEPS
from flexgs_lightning.codec.trained_rule import trained_plan
from flexgs_lightning.codec.views import Judged, read_views, split_views
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.evaluation.subject import Moving, Still, Subject

FILE = "scene.egs"


@dataclass(frozen=True)
class ElasticFile(System):
    """The elastic file at the decibels that training views may lose, and every prefix of it.

    Attributes:
        one_size: the full model alone, without levels, in growing chunks or in a single one, whichever is
            smaller: what a file that nobody cuts would take.
        refine_steps: see ``flexgs compress``.
    """

    one_size: bool = False
    refine_steps: int = STEPS
    holds_motion: ClassVar[bool] = True

    @property
    def description(self) -> str:
        """One sentence for reports."""
        if self.one_size:
            return "the same coder for the full model alone, which cannot be cut"
        return "the elastic file, whole and cut at the end of every chunk"

    def facts(self, study: Study) -> dict[str, Any]:
        """How it refines."""
        return {"refine_steps": self.refine_steps}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Measure what each number is worth, where no training for bytes has decided that."""
        arrays = arrays_of(study.model)
        arrays = arrays.only(()) if self.one_size else arrays
        measuring, judging = (
            read_views(views, arrays.background) for views in split_views(study.capture.train_views)
        )
        started = time.perf_counter()
        trained = None if self.one_size else trained_quantization(study.model.scene)
        if trained is None:
            plan = plan_for(arrays, measuring, study.device, study.seed)
        else:
            plan = trained_plan(arrays, trained)
        return partial(self._make, study, plan, measuring, judging, time.perf_counter() - started)

    def _make(
        self,
        study: Study,
        plan: Plan,
        measuring: list[Judged],
        judging: list[Judged],
        planned: float,
        setting: str,
        cell: Path,
    ) -> Iterator[Coded]:
        started = time.perf_counter()
        plans = [plan, replace(plan, stops=(plan.arrays.total,))] if self.one_size else [plan]
        found = min(
            (self._search(each, measuring, judging, study, float(setting)) for each in plans),
            key=lambda each: each.encoding.size(),
        )
        path = cell / FILE
        if study.model.moves:
            frames = len({view.time for view in study.capture.train_views})
            write_film(path, [found.encoding], seconds=study.seconds, frames=frames)
        else:
            found.encoding.write(path)
        encoded = time.perf_counter() - started + planned
        if self.one_size:
            yield _read(setting, path, encoded)
        else:
            yield from _cuts(path, encoded)

    def _search(
        self, plan: Plan, measuring: list[Judged], judging: list[Judged], study: Study, loss: float
    ) -> Found:
        return search_refined(plan, measuring, judging, study.device, loss, steps=self.refine_steps)


def _cuts(path: Path, encoded: float) -> Iterator[Coded]:
    """The file cut at every chunk's end, the whole one last."""
    cut: Callable[[Path, Path, int], object]
    if is_film(path):
        front = open_film(path).front
        stops, ends, cut = [entry.chunk.stop for entry in front.entries], front.indexed_lengths(), cut_film
    else:
        header = open_file(path).header
        stops, ends, cut = [entry.stop for entry in header.entries], header.indexed_lengths(), cut_file
    for stop, end in zip(stops, ends, strict=True):
        whole = stop == stops[-1]
        part = path if whole else path.with_name(f"first_{stop}.egs")
        if not whole:
            cut(path, part, end)
        yield _read(f"{100 * stop / stops[-1]:.3g} %", part, encoded)
        if not whole:
            part.unlink()


def _read(label: str, path: Path, encoded: float) -> Coded:
    started = time.perf_counter()
    film = read_film(path)
    seconds = time.perf_counter() - started
    moves = is_film(path)
    subject: Subject = Moving(model_of_film(film)) if moves else Still(film.groups[0].splats())
    return Coded(label, subject, path.stat().st_size, elastic_bytes(path), encoded, seconds)


def elastic_bytes(path: Path) -> dict[str, int]:
    """Bytes of an elastic file by stream; all that brings rows to the next level as "updates"."""
    if is_film(path):
        film = open_film(path)
        sizes = {"header": film.front.entries[0].chunk.offset}
        chunks: Iterable[dict[str, int]] = (streams for _, streams in film_sizes(film))
    else:
        file = open_file(path)
        sizes, chunks = {"header": file.header.entries[0].offset}, stream_sizes(file)
    for streams in chunks:
        for name, size in streams.items():
            name = "updates" if name.startswith(UPDATE) else name
            sizes[name] = sizes.get(name, 0) + size
    return sizes
