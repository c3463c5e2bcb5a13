"""The formats of splat files: one entry each, for every command that reads or writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flexgs_lightning.deploy.formats.compressed_ply import (
    compressed_ply_bytes,
    is_compressed,
    read_compressed_ply,
    write_compressed_ply,
)
from flexgs_lightning.deploy.formats.glb import write_glb
from flexgs_lightning.deploy.formats.glb_reader import read_glb
from flexgs_lightning.deploy.formats.ply import ANTIALIASED, ply_bytes, read_ply, read_ply_header, write_ply
from flexgs_lightning.deploy.formats.sog import META, write_sog
from flexgs_lightning.deploy.formats.sog_reader import read_sog
from flexgs_lightning.deploy.formats.splat import read_splat, splat_bytes, write_splat
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.formats.spz import read_spz, write_spz
from flexgs_lightning.deploy.formats.streamed_sog import LOD_META, read_streamed_sog, write_streamed_sog
from flexgs_lightning.errors import InputError

STREAMED = "streamed-sog"
"""The format whose files are levels of one scene in one folder."""


@dataclass(frozen=True)
class Format:
    """One way to keep splats in a file.

    Attributes:
        name: what ``--format`` calls it.
        description: for people.
        suffixes: endings of its files' names, the usual one first. A later format may share one of an
            earlier, which is then the one that the suffix alone means.
        write: splats to a path that is replaced when the file is whole.
        read: the inverse, as far as the format allows; reads what any program wrote with this suffix.
        size: exact bytes for a number of Gaussians, an SH degree and the antialiased flag; None where the
            content decides, because it is compressed.
    """

    name: str
    description: str
    suffixes: tuple[str, ...]
    write: Callable[[SplatFile, Path], None]
    read: Callable[[Path], SplatFile]
    size: Callable[[int, int, bool], int] | None = None

    @property
    def suffix(self) -> str:
        """Of the files that are written."""
        return self.suffixes[0]


def _write_ply(file: SplatFile, path: Path) -> None:
    write_ply(file.splats, path, file.antialiased)


def _read_any_ply(path: Path) -> SplatFile:
    """Standard or compressed, whatever its name says."""
    header = read_ply_header(path)
    if is_compressed(header):
        return read_compressed_ply(path)
    return SplatFile(read_ply(path), ANTIALIASED in header.comments)


def _write_one_level(file: SplatFile, path: Path) -> None:
    write_streamed_sog([file], path.parent)


_ALL = (
    Format("ply", "3DGS PLY: exact, 248 bytes a Gaussian", (".ply",), _write_ply, _read_any_ply, ply_bytes),
    Format(
        "compressed-ply",
        "PlayCanvas's compressed PLY: 61 bytes a Gaussian",
        (".compressed.ply",),
        write_compressed_ply,
        _read_any_ply,
        compressed_ply_bytes,
    ),
    Format(
        "splat", "antimatter15's .splat: 32 bytes, no SH", (".splat",), write_splat, read_splat, splat_bytes
    ),
    Format("spz", "Niantic's SPZ, version 4", (".spz",), write_spz, read_spz),
    Format("glb", "GLB with KHR_gaussian_splatting: exact", (".glb",), write_glb, read_glb),
    Format("sog", "SOG version 2", (".sog", META), write_sog, read_sog),
    Format(STREAMED, "streamed SOG, a folder", (LOD_META,), _write_one_level, read_streamed_sog),
    Format("spz3", "Niantic's SPZ, version 3 (gzip)", (".spz",), partial(write_spz, version=3), read_spz),
)
FORMATS = {each.name: each for each in _ALL}
"""By name."""


def find_format(path: Path, name: str | None = None) -> Format:
    """The format of that name, or else the one that the path's suffix means: the longest that fits.

    Raises:
        InputError: no such format or suffix; a suffix that is not the format's.
    """
    if name is not None:
        if name not in FORMATS:
            raise InputError(f"format: expected one of {', '.join(FORMATS)}, found '{name}'.")
        chosen = FORMATS[name]
        if not any(has_suffix(path, suffix) for suffix in chosen.suffixes):
            raise InputError(
                f"{path}: expected a name that ends in {' or '.join(chosen.suffixes)} for {name}."
            )
        return chosen
    fitting = [(len(suffix), each) for each in _ALL for suffix in each.suffixes if has_suffix(path, suffix)]
    if not fitting:
        raise InputError(
            f"{path}: expected the name of a splat file, ending in {' or '.join(all_suffixes())}."
        )
    return max(fitting, key=lambda pair: pair[0])[1]


def is_splat_file(path: Path) -> bool:
    """Whether the path's suffix is that of a splat file."""
    return any(has_suffix(path, suffix) for suffix in all_suffixes())


def all_suffixes() -> list[str]:
    """Of all formats, each once."""
    return list(dict.fromkeys(suffix for each in _ALL for suffix in each.suffixes))


def has_suffix(path: Path, suffix: str) -> bool:
    """Whether a file's name ends so, in any case; a suffix without a dot is a whole name."""
    name = path.name.lower()
    return name.endswith(suffix) and (name == suffix) == (not suffix.startswith("."))


def read_splats(path: str | Path) -> SplatFile:
    """Read a splat file of any format, by its suffix.

    Raises:
        InputError: no such format; the file cannot be read, is damaged, or holds what cannot be drawn.
    """
    path = Path(path)
    return find_format(path).read(path)


def write_splats(file: SplatFile, path: str | Path, name: str | None = None) -> None:
    """Write a splat file, of the format ``name`` or of what the suffix means.

    Raises:
        InputError: no such format; there is nothing that could be drawn; the file cannot be written.
            ``path`` is then as it was.
    """
    path = Path(path)
    find_format(path, name).write(file, path)
