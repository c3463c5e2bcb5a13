"""Pictures of an elastic model: renders at several ratios, and quality against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from flexgs_lightning.data.capture import View
from flexgs_lightning.deploy.render import draw, read_photo
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.images import to_uint8
from flexgs_lightning.model.checkpoint import Model

_CAPTION, _MARGIN = 24, 4


def ratio_strip(model: Model, view: View, ratios: Sequence[float], path: str | Path) -> None:
    """Write a PNG of one view: the model at each ratio from left to right, and the photo.

    Raises:
        InputError: a ratio that the model cannot draw, or the file cannot be written.
    """
    panels = []
    for ratio in ratios:
        splats = model.at(ratio)
        render = draw(splats, view.camera, model.background, model.antialiased)
        panels.append((f"{100 * ratio:g} %   {len(splats):,} Gaussians", to_uint8(render)))
    panels.append(("photo", to_uint8(read_photo(view.source, model.background))))
    width, height = view.camera.width, view.camera.height
    sheet = Image.new("RGB", (len(panels) * (width + _MARGIN) - _MARGIN, height + _CAPTION), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (caption, image) in enumerate(panels):
        left = i * (width + _MARGIN)
        pen.text((left + 2, 3), caption, "black", font)
        sheet.paste(Image.fromarray(image), (left, _CAPTION))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def rate_quality_curve(psnr: Mapping[int, float], path: str | Path, title: str = "") -> None:
    """Write a PNG that plots PSNR against the number of Gaussians, on a log axis.

    Args:
        psnr: PSNR in dB by number of Gaussians.
        path: the PNG file.
        title: heading.

    Raises:
        InputError: nothing to plot, or the file cannot be written.
    """
    if not psnr:
        raise InputError(f"{path}: there is nothing to plot, no ratio was measured.")
    from matplotlib.figure import Figure  # slow to import; and no display is needed this way

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="Gaussians", ylabel="PSNR of held-out views (dB)", xscale="log"
    )
    counts = sorted(psnr)
    axes.plot(counts, [psnr[count] for count in counts], marker="o")
    axes.grid(alpha=0.3, which="both")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
