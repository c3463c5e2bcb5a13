"""The report of representations: one JSON file, a table and curves made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flexgs_lightning.evaluation.curves import plot
from flexgs_lightning.evaluation.representations.cells import Cell, Result
from flexgs_lightning.evaluation.representations.film import Film
from flexgs_lightning.evaluation.representations.representation import FRAMES
from flexgs_lightning.evaluation.tables import METRICS, listed, percent, table, worst_text
from flexgs_lightning.files import atomic_path
from flexgs_lightning.training.callbacks.test_report import LIBRARIES

JSON_NAME, MARKDOWN_NAME = "representations.json", "representations.md"
OVER_TIME, OVER_SIZE = "psnr_frames.png", "psnr_gaussians.png"
NONE = "–"


def report_of(film: Film, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything that is reported, as plain values: a function of the cells' folders alone."""
    found: dict[str, dict[str, Result]] = {}
    for cell in cells:
        forms = found.setdefault(cell.representation.name, {})
        if cell.finished:
            forms[cell.form] = cell.result()
    whole = [forms["whole"] for forms in found.values() if "whole" in forms]
    return {
        "capture": film.capture.name,
        "frames": film.frames,
        "seconds": film.seconds,
        "ratios": list(film.plan.ratios) if film.plan.elastic_steps else [],
        "psnr_loss": film.plan.psnr_loss,
        "steps": film.plan.steps,
        "elastic_steps": film.plan.elastic_steps,
        "representations": found,
        "failed": [
            {"cell": str(cell), "error": cell.error}
            for cell in cells
            if not cell.finished and cell.error is not None
        ],
        "protocol": whole[0]["protocol"] if whole else {},
        "device": whole[0]["device"] if whole else None,
        "versions": {library: version(library) for library in LIBRARIES},
    }


def write_report(film: Film, cells: Sequence[Cell], output: Path) -> dict[str, Any]:
    """Write ``representations.json``, ``representations.md`` and curves."""
    report = report_of(film, cells)
    _write(output / JSON_NAME, json.dumps(report, indent=2) + "\n")
    curves = list(_curves(report, output))
    _write(output / MARKDOWN_NAME, markdown(report, curves))
    return report


def markdown(report: Mapping[str, Any], curves: Sequence[str]) -> str:
    """The report as a Markdown page.

    Args:
        report: see ``report_of``.
        curves: names of the curves' files.
    """
    parts = [
        f"# {report['capture']}: representations of {report['frames']} frames",
        f"{report['steps']:,} iterations each, over all of its trainings. Means over held-out views; flicker "
        "is PSNR of what changes from a frame to the next; living are the Gaussians that there are to see at "
        "a moment.",
        quality_table(report),
        _sampled(report),
        _elastic_remark(report),
        _coded_remark(report),
        small_table(report),
        *(similarity_table(report, key) for key in METRICS if key != "psnr"),
        _failures(report["failed"]),
        "\n".join(f"![]({name})" for name in curves),
        "## Protocol",
        listed([*report["protocol"].items(), ("device", report["device"])]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def quality_table(report: Mapping[str, Any]) -> str:
    """What each is worth whole, and what it took."""
    results = {name: forms.get("whole", {}) for name, forms in report["representations"].items()}
    keys = [key for key in METRICS if any(key in result for result in results.values())]
    titles = [METRICS[key][0] for key in keys]
    heading = ["whole", *titles, "worst view", "flicker", "Gaussians", "living", "steps", "seconds"]
    rows = []
    for name, result in results.items():
        training = result.get("training") or {}
        rows.append(
            [
                name,
                *(_number(result.get(key), METRICS[key][1]) for key in keys),
                worst_text(result),
                *(_number(result.get(key), form) for key, form in (("flicker", ".2f"), ("gaussians", ",d"))),
                _number(result.get("living"), ",.0f"),
                *(_number(training.get(key), form) for key, form in (("steps", ",d"), ("seconds", ",.0f"))),
            ]
        )
    return table(heading, rows)


def small_table(report: Mapping[str, Any]) -> str:
    """The elastic and the coded form; empty where neither was asked for."""
    ratios, loss, seconds = report["ratios"], report["psnr_loss"], report["seconds"]
    heading = ["small", *(f"PSNR at {percent(ratio)}" for ratio in ratios)]
    heading += ["elastic, 100 %", "steps", "seconds"] if ratios else []
    heading += ["bytes", "Mbit/s", "PSNR of the file", "dB lost"] if loss is not None else []
    rows = []
    for name, forms in report["representations"].items():
        row = [name]
        if report["elastic_steps"]:
            elastic = forms.get("elastic", {})
            at, training = elastic.get("ratios", {}), elastic.get("training") or {}
            row += [_number(at.get(f"{ratio:g}", {}).get("psnr"), ".2f") for ratio in ratios]
            row += [_number(elastic.get("psnr"), ".2f"), _number(training.get("steps"), ",d")]
            row += [_number(training.get("seconds"), ",.0f")]
        if loss is not None:
            coded = forms.get("coded", {})
            size = coded.get("bytes")
            rate = None if size is None or not seconds else 8e-6 * size / seconds
            row += [_number(size, ",d"), _number(rate, ".3f")]
            row += [_number(coded.get("psnr"), ".2f"), _number(coded.get("lost"), ".3f")]
        rows.append(row)
    return table(heading, rows) if len(heading) > 1 else ""


def similarity_table(report: Mapping[str, Any], key: str) -> str:
    """SSIM or LPIPS of the same forms; empty where nobody measured it."""
    ratios, (title, form, _) = report["ratios"], METRICS[key]
    heading = [f"{title}, small", *(f"at {percent(ratio)}" for ratio in ratios)]
    heading += ["elastic, 100 %"] if ratios else []
    heading += ["of the file"] if report["psnr_loss"] is not None else []
    rows, measured = [], False
    for name, forms in report["representations"].items():
        elastic, values = forms.get("elastic", {}), []
        if ratios:
            values += [elastic.get("ratios", {}).get(f"{ratio:g}", {}).get(key) for ratio in ratios]
            values.append(elastic.get(key))
        if report["psnr_loss"] is not None:
            values.append(forms.get("coded", {}).get(key))
        rows.append([name, *(_number(value, form) for value in values)])
        measured = measured or any(value is not None for value in values)
    return table(heading, rows) if measured else ""


def _sampled(report: Mapping[str, Any]) -> str:
    """That not every frame's model was trained."""
    trained = report["representations"].get(FRAMES, {}).get("whole", {}).get("trained")
    if trained is None or trained == report["frames"]:
        return ""
    return (
        f"`{FRAMES}` is an estimate: {trained} of {report['frames']} frames were trained. Quality is the "
        "mean over these; Gaussians, steps, seconds and bytes are theirs times as many as there are frames."
    )


def _elastic_remark(report: Mapping[str, Any]) -> str:
    steps = report["elastic_steps"]
    return f"Elastic: {steps:,} iterations of the elastic stage more, for all sizes." if steps else ""


def _coded_remark(report: Mapping[str, Any]) -> str:
    loss = report["psnr_loss"]
    if loss is None:
        return ""
    return (
        f"Coded: the model above as an elastic file of one level that may lose {loss:g} dB on training "
        "views; lost is what held-out views lose, of features also by being baked to harmonics."
    )


def _failures(failed: Sequence[Mapping[str, Any]]) -> str:
    lines = "\n".join(f"- {cell['cell']}: {cell['error']}" for cell in failed)
    return f"## Failed\n\n{lines}" if failed else ""


def _curves(report: Mapping[str, Any], output: Path) -> Iterator[str]:
    """Draw PSNR over the frames, and over the Gaussians of elastic models; yields the files' names."""
    found = report["representations"]
    whole = {name: forms["whole"]["frames"] for name, forms in found.items() if "whole" in forms}
    if whole:
        over_time = {
            name: [(frame["frame"], frame["psnr"]) for frame in frames] for name, frames in whole.items()
        }
        plot(over_time, output / OVER_TIME, xlabel="frame", title=report["capture"], log=False)
        yield OVER_TIME
    elastic = {name: forms["elastic"]["ratios"] for name, forms in found.items() if "elastic" in forms}
    if elastic:
        over_size = {
            name: sorted((at["gaussians"], at["psnr"]) for at in ratios.values())
            for name, ratios in elastic.items()
        }
        plot(over_size, output / OVER_SIZE, xlabel="Gaussians", title=f"{report['capture']}, elastic")
        yield OVER_SIZE


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
