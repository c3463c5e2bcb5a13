"""Splats as columns of numbers that recipes code, and the orders that they are coded in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from flexgs_lightning.codec.chunks import morton_codes
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.gaussians import Gaussians, activate
from flexgs_lightning.splats import Splats

MORTON_BITS = 21
"""Bits an axis of ``morton_order``: three times as many fit into 64."""

Columns = dict[str, Tensor]
"""Raw parameters of N Gaussians: means [N, 3], quats [N, 4] of length 1, scales [N, 3] as logarithms,
opacities [N] as logits, sh0 [N, 1, 3], shN [N, K - 1, 3]."""


def to_columns(raw: dict[str, Tensor]) -> Columns:
    """Raw parameters, named as in ``Gaussians.params``, as columns; differentiable."""
    columns = {name: raw[name] for name in ("means", "scales", "opacities")}
    columns["quats"] = functional.normalize(raw["quats"], dim=-1)
    return columns | {"sh0": raw["sh"][:, :1], "shN": raw["sh"][:, 1:]}


def columns_of(splats: Splats) -> Columns:
    """Columns of splats, on the CPU and without gradients."""
    gaussians = Gaussians.from_splats(splats.to("cpu").detach())
    return to_columns({name: values.detach() for name, values in gaussians.params.items()})


def to_splats(columns: Columns) -> Splats:
    """The inverse of ``to_columns``, activated; differentiable."""
    raw = {name: columns[name] for name in ("means", "quats", "scales", "opacities")}
    return activate(raw | {"sh": torch.cat([columns["sh0"], columns["shN"]], dim=1)})


def checked(path: Path, columns: dict[str, np.ndarray]) -> Splats:
    """Columns that were read from a file, as splats.

    Raises:
        InputError: NaN or infinity among them, or as soon as they are activated.
    """
    found = {name: torch.from_numpy(np.array(each, np.float32, order="C")) for name, each in columns.items()}
    splats = to_splats(found)
    for name, values in (found | vars(splats)).items():
        if not values.isfinite().all():
            raise InputError(f"{path}: {name}: NaN or infinity.")
    return splats


def morton_order(means: Float[np.ndarray, "N 3"]) -> Int[np.ndarray, " N"]:
    """[N] indices that sort points along a Z-order curve through the cube around them."""
    points = means.astype(np.float64)
    low = points.min(axis=0)
    extent = max(float((points.max(axis=0) - low).max()), 1e-30)
    cells = ((points - low) * ((2**MORTON_BITS - 1) / extent)).astype(np.int64)
    return np.argsort(morton_codes(cells, MORTON_BITS), kind="stable")
