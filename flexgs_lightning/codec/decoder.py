"""An elastic file to arrays: whole, in part, or what a damaged one has left."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.chunks import ChunkCoder, DamagedChunkError
from flexgs_lightning.codec.container import (
    MOST_HEADER,
    START_BYTES,
    Entry,
    Header,
    header_bytes,
    read_header,
    unpack_chunk,
)
from flexgs_lightning.codec.rans import Stream
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.compression.layout import STILL
from flexgs_lightning.records import opened, plain_size

MEMORY_FACTOR = 1024
"""Decoding takes at most this many times the bytes of the chunks that are read."""
SUFFIX = ".egs"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ElasticFile:
    """An elastic file's header, checked, and how much of the file is there.

    Attributes:
        path: the file.
        header: what stands in front.
        available: chunks that are there from their first to their last byte.
        length: bytes of the file.
    """

    path: Path
    header: Header
    available: int
    length: int

    @property
    def cut(self) -> bool:
        """Whether the file ends where a chunk does, with chunks missing."""
        return self.available < len(self.header.entries) and not self.broken_off

    @property
    def broken_off(self) -> bool:
        """Whether the file ends within a chunk."""
        return self.length != self._end

    @property
    def gaussians(self) -> int:
        """Gaussians of the chunks that are there."""
        return self.header.entries[self.available - 1].stop if self.available else 0

    @property
    def _end(self) -> int:
        lengths = self.header.indexed_lengths()
        return lengths[self.available - 1] if self.available else self.header.entries[0].offset


def start_of(path: Path) -> tuple[bytes, int]:
    """What stands before a file's chunks, in bytes, and the file's length.

    Raises:
        InputError: no elastic file.
    """
    length = plain_size(path)
    with opened(path) as file:
        start = file.read(START_BYTES)
        start += file.read(min(header_bytes(path, start) - len(start), MOST_HEADER))
    return start, length


def open_file(path: str | Path, recover: bool = False) -> ElasticFile:
    """Read a file's header and compare its index with the file's length.

    Args:
        path: an elastic file, or its first bytes up to a length in its index.
        recover: accept a file that ends within a chunk, or goes on behind the last.

    Raises:
        InputError: no elastic file; a damaged header; a length that is not in the index.
    """
    path = Path(path)
    start, length = start_of(path)
    header = read_header(path, start)
    available = sum(end <= length for end in header.indexed_lengths())
    found = ElasticFile(path, header, available, length)
    if available == 0:
        raise InputError(
            f"{path}: chunk 0 is cut off: the file has {length:,} bytes, expected at least "
            f"{header.indexed_lengths()[0]:,}."
        )
    if found.broken_off and not recover:
        if available == len(header.entries):
            raise InputError(
                f"{path}: {length - found._end:,} bytes stand behind the last chunk; --recover opens it."
            )
        raise InputError(
            f"{path}: chunk {available} is cut off: the file has {length:,} bytes, expected "
            f"{header.indexed_lengths()[available]:,}. --recover opens the {available} chunks before it."
        )
    return found


def read_elastic(
    path: str | Path, *, max_gaussians: int | None = None, recover: bool = False, progress: bool = False
) -> ElasticModelArrays:
    """Decode an elastic file, or as many chunks of it as hold a number of Gaussians.

    The same bytes give the same bits everywhere. Memory is at most ``MEMORY_FACTOR`` times the bytes read.

    Args:
        path: the file, which may have been cut at a length in its index.
        max_gaussians: decode no more chunks than hold so many.
        recover: decode what stands before the damage of a damaged file, with a warning in the log.
        progress: show a bar.

    Raises:
        InputError: as ``open_file``; a chunk is damaged (named, with what is wrong).
    """
    file = open_file(path, recover)
    header = file.header
    wanted = file.available
    if max_gaussians is not None:
        wanted = min(wanted, 1 + sum(entry.stop < max_gaussians for entry in header.entries))
    coder = ChunkCoder(header.numbers, header.total, header.ratios, header.counts)
    bar = tqdm(total=wanted, desc="Decoding", unit="chunk", disable=not progress, leave=False)
    with file.path.open("rb") as stream, bar:
        for index in range(wanted):
            try:
                decode_chunk(coder, bytes_of(stream, header.entries[index]), header.entries[index])
            except DamagedChunkError as error:
                message = f"{file.path}: chunk {index} of {len(header.entries)} is damaged: {error}."
                if not recover or index == 0:
                    hint = f" --recover opens the {index} chunks before it." if index else ""
                    raise InputError(message + hint) from error
                log.warning(f"{message} Its {index} first chunks were opened.")
                break
            bar.update()
    if file.broken_off:
        log.warning(f"{file.path}: ends within chunk {file.available}; the chunks before it were opened.")
    return coder.arrays(header.background, header.antialiased, header.movement)


def bytes_of(stream: BinaryIO, entry: Entry) -> bytes:
    """A chunk's bytes.

    Raises:
        DamagedChunkError: they are not those that were written.
    """
    stream.seek(entry.offset)
    data = stream.read(entry.length)
    if zlib.crc32(data) != entry.checksum:
        raise DamagedChunkError("its checksum is not that of its bytes")
    return data


def decode_chunk(coder: ChunkCoder, data: bytes, entry: Entry) -> None:
    """Add one chunk to what was decoded before it; a broken one leaves that as it was.

    Raises:
        DamagedChunkError: with what is wrong.
    """
    updates = coder.needs_update()
    try:
        update, (offsets, streams), _ = unpack_chunk(data, len(coder.rows), updates, coder.layout)
    except ValueError as error:
        raise DamagedChunkError(str(error)) from error
    if update is not None:
        coder.update([Stream(part) for part in update[1]], update[0], None)
    pipes = [Stream(part) for part in streams]
    coder.code_rows(pipes, entry.stop - coder.done, offsets, None)


def cut_file(path: str | Path, output: str | Path, max_bytes: float, recover: bool = False) -> int:
    """Copy as many whole chunks as a number of bytes holds; returns how many Gaussians they are.

    Args:
        path: the file.
        output: where to.
        max_bytes: of the copy.
        recover: stop before a damaged chunk, with a warning in the log, rather than refuse it.

    Raises:
        InputError: as ``open_file``; not even the first chunk fits; a chunk is damaged.
    """
    file = open_file(path, recover)
    lengths = file.header.indexed_lengths()[: file.available]
    fitting = sum(length <= max_bytes for length in lengths)
    if fitting == 0:
        raise InputError(
            f"max_megabytes: {path} up to its first chunk's end takes {lengths[0] / 1e6:.6f} MB, "
            f"expected room for it, found {max_bytes / 1e6:g}."
        )
    entries = file.header.entries
    with file.path.open("rb") as stream, atomic_path(output) as temporary, temporary.open("wb") as out:
        out.write(stream.read(entries[0].offset))
        for index in range(fitting):
            try:
                out.write(bytes_of(stream, entries[index]))
            except DamagedChunkError as error:
                message = f"{file.path}: chunk {index} of {len(entries)} is damaged: {error}."
                if not recover or index == 0:
                    hint = f" --recover copies the {index} chunks before it." if index else ""
                    raise InputError(message + hint) from error
                log.warning(f"{message} Its {index} first chunks were copied.")
                return entries[index - 1].stop
    return entries[fitting - 1].stop


def stream_sizes(file: ElasticFile) -> Iterator[dict[str, int]]:
    """Bytes by stream of each chunk that is there, without decoding it.

    Raises:
        InputError: a chunk is damaged.
    """
    counts = file.header.counts
    with file.path.open("rb") as stream:
        before = 0
        for index, entry in enumerate(file.header.entries[: file.available]):
            try:
                yield unpack_chunk(bytes_of(stream, entry), index, before in counts, STILL)[2]
            except ValueError as error:
                raise InputError(f"{file.path}: chunk {index} is damaged: {error}.") from error
            before = entry.stop
