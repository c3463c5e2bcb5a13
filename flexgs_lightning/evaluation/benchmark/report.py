"""A benchmark's report: each scene, the mean over scenes, and the paper's rows with the difference."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexgs_lightning.data.benchmarks import Benchmark
from flexgs_lightning.evaluation.benchmark.codec import megabytes_at
from flexgs_lightning.evaluation.benchmark.scene import SceneRun
from flexgs_lightning.evaluation.published import METRICS, benchmark_means, scene_tables
from flexgs_lightning.evaluation.tables import worst_text
from flexgs_lightning.files import atomic_path

Row = Mapping[float, Mapping[str, Any]]
"""Metrics at each ratio."""
WORST = "worst"
PAPER = "FlexGS"
DIFFERENCE = "difference"
MEGABYTES = "megabytes"
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, MEGABYTES: 2}


def write_report(
    benchmark: Benchmark, protocol: str, folder: Path, failures: Mapping[str, str] | None = None
) -> Path:
    """Write ``benchmark.json`` and ``benchmark.md`` into ``folder`` from the finished scenes there.

    Args:
        benchmark: what was run.
        protocol: name of the protocol that it was measured under.
        folder: holds a folder for each scene.
        failures: for scenes that failed the reason.

    Returns:
        Path of the Markdown file.
    """
    finished = {s.name: SceneRun(s.name, Path(), folder).finished() for s in benchmark.scenes}
    metrics = {name: found for name, found in finished.items() if found is not None}
    reasons = failures or {}
    missing = {s.name: reasons.get(s.name, "not run") for s in benchmark.scenes if s.name not in metrics}
    report = summarise(benchmark.name, protocol, metrics, missing, _elastic_files(metrics, folder))
    path = folder / "benchmark.md"
    for target, text in (
        (path.with_suffix(".json"), json.dumps(report, indent=2) + "\n"),
        (path, as_markdown(benchmark.title, report)),
    ):
        with atomic_path(target) as temporary:
            temporary.write_text(text)
    return path


def summarise(
    benchmark: str,
    protocol: str,
    metrics: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, str],
    elastic_files: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """The report as plain values.

    The mean over scenes weighs every scene alike, as the paper's tables do, and a scene's value is the mean
    over its images. The mean's difference to the paper's row is given only if no scene is missing, a scene's
    wherever the paper has a table of it.

    Args:
        benchmark: name of the benchmark.
        protocol: name of the protocol.
        metrics: contents of ``metrics.json`` of each finished scene.
        missing: for each scene that is not finished the reason.
        elastic_files: of scenes that have one: "megabytes" of each ratio are then those of its first chunks.
    """
    files = elastic_files or {}
    scenes = {name: scene_row(found, files.get(name)) for name, found in metrics.items()}
    mean = _mean(list(scenes.values()))
    published = benchmark_means(benchmark)
    paper = published.methods[PAPER] if published else {}
    theirs = {name: table for name, table in scene_tables(benchmark).items() if name in scenes}
    return {
        "benchmark": benchmark,
        "protocol": {"name": protocol, **_protocols(metrics)},
        "scenes": {name: _plain(row) for name, row in scenes.items()},
        "missing": dict(missing),
        "mean": _plain(mean),
        "difference": {} if missing else _plain(_difference(mean, paper)),
        "published": asdict(published) if published else None,
        "scene_differences": {
            name: _plain(_difference(scenes[name], table.methods[PAPER])) for name, table in theirs.items()
        },
        "published_scenes": {name: asdict(table) for name, table in theirs.items()},
    }


def _elastic_files(scenes: Iterable[str], folder: Path) -> dict[str, Path]:
    """Of the scenes that have one."""
    paths = {name: SceneRun(name, Path(), folder).elastic_file for name in scenes}
    return {name: path for name, path in paths.items() if path.is_file()}


def scene_row(metrics: Mapping[str, Any], elastic_file: Path | None = None) -> dict[float, dict[str, Any]]:
    """Metrics of one scene at each ratio, the full model as ratio 1, from its ``metrics.json``.

    "worst" has name and PSNR of the worst view; None where the file, an older one, does not.
    """
    ratios = {float(ratio): dict(result) for ratio, result in metrics["ratios"].items()}
    full = {"gaussians": metrics["gaussians"], **metrics["mean"], "worst": metrics.get("worst")}
    row = dict(sorted((ratios | {1.0: full}).items()))
    if elastic_file is not None:
        counts = {ratio: int(result["gaussians"]) for ratio, result in row.items()}
        for ratio, size in megabytes_at(elastic_file, counts).items():
            row[ratio][MEGABYTES] = size
    return row


def _mean(rows: Sequence[Row]) -> dict[float, dict[str, float]]:
    """Mean of the rows where all of them have a number."""
    if not rows:
        return {}
    return {
        ratio: {
            name: statistics.fmean(row[ratio][name] for row in rows)
            for name in rows[0][ratio]
            if all(isinstance(row[ratio].get(name), int | float) for row in rows)
        }
        for ratio in rows[0]
        if all(ratio in row for row in rows)
    }


def _difference(ours: Row, theirs: Row) -> dict[float, dict[str, float]]:
    return {
        ratio: {
            name: ours[ratio][name] - theirs[ratio][name] for name in theirs[ratio] if name in ours[ratio]
        }
        for ratio in theirs
        if ratio in ours
    }


def _plain(row: Row) -> dict[str, Mapping[str, Any]]:
    return {f"{ratio:g}": values for ratio, values in row.items()}


def _protocols(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What was measured, from the scenes' own reports; where scenes differ, which scenes do what."""
    result = {}
    for key in next(iter(metrics.values())).get("protocol", {}) if metrics else ():
        if key == "name":
            continue
        users: dict[str, list[str]] = {}
        for scene, found in metrics.items():
            users.setdefault(str(found.get("protocol", {}).get(key)), []).append(scene)
        several = (f"{value} ({', '.join(scenes)})" for value, scenes in users.items())
        result[key] = next(iter(users)) if len(users) == 1 else "; ".join(several)
    return result


def as_markdown(title: str, report: Mapping[str, Any]) -> str:
    """The report in the layout of the paper's tables: a row for each method, a column for each ratio."""
    finished, missing = len(report["scenes"]), report["missing"]
    lines = [f"# {title}", ""]
    if missing:
        lines += [f"{finished} of {finished + len(missing)} scenes are finished. Missing:", ""]
        lines += [*(f"- {name}: {reason}" for name, reason in missing.items()), ""]
    if not report["scenes"]:
        return "\n".join(lines)
    mean, published = report["mean"], report["published"]
    names = [name for name in (*METRICS, MEGABYTES) if all(name in values for values in mean.values())]
    rows = {f"ours, mean of {finished} scenes": mean}
    if published is not None:
        rows |= _beside(report["difference"], published)
    lines += [*_table(rows, list(mean), names), ""]
    if published is not None:
        lines += [*_remarks(report, published), ""]
    lines += ["## Worst views", "", *_worst_views(report["scenes"], list(mean)), ""]
    lines += _scene_parts(report, names)
    lines += ["## Protocol", "", *(f"- {key}: {value}" for key, value in report["protocol"].items()), ""]
    return "\n".join(lines)


def _remarks(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    remarks = [f"Paper: {published['source']}. {published['note']}".strip()]
    if report["missing"]:
        remarks.append("No difference is given: the paper's means are over all scenes.")
    found = report["protocol"]["name"]
    if found != published["protocol"]:
        remarks.append(
            f"The paper's rows were measured under the protocol {published['protocol']}, this run under "
            f"{found}: the difference is not one of methods alone."
        )
    return remarks


def _scene_parts(report: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A row for each scene, and a table for each one that the paper has a table of."""
    ratios = list(report["mean"])
    lines = ["## Scenes", "", *_table(report["scenes"], ratios, names), ""]
    for name, published in report["published_scenes"].items():
        rows = {name: report["scenes"][name], **_beside(report["scene_differences"][name], published)}
        source = f"{published['source']}. {published['note']}".strip()
        lines += [f"### {name}", "", *_table(rows, ratios, names), "", f"Paper: {source}", ""]
    return lines


def _beside(difference: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Rows to stand below ours: the difference, if there is one, and the paper's, best first."""
    rows = {f"{DIFFERENCE} to {PAPER} (paper)": difference} if difference else {}
    return rows | {f"{method} (paper)": _plain(row) for method, row in reversed(published["methods"].items())}


def _worst_views(scenes: Mapping[str, Mapping[str, Any]], ratios: Sequence[str]) -> list[str]:
    """Markdown lines: PSNR and name of each scene's worst view at each ratio."""
    titles = (f"{100 * float(ratio):g} %" for ratio in ratios)
    rows = (f"| {name} | {' | '.join(worst_text(row[r]) for r in ratios)} |" for name, row in scenes.items())
    return [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(ratios)}", *rows]


def _table(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
    ratios: Sequence[str],
    names: Sequence[str],
) -> list[str]:
    """Markdown lines; a dash where there is no value; differences show their sign."""
    columns = [(ratio, name) for ratio in ratios for name in names]
    titles = [
        f"{100 * float(ratio):g} % {'MB' if name == MEGABYTES else name.upper()}" for ratio, name in columns
    ]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(columns)}"]
    for label, row in rows.items():
        sign = "+" if label.startswith(DIFFERENCE) else ""
        values = (row.get(ratio, {}).get(name) for ratio, name in columns)
        cells = (
            "–" if value is None else f"{value:{sign}.{DECIMALS[name]}f}"
            for value, (_, name) in zip(values, columns, strict=True)
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines
