"""Published figures, from ``published.yaml``: what papers report, to stand beside our own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import yaml

METRICS = ("psnr", "ssim", "lpips")
"""Order of the numbers in the data file; a row may give only the first of them."""


@dataclass(frozen=True)
class PublishedTable:
    """Rows of one table of a paper, on one benchmark.

    Attributes:
        benchmark: name of the benchmark (``data.benchmarks``).
        source: paper and table.
        protocol: name of the protocol that they were measured under, as far as is known.
        methods: for each method the metrics at each ratio: ``methods["FlexGS"][0.01]["psnr"]`` in dB.
        table: number of the table.
        scene: the scene, or None for the mean over the benchmark's scenes.
        note: what a reader should know of them.
    """

    benchmark: str
    source: str
    protocol: str
    methods: Mapping[str, Mapping[float, Mapping[str, float]]]
    table: int
    scene: str | None = None
    note: str = ""


@functools.cache
def published_tables() -> tuple[PublishedTable, ...]:
    """All published tables that this package knows."""
    text = files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    return tuple(_table(**entry) for entry in yaml.safe_load(text))


def benchmark_means(benchmark: str) -> PublishedTable | None:
    """The table of the FlexGS paper that holds the means over a benchmark's scenes (Tables 1 and 2)."""
    tables = (t for t in published_tables() if t.benchmark == benchmark and t.table in (1, 2))
    return next(tables, None)


def scene_tables(benchmark: str) -> dict[str, PublishedTable]:
    """The tables of the FlexGS paper that hold one scene each (Tables 5 to 12), by the scene's name."""
    return {t.scene: t for t in published_tables() if t.benchmark == benchmark and t.scene is not None}


def _table(methods: Mapping[str, Mapping[float, list[float]]], **facts: str | int) -> PublishedTable:
    named = {
        method: {ratio: dict(zip(METRICS, values, strict=False)) for ratio, values in ratios.items()}
        for method, ratios in methods.items()
    }
    return PublishedTable(methods=named, **facts)  # type: ignore[arg-type]


CODEC_NUMBERS = ("psnr", "ssim", "lpips", "size", "gaussians")
"""Order of the numbers in ``published_codecs.yaml``; a row may leave out the last."""


@dataclass(frozen=True)
class PublishedCodecs:
    """What one source reports of codecs on one benchmark.

    Attributes:
        source: paper and table.
        benchmark: name of the benchmark.
        unit: of sizes, as the source prints them: MB, MiB, or Mbit/s of scenes that move.
        methods: for each method the numbers of each scene, and of their "mean":
            ``methods["SOG"]["mean"]["size"]``.
    """

    source: str
    benchmark: str
    unit: str
    methods: Mapping[str, Mapping[str, Mapping[str, float]]]


@functools.cache
def published_codecs() -> tuple[PublishedCodecs, ...]:
    """All published figures of codecs that this package knows."""
    text = files(__package__).joinpath("published_codecs.yaml").read_text(encoding="utf-8")
    return tuple(
        PublishedCodecs(
            entry["source"],
            entry["benchmark"],
            entry["unit"],
            {
                method: {
                    scene: dict(zip(CODEC_NUMBERS, values, strict=False)) for scene, values in scenes.items()
                }
                for method, scenes in entry["methods"].items()
            },
        )
        for entry in yaml.safe_load(text)
    )
