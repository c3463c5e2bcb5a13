"""Films: elastic models of groups of frames, one after the other in one file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.chunks import ChunkCoder, DamagedChunkError
from flexgs_lightning.codec.container import (
    FILM_VERSION,
    START_BYTES,
    Header,
    unpack_chunk,
    version_of,
)
from flexgs_lightning.codec.decoder import bytes_of, decode_chunk, open_file, read_elastic, start_of
from flexgs_lightning.codec.encoder import Encoding
from flexgs_lightning.codec.film_container import FilmHeader, pack_film, read_front, read_head
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.records import opened

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Film:
    """A film in memory.

    Attributes:
        groups: of each group its model, as much of it as is at hand.
        bounds: [G + 1] where groups begin and end, from 0 to 1.
        seconds: how long the film lasts; None if that is unknown.
        frames: of the film; None if that is unknown.
    """

    groups: tuple[ElasticModelArrays, ...]
    bounds: tuple[float, ...] = (0.0, 1.0)
    seconds: float | None = None
    frames: int | None = None


@dataclass(frozen=True)
class FilmFile:
    """A film's front, checked, and how much of the file is there.

    Attributes:
        path: the file.
        front: what stands before the chunks.
        available: chunks that are there from their first to their last byte, in the file's order.
        length: bytes of the file.
    """

    path: Path
    front: FilmHeader
    available: int
    length: int

    @property
    def broken_off(self) -> bool:
        """Whether the file does not end where a chunk does."""
        ends = self.front.indexed_lengths()
        return self.length != ends[self.available - 1]

    def available_of(self, group: int) -> int:
        """Chunks of a group that are there."""
        return sum(entry.group == group for entry in self.front.entries[: self.available])


def is_film(path: str | Path) -> bool:
    """Whether an elastic file is of the version that holds films.

    Raises:
        InputError: no elastic file.
    """
    with opened(Path(path)) as file:
        return version_of(Path(path), file.read(START_BYTES)) == FILM_VERSION


def facts_of(path: str | Path) -> dict[str, Any]:
    """What an elastic file of either version tells people.

    Raises:
        InputError: as ``open_file`` and ``open_film``.
    """
    if is_film(path):
        return open_film(path, recover=True).front.facts
    return open_file(path, recover=True).header.facts


def open_film(path: str | Path, recover: bool = False) -> FilmFile:
    """Read a film's front and compare its index with the file's length.

    Args:
        path: a film, or its first bytes up to a length in its index.
        recover: accept a file that ends within a chunk, or goes on behind the last.

    Raises:
        InputError: no film; a damaged front; a length that is not in the index.
    """
    path = Path(path)
    start, length = start_of(path)
    front = read_front(path, start)
    ends = front.indexed_lengths()
    available = sum(end <= length for end in ends)
    if available == 0:
        raise InputError(
            f"{path}: chunk 0 is cut off: the file has {length:,} bytes, expected at least {ends[0]:,}."
        )
    found = FilmFile(path, front, available, length)
    if found.broken_off and not recover:
        if available == len(ends):
            raise InputError(
                f"{path}: {length - ends[-1]:,} bytes stand behind the last chunk; --recover opens it."
            )
        raise InputError(
            f"{path}: chunk {available} is cut off: the file has {length:,} bytes, expected "
            f"{ends[available]:,}. --recover opens the {available} chunks before it."
        )
    return found


def read_film(path: str | Path, *, ratio: float = 1.0, recover: bool = False, progress: bool = False) -> Film:
    """Decode an elastic file of either version; a scene that stands still is a film of one group.

    Args:
        path: the file, which may have been cut at a length in its index.
        ratio: decode no more chunks of each group than hold this share of its Gaussians.
        recover: decode what stands before the damage of a damaged file, with a warning in the log.
        progress: show a bar.

    Raises:
        InputError: as ``open_film``; a chunk is damaged (named, with what is wrong); a group of a film that
            was cut has no chunk.
    """
    if not is_film(path):
        return Film((read_elastic(path, recover=recover, progress=progress),))
    file = open_film(path, recover)
    front = file.front
    for group in range(front.groups):
        if file.available_of(group) == 0:
            raise InputError(
                f"{file.path}: group {group} of {front.groups} has no chunk: the film is cut before it; "
                "expected the first chunk of each group."
            )
    coders: dict[int, tuple[ChunkCoder, Header]] = {}
    bar = tqdm(total=file.available, desc="Decoding", unit="chunk", disable=not progress, leave=False)
    with file.path.open("rb") as stream, bar:
        for index in range(file.available):
            try:
                _decode(file, stream, index, ratio, coders)
            except DamagedChunkError as error:
                message = f"{file.path}: chunk {index} of {len(front.entries)} is damaged: {error}."
                if not recover or len(coders) < front.groups:
                    hint = " --recover opens the chunks before it." if len(coders) == front.groups else ""
                    raise InputError(message + hint) from error
                log.warning(f"{message} The {index} chunks before it were opened.")
                break
            bar.update()
    groups = tuple(
        coder.arrays(header.background, header.antialiased, header.movement)
        for coder, header in (coders[group] for group in range(front.groups))
    )
    return Film(groups, front.bounds, front.seconds, front.frames)


def _decode(
    file: FilmFile, stream: BinaryIO, index: int, ratio: float, coders: dict[int, tuple[ChunkCoder, Header]]
) -> None:
    """Decode a chunk, if its group's share is not complete yet.

    Raises:
        DamagedChunkError: with what is wrong.
    """
    group, entry = file.front.entries[index]
    if group in coders:
        coder, header = coders[group]
        if coder.done >= count_at(max(ratio, 1 / header.total), header.total):
            return
    data = bytes_of(stream, entry)
    if group not in coders:
        try:
            header, data = read_head(file.path, file.front, group, data)
        except InputError as error:
            raise DamagedChunkError(str(error).removeprefix(f"{file.path}: ").rstrip(".")) from error
        coder = ChunkCoder(header.numbers, header.total, header.ratios, header.counts)
    decode_chunk(coder, data, entry)
    coders[group] = coder, header


def cut_film(path: str | Path, output: str | Path, max_bytes: float, recover: bool = False) -> int:
    """Copy as many whole chunks as a number of bytes holds; returns how many Gaussians they are.

    Raises:
        InputError: as ``open_film``; not even the first chunk of each group fits; a chunk is damaged.
    """
    file = open_film(path, recover)
    entries = file.front.entries[: file.available]
    fitting = sum(entry.chunk.offset + entry.chunk.length <= max_bytes for entry in entries)
    least = max(
        next(i for i, e in enumerate(file.front.entries) if e.group == g) for g in range(file.front.groups)
    )
    if fitting <= least:
        needed = file.front.indexed_lengths()[least]
        raise InputError(
            f"max_megabytes: {path} up to the first chunk of each group takes {needed / 1e6:.6f} MB, "
            f"expected room for it, found {max_bytes / 1e6:g}."
        )
    with file.path.open("rb") as stream, atomic_path(output) as temporary, temporary.open("wb") as out:
        out.write(stream.read(entries[0].chunk.offset))
        for index, entry in enumerate(entries[:fitting]):
            try:
                out.write(bytes_of(stream, entry.chunk))
            except DamagedChunkError as error:
                message = f"{file.path}: chunk {index} of {len(file.front.entries)} is damaged: {error}."
                if not recover or index <= least:
                    raise InputError(message) from error
                log.warning(f"{message} Its {index} first chunks were copied.")
                fitting = index
                break
    last = {entry.group: entry.chunk.stop for entry in entries[:fitting]}
    return sum(last.values())


def film_sizes(file: FilmFile) -> Iterator[tuple[int, dict[str, int]]]:
    """Group, and bytes by stream, of each chunk that is there, without decoding it.

    Raises:
        InputError: a chunk is damaged.
    """
    headers: dict[int, Header] = {}
    before: dict[int, list[int]] = {group: [0] for group in range(file.front.groups)}
    with file.path.open("rb") as stream:
        for index, (group, entry) in enumerate(file.front.entries[: file.available]):
            try:
                data = bytes_of(stream, entry)
                head = len(data)
                if group not in headers:
                    headers[group], data = read_head(file.path, file.front, group, data)
                header, stops = headers[group], before[group]
                updates = stops[-1] in header.counts[:-1]
                sizes = unpack_chunk(data, len(stops) - 1, updates, header.numbers.layout)[2]
            except ValueError as error:
                raise InputError(f"{file.path}: chunk {index} is damaged: {error}.") from error
            stops.append(entry.stop)
            yield group, {"head": head - len(data)} | sizes


def write_film(
    path: str | Path,
    groups: Sequence[Encoding],
    *,
    bounds: Sequence[float] = (0.0, 1.0),
    seconds: float | None = None,
    frames: int | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write encoded groups as a film.

    Args:
        path: the file.
        groups: one after the other in time; of one SH degree, background and filter.
        bounds: see ``FilmHeader``.
        seconds: likewise.
        frames: likewise.
        facts: for people.

    Raises:
        InputError: groups that do not fit together, or the file cannot be written.
    """
    first = groups[0].header
    for number, encoding in enumerate(groups):
        for name in ("sh_degree", "background", "antialiased"):
            found, expected = getattr(encoding.header, name), getattr(first, name)
            if found != expected:
                raise InputError(
                    f"{path}: groups of a film need one {name}: the first has {expected}, group {number} "
                    f"{found}."
                )
    front = FilmHeader(
        first.sh_degree, first.antialiased, first.background, seconds, frames, tuple(bounds), facts or {}
    )
    start, chunks = pack_film(front, [(encoding.header, encoding.chunks) for encoding in groups])
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(start)
        file.writelines(chunks)
