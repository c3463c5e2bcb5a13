"""``flexgs info``. Its signature and docstring are the command line's help."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flexgs_lightning.codec.container import UPDATE
from flexgs_lightning.codec.decoder import ElasticFile, open_file, stream_sizes
from flexgs_lightning.codec.film import FilmFile, film_sizes, is_film, open_film
from flexgs_lightning.errors import printable
from flexgs_lightning.model.budget import MEGABYTE


def info(file: Path, recover: bool = False) -> None:
    """Tell what an elastic file holds: Gaussians, lengths at which it can be cut, bytes by attribute, PSNR.

    Of a film also its groups of frames, and megabits a second.

    Every line of the table of chunks is a place where the file may end: so many of its first bytes are the
    model of so many Gaussians.

    Args:
        file: The .egs file, whole or cut.
        recover: Accept a file that ends within a chunk.
    """
    lines = _film_lines(open_film(file, recover)) if is_film(file) else _lines(open_file(file, recover))
    shown = (line if line.startswith("\n") else printable(line) for line in lines)
    print("\n".join(shown))  # noqa: T201 (the command's purpose)


def _lines(file: ElasticFile) -> Iterator[str]:
    header = file.header
    chunks = len(header.entries)
    state = f"{file.available} of {chunks} chunks" if file.available < chunks else f"{chunks} chunks"
    yield (
        f"{file.path}: {file.gaussians:,} of {header.total:,} Gaussians, {state}, "
        f"{file.length / MEGABYTE:.3f} MB, "
        f"{file.length / file.gaussians:.2f} bytes each; SH degree {header.sh_degree}"
    )
    yield "Levels: " + ", ".join(
        f"{100 * ratio:g} % ({count:,})" for ratio, count in zip(header.ratios, header.counts, strict=True)
    )
    psnr = header.facts.get("psnr")
    if isinstance(psnr, dict):
        yield "PSNR on training views: " + ", ".join(f"{key}: {value} dB" for key, value in psnr.items())
    sizes = list(stream_sizes(file))
    yield "\n  chunk  Gaussians      bytes   share of Gaussians"
    ends = header.indexed_lengths()[: file.available]
    for index, (entry, end) in enumerate(zip(header.entries, ends, strict=False)):
        yield f"  {index:5}  {entry.stop:9,}  {end:9,}   {100 * entry.stop / header.total:.2f} %"
    yield from _sizes(header.entries[0].offset, sizes, file.gaussians)


def _sizes(front: int, sizes: Sequence[Mapping[str, int]], gaussians: int) -> Iterator[str]:
    """Bytes by stream."""
    yield "\n  bytes of                  all  each Gaussian"
    totals: dict[str, int] = {"header": front}
    for by_stream in sizes:
        for name, size in by_stream.items():
            totals[name] = totals.get(name, 0) + size
    updates = sum(size for name, size in totals.items() if name.startswith(UPDATE))
    for name, size in totals.items():
        yield f"  {name:22}  {size:9,}  {size / gaussians:8.3f}"
    yield f"  {'(all updates)':22}  {updates:9,}  {updates / gaussians:8.3f}"


def _film_lines(file: FilmFile) -> Iterator[str]:
    front = file.front
    stops = {group: front.chunks_of(group) for group in range(front.groups)}
    totals = {group: chunks[-1].stop for group, chunks in stops.items()}
    there = {
        group: chunks[file.available_of(group) - 1].stop if file.available_of(group) else 0
        for group, chunks in stops.items()
    }
    gaussians, chunks = sum(there.values()), len(front.entries)
    state = f"{file.available} of {chunks} chunks" if file.available < chunks else f"{chunks} chunks"
    rate = "" if front.seconds is None else f"; {8e-6 * file.length / front.seconds:.3f} Mbit/s"
    yield (
        f"{file.path}: {gaussians:,} of {sum(totals.values()):,} Gaussians that move, {state}, "
        f"{file.length / MEGABYTE:.3f} MB, {file.length / gaussians:.2f} bytes each; "
        f"SH degree {front.sh_degree}{rate}"
    )
    psnr = front.facts.get("psnr")
    if isinstance(psnr, dict):
        yield "PSNR on training views: " + ", ".join(f"{key}: {value} dB" for key, value in psnr.items())
    yield "\n  group      from        to  chunks   Gaussians      bytes"
    unit = 1.0 if front.seconds is None else front.seconds
    for group, (first, last) in enumerate(itertools.pairwise(front.bounds)):
        parts = stops[group][: file.available_of(group)]
        size = sum(part.length for part in parts)
        times = f"{first * unit:8.3f}  {last * unit:8.3f}"
        yield f"  {group:5}  {times}  {len(parts):6}  {there[group]:10,}  {size:9,}"
    yield "\n  chunk  group  Gaussians      bytes   share of the group"
    ends = front.indexed_lengths()[: file.available]
    for index, (entry, end) in enumerate(zip(front.entries, ends, strict=False)):
        share = 100 * entry.chunk.stop / totals[entry.group]
        yield f"  {index:5}  {entry.group:5}  {entry.chunk.stop:9,}  {end:9,}   {share:.2f} %"
    sizes = [found for _, found in film_sizes(file)]
    yield from _sizes(front.entries[0].chunk.offset, sizes, gaussians)
