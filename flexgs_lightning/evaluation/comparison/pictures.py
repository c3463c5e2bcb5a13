"""Picture grids: one view, drawn by every method at one ratio, and the photo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flexgs_lightning.data.capture import View
from flexgs_lightning.deploy.render import read_photo
from flexgs_lightning.files import atomic_path
from flexgs_lightning.images import to_uint8

_CAPTION, _MARGIN, _COLUMNS = 22, 6, 5
_NARROWEST = 220
"""Panels are enlarged to at least this width in pixels, so that captions fit."""


def picture_grid(
    renders: Mapping[str, Path],
    psnr: Mapping[str, float],
    view: View,
    background: Float[Tensor, " 3"],
    path: Path,
) -> None:
    """Write a JPEG with a panel for each method and the photo, five in a row.

    Args:
        renders: PNG file of each method's render of ``view``.
        psnr: mean PSNR of each method over all held-out views, for the captions.
        view: where the photo comes from.
        background: [3] colour behind photos with alpha.
        path: the JPEG file.
    """
    photo = Image.fromarray(to_uint8(read_photo(view.source, background)))
    captions = [*(f"{name}   {psnr[name]:.2f} dB" for name in renders), f"photo   {view.name}"]
    panels = list(zip(captions, [*map(Image.open, renders.values()), photo], strict=True))
    factor = math.ceil(_NARROWEST / photo.width)
    width, height = factor * photo.width, factor * photo.height
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    tile = (width + _MARGIN, height + _CAPTION)
    sheet = Image.new("RGB", (columns * tile[0] - _MARGIN, rows * tile[1]), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, (caption, image) in enumerate(panels):
        left, top = i % columns * tile[0], i // columns * tile[1]
        pen.text((left + 2, top + 3), caption, "black", font)
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top + _CAPTION))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=90)
