"""Curves of a comparison: quality against size and against time (Fig. 6 of the FlexGS paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flexgs_lightning.files import atomic_path

AXES = {
    "gaussians": ("Gaussians", "psnr_gaussians.png"),
    "milliseconds": ("milliseconds to render", "psnr_render.png"),
    "switch_milliseconds": ("milliseconds to switch", "psnr_switch.png"),
}
"""What PSNR is plotted against: label and file of each."""
COLORS, MARKERS = 10, "osv^"
"""Matplotlib has ten colours; more lines than that take another marker."""


def write_curves(comparison: Mapping[str, Any], output: Path) -> list[Path]:
    """Write one PNG for each of ``AXES``: PSNR of every method over it, a marker at each ratio."""
    paths = []
    for key, (label, name) in AXES.items():
        series = {  # in the order of ratios, also where measured times are not
            method: [(r[key], r["psnr"]) for r in comparison["cells"] if r["method"] == method]
            for method in comparison["methods"]
        }
        paths.append(output / name)
        plot(series, paths[-1], xlabel=label, title=comparison["capture"])
    return paths


def plot(
    series: Mapping[str, list[tuple[float, float]]],
    path: Path,
    *,
    xlabel: str,
    title: str,
    marks: Sequence[float] = (),
    log: bool = True,
) -> None:
    """Write a PNG of PSNR over x: a line for each named series of (x, dB), dotted lines at marks."""
    from matplotlib.figure import Figure  # slow to import; and no display is needed this way

    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel="PSNR of held-out views (dB)")
    axes.set_xscale("log" if log else "linear")
    for i, (name, given) in enumerate(series.items()):
        points = [point for point in given if point[0] > 0 or not log]  # a log axis has no place for others
        if points:
            style: dict[str, Any] = {"color": f"C{i % COLORS}", "marker": MARKERS[i // COLORS % len(MARKERS)]}
            axes.plot(*zip(*points, strict=True), **style, markersize=4, label=name)
    for mark in marks:
        axes.axvline(mark, color="gray", linestyle=":", zorder=0)
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        figure.legend(fontsize="small", loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
