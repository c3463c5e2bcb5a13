"""Splat files of other programs, one for each size of the model."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zstandard

from flexgs_lightning.codec.recipes.images import read_images, write_images
from flexgs_lightning.codec.recipes.package import bytes_by_attribute
from flexgs_lightning.deploy.formats.registry import FORMATS
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System, code
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.splats import Splats

PLY = "ply"
ZSTD_LEVEL = 19
XZ_PRESET = 9
GSPLAT_PNG = "gsplat-png"
PACKINGS = ("zstd", "xz")


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
        packed = {
            "": "",
            "zstd": f", compressed by zstd at level {ZSTD_LEVEL}",
            "xz": f", compressed by xz at {XZ_PRESET}",
        }
        return FORMATS[self.format].description + packed[self.packing]

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
            plain = path.with_suffix("") if self.packing else path
            chosen.write(SplatFile(splats, antialiased), plain)
            if self.packing:
                path.write_bytes(_PACK[self.packing](plain.read_bytes()))
                plain.unlink()

        def read(path: Path) -> Splats:
            if not self.packing:
                return chosen.read(path).splats
            plain = path.with_suffix("")
            plain.write_bytes(_UNPACK[self.packing](path.read_bytes()))
            splats = chosen.read(plain).splats
            plain.unlink()
            return splats

        suffix = chosen.suffix + (f".{self.packing}" if self.packing else "")
        return write, read, suffix, lambda _: {}


_PACK: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data),
    "xz": lambda data: lzma.compress(data, preset=XZ_PRESET),
}
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdDecompressor().decompress(data),
    "xz": lzma.decompress,
}
