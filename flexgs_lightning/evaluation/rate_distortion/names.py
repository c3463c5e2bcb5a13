"""Systems by name: what ``--systems`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexgs_lightning.deploy.formats.registry import FORMATS
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.rate_distortion.cogs import Cogs
from flexgs_lightning.evaluation.rate_distortion.elastic import ElasticFile
from flexgs_lightning.evaluation.rate_distortion.files import GSPLAT_PNG, PLY, Files
from flexgs_lightning.evaluation.rate_distortion.gscodec import Gscodec, Modules, modules_of
from flexgs_lightning.evaluation.rate_distortion.numbers import TYPES, Numbers
from flexgs_lightning.evaluation.rate_distortion.packing import PACKINGS
from flexgs_lightning.evaluation.rate_distortion.rave import CONTEXT, GLOBAL, Rave
from flexgs_lightning.evaluation.rate_distortion.systems import System
from flexgs_lightning.settings import read_config

SYSTEMS = (
    "egs",
    "one-size",
    "ply",
    "ply.zstd",
    "ply.xz",
    GSPLAT_PNG,
    "sog",
    "spz",
    "cogs",
    "rave",
    "gscodec",
)
"""All that are compared by default where nothing moves."""
MOVING_SYSTEMS = ("egs", "one-size", "float32", "float32.zstd", "float32.xz", "float16.xz")
"""The same of scenes that move."""
STILL_ONLY = "holds scenes that stand still"
"""Why other systems are left out there."""
LEVELS = 8
"""Anchors of RAVE, unless its name says another number."""
OVERLAYS = Path("codec") / "gscodec"
"""Folder of GSCodec's overlays below that of the configs."""


@dataclass(frozen=True)
class Settings:
    """What systems have in common.

    Attributes:
        ratios: at which formats without levels get a file each.
        losses: decibels that training views may lose by the elastic file.
        stops: the same at which the rounds of COGS 2025's runner-up end.
        scale: lengths of trainings as a share of the published ones.
        refine_steps: of the elastic file.
        start: checkpoint that other systems train on from; None for the one that is compared.
        rates: of RAVE, a file each.
        lambdas: of GSCodec: weights of the bits.
        configs: folder of the overlays.
    """

    ratios: tuple[float, ...]
    losses: tuple[float, ...]
    stops: tuple[float, ...]
    scale: float
    refine_steps: int
    start: Path | None
    rates: int
    lambdas: tuple[float, ...]
    configs: Path

    def __post_init__(self) -> None:
        if not self.losses or not all(loss > 0 for loss in self.losses):
            raise InputError(f"--losses: expected positive numbers of dB, found {list(self.losses)}.")
        if not self.stops or not all(loss > 0 for loss in self.stops):
            raise InputError(f"--stops: expected positive numbers of dB, found {list(self.stops)}.")
        if not self.lambdas or not all(weight >= 0 for weight in self.lambdas):
            raise InputError(f"--lambdas: expected numbers of at least 0, found {list(self.lambdas)}.")
        if self.refine_steps < 0:
            raise InputError(f"--refine_steps: expected 0 or more, found {self.refine_steps}.")
        if self.rates < 2:
            raise InputError(f"--rates: expected at least 2, found {self.rates}.")
        if not self.scale > 0:
            raise InputError(f"--scale: expected a positive number, found {self.scale}.")


def parse_systems(names: Sequence[str], settings: Settings) -> list[System]:
    """Systems by name: ``SYSTEMS``, ``MOVING_SYSTEMS`` and any other format of ``flexgs convert``.

    ``rave:50`` has 50 anchors, and ``gscodec+name`` lays ``codec/gscodec/name.yaml`` over ``gscodec``.

    Raises:
        InputError: an unknown or repeated name.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"--systems: expected different systems, found {' '.join(names) or 'none'}.")
    return [_system(name, settings) for name in names]


def _system(name: str, settings: Settings) -> System:
    ratios = tuple(f"{ratio:g}" for ratio in sorted(settings.ratios, reverse=True))
    losses = tuple(f"{loss:g}" for loss in sorted(settings.losses))
    if name in ("egs", "one-size"):
        return ElasticFile(name, losses, name == "one-size", settings.refine_steps)
    if name == "cogs":
        stops = tuple(f"{loss:g}" for loss in sorted(settings.stops))
        return Cogs(name, stops, settings.start, settings.scale)
    base, colon, anchors = name.partition(":")
    if base == "rave" and (not colon or (anchors.isdecimal() and int(anchors) >= 2)):
        levels = int(anchors) if colon else LEVELS
        return Rave(name, (CONTEXT, GLOBAL), settings.start, settings.scale, levels, settings.rates)
    base, *overlays = name.split("+")
    if base == "gscodec":
        weights = tuple(f"{weight:g}" for weight in sorted(settings.lambdas))
        modules = _modules(name, overlays, settings.configs)
        return Gscodec(name, weights, settings.start, settings.scale, modules)
    form, _, packing = name.partition(".")
    packable = not packing or (form == PLY and packing in PACKINGS)
    if form in TYPES and packing in ("", *PACKINGS):
        return Numbers(name, ratios, form, packing)
    if packable and (form == GSPLAT_PNG or form in FORMATS):
        return Files(name, ratios, form, packing)
    known = dict.fromkeys([*SYSTEMS, *MOVING_SYSTEMS, *FORMATS])
    raise InputError(f"--systems: expected any of {', '.join(known)}, found '{name}'.")


def _modules(name: str, overlays: Sequence[str], configs: Path) -> Modules:
    """GSCodec's defaults with overlays laid over them."""
    found: dict[str, Any] = {}
    folder = configs / OVERLAYS
    for overlay in overlays:
        path = folder / f"{overlay}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(other.stem for other in folder.glob("*.yaml"))) or "none"
            raise InputError(f"--systems {name}: no such file {path}; there are {known}.")
        found |= read_config(path)
    return modules_of(found, f"--systems {name}")
