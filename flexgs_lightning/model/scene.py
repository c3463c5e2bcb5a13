"""Scene: Gaussians, how to choose some of them, and parts that change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import Attribute
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.feature_appearance import FeatureAppearance
from flexgs_lightning.model.gaussians import Chosen, Gaussians, activate
from flexgs_lightning.model.part import FULL, Conditions, Part, part_from_plain
from flexgs_lightning.model.selection import Ordered, Selection, selection_from_plain
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.processes import ALONE, Shards
from flexgs_lightning.splats import Splats


class Scene(nn.Module):
    """A set of Gaussians, a selection, and parts that change raw parameters before activation.

    A scene that is not elastic is meant to be drawn whole: its Gaussians have no ranks. Sets are nested
    whatever the selection: a smaller ratio's Gaussians are among a larger one's.

    If several processes hold the Gaussians of an elastic scene, process r of W stores r, r + W, r + 2W, … of
    the ranking. Ratios then still mean all N, and ``at`` gives what of a subset is here.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        *,
        selection: Selection | None = None,
        parts: Mapping[str, Part] | None = None,
        elastic: bool = False,
        shards: Shards = ALONE,
        total: int | None = None,
    ) -> None:
        """Put a scene together.

        Args:
            gaussians: those that are here; what the parts bring is added, if it is not there yet.
            selection: how Gaussians are chosen; as they are stored by default.
            parts: applied in this order.
            elastic: whether it is, or is being, trained to draw at any ratio.
            shards: who holds the Gaussians.
            total: N, if ``gaussians`` are not all.

        Raises:
            InputError: an elastic scene without a Gaussian.
            ValueError: a part with rows for a prefix of the Gaussians in a scene without ranks.
        """
        super().__init__()
        self.gaussians = gaussians.extended(brought_by(parts or {}))
        self.selection = selection or Ordered()
        self.parts = nn.ModuleDict(dict(parts or {}))
        self.elastic = elastic
        self.shards = shards
        self.elsewhere = 0 if total is None else total - len(gaussians)
        """Gaussians that other processes hold; ``Surgery`` and densification keep it true."""
        rows = (len(row) for part in self.each_part() for row in part.rows())
        if not elastic and any(count != len(gaussians) for count in rows):
            raise ValueError(
                "Scene: parts with rows for a prefix need ranks, which only an elastic scene has."
            )
        if elastic and len(self) == 0:
            raise InputError("an elastic model needs at least one Gaussian, found none.")

    def __len__(self) -> int:
        """N, over all processes that hold Gaussians."""
        return len(self.gaussians) + self.elsewhere

    def at(self, ratio: float | Conditions = FULL) -> Splats:
        """Exactly floor(e N) Gaussians, the highest ranked, as they are under these conditions.

        Of a moving scene, those of them that are to be seen at the time. Differentiable. Two calls give the
        same.

        Args:
            ratio: e in (0, 1], or conditions with one.

        Raises:
            InputError: the ratio lies outside (0, 1] or holds no Gaussian; or the scene moves and there is
                no time, or one outside [0, 1].
        """
        conditions = ratio if isinstance(ratio, Conditions) else Conditions(ratio)
        chosen = self.first(conditions.ratio)
        parameters = self.gaussians.rows(chosen)
        for part in self.each_part():
            alive = part.alive(parameters, conditions)
            if alive is not None:
                places = _places(alive)
                parameters = self.gaussians.taken(parameters, places)
                chosen = places if isinstance(chosen, int) else chosen[places]
            parameters = part(parameters, chosen, conditions)
        return activate(parameters)

    def showing(self, time: float | None) -> tuple[Scene, float | None]:
        """The scene that shows a moment, and the moment in its own time: itself, but for a sequence."""
        return self, time

    def first(self, ratio: float) -> Chosen:
        """The Gaussians of a ratio that are here."""
        if ratio == 1.0:
            return len(self.gaussians)
        return self.selection.first(count_at(ratio, len(self)), self.gaussians, self.shards)

    def drawn(
        self, chosen: Chosen, conditions: Conditions = FULL, rows: Mapping[str, Tensor] | None = None
    ) -> Splats:
        """Some Gaussians as they are under these conditions, to be seen or not; differentiable.

        Args:
            chosen: the first M as they are stored here, or those at M places.
            conditions: ratio and time.
            rows: their raw parameters, where the caller has them already.
        """
        return activate(self.raw(chosen, conditions, rows))

    def raw(
        self,
        chosen: Chosen,
        conditions: Conditions = FULL,
        rows: Mapping[str, Tensor] | None = None,
        before: Part | None = None,
    ) -> dict[str, Tensor]:
        """Raw parameters of some Gaussians under these conditions; differentiable.

        Args:
            chosen: as for ``drawn``.
            conditions: as for ``drawn``.
            rows: as for ``drawn``.
            before: leave out this part and those after it.
        """
        parameters = self.gaussians.rows(chosen) if rows is None else dict(rows)
        for part in self.each_part():
            if part is before:
                break
            parameters = part(parameters, chosen, conditions)
        return parameters

    def without(self, kind: type) -> Scene:
        """The same Gaussians without parts of a kind."""
        kept = {name: part for name, part in self.parts.items() if not isinstance(part, kind)}
        return Scene(
            self.gaussians,
            selection=self.selection,
            parts=cast(dict[str, Part], kept),
            elastic=self.elastic,
            shards=self.shards,
            total=len(self),
        ).train(self.training)

    @property
    def moves(self) -> bool:
        """Whether it looks different from time to time, so that conditions need one."""
        return any(part.moves for part in self.each_part())

    @property
    def appearance(self) -> FeatureAppearance | None:
        """What makes colours of its Gaussians' features; None where they have spherical harmonics."""
        return next((part for part in self.each_part() if isinstance(part, FeatureAppearance)), None)

    @torch.no_grad()
    def peak_opacities(self) -> Float[Tensor, " n"]:
        """The highest opacity of each Gaussian here at any time."""
        raw = dict(self.gaussians.params.items())
        peaks = (part.peaks(raw) for part in self.each_part())
        return next((peak for peak in peaks if peak is not None), raw["opacities"].sigmoid())

    def ranking(self) -> Int[Tensor, " N"]:
        """[N] indices of the Gaussians, highest ranked first."""
        return self.selection.ranking(self.gaussians, self.shards)

    @torch.no_grad()
    def sort(self) -> None:
        """Store the Gaussians in their ranking for good, so that every ratio is a slice."""
        if not isinstance(self.selection, Ordered):
            Surgery(self).permute(self.ranking())
            self.selection = Ordered()

    def each_part(self) -> list[Part]:
        """The parts in the order in which they are applied."""
        return cast(list[Part], list(self.parts.values()))

    def rows(self) -> list[nn.Parameter]:
        """Every parameter with a row for each Gaussian, or for each of a prefix of the ranking."""
        parts = (row for part in self.each_part() for row in part.rows())
        return [*self.gaussians.own().values(), *parts]

    def row_names(self) -> list[str]:
        """Names of ``rows`` in the state."""
        rows = {id(row) for row in self.rows()}
        return [name for name, parameter in self.named_parameters() if id(parameter) in rows]

    def first_non_finite(self) -> str | None:
        """Name of the first parameter that holds NaN or infinity; None if all are finite."""
        others = ((name, p) for name, p in self.named_parameters() if not name.startswith("gaussians."))
        broken = (name for name, value in others if not torch.isfinite(value).all())
        return self.gaussians.first_non_finite() or next(broken, None)

    def as_plain(self) -> dict[str, Any]:
        """What it is made of, as plain values for checkpoints."""
        named = zip(self.parts.keys(), self.each_part(), strict=True)
        parts = {name: {"kind": part.kind, **part.as_plain()} for name, part in named}
        return {"elastic": self.elastic, "selection": self.selection.as_plain(), "parts": parts}

    @staticmethod
    def from_state(
        state: Mapping[str, Tensor],
        plain: Mapping[str, Any],
        shards: Shards = ALONE,
        total: int | None = None,
    ) -> Scene:
        """A scene of the make and shape of a saved one, for ``load_state_dict``.

        Args:
            state: the scene's state, or this process's share of it.
            plain: see ``as_plain``.
            shards: who holds the Gaussians.
            total: N, if the state does not hold all.

        Raises:
            KeyError: an attribute is missing.
        """
        start = "gaussians.params."
        given = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        count = len(given["means"]) if total is None else total
        parts = {
            name: part_from_plain(values["kind"], values, count, shards)
            for name, values in plain["parts"].items()
        }
        return Scene(
            Gaussians(given, brought_by(parts)),
            selection=selection_from_plain(plain["selection"], count),
            parts=parts,
            elastic=plain["elastic"],
            shards=shards,
            total=total,
        )


def _places(chosen: Bool[Tensor, " M"]) -> Int[Tensor, " m"]:
    """Where it is true; NumPy finds out in an eighth of the time that torch's ``nonzero`` takes on a CPU."""
    if chosen.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(chosen.numpy()))
    return chosen.nonzero().squeeze(-1)


def brought_by(parts: Mapping[str, Part]) -> list[Attribute]:
    """Attributes that Gaussians have because of these parts."""
    return [attribute for part in parts.values() for attribute in part.attributes()]
