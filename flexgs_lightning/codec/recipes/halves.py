"""Halves: eight bits for spherical harmonics, half floats for the rest, LZMA.

What the runner-up of COGS 2025 and RAVE write (arXiv:2512.07052). Here along a Z-order curve, attribute by
attribute and byte by byte, which makes smaller files than their one stream does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flexgs_lightning.codec.recipes.columns import Columns, checked, columns_of, morton_order, to_columns
from flexgs_lightning.codec.recipes.package import Package, packed, read_package
from flexgs_lightning.codec.recipes.rounding import eight_bits, halved, in_eight_bits, numbered
from flexgs_lightning.splats import Splats

RECIPE = "halves"
WIDTHS = {"means": 3, "quats": 4, "scales": 3, "opacities": 1}
"""Numbers of a Gaussian that are stored as halves."""


def rounded(raw: dict[str, Tensor]) -> Columns:
    """Raw parameters as ``write_halves`` would store them, for training; differentiable (straight-through).

    Args:
        raw: named and shaped as in ``Gaussians.params``.
    """
    columns = to_columns(raw)
    return {
        name: in_eight_bits(values) if name.startswith("sh") else halved(values)
        for name, values in columns.items()
    }


@torch.no_grad()
def write_halves(splats: Splats, path: str | Path) -> None:
    """Write splats; in another order, and rounded as ``rounded`` does.

    Raises:
        InputError: the file cannot be written.
    """
    columns = columns_of(splats)
    order = torch.from_numpy(morton_order(columns["means"].numpy()))
    streams, scales = {}, {}
    for name, values in columns.items():
        if name in WIDTHS:
            halves = halved(values[order]).half().numpy().reshape(len(splats), -1)
            streams[name] = packed(halves)
        elif values.numel():
            scale = eight_bits(values)
            scales[name] = scale._asdict()
            streams[name] = packed(numbered(values[order], scale).byte().flatten(1).numpy())
    Package(RECIPE, len(splats), splats.sh_degree, {"scales": scales}, streams).write(path)


def read_halves(path: str | Path) -> Splats:
    """Read what ``write_halves`` wrote.

    Raises:
        InputError: see ``read_package``; streams that are missing or of another size; NaN or infinity.
    """
    path = Path(path)
    package = read_package(path, RECIPE)
    count = package.count
    columns = {
        name: package.array(path, name, "<f2", count, width).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    columns["opacities"] = columns["opacities"][:, 0]
    for name, rows in {"sh0": 1, "shN": (package.sh_degree + 1) ** 2 - 1}.items():
        if not rows:
            columns[name] = np.zeros((count, 0, 3), np.float32)
            continue
        numbers = package.array(path, name, "u1", count, rows * 3).astype(np.float32)
        low, step = (np.float32(package.number(path, "scales", name, key)) for key in ("low", "step"))
        columns[name] = (low + step * numbers).reshape(count, rows, 3)
    return checked(path, columns)
