"""Markdown tables of a comparison, in the layout of the FlexGS paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

METRICS = {"psnr": ("PSNR", ".2f", True), "ssim": ("SSIM", ".3f", True), "lpips": ("LPIPS", ".3f", False)}
"""For each metric its heading, the format, and whether more is better."""


def markdown(comparison: Mapping[str, Any], curves: Sequence[str], pictures: Mapping[float, str]) -> str:
    """The whole report as a Markdown page.

    Args:
        comparison: what ``comparison.json`` holds.
        curves: names of the curves' files.
        pictures: name of the picture grid of each ratio.
    """
    first = comparison["first_stage"]
    parts = [
        f"# {comparison['capture']}: methods compared",
        f"The first stage: {first['gaussians']:,} Gaussians after {first['iterations']:,} iterations"
        f"{_seconds(first)}. Means over held-out views. **Best**, <u>second best</u>. Steps and seconds are "
        "those of all ratios together; steps of different methods take different times.",
        quality_table(comparison),
        difference_table(comparison),
        "PSNR of the worst held-out view, and which it is: a mean hides it.",
        worst_table(comparison),
        "Milliseconds to render a view / to switch to this ratio. A method that trains for each ratio "
        "switches by reading another file.",
        time_table(comparison),
        _failures(comparison["failed"]),
        "\n".join(f"![]({name})" for name in [*curves, *pictures.values()]),
        _costs(comparison["methods"]),
        "## Methods",
        listed((name, facts["description"]) for name, facts in comparison["methods"].items()),
        "## Protocol",
        listed([*comparison["protocol"].items(), ("device", comparison["device"])]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def quality_table(comparison: Mapping[str, Any]) -> str:
    """PSNR / SSIM / LPIPS of each method at each ratio, and what its training cost."""
    cells, methods = _by_method_and_ratio(comparison), comparison["methods"]
    ratios = sorted({ratio for _, ratio in cells})
    keys = [key for key in METRICS if any(key in result for result in cells.values())]
    marks = {(ratio, key): _marks(cells, ratio, key) for ratio in ratios for key in keys}
    names = " / ".join(METRICS[key][0] for key in keys)
    rows = []
    for method, facts in methods.items():
        texts = []
        for ratio in ratios:
            result = cells.get((method, ratio))
            texts.append(
                "failed" if result is None
                else " / ".join(marks[ratio, key](result[key]) for key in keys if key in result)
            )  # fmt: skip
        rows.append(
            [method, *texts, f"{facts['trainings']}", f"{facts['steps']:,}", f"{facts['seconds']:,.0f}"]
        )
    counts = {ratio: result["gaussians"] for (_, ratio), result in cells.items()}
    heading = [names, *(f"{percent(ratio)} ({counts[ratio]:,})" for ratio in ratios)]
    return table([*heading, "trainings", "steps", "seconds"], rows)


def difference_table(comparison: Mapping[str, Any]) -> str:
    """PSNR of each ablation minus that of its base (``base+change``); empty if there are none."""
    cells = _by_method_and_ratio(comparison)
    ratios = sorted({ratio for _, ratio in cells})
    rows = []
    for method in comparison["methods"]:
        base, plus, _ = method.partition("+")
        if plus and base in comparison["methods"]:
            pairs = [(cells.get((method, ratio)), cells.get((base, ratio))) for ratio in ratios]
            texts = [f"{a['psnr'] - b['psnr']:+.2f}" if a and b else "" for a, b in pairs]
            rows.append([method, *texts])
    if not rows:
        return ""
    return "What each change does to PSNR, in dB:\n\n" + table(["change", *map(percent, ratios)], rows)


def worst_table(comparison: Mapping[str, Any]) -> str:
    """The worst view of each method at each ratio; a dash where a report has none."""
    cells = _by_method_and_ratio(comparison)
    ratios = sorted({ratio for _, ratio in cells})
    rows = [
        [method, *(worst_text(cells.get((method, ratio), {})) for ratio in ratios)]
        for method in comparison["methods"]
    ]
    return table(["worst view", *map(percent, ratios)], rows)


def worst_text(result: Mapping[str, Any]) -> str:
    """PSNR and name of a result's worst view; a dash where it states none."""
    worst = result.get("worst")
    return "–" if worst is None else f"{worst['psnr']:.2f} ({worst['name']})"


def time_table(comparison: Mapping[str, Any]) -> str:
    """Milliseconds to render and to switch."""
    cells = _by_method_and_ratio(comparison)
    ratios = sorted({ratio for _, ratio in cells})
    rows = []
    for method in comparison["methods"]:
        results = [cells.get((method, ratio)) for ratio in ratios]
        texts = [f"{r['milliseconds']:.1f} / {r['switch_milliseconds']:.2f}" if r else "" for r in results]
        rows.append([method, *texts])
    return table(["render / switch", *map(percent, ratios)], rows)


def unseen_page(report: Mapping[str, Any]) -> str:
    """Markdown page of ``flexgs unseen``: PSNR at trained and other ratios, and where quality dips."""
    ratios = sorted([*report["trained"], *report["tested"]])
    heading = [
        "PSNR",
        *(f"{percent(r)}{'' if r in report['trained'] else ' (unseen)'}" for r in ratios),
        "dips",
    ]
    rows, lines, measured = [], [], 0
    for name, model in report["models"].items():
        psnr = {result["ratio"]: result["psnr"] for result in model["ratios"]}
        measured = len(psnr)
        rows.append([name, *(f"{psnr[ratio]:.2f}" for ratio in ratios), str(len(model["dips"]))])
        lines += [f"- {name}: {dip['depth']:.2f} dB at {100 * dip['ratio']:.2g} %" for dip in model["dips"]]
    return (
        "\n\n".join(
            [
                f"# {report['capture']}: ratios that training did not draw",
                table(heading, rows),
                f"Dips: ratios that draw more than {report['tolerance']:g} dB worse than a smaller one, "
                f"out of {measured}.",
                "\n".join(lines) or "There are none.",
                "![](unseen.png)",
                "## Protocol",
                listed(report["protocol"].items()),
            ]
        )
        + "\n"
    )


def _marks(cells: Mapping[tuple[str, float], Mapping[str, Any]], ratio: float, key: str) -> Any:
    """How a value at this ratio is written: best bold, second best underlined, as they are printed."""
    _, form, more = METRICS[key]
    shown = {float(format(r[key], form)) for (_, other), r in cells.items() if other == ratio and key in r}
    best = sorted(shown, reverse=more)
    styles = {
        format(value, form): style for value, style in zip(best[:2], ("**{}**", "<u>{}</u>"), strict=False)
    }

    def write(value: float) -> str:
        text = format(value, form)
        return styles.get(text, "{}").format(text) if len(best) > 1 else text

    return write


def _by_method_and_ratio(comparison: Mapping[str, Any]) -> dict[tuple[str, float], Mapping[str, Any]]:
    return {(result["method"], result["ratio"]): result for result in comparison["cells"]}


def _seconds(first: Mapping[str, Any]) -> str:
    """What the first stage took, where its checkpoint says so."""
    seconds = first.get("seconds")
    return "" if seconds is None else f" and {seconds:,.0f} seconds"


def _costs(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """What each method's seconds contain."""
    lines = listed((name, facts.get("cost")) for name, facts in methods.items())
    return f"## What the seconds contain\n\n{lines}" if lines else ""


def _failures(failed: Sequence[Mapping[str, Any]]) -> str:
    if not failed:
        return ""
    lines = (f"- {cell['method']} at {percent(cell['ratio'])}: {cell['error']}" for cell in failed)
    return "## Failed\n\n" + "\n".join(lines)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def listed(facts: Iterable[tuple[str, Any]]) -> str:
    """A Markdown list of what there is."""
    return "\n".join(f"- {name}: {value}" for name, value in facts if value is not None)


def percent(ratio: float) -> str:
    """A ratio as people write it."""
    return f"{100 * ratio:g} %"
