"""What makes a scene elastic: a selection and parts, as the options say."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flexgs_lightning.errors import InputError, require_fields
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import Part
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import GsNet, Ordered, Selection
from flexgs_lightning.model.transform_field import TransformField, base_resolution_for
from flexgs_lightning.processes import ALONE, Shards


@dataclass(frozen=True)
class ElasticOptions:
    """What makes a scene elastic.

    Args:
        selection: "ordered" ranks by importance, "gsnet" by a network (the FlexGS paper).
        residual_anchors: ascending ratios at which Gaussians have displacements of their own, interpolated
            in log e; empty for none.
        field_heads: attributes that the transform field displaces; empty for no field. The paper's are
            means, scales and quats; opacities and sh (its constant part) can be added.
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
    field_heads: tuple[str, ...] = ()
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
        anchors, known = self.residual_anchors, residual_columns()
        if list(anchors) != sorted(set(anchors)) or not all(0 < anchor < 1 for anchor in anchors):
            raise InputError(
                f"model.elastic.residual_anchors: expected ascending ratios in (0, 1), found {list(anchors)}."
            )
        checks = {
            "field_resolution": (self.field_resolution in (0, *range(2, 1025)), "0, or 2 to 1024"),
            "field_share": (0 < self.field_share <= 1, "above 0, at most 1"),
            "field_ratio_resolution": (2 <= self.field_ratio_resolution <= 1024, "2 to 1024"),
            "field_multipliers": (
                0 < len(self.field_multipliers) <= 8 and all(1 <= f <= 64 for f in self.field_multipliers),
                "up to 8 factors of 1 to 64",
            ),
            "field_head_width": (0 <= self.field_head_width <= 4096, "0 to 4096"),
            "lowest_ratio": (0 < self.lowest_ratio < 1, "a number in (0, 1)"),
        }
        require_fields("model.elastic.", self, checks)
        if not set(self.field_heads) <= set(known):
            raise InputError(
                f"model.elastic.field_heads: expected names of {', '.join(known)}, "
                f"found {', '.join(self.field_heads)}."
            )


def elastic_scene(
    gaussians: Gaussians,
    frame: SceneFrame,
    options: ElasticOptions,
    residual_units: Mapping[str, float],
    *,
    parts: Mapping[str, Part] | None = None,
    shards: Shards = ALONE,
    total: int | None = None,
) -> Scene:
    """Make Gaussians elastic. Changes no image (unless ``field_zero_init`` is off): all starts at zero.

    Networks' weights are drawn from torch's global generator.

    Args:
        gaussians: the scene, of at least one Gaussian.
        frame: where the scene lies, for the networks.
        options: what to add.
        residual_units: see ``RatioResiduals``.
        parts: those that the scene has already; they come last, and see what the new ones displace.
        shards: who holds the Gaussians.
        total: N, if ``gaussians`` are not all.

    Raises:
        InputError: there is no Gaussian.
        ValueError: a part of that name is there already.
    """
    count = len(gaussians) if total is None else total
    selection: Selection = Ordered()
    if options.selection == "gsnet":
        selection = GsNet(count, frame, lowest_ratio=options.lowest_ratio, ratio_axis=options.ratio_axis)
    added: dict[str, Part] = {}
    if options.field_heads and count:
        added["field"] = _field(count, frame, options)
    if options.residual_anchors and count:
        added["residuals"] = RatioResiduals(
            count, options.residual_anchors, residual_units, shards, residual_columns(gaussians.attributes)
        )
    twice = added.keys() & (parts or {}).keys()
    if twice:
        raise ValueError(f"elastic_scene: the scene has parts of these names already: {', '.join(twice)}.")
    return Scene(
        gaussians,
        selection=selection,
        parts={**added, **(parts or {})},
        elastic=True,
        shards=shards,
        total=total,
    )


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
