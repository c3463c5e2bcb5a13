"""Elastic files of a benchmark's scenes, and the bytes that each ratio takes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from flexgs_lightning.codec.decoder import open_file
from flexgs_lightning.codec.film import is_film, open_film
from flexgs_lightning.codec.film_container import FilmHeader
from flexgs_lightning.deploy.compress import compress
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.benchmark.scene import SceneRun
from flexgs_lightning.model.budget import MEGABYTE

log = logging.getLogger(__name__)


def write_elastic_files(runs: Iterable[SceneRun]) -> None:
    """Write the elastic file of each finished scene that has none; a failure stops no other."""
    for run in runs:
        checkpoint = run.checkpoint()
        if run.elastic_file.is_file() or run.finished() is None or checkpoint is None:
            continue
        log.info("%s: writing %s", run.name, run.elastic_file)
        try:
            compress(run.elastic_file, ckpt=[checkpoint])
        except InputError as error:
            log.warning("%s: no elastic file: %s", run.name, error)


def megabytes_at(path: Path, counts: Mapping[float, int]) -> dict[float, float]:
    """Megabytes of an elastic file's first chunks that hold the Gaussians of each ratio.

    Args:
        path: a whole elastic file.
        counts: Gaussians of each ratio.

    Raises:
        InputError: see ``open_file``.
    """
    if is_film(path):
        return _megabytes_of_film(open_film(path).front, counts)
    header = open_file(path).header
    ends = list(zip((entry.stop for entry in header.entries), header.indexed_lengths(), strict=True))
    return {
        ratio: next(end for stop, end in ends if stop >= min(count, header.total)) / MEGABYTE
        for ratio, count in counts.items()
    }


def _megabytes_of_film(front: FilmHeader, counts: Mapping[float, int]) -> dict[float, float]:
    """The same where each group has its share."""
    totals = {entry.group: entry.chunk.stop for entry in front.entries}
    found = {}
    for ratio, count in counts.items():
        share = min(1.0, count / sum(totals.values()))
        last = {
            group: next(c.offset + c.length for c in front.chunks_of(group) if c.stop >= int(share * total))
            for group, total in totals.items()
        }
        found[ratio] = max(last.values()) / MEGABYTE
    return found
