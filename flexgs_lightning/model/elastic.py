"""ElasticGaussians: a scene that draws at any fraction of its Gaussians."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.gaussians import Gaussians, activate
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.residuals import Permutation, RatioResiduals, reorder_rows
from flexgs_lightning.model.selector import GaussianSelector, rank
from flexgs_lightning.model.transform_field import Head, TransformField, base_resolution_for
from flexgs_lightning.processes import ALONE, Shards
from flexgs_lightning.splats import Splats


@dataclass(frozen=True)
class ElasticOptions:
    """What makes a scene elastic.

    Args:
        selection: "ordered" ranks by importance, "gsnet" by a network (the FlexGS paper).
        residual_anchors: ascending ratios at which Gaussians have displacements of their own, interpolated
            in log e; empty for none.
        field_heads: attributes that the transform field displaces; empty for no field. The paper's are
            means, scales and quats; opacities and sh0 can be added.
        field_resolution: cells a spatial axis of the field's coarsest planes; 0 for as many as
            ``field_share`` allows.
        field_share: largest size of the field as a share of the Gaussians' parameters, if
            ``field_resolution`` is 0.
        field_ratio_resolution: cells of the field's planes along the ratio.
        field_multipliers: resolution of each level of planes, relative to the coarsest.
        field_head_width: width of the heads' hidden layers; 0 for linear heads.
        field_zero_init: whether the field starts without displacements; the published code's does not.
        ratio_axis: how the ratio enters the networks; "linear" is the published code's.
        lowest_ratio: smallest ratio that is trained for.
    """

    selection: Literal["ordered", "gsnet"] = "ordered"
    residual_anchors: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    field_heads: tuple[Head, ...] = ()
    field_resolution: int = 0
    field_share: float = 0.1
    field_ratio_resolution: int = 16
    field_multipliers: tuple[int, ...] = (1, 2)
    field_head_width: int = 64
    field_zero_init: bool = True
    ratio_axis: Literal["log", "linear"] = "log"
    lowest_ratio: float = 0.01

    def __post_init__(self) -> None:
        if self.selection == "gsnet" and self.residual_anchors:
            raise InputError(
                "model.elastic.residual_anchors: expected [] with gsnet selection, because residuals "
                "belong to places in a ranking and this one moves all the time; "
                f"found {list(self.residual_anchors)}."
            )

    def as_plain(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> "ElasticOptions":
        """The inverse of ``as_plain``."""
        options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return ElasticOptions(**options)


class ElasticGaussians(nn.Module):
    """Gaussians with a ranking, and what displaces them when only the first of it are drawn.

    With "ordered" selection the Gaussians are stored in the order of the ranking, so that every ratio is a
    prefix. With "gsnet" the ranking is the selector's, computed once when drawing starts, until ``sort``
    stores it the same way. Either way sets are nested: a smaller ratio's Gaussians are among a larger one's.

    If several processes hold the Gaussians, process r of W stores r, r + W, r + 2W, … of them. Ratios then
    still mean all N, and ``at`` gives what of a subset is here.
    """

    importance_order: Int[Tensor, " N"]
    """Ranking by importance, which a selector learns from."""

    def __init__(
        self,
        gaussians: Gaussians,
        frame: SceneFrame,
        options: ElasticOptions,
        residual_units: Mapping[str, float] | None = None,
        shards: Shards = ALONE,
        total: int | None = None,
    ) -> None:
        """Construction changes no image (unless ``field_zero_init`` is off): displacements start at zero.

        Args:
            gaussians: the scene, of at least one Gaussian.
            frame: where the scene lies, for the networks.
            options: which parts there are.
            residual_units: see ``RatioResiduals``; not needed where a state is loaded afterwards.
            shards: who holds the Gaussians.
            total: N, if ``gaussians`` are not all.
        """
        super().__init__()
        self.shards = shards
        self._total = len(gaussians) if total is None else total
        if self._total == 0:
            raise InputError("an elastic model needs at least one Gaussian, found none.")
        self.options = options
        self.gaussians = gaussians
        self.frame = frame
        self.selector: GaussianSelector | None = None
        self.field: TransformField | None = None
        self.residuals: RatioResiduals | None = None
        self._order: Tensor | None = None
        if options.selection == "gsnet":
            self.register_buffer("importance_order", torch.arange(self._total))
            self.selector = GaussianSelector(
                frame, lowest_ratio=options.lowest_ratio, ratio_axis=options.ratio_axis
            )
        if options.field_heads:
            self.field = _field(self._total, frame, options)
        if options.residual_anchors:
            units = residual_units or dict.fromkeys(("means", "quats", "scales", "opacities", "sh0"), 1.0)
            self.residuals = RatioResiduals(self._total, options.residual_anchors, dict(units), shards)

    def __len__(self) -> int:
        """N, over all processes that hold Gaussians."""
        return self._total

    def at(self, ratio: float) -> Splats:
        """Exactly floor(e N) Gaussians, the highest ranked, displaced for that ratio; differentiable.

        Ratio 1 gives the full model, undisplaced. Two calls give the same.

        Raises:
            InputError: the ratio lies outside (0, 1] or holds no Gaussian.
        """
        count = count_at(ratio, len(self))
        if self.selector is None:
            return self.drawn(self.shards.local(count), ratio)
        return self.drawn(self.shards.own(self.ranking()[:count]), ratio)

    def at_each(self, ratios: Sequence[float]) -> list[Splats]:
        """``at`` for several ratios of one iteration.

        Every prefix is cut from the next larger one, so that the gradient of a small one is not filled up
        with zeros to all N Gaussians: that would cost more than drawing it.

        Raises:
            InputError: as ``at``.
        """
        if self.selector is not None:
            return [self.at(ratio) for ratio in ratios]
        rows: dict[str, Tensor] = dict(self.gaussians.params.items())
        splats: dict[float, Splats] = {}
        for ratio in sorted(set(ratios), reverse=True):
            count = self.shards.local(count_at(ratio, len(self)))
            rows = {name: value[:count] for name, value in rows.items()}
            splats[ratio] = self._displaced(rows, count, ratio)
        return [splats[ratio] for ratio in ratios]

    def drawn(self, chosen: int | Int[Tensor, " M"], ratio: float) -> Splats:
        """The first M Gaussians as they are stored here, or those at M places, displaced; differentiable."""
        rows = slice(0, chosen) if isinstance(chosen, int) else chosen
        parameters = {name: value[rows] for name, value in self.gaussians.params.items()}
        return self._displaced(parameters, chosen, ratio)

    def _displaced(
        self, parameters: Mapping[str, Tensor], chosen: int | Int[Tensor, " M"], ratio: float
    ) -> Splats:
        parameters = dict(parameters)
        if ratio == 1.0:
            return activate(parameters)
        field = None if self.field is None else self.field(parameters["means"], ratio)
        if self.residuals is not None:
            parameters = self.residuals(chosen, ratio).added_to(parameters)
        return activate(parameters if field is None else field.added_to(parameters))

    def first_non_finite(self) -> str | None:
        """Name of the first parameter that holds NaN or infinity; None if all are finite."""
        broken = (name for name, value in self.named_parameters() if not torch.isfinite(value).all())
        return self.gaussians.first_non_finite() or next(broken, None)

    @torch.no_grad()
    def ranking(self) -> Int[Tensor, " N"]:
        """[N] indices of the Gaussians, highest ranked first; kept while the module is in ``eval`` mode."""
        if self.selector is None:
            return torch.arange(len(self), device=self.gaussians.params["means"].device)
        if self._order is None or self.training:
            params = self.gaussians.params
            scores = self.selector.scores(params["means"], params["scales"], params["quats"])
            self._order = rank(self.shards.joined(scores))
        return self._order

    @torch.no_grad()
    def reorder(self, order: Int[Tensor, " N"], permute: Permutation = reorder_rows) -> None:
        """Store the Gaussians in a new order; what belongs to a Gaussian moves along."""
        for parameter in self.gaussians.params.values():
            permute(parameter.data, order)
        if self.residuals is not None:
            self.residuals.reorder(order, permute)

    def sort(self) -> None:
        """Store the Gaussians in the selector's ranking for good, so that every ratio is a slice."""
        if self.selector is not None:
            self.reorder(self.ranking())
            self.selector = None

    def train(self, mode: bool = True) -> "ElasticGaussians":
        """Forget the kept ranking: training changes it."""
        self._order = None
        return super().train(mode)


def _field(gaussians: int, frame: SceneFrame, options: ElasticOptions) -> TransformField:
    sizes: dict[str, Any] = {
        "ratio_resolution": options.field_ratio_resolution,
        "multipliers": options.field_multipliers,
        "head_width": options.field_head_width,
        "heads": options.field_heads,
    }
    resolution = options.field_resolution or base_resolution_for(gaussians, options.field_share, **sizes)
    return TransformField(
        frame,
        resolution=resolution,
        lowest_ratio=options.lowest_ratio,
        ratio_axis=options.ratio_axis,
        zero_init=options.field_zero_init,
        **sizes,
    )
