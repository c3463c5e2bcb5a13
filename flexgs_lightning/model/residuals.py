"""RatioResiduals: what each Gaussian changes when only a prefix of the ranking is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import displaced, residual_columns
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.gaussians import Chosen, resize_to_state
from flexgs_lightning.model.part import Conditions, ParameterGroup, Part
from flexgs_lightning.processes import ALONE, Shards


class RatioResiduals(Part):
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

    kind = "residuals"
    units: Float[Tensor, " W"]

    def __init__(
        self,
        gaussians: int,
        anchors: Sequence[float],
        units: Mapping[str, float],
        shards: Shards = ALONE,
        columns: Mapping[str, int] | None = None,
    ) -> None:
        """Start at zero.

        Args:
            gaussians: N.
            anchors: ascending ratios in (0, 1).
            units: size of a step of each attribute that can be displaced, in the units of the raw parameters.
            columns: how many numbers of each can be; ``residual_columns`` of the scene's table.
            shards: who holds the Gaussians; each process has the rows of its own.

        Raises:
            InputError: anchors out of range or not ascending.
        """
        super().__init__()
        if not anchors or sorted(set(anchors)) != list(anchors) or not 0 < anchors[0] <= anchors[-1] < 1:
            raise InputError(
                f"model.elastic.residual_anchors: expected ascending ratios in (0, 1), found {list(anchors)}."
            )
        self.anchors = tuple(anchors)
        self.columns = dict(residual_columns() if columns is None else columns)
        width = sum(self.columns.values())
        self.tables = nn.ParameterList(
            torch.zeros(shards.local(self._size(anchor, gaussians)), width) for anchor in anchors
        )
        steps = [torch.full((size,), units[name]) for name, size in self.columns.items()]
        self.register_buffer("units", torch.cat(steps))

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters as they are in a prefix of that ratio."""
        changes = self.displacements(chosen, conditions.ratio)
        return displaced(parameters, changes) if changes else parameters

    def displacements(self, chosen: Chosen, ratio: float) -> dict[str, Float[Tensor, "M C"]]:
        """What is added to each attribute of some Gaussians at a ratio; nothing at ratio 1."""
        terms = [
            _rows(table, chosen) * weight
            for weight, table in zip(self.weights(ratio), self.tables, strict=True)
            if weight > 0
        ]
        if not terms:
            return {}
        total = torch.stack(terms).sum(dim=0) * self.units
        return dict(zip(self.columns, total.split(list(self.columns.values()), dim=1), strict=True))

    def weights(self, ratio: float) -> list[float]:
        """Weight of each anchor's table at a ratio."""
        above = [*self.anchors[1:], 1.0]
        return [
            min(max(math.log(after / ratio) / math.log(after / anchor), 0.0), 1.0)
            for anchor, after in zip(self.anchors, above, strict=True)
        ]

    def groups(self) -> list[ParameterGroup]:
        """The tables."""
        return [ParameterGroup(self.kind, list(self.tables), "rows")]

    def sources_for(self, row: nn.Parameter, sources: Int[Tensor, " N"]) -> Int[Tensor, " n"]:
        """A table has rows for its prefix: who enters it starts at zero, who leaves loses its row."""
        anchor = next(a for a, table in zip(self.anchors, self.tables, strict=True) if table is row)
        return sources[: self._size(anchor, len(sources))]

    def as_plain(self) -> dict[str, Any]:
        """The anchors and columns."""
        return {"anchors": list(self.anchors), "columns": self.columns}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> RatioResiduals:
        """Tables of zeros; units come with the state."""
        columns = values.get("columns", residual_columns())  # older checkpoints do not say
        return cls(gaussians, values["anchors"], dict.fromkeys(columns, 1.0), shards, columns)

    @staticmethod
    def _size(anchor: float, gaussians: int) -> int:
        """Rows of an anchor's table."""
        return count_at(max(anchor, 1 / gaussians), gaussians)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Resize the tables to those of the state before the values are copied (children load later)."""
        tables = ((str(index), table) for index, table in enumerate(self.tables))
        resize_to_state(tables, state_dict, f"{prefix}tables.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _rows(table: Float[Tensor, "T W"], chosen: Chosen) -> Float[Tensor, "M W"]:
    """The first M rows, or those at M indices; zero beyond the table."""
    if isinstance(chosen, int):
        rows = table[:chosen]
        return functional.pad(rows, (0, 0, 0, chosen - len(rows)))
    inside = (chosen < len(table)).unsqueeze(-1)
    if len(table) == 0:  # all of the prefix is with other processes
        return table.new_zeros(len(chosen), table.shape[1])
    return table[chosen.clamp(max=len(table) - 1)] * inside
