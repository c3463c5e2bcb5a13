"""The report of a rate-distortion run: one JSON file, tables and curves made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flexgs_lightning.data.benchmarks import BENCHMARKS
from flexgs_lightning.evaluation.cell_folders import write_json
from flexgs_lightning.evaluation.curves import plot
from flexgs_lightning.evaluation.published import published_codecs
from flexgs_lightning.evaluation.rate_distortion.bjontegaard import bd_rate
from flexgs_lightning.evaluation.rate_distortion.cells import RateCell
from flexgs_lightning.evaluation.rate_distortion.systems import System
from flexgs_lightning.evaluation.study import Study
from flexgs_lightning.evaluation.tables import table
from flexgs_lightning.evaluation.unseen import dips
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.budget import MEGABYTE
from flexgs_lightning.training.callbacks.test_report import LIBRARIES, device_name

JSON_NAME, MARKDOWN_NAME, CURVES = "rd.json", "rd.md", "rd.png"
OURS, ONE_SIZE = "egs", "one-size"
MANY_RATES, DIP = 5, 0.02
"""Rates from which on a curve's smoothness is reported, and dB by which it may fall."""
NOTHING: Mapping[str, str] = {}
Report = dict[str, Any]


def write_report(
    study: Study,
    systems: Sequence[System],
    cells: Sequence[RateCell],
    output: Path,
    left_out: Mapping[str, str] = NOTHING,
) -> Report:
    """Write ``rd.json``, ``rd.md`` and ``rd.png``; ``left_out`` says why some systems are not compared."""
    report = report_of(study, systems, cells) | {"left_out": dict(left_out)}
    write_json(output / JSON_NAME, report)
    if report["cells"]:
        named = {
            name: [(size / MEGABYTE, psnr) for size, psnr in line] for name, line in curves(report).items()
        }
        plot(named, output / CURVES, xlabel="megabytes", title=report["capture"])
    with atomic_path(output / MARKDOWN_NAME) as temporary:
        temporary.write_text(markdown(report))
    return report


def report_of(study: Study, systems: Sequence[System], cells: Sequence[RateCell]) -> Report:
    """Everything that is reported, as plain values."""
    return {
        "capture": study.capture.name,
        "model": {
            "gaussians": len(study),
            "iterations": study.model.iteration,
            "seconds": study.seconds,
            **study.facts,
        },
        "protocol": study.protocol(),
        "systems": {s.name: {"description": s.description, **s.facts(study)} for s in systems},
        "cells": [cell.result() for cell in cells if cell.finished],
        "failed": [
            {"cell": str(cell), "error": cell.error} for cell in cells if not cell.finished and cell.error
        ],
        "device": device_name(study.device),
        "versions": {library: version(library) for library in LIBRARIES},
    }


def curves(report: Report) -> dict[str, list[tuple[float, float]]]:
    """Bytes and PSNR of each line: one for each elastic file and its cuts, one for each other system."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in report["cells"]:
        own = cell["system"] == OURS or len(cell["points"]) > 1
        name = f"{cell['system']} {cell['setting']}" if own else cell["system"]
        lines.setdefault(name, []).extend((point["bytes"], point["psnr"]) for point in cell["points"])
    return {name: sorted(line) for name, line in lines.items()}


def markdown(report: Report) -> str:
    """The whole report as a Markdown page."""
    model = report["model"]
    parts = [
        f"# {report['capture']}: bytes against quality",
        f"The model: {model['gaussians']:,} Gaussians after {model['iterations']:,} iterations. Every row "
        "was written to a file and read back; means over held-out views. MB are 1,000,000 bytes.",
        points_table(report),
        f"![]({CURVES})" if report["cells"] else "",
        delta_table(report),
        smoothness_table(report),
        elastic_cost(report),
        attributes_table(report),
        cuts_table(report),
        published_part(report["capture"]),
        "## Failed\n\n" + _list({fail["cell"]: fail["error"] for fail in report["failed"]})
        if report["failed"]
        else "",
        "## Left out\n\n" + _list(report["left_out"]) if report["left_out"] else "",
        "## Systems\n\n" + _list({name: each["description"] for name, each in report["systems"].items()}),
        "## Protocol\n\n" + _list({**report["protocol"], "device": report["device"]}),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def points_table(report: Report) -> str:
    """Every whole file."""
    rows, duration = [], report["model"]["seconds"]
    for cell in report["cells"]:
        points = cell["points"][-1:] if cell["system"] == OURS else thinned(cell["points"])
        for point in points:
            setting = cell["setting"] if len(points) == 1 else f"{cell['setting']}: {point['label']}"
            training = point.get("training")
            rows.append(
                [
                    cell["system"], setting, f"{point['gaussians']:,}", f"{point['bytes'] / MEGABYTE:.3f}",
                    f"{point['bytes'] / point['gaussians']:.2f}", *_mbits(point, duration), *_quality(point),
                    f"{point['encode_seconds']:.1f}", f"{point['decode_seconds']:.2f}",
                    "" if training is None else f"{training['steps']:,} steps, {training['seconds']:,.0f} s",
                ]
            )  # fmt: skip
    rate = ["Mbit/s"] if duration else []
    heading = ["system", "setting", "Gaussians", "MB", "bytes each", *rate, "PSNR", "SSIM", "LPIPS"]
    return table([*heading, "encode, s", "decode, s", "training"], rows)


def thinned(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most ``MANY_RATES`` of them, with the first and the last; ``rd.json`` has all."""
    if len(points) <= MANY_RATES:
        return list(points)
    return [points[round(i * (len(points) - 1) / (MANY_RATES - 1))] for i in range(MANY_RATES)]


def delta_table(report: Report) -> str:
    """BD-rate of every elastic file against the others; empty without an elastic file."""
    lines = curves(report)
    ours = [name for name in lines if name.startswith(f"{OURS} ")]
    if not ours:
        return ""
    rows = [
        [name, *(_percent(bd_rate(lines[mine], line)) for mine in ours)]
        for name, line in lines.items()
        if name not in ours and name != ONE_SIZE
    ]
    return (
        "## BD-rate of one elastic file\n\nBytes at equal PSNR over the range that both reach, against each "
        "other system: negative is fewer. A system that spans less than 0.1 dB is compared at its points. A "
        "column is one file, cut at every chunk.\n\n" + table(["", *ours], rows)
    )


def smoothness_table(report: Report) -> str:
    """Where more bytes draw worse, for systems with many rates at a setting."""
    rows = []
    for cell in report["cells"]:
        if len(cell["points"]) < MANY_RATES:
            continue
        found = dips({point["bytes"]: point["psnr"] for point in cell["points"]}, DIP)
        deepest = max((dip["depth"] for dip in found), default=0.0)
        name, number = f"{cell['system']} {cell['setting']}", len(cell["points"])
        rows.append([name, str(number), str(len(found)), f"{deepest:.2f}" if found else ""])
    if not rows:
        return ""
    return (
        f"## From rate to rate\n\nRates that draw more than {DIP:g} dB worse than a smaller one.\n\n"
        + table(["", "rates", "dips", "deepest, dB"], rows)
    )


def elastic_cost(report: Report) -> str:
    """What being elastic costs in bytes; empty unless both kinds of file are there."""
    whole = {(c["system"], c["setting"]): c["points"][-1] for c in report["cells"]}
    rows = [
        [
            setting,
            f"{ours['bytes'] / MEGABYTE:.3f} ({ours['psnr']:.2f} dB)",
            f"{one['bytes'] / MEGABYTE:.3f} ({one['psnr']:.2f} dB)",
            _percent(ours["bytes"] / one["bytes"] - 1),
        ]
        for (system, setting), ours in whole.items()
        if system == OURS and (one := whole.get((ONE_SIZE, setting)))
    ]
    if not rows:
        return ""
    return (
        "## What being elastic costs\n\nAt the same loss on training views, against the full model alone in "
        "the best chunks.\n\n" + table(["loss allowed", "elastic, MB", "one size, MB", "more bytes"], rows)
    )


def attributes_table(report: Report) -> str:
    """Bytes a Gaussian by attribute, of the largest file of each system that keeps them apart."""
    largest: dict[str, Mapping[str, Any]] = {}
    for cell in report["cells"]:
        for point in cell["points"]:
            if point["attributes"] and point["bytes"] > largest.get(cell["system"], {"bytes": 0})["bytes"]:
                largest[cell["system"]] = point
    if not largest:
        return ""
    rows = []
    for system, point in largest.items():
        each = {name: size / point["gaussians"] for name, size in point["attributes"].items()}
        rows.append([system, ", ".join(f"{name} {size:.2f}" for name, size in each.items() if size >= 0.005)])
    return "## Bytes a Gaussian by attribute, largest files\n\n" + table(["system", "bytes"], rows)


def cuts_table(report: Report) -> str:
    """The elastic file of the least loss at every cut."""
    cell = next((cell for cell in report["cells"] if cell["system"] == OURS), None)
    if cell is None:
        return ""
    duration = report["model"]["seconds"]
    rows = [
        [
            point["label"],
            f"{point['gaussians']:,}",
            f"{point['bytes']:,}",
            *_mbits(point, duration),
            *_quality(point),
        ]
        for point in cell["points"]
    ]
    heading = ["share", "Gaussians", "bytes", *(["Mbit/s"] if duration else []), "PSNR", "SSIM", "LPIPS"]
    return f"## The elastic file at {cell['setting']} dB, cut at every chunk\n\n" + table(heading, rows)


def published_part(capture: str) -> str:
    """What papers report on the same scene, and means over benchmarks with it."""
    tables = [
        (entry, name, method, numbers)
        for entry in published_codecs()
        for method, scenes in entry.methods.items()
        for name, numbers in scenes.items()
        if name == capture or (name == "mean" and _holds(entry.benchmark, capture))
    ]
    if not tables:
        return ""
    rows = [
        [
            method,
            name,
            f"{n['psnr']:.2f}",
            f"{n['ssim']:.3f}",
            f"{n['lpips']:.3f}",
            f"{n['size']:g} {e.unit}",
            e.source,
        ]
        for e, name, method, n in tables
    ]
    return (
        "## Published\n\nOf other trainings at other resolutions; to see orders of magnitude, not to compare."
        "\n\n" + table(["method", "scene", "PSNR", "SSIM", "LPIPS", "size", "source"], rows)
    )


def _holds(benchmark: str, capture: str) -> bool:
    return benchmark in BENCHMARKS and capture in [scene.name for scene in BENCHMARKS[benchmark].scenes]


def _quality(point: Mapping[str, Any]) -> list[str]:
    lpips = point.get("lpips")
    return [f"{point['psnr']:.2f}", f"{point['ssim']:.4f}", "" if lpips is None else f"{lpips:.4f}"]


def _mbits(point: Mapping[str, Any], seconds: float | None) -> list[str]:
    """Megabits a second of a film that lasts so long; nothing if that is unknown."""
    return [f"{8 * point['bytes'] / seconds / MEGABYTE:.3f}"] if seconds else []


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f} %"


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)
