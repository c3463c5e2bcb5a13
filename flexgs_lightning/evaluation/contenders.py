"""Contenders: what reports compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from flexgs_lightning.evaluation.study import Study

Maker = TypeVar("Maker")


@dataclass(frozen=True)
class Contender(ABC, Generic[Maker]):
    """What is measured beside others, in several cells.

    Attributes:
        name: as it was asked for.
    """

    name: str

    @property
    @abstractmethod
    def description(self) -> str:
        """One sentence for reports."""

    @abstractmethod
    def facts(self, study: Study) -> dict[str, Any]:
        """What its results depend on, beside ``Study.facts``; plain values."""

    @abstractmethod
    def prepare(self, study: Study, folder: Path) -> Maker:
        """Do what all its cells have in common, in its ``folder``; returns what makes a cell's."""

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return self.name.replace(":", "-")
