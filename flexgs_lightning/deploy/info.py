"""``flexgs info``. Its signature and docstring are the command line's help."""

from collections.abc import Iterator
from pathlib import Path

from flexgs_lightning.codec.container import UPDATE
from flexgs_lightning.codec.decoder import ElasticFile, open_file, stream_sizes
from flexgs_lightning.model.budget import MEGABYTE


def info(file: Path, recover: bool = False) -> None:
    """Tell what an elastic file holds: Gaussians, lengths at which it can be cut, bytes by attribute, PSNR.

    Every line of the table of chunks is a place where the file may end: so many of its first bytes are the
    model of so many Gaussians.

    Args:
        file: The .egs file, whole or cut.
        recover: Accept a file that ends within a chunk.
    """
    print("\n".join(_lines(open_file(file, recover))))  # noqa: T201 (the command's purpose)


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
    yield "\n  bytes of                  all  each Gaussian"
    totals: dict[str, int] = {"header": header.entries[0].offset}
    for by_stream in sizes:
        for name, size in by_stream.items():
            totals[name] = totals.get(name, 0) + size
    updates = sum(size for name, size in totals.items() if name.startswith(UPDATE))
    for name, size in totals.items():
        yield f"  {name:20}  {size:9,}  {size / file.gaussians:8.3f}"
    yield f"  {'(all updates)':20}  {updates:9,}  {updates / file.gaussians:8.3f}"
