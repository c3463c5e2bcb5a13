"""``flexgs decompress``. Its signature and docstring are the command line's help."""

import logging
from pathlib import Path

from flexgs_lightning.codec.decoder import SUFFIX, cut_file, open_file, read_elastic
from flexgs_lightning.codec.film import cut_film, is_film, read_film
from flexgs_lightning.codec.film_model import model_of_film
from flexgs_lightning.deploy.formats import splatv
from flexgs_lightning.deploy.formats.ply import write_ply
from flexgs_lightning.deploy.render import require_free
from flexgs_lightning.deploy.timeline import parse_time
from flexgs_lightning.deploy.vantage import vantage_of_splats
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import MEGABYTE, PLY_HEADER_BYTES, ply_bytes_per_gaussian, ratio_for

log = logging.getLogger(__name__)


def decompress(
    file: Path,
    output: Path | None = None,
    ratio: float | None = None,
    max_gaussians: int | None = None,
    max_megabytes: float | None = None,
    time: str | None = None,
    recover: bool = False,
    overwrite: bool = False,
) -> None:
    """Write what an elastic file holds at a budget, as a standard 3DGS PLY or as a shorter elastic file.

    Of a film, a moment is written as PLY, or a group of frames that moves as .splatv; other formats:
    flexgs export.

    Only the chunks that the budget needs are read. Without a budget all that is there is written.

    Args:
        file: The .egs file, whole or cut.
        output: The .ply file to write, by default beside the file; or an .egs file, which gets the first
            chunks within --max-megabytes; or, of a film of one group, a .splatv file.
        ratio: Share of the full model's Gaussians, in (0, 1].
        max_gaussians: Number of Gaussians.
        max_megabytes: Size of the file to write in megabytes (1,000,000 bytes).
        time: Moment of a film to write as it is then, such as 0.5: in seconds if it is known how long the
            film lasts, otherwise from 0 to 1.
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
    require_free(output, overwrite, (".ply", SUFFIX, splatv.SUFFIX))
    film = is_film(file)
    if output.suffix.lower() == SUFFIX:
        if max_megabytes is None or ratio is not None or max_gaussians is not None:
            raise InputError(f"{output}: a shorter elastic file needs --max-megabytes, and no other budget.")
        cut = cut_film if film else cut_file
        count = cut(file, output, max_megabytes * MEGABYTE, recover)
        log.info(f"{output}: {count:,} Gaussians, {output.stat().st_size / MEGABYTE:.3f} MB")
        return
    if film:
        _decompress_film(file, output, (ratio, max_gaussians, max_megabytes), time, recover)
        return
    if time is not None:
        raise InputError(f"--time {time}: {file} does not move, expected none.")
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


def _decompress_film(
    file: Path,
    output: Path,
    budget: tuple[float | None, int | None, float | None],
    time: str | None,
    recover: bool,
) -> None:
    """Write a moment of a film, or a group that moves."""
    ratio, max_gaussians, max_megabytes = budget
    share = ratio if ratio is not None and ratio <= 1 else 1.0
    film = read_film(file, ratio=share, recover=recover, progress=True)
    model = model_of_film(film, file.stem)
    at_hand = min(group.largest_ratio for group in film.groups)
    if ratio is not None and ratio > at_hand and not recover:
        raise InputError(f"ratio: expected at most {at_hand:.6g}, of which {file} has all, found {ratio:g}.")
    if all(number is None for number in budget):
        ratio = 1.0
    elif ratio is not None:
        ratio = min(1.0, ratio / at_hand)  # a model's ratios are shares of what is at hand
    share = model.ratio_of(ratio, max_gaussians=max_gaussians, max_megabytes=max_megabytes)
    if output.suffix.lower() == splatv.SUFFIX:
        if time is not None:
            raise InputError(f"--time {time}: {splatv.NAME} holds all moments, expected none.")
        if len(film.groups) > 1:
            raise InputError(
                f"{output}: holds one group of frames, found {len(film.groups)}; --time writes a moment."
            )
        count = splatv.write_splatv(model, share, vantage_of_splats(model.splats(0.0)).camera, output)
        log.info(f"{output}: {count:,} Gaussians that move, {output.stat().st_size / MEGABYTE:.1f} MB")
        return
    if output.suffix.lower() != ".ply":
        raise InputError(f"{output}: expected the name of a .ply, {splatv.SUFFIX} or {SUFFIX} file.")
    if time is None:
        raise InputError(
            f"{file} moves: expected --time, the moment to write, or a {splatv.SUFFIX} file for all."
        )
    span = parse_time(time, model.seconds)
    if not span.stands_still:
        raise InputError(f"--time {time}: expected one moment, found a stretch; a file shows one.")
    splats = model.at(share, span.start)
    write_ply(splats, output, model.antialiased)
    size = output.stat().st_size / MEGABYTE
    log.info(f"{output}: {len(splats):,} Gaussians, SH degree {splats.sh_degree}, {size:.1f} MB")
