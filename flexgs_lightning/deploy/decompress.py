"""``flexgs decompress``. Its signature and docstring are the command line's help."""

import logging
from pathlib import Path

from flexgs_lightning.codec.decoder import SUFFIX, cut_file, open_file, read_elastic
from flexgs_lightning.deploy.formats.ply import write_ply
from flexgs_lightning.deploy.render import require_free
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import MEGABYTE, PLY_HEADER_BYTES, ply_bytes_per_gaussian, ratio_for

log = logging.getLogger(__name__)


def decompress(
    file: Path,
    output: Path | None = None,
    ratio: float | None = None,
    max_gaussians: int | None = None,
    max_megabytes: float | None = None,
    recover: bool = False,
    overwrite: bool = False,
) -> None:
    """Write what an elastic file holds at a budget, as a standard 3DGS PLY or as a shorter elastic file.

    Only the chunks that the budget needs are read. Without a budget all that is there is written.

    Args:
        file: The .egs file, whole or cut.
        output: The .ply file to write, by default beside the file; or an .egs file, which gets the first
            chunks within --max-megabytes.
        ratio: Share of the full model's Gaussians, in (0, 1].
        max_gaussians: Number of Gaussians.
        max_megabytes: Size of the file to write in megabytes (1,000,000 bytes).
        recover: Open what stands before the damage of a damaged file.
        overwrite: Replace the file if it exists.
    """
    for name, number in (
        ("ratio", ratio),
        ("max_gaussians", max_gaussians),
        ("max_megabytes", max_megabytes),
    ):
        if number is not None and not 0 < number < float("inf"):
            raise InputError(f"--{name}: expected a positive number, found {number}.")
    output = file.with_suffix(".ply") if output is None else output
    require_free(output, overwrite, (".ply", SUFFIX))
    if output.suffix.lower() == SUFFIX:
        if max_megabytes is None or ratio is not None or max_gaussians is not None:
            raise InputError(f"{output}: a shorter elastic file needs --max-megabytes, and no other budget.")
        count = cut_file(file, output, max_megabytes * MEGABYTE, recover)
        log.info(f"{output}: {count:,} Gaussians, {output.stat().st_size / MEGABYTE:.3f} MB")
        return
    if output.suffix.lower() != ".ply":
        raise InputError(f"{output}: expected the name of a .ply or {SUFFIX} file.")
    found = open_file(file, recover)
    total, there = found.header.total, found.gaussians
    if ratio is None and max_gaussians is None and max_megabytes is None:
        wanted = there
    else:
        share = ratio_for(
            total,
            ratio=ratio,
            max_gaussians=max_gaussians,
            max_megabytes=max_megabytes,
            bytes_per_gaussian=ply_bytes_per_gaussian(found.header.sh_degree),
            overhead_bytes=PLY_HEADER_BYTES,
        )
        wanted = round(share * total)
        if wanted > there and ratio is None:
            wanted = there  # a budget larger than what is there is met
    arrays = read_elastic(file, max_gaussians=wanted, recover=recover, progress=True)
    if recover:
        wanted = min(wanted, len(arrays))
    splats = arrays.at(wanted / total)
    write_ply(splats, output, arrays.antialiased)
    size = output.stat().st_size / MEGABYTE
    log.info(f"{output}: {len(splats):,} Gaussians, SH degree {splats.sh_degree}, {size:.1f} MB")
