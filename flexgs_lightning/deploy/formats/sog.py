"""SOG, PlayCanvas's format of images: bytes as lossless WebP, a pixel a Gaussian, and ``meta.json``.

Version 2: positions as 16 bits of sign(x) ln(1 + |x|) in two images of low and high bytes; rotations as the
smallest three components; log-scales and f_dc as indices into a codebook of 256 numbers each, with the
opacity in the alpha channel of the latter; further SH coefficients as one index into a palette of up to
65,536 entries, whose numbers are indices into a third codebook. A ``.sog`` file is a ZIP of these; unpacked
they are a folder, whose ``meta.json`` stands for it. Layout: PlayCanvas, "The SOG format".
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flexgs_lightning.codec.palette import codebook, palette
from flexgs_lightning.deploy.formats.bits import morton_order, smallest_three, to_bytes
from flexgs_lightning.deploy.formats.splat_file import SplatFile, arrays, require_drawable
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.splats import Splats

META = "meta.json"
ANTIALIASED = "antialiased"
"""Value of ``model`` in ``meta.json``."""
PALETTE_COLUMNS = 64
"""Entries of the palette in a row of its image."""
COEFFICIENTS = (0, 3, 8, 15)
"""Further SH coefficients a channel, by degree."""
SQRT2 = math.sqrt(2.0)
_LARGEST_PALETTE = 64
"""In thousands of 1,024."""


def is_free(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def is_sog_folder(folder: Path) -> bool:
    """Whether a folder holds an unpacked scene and nothing else."""
    if not (folder / META).is_file():
        return False
    return all(path.is_file() and (path.name == META or path.suffix == ".webp") for path in folder.iterdir())


def write_sog(file: SplatFile, path: Path) -> None:
    """Write a ``.sog`` file along a Z-order curve; or unpacked, if the path is a folder's ``meta.json``.

    The folder is new, or holds an unpacked scene and nothing else, which is replaced as a file would be.

    Errors: positions half of 1/65535 of the extent of sign(x) ln(1 + |x|); opacity 1/510; rotation's smallest
    components 1/360; the others as their codebook and palette leave them, which are fitted to the scene.

    Raises:
        InputError: see ``require_drawable``; the file cannot be written.
    """
    require_drawable(path, file.splats)
    if path.name.lower() == META:
        if not is_free(path.parent) and not is_sog_folder(path.parent):
            raise InputError(
                f"{path.parent}: is not empty; expected a new folder for the files of {META}, or one that "
                "holds just such files."
            )
        with atomic_path(path.parent) as folder:
            write_sog_folder(file, folder)
        return
    members = encode(file)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:  # stored, not deflated
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without today's date: the same bytes each time


def write_sog_folder(file: SplatFile, folder: Path, keep_order: bool = False) -> None:
    """Write the unpacked form into a new folder; rows stay as they are if ``keep_order``."""
    folder.mkdir(parents=True)
    for name, content in encode(file, keep_order).items():
        (folder / name).write_bytes(content)


def encode(file: SplatFile, keep_order: bool = False) -> dict[str, bytes]:
    """The members of the archive by name, ``meta.json`` first."""
    splats = file.splats.detach().to("cpu")
    if not keep_order:
        splats = splats[torch.from_numpy(morton_order(splats.means.numpy()))]
    values = arrays(splats)
    side = math.ceil(math.sqrt(len(splats)) / 4) * 4
    shape = (math.ceil(len(splats) / side / 4) * 4, side)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "flexgs-lightning"},
        "count": len(splats),
        **({"model": ANTIALIASED} if file.antialiased else {}),
    }
    images: dict[str, np.ndarray] = {}

    logs = np.sign(values.means) * np.log1p(np.abs(values.means.astype(np.float64)))
    low, high = logs.min(axis=0), logs.max(axis=0)
    levels = np.rint(65535 * (logs - low) / np.maximum(high - low, 1e-30)).astype(np.uint16)
    images["means_l.webp"], images["means_u.webp"] = (
        (levels & 255).astype(np.uint8),
        (levels >> 8).astype(np.uint8),
    )
    meta["means"] = {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]}

    scale_codes, images["scales.webp"] = codebook(values.log_scales)
    meta["scales"] = {"codebook": _short(scale_codes), "files": ["scales.webp"]}

    largest, three = smallest_three(values.quats)
    images["quats.webp"] = np.column_stack([to_bytes(255 * (three * SQRT2 / 2 + 0.5)), 252 + largest])
    meta["quats"] = {"files": ["quats.webp"]}

    color_codes, colors = codebook(values.sh[:, 0])
    images["sh0.webp"] = np.column_stack([colors, to_bytes(255 * values.opacities)])
    meta["sh0"] = {"codebook": _short(color_codes), "files": ["sh0.webp"]}

    members = {name: _webp(_image(columns, shape)) for name, columns in images.items()}
    if splats.sh_degree:
        meta["shN"], more = _encode_sh(splats, shape)
        members |= more
    return {META: json.dumps(meta, separators=(",", ":")).encode(), **members}


def _encode_sh(splats: Splats, shape: tuple[int, int]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What ``meta.json`` says of the further coefficients, and their images."""
    count, coefficients = len(splats), COEFFICIENTS[splats.sh_degree]
    thousands = min(_LARGEST_PALETTE, 2 ** int(math.log2(max(count / 1024, 1))))
    entries, entry_of = palette(splats.sh[:, 1:].reshape(count, -1), 1024 * thousands)
    labels, order = _by_first_use(entry_of.numpy())
    codes, indices = codebook(entries.numpy()[order])
    rows = math.ceil(len(indices) / PALETTE_COLUMNS)
    colors = indices.reshape(-1, 3)  # a pixel a coefficient, entry after entry
    image = _image(colors, (rows, PALETTE_COLUMNS * coefficients))
    columns = np.column_stack([labels & 255, labels >> 8, np.zeros_like(labels)]).astype(np.uint8)
    files = ["shN_centroids.webp", "shN_labels.webp"]
    meta = {"count": len(indices), "bands": splats.sh_degree, "codebook": _short(codes), "files": files}
    return meta, {files[0]: _webp(image), files[1]: _webp(_image(columns, shape))}


def _short(codes: np.ndarray) -> list[float]:
    """With the seven digits that a float32 has; a third of the text."""
    return [float(f"{code:.7g}") for code in codes]


def _by_first_use(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels renumbered as they first appear, which compresses far better; the old label of each new one."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    used = np.sort(first)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse], labels[used]


def _image(columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[height, width, 3|4] uint8: a row a pixel, row-major, and zeros after the last."""
    pixels = np.zeros((shape[0] * shape[1], columns.shape[1]), np.uint8)
    pixels[: len(columns)] = columns
    return pixels.reshape(*shape, -1)


def _webp(pixels: np.ndarray) -> bytes:
    """Lossless; colours are kept where the image is transparent, too.

    More effort than 75 of 100 takes nine times as long and saves nothing on such images.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, exact=True, quality=75, method=4)
    return stream.getvalue()
