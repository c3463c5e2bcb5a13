"""Contact sheets: render, photo and error map of some views on one PNG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flexgs_lightning.data.capture import View
from flexgs_lightning.deploy.render import draw, read_photo
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.images import ERROR_RANGE, side_by_side
from flexgs_lightning.splats import Splats

_HEADINGS = ("render", "photo", f"error (0 to {ERROR_RANGE:g})")
_MARGIN = 6
_CAPTION_HEIGHT = 22
_PAPER, _INK = "white", "black"


@dataclass(frozen=True)
class SheetRow:
    """One view of a contact sheet.

    Attributes:
        caption: a few words such as the view's name and PSNR.
        render: [H, W, 3] colour, clamped to [0, 1].
        photo: [H, W, 3] colour in [0, 1], on the same device.
    """

    caption: str
    render: Float[Tensor, "H W 3"]
    photo: Float[Tensor, "H W 3"]


def contact_sheet(rows: Iterable[SheetRow], path: str | Path, tile_width: int = 480) -> None:
    """Write a PNG with a row per view: render, photo and error map, and a caption above.

    Args:
        rows: views of any sizes; taken one by one, so a generator keeps memory small.
        path: the PNG file.
        tile_width: width in pixels to which larger images are reduced (area filter); smaller ones keep
            their size.

    Raises:
        InputError: no rows, or the file cannot be written.
    """
    strips = [_strip(row, tile_width) for row in rows]
    if not strips:
        raise InputError(f"{path}: there are no views for the contact sheet.")
    width = max(strip.width for strip in strips) + 2 * _MARGIN
    height = sum(strip.height + _MARGIN for strip in strips) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = _MARGIN
    for strip in strips:
        sheet.paste(strip, (_MARGIN, top))
        top += strip.height + _MARGIN
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def contact_sheet_of(
    splats: Splats,
    views: Sequence[View],
    path: str | Path,
    *,
    background: Float[Tensor, " 3"] | None = None,
    antialiased: bool = False,
    tile_width: int = 480,
) -> None:
    """Draw ``splats`` through ``views`` and write the contact sheet; captions give name and PSNR.

    Args:
        splats: the scene, on the device that draws.
        views: for instance a few of ``capture.test_views``.
        path: the PNG file.
        background: [3] colour behind the Gaussians and behind photos with alpha; black if None.
        antialiased: see ``rasterize``.
        tile_width: see ``contact_sheet``.
    """

    def rows() -> Iterable[SheetRow]:
        for view in views:
            render = draw(splats, view.camera, background, antialiased).clamp(0, 1)
            photo = read_photo(view.source, background).to(render.device)
            psnr = -10 * torch.log10((render - photo).square().mean()).item()
            yield SheetRow(f"{view.name}   PSNR {psnr:.2f} dB", render, photo)

    contact_sheet(rows(), path, tile_width)


def _strip(row: SheetRow, tile_width: int) -> Image.Image:
    """Caption, headings and the three images of one view."""
    images = Image.fromarray(side_by_side(row.render, row.photo))
    tile = images.width // 3
    if tile > tile_width:
        tile, height = tile_width, max(1, round(images.height * tile_width / tile))
        images = images.resize((3 * tile, height), Image.Resampling.BOX)
    strip = Image.new("RGB", (images.width, images.height + 2 * _CAPTION_HEIGHT), _PAPER)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size=14)
    pen.text((2, 2), row.caption, _INK, font)
    for i, heading in enumerate(_HEADINGS):
        pen.text((i * tile + 2, _CAPTION_HEIGHT + 2), heading, _INK, font)
    strip.paste(images, (0, 2 * _CAPTION_HEIGHT))
    return strip
