"""RatioResiduals: what each Gaussian changes when only a prefix of the ranking is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.transform_field import Displacements
from flexgs_lightning.processes import ALONE, Shards

COLUMNS = {"means": 3, "quats": 4, "scales": 3, "opacities": 1, "sh0": 3}
"""Attributes that residuals displace, and how many numbers of a row each takes."""
WIDTH = sum(COLUMNS.values())


class RatioResiduals(nn.Module):
    """Per-Gaussian displacements, piecewise linear in log e between anchor ratios; zero for the full model.

    Gaussians are stored in the order of the ranking, so the Gaussian of rank r is only ever drawn at ratios
    above r / N. The table of an anchor therefore has rows for the Gaussians of that anchor's prefix alone:
    anchors 1, 3, 10 and 30 % take 0.44 rows a Gaussian all together, not 4.

    Tables add up from the largest anchor down: at ratio e the table of anchor a has weight 1 for e <= a and
    falls to 0 at the next larger anchor (the last one at e = 1). A small prefix so starts from what larger
    ones have learned.

    Rows are in units of one Adam step of the attribute (``units``), hence one learning rate serves all
    columns.
    """

    units: Float[Tensor, " 14"]

    def __init__(
        self, gaussians: int, anchors: Sequence[float], units: dict[str, float], shards: Shards = ALONE
    ) -> None:
        """Start at zero.

        Args:
            gaussians: N.
            anchors: ascending ratios in (0, 1).
            units: size of a step of each attribute in ``COLUMNS``, in the units of the raw parameters.
            shards: who holds the Gaussians; each process has the rows of its own.

        Raises:
            InputError: anchors out of range or not ascending.
        """
        super().__init__()
        if not anchors or sorted(set(anchors)) != list(anchors) or not 0 < anchors[0] <= anchors[-1] < 1:
            raise InputError(f"residual anchors: expected ascending ratios in (0, 1), found {list(anchors)}.")
        self.anchors = tuple(anchors)
        self.tables = nn.ParameterList(
            torch.zeros(shards.local(count_at(max(anchor, 1 / gaussians), gaussians)), WIDTH)
            for anchor in anchors
        )
        columns = [torch.full((width,), units[name]) for name, width in COLUMNS.items()]
        self.register_buffer("units", torch.cat(columns))

    def forward(self, chosen: int | Int[Tensor, " M"], ratio: float) -> Displacements:
        """Displacements at ``ratio`` of the first M Gaussians, or of those at M indices."""
        terms = [
            _rows(table, chosen) * weight
            for weight, table in zip(self.weights(ratio), self.tables, strict=True)
            if weight > 0
        ]
        if not terms:
            return Displacements()
        total = torch.stack(terms).sum(dim=0) * self.units
        parts = dict(zip(COLUMNS, total.split(list(COLUMNS.values()), dim=1), strict=True))
        parts["opacities"] = parts["opacities"].squeeze(-1)
        return Displacements(**parts)

    def weights(self, ratio: float) -> list[float]:
        """Weight of each anchor's table at a ratio."""
        above = [*self.anchors[1:], 1.0]
        return [
            min(max(math.log(after / ratio) / math.log(after / anchor), 0.0), 1.0)
            for anchor, after in zip(self.anchors, above, strict=True)
        ]

    @torch.no_grad()
    def reorder(self, order: Int[Tensor, " N"], permute: Permutation | None = None) -> None:
        """Follow a new ranking: row i becomes that of the Gaussian that was at ``order[i]``.

        Gaussians that enter an anchor's prefix start at zero there; those that leave it lose their row.
        """
        for table in self.tables:
            (permute or reorder_rows)(table.data, order)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Resize the tables to those of the state before the values are copied (children load later)."""
        for index, table in enumerate(self.tables):
            saved = state_dict.get(f"{prefix}tables.{index}")
            if saved is not None:
                table.data = table.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _rows(table: Float[Tensor, "T W"], chosen: int | Int[Tensor, " M"]) -> Float[Tensor, "M W"]:
    """The first M rows, or those at M indices; zero beyond the table."""
    if isinstance(chosen, int):
        rows = table[:chosen]
        return functional.pad(rows, (0, 0, 0, chosen - len(rows)))
    inside = (chosen < len(table)).unsqueeze(-1)
    if len(table) == 0:  # all of the prefix is with other processes
        return table.new_zeros(len(chosen), WIDTH)
    return table[chosen.clamp(max=len(table) - 1)] * inside


Permutation = Callable[[Float[Tensor, "M ..."], Int[Tensor, " N"]], None]
"""What does as ``reorder_rows``; rows may have to come from other processes."""


def reorder_rows(rows: Float[Tensor, "M ..."], order: Int[Tensor, " N"]) -> None:
    """Permute a prefix's rows in place by a ranking of all N Gaussians; rows from beyond it are zero."""
    sources = order[: len(rows)]
    inside = sources < len(rows)
    moved = torch.zeros_like(rows)
    moved[inside] = rows[sources[inside]]
    rows.copy_(moved)
