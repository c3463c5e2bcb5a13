"""Numbers: a scene uncoded, that moves or stands still, one file for each size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.codec.conversion import arrays_of, model_of
from flexgs_lightning.evaluation.rate_distortion.packing import DESCRIPTIONS, read_packed, write_packed
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System, code
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.evaluation.subject import Subject, subject_of
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.scene import Scene

TYPES = ("float32", "float16")


@dataclass(frozen=True)
class Numbers(System):
    """Every number of every Gaussian, and those that all share, as they are trained; as PLY files have it.

    Attributes:
        type: of each number, one of ``TYPES``.
        packing: what the file is compressed with as a whole, see ``packing``.
    """

    type: str
    packing: str = ""
    holds_motion: ClassVar[bool] = True

    @property
    def description(self) -> str:
        """One sentence for reports."""
        return f"uncoded: every number as {self.type}, motion too{DESCRIPTIONS[self.packing]}"

    def facts(self, study: Study) -> dict[str, Any]:
        """Its type."""
        return {"type": self.type, "packing": self.packing}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """What the scene is at each size."""
        return partial(self._make, arrays_of(study.model))

    def _make(self, arrays: ElasticModelArrays, setting: str, cell: Path) -> Iterator[Coded]:
        model = model_of(_one_size(arrays, float(setting)))
        suffix = f".npz.{self.packing}" if self.packing else ".npz"
        yield code(
            setting,
            cell / f"scene{suffix}",
            lambda path: write_packed(path, self.packing, partial(self._write, model.scene)),
            lambda path: read_packed(path, self.packing, partial(_read, model)),
        )

    def _write(self, scene: Scene, path: Path) -> None:
        largest = float(np.finfo(self.type).max)
        numbers = {name: value.clamp(-largest, largest).numpy() for name, value in scene.state_dict().items()}
        with path.open("wb") as file:
            np.savez(file, **{name: value.astype(self.type) for name, value in numbers.items()})


def _one_size(arrays: ElasticModelArrays, ratio: float) -> ElasticModelArrays:
    """A share of the Gaussians as they are there, alone."""
    values = arrays.values_at(ratio)
    count = len(values)
    return replace(
        arrays,
        total=count,
        levels=(Level(1.0, values),),
        sh_rest=arrays.sh_rest[:count],
        flags=arrays.flags[:count],
    )


def _read(model: Model, path: Path) -> Subject:
    """What a file holds, of a scene made like that of ``model``."""
    with np.load(path, allow_pickle=False) as file:
        stored: Mapping[str, np.ndarray] = dict(file)
    state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in stored.items()}
    scene = Scene.from_state(state, model.scene.as_plain())
    scene.load_state_dict(state)
    return subject_of(replace(model, scene=scene.eval()))
