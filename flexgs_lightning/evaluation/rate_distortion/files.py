"""Splat files of other programs, one for each size of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flexgs_lightning.codec.recipes.images import read_images, write_images
from flexgs_lightning.codec.recipes.package import bytes_by_attribute
from flexgs_lightning.deploy.formats.registry import FORMATS
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.evaluation.rate_distortion.packing import DESCRIPTIONS, read_packed, write_packed
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System, code
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.splats import Splats

PLY = "ply"
GSPLAT_PNG = "gsplat-png"


@dataclass(frozen=True)
class Files(System):
    """A file of a format at each ratio: what an elastic model takes there where no file can be cut.

    Attributes:
        format: a name in ``deploy.formats.registry``, or ``GSPLAT_PNG``.
        packing: what the file is compressed with as a whole: "", "zstd" or "xz".
    """

    format: str
    packing: str = ""

    @property
    def description(self) -> str:
        """One sentence for reports."""
        if self.format == GSPLAT_PNG:
            return "gsplat's recipe: PNG images of 8 and 16 bits, sorted in a grid, and an SH palette"
        return FORMATS[self.format].description + DESCRIPTIONS[self.packing]

    def facts(self, study: Study) -> dict[str, Any]:
        """Its format."""
        return {"format": self.format, "packing": self.packing}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Nothing."""
        return partial(self._make, study)

    def _make(self, study: Study, setting: str, cell: Path) -> Iterator[Coded]:
        splats = study.model.at(float(setting)).to("cpu")
        write, read, suffix, attributes = self._ways(study.antialiased)
        yield code(setting, cell / f"scene{suffix}", lambda path: write(splats, path), read, attributes)

    def _ways(
        self, antialiased: bool
    ) -> tuple[
        Callable[[Splats, Path], None], Callable[[Path], Splats], str, Callable[[Path], dict[str, int]]
    ]:
        """How to write, how to read, the file's ending, and its bytes by attribute."""
        if self.format == GSPLAT_PNG:
            return write_images, read_images, ".png.zip", bytes_by_attribute
        chosen = FORMATS[self.format]

        def write(splats: Splats, path: Path) -> None:
            plain = SplatFile(splats, antialiased)
            write_packed(path, self.packing, lambda place: chosen.write(plain, place))

        def read(path: Path) -> Splats:
            return read_packed(path, self.packing, chosen.read).splats

        suffix = chosen.suffix + (f".{self.packing}" if self.packing else "")
        return write, read, suffix, lambda _: {}
