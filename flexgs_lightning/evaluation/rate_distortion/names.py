"""Systems by name: what ``--systems`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexgs_lightning.deploy.formats.registry import FORMATS
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.rate_distortion.cogs import Cogs
from flexgs_lightning.evaluation.rate_distortion.elastic import ElasticFile
from flexgs_lightning.evaluation.rate_distortion.files import GSPLAT_PNG, PACKINGS, PLY, Files
from flexgs_lightning.evaluation.rate_distortion.systems import System

SYSTEMS = ("egs", "one-size", "ply", "ply.zstd", "ply.xz", GSPLAT_PNG, "sog", "spz", "cogs")
"""All that are compared by default."""


@dataclass(frozen=True)
class Settings:
    """What systems have in common.

    Attributes:
        ratios: at which formats without levels get a file each.
        losses: decibels that training views may lose.
        scale: lengths of trainings as a share of the published ones.
        refine_steps: of the elastic file.
        start: checkpoint that other systems train on from; None for the one that is compared.
    """

    ratios: tuple[float, ...]
    losses: tuple[float, ...]
    scale: float
    refine_steps: int
    start: Path | None

    def __post_init__(self) -> None:
        if not self.losses or not all(loss > 0 for loss in self.losses):
            raise InputError(f"--losses: expected positive numbers of dB, found {list(self.losses)}.")
        if not self.scale > 0:
            raise InputError(f"--scale: expected a positive number, found {self.scale}.")


def parse_systems(names: Sequence[str], settings: Settings) -> list[System]:
    """Systems by name: ``SYSTEMS``, and any other format of ``flexgs convert``.

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
        return Cogs(name, losses, settings.start, settings.scale)
    form, _, packing = name.partition(".")
    packable = not packing or (form == PLY and packing in PACKINGS)
    if packable and (form == GSPLAT_PNG or form in FORMATS):
        return Files(name, ratios, form, packing)
    known = dict.fromkeys([*SYSTEMS, *FORMATS])
    raise InputError(f"--systems: expected any of {', '.join(known)}, found '{name}'.")
