"""TransformField: how kept Gaussians move and change shape with the ratio (FlexGS's spatial-ratio field)."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import displaced, floats_per_gaussian, residual_columns
from flexgs_lightning.model.gaussians import Chosen, resize_to_state
from flexgs_lightning.model.normalization import RatioAxis, SceneFrame, ratio_to_axis
from flexgs_lightning.model.part import Conditions, ParameterGroup, Part
from flexgs_lightning.processes import Shards

PAPER_HEADS = ("means", "scales", "quats")
PAPER_RESOLUTION = 64
SMALLEST_RESOLUTION = 8
"""That ``base_resolution_for`` chooses."""
LEAST_CELLS = 2
"""An axis of a plane, to interpolate between."""
logger = logging.getLogger(__name__)


class TransformField(Part):
    """Displacements of Gaussians from their position and the ratio (FlexGS, Liu et al. 2025, Eqs. 12-13).

    Six planes a level (xy, xz, yz and xe, ye, ze), read bilinearly and multiplied; levels concatenated, fused
    by a layer and decoded by one small head an attribute. Ratio planes start at 1, spatial planes at
    U(0.1, 0.5) and the last layer of each head at 0, so **construction is the identity** (unless
    ``zero_init`` is off).

    Positions enter contracted (``SceneFrame``) and the ratio on an axis (``ratio_to_axis``). The position
    head's output is in units of the scene's scale, so learning rates carry over between captures. Levels
    multiply the spatial resolution only; along the ratio every level has ``ratio_resolution`` cells.

    ``load_state_dict`` takes over the planes' resolutions from the state.
    """

    kind = "field"

    def __init__(
        self,
        frame: SceneFrame,
        *,
        resolution: int = PAPER_RESOLUTION,
        ratio_resolution: int = 100,
        multipliers: Sequence[int] = (1, 2),
        channels: int = 16,
        width: int = 64,
        head_width: int = 64,
        heads: Sequence[str] = PAPER_HEADS,
        lowest_ratio: float = 0.01,
        ratio_axis: RatioAxis = "log",
        zero_init: bool = True,
    ) -> None:
        """Draw initial weights from torch's global generator.

        Args:
            frame: the scene's centre and scale.
            resolution: cells a spatial axis at level 1; see ``base_resolution_for``.
            ratio_resolution: cells along the ratio.
            multipliers: factor on ``resolution`` for each level.
            channels: features a plane.
            width: width of the fused features.
            head_width: width of the heads' hidden layers; 0 makes the heads linear, and the networks about
                five times cheaper.
            heads: attributes to displace; "means", "scales" and "quats" in the paper.
            lowest_ratio: the ratio at the lower end of the axis; lower ones are treated alike.
            ratio_axis: "log" or "linear".
            zero_init: start without displacements; otherwise heads start at random, as the published code's.

        Raises:
            InputError: an option is out of range.
        """
        super().__init__()
        _check_options(resolution, ratio_resolution, multipliers, channels, width, head_width, heads)
        ratio_to_axis(1.0, lowest_ratio, ratio_axis)  # refuses bad options now, not at the first step
        self.frame = frame
        self.lowest_ratio, self.ratio_axis = lowest_ratio, ratio_axis
        self._plain = {
            "ratio_resolution": ratio_resolution,
            "multipliers": list(multipliers),
            "channels": channels,
            "width": width,
            "head_width": head_width,
            "heads": list(heads),
            "lowest_ratio": lowest_ratio,
            "ratio_axis": ratio_axis,
        }
        sizes = [resolution * multiplier for multiplier in multipliers]
        self.spatial_planes = nn.ParameterList(
            torch.empty(3, channels, size, size).uniform_(0.1, 0.5) for size in sizes
        )
        self.ratio_planes = nn.ParameterList(
            torch.ones(3, channels, ratio_resolution, size) for size in sizes
        )
        self.fuse = nn.Sequential(nn.Linear(channels * len(sizes), width), nn.ReLU())
        self.heads = nn.ModuleDict(
            {name: _head(width, head_width, residual_columns()[name]) for name in heads}
        )
        if zero_init:
            for head in self.heads.values():
                _zero_last_layer(head)

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters as they are at a ratio; the full model stays as it is."""
        if conditions.ratio == 1.0:
            return parameters
        return displaced(parameters, self.displacements(parameters["means"], conditions.ratio))

    def displacements(self, means: Float[Tensor, "N 3"], ratio: float) -> dict[str, Float[Tensor, "N C"]]:
        """What is added to each attribute of Gaussians at world positions ``means``, drawn at ``ratio``.

        Each Gaussian is treated by itself. Differentiable in ``means`` too.

        Raises:
            InputError: the ratio lies outside (0, 1].
        """
        fused = self.fuse(self.features(means, ratio))
        outputs = {name: head(fused) for name, head in self.heads.items()}
        if "means" in outputs:
            outputs["means"] = outputs["means"] * self.frame.scale
        return outputs

    def groups(self) -> list[ParameterGroup]:
        """The planes, and the layers."""
        planes = [*self.spatial_planes, *self.ratio_planes]
        layers = [*self.fuse.parameters(), *self.heads.parameters()]
        return [
            ParameterGroup("field_planes", planes, "planes"),
            ParameterGroup("field_layers", layers, "layers"),
        ]

    def as_plain(self) -> dict[str, Any]:
        """What the state does not tell."""
        return dict(self._plain)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> TransformField:
        """The smallest field of that kind; planes and frame come with the state."""
        return cls(SceneFrame(torch.zeros(3), 1.0), resolution=LEAST_CELLS, **values)

    def features(self, means: Float[Tensor, "N 3"], ratio: float) -> Float[Tensor, "N F"]:
        """[N, levels * channels] products of the six planes of each level, levels side by side."""
        x, y, z = self.frame.plane_coordinates(means).unbind(-1)
        middle = torch.zeros_like(x)  # the one row of a line
        pairs = torch.stack([x, y, x, z, y, z]).view(3, 2, len(means)).mT  # [3, N, 2]: the planes xy, xz, yz
        lines = torch.stack([x, middle, y, middle, z, middle]).view(3, 2, len(means)).mT
        position = ratio_to_axis(ratio, self.lowest_ratio, self.ratio_axis)
        levels = []
        for spatial, ratio_plane in zip(self.spatial_planes, self.ratio_planes, strict=True):
            product = _multiplied(_lookup(spatial, pairs))
            levels.append(product * _multiplied(_lookup(_lines_at(ratio_plane, position), lines)))
        return torch.cat(levels).T

    def total_variation(self) -> Float[Tensor, ""]:
        """Mean squared difference of neighbours in the spatial planes, summed over axes and levels."""
        terms = [plane.diff(dim=axis).square().mean() for plane in self.spatial_planes for axis in (-1, -2)]
        return torch.stack(terms).sum()

    def ratio_smoothness(self) -> Float[Tensor, ""]:
        """Mean squared difference of neighbours along the ratio in the ratio planes, summed over levels.

        The published code takes second differences, whose minimum is smoother but spreads over n cells in
        about n^4 steps instead of n^2: between two ratios of a list, that is never.
        """
        terms = [plane.diff(dim=-2).square().mean() for plane in self.ratio_planes]
        return torch.stack(terms).sum()

    def ratio_deviation(self) -> Float[Tensor, ""]:
        """Mean absolute distance of the ratio planes from 1, where the ratio has no effect; over levels."""
        return torch.stack([(plane - 1.0).abs().mean() for plane in self.ratio_planes]).sum()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Resize the planes to those of the state before the values are copied (children load later)."""
        for name in ("spatial_planes", "ratio_planes"):
            planes = ((str(level), plane) for level, plane in enumerate(getattr(self, name)))
            resize_to_state(planes, state_dict, f"{prefix}{name}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def base_resolution_for(
    gaussians: int, share: float, *, per_gaussian: int | None = None, **options: Any
) -> int:
    """The largest ``resolution`` whose field holds at most ``share`` of the Gaussians' own floats.

    Between ``SMALLEST_RESOLUTION`` and the paper's 64. A scene so small that even the smallest field takes
    more than its share gets that one, with a note in the log.

    Args:
        gaussians: N.
        share: parameters of the field, networks included, over those of the Gaussians; positive.
        per_gaussian: numbers that a plain model stores for each Gaussian; those of the table by default.
        **options: the other options of ``TransformField``.

    Raises:
        InputError: the share is not positive, or an option is out of range.
    """
    if not share > 0:
        raise InputError(f"share: expected a positive number, found {share}.")
    allowed = share * gaussians * (per_gaussian or floats_per_gaussian())
    choices = range(SMALLEST_RESOLUTION, PAPER_RESOLUTION + 1)
    fitting = bisect.bisect_right(choices, allowed, key=lambda size: _field_floats(size, options))
    if fitting == 0:
        logger.info(
            "The smallest transform field holds %d floats, more than %.0f, which is %g of %d Gaussians.",
            _field_floats(SMALLEST_RESOLUTION, options), allowed, share, gaussians,
        )  # fmt: skip
    return choices[max(fitting - 1, 0)]


def _field_floats(resolution: int, options: Mapping[str, Any]) -> int:
    with torch.device("meta"):  # shapes only: no memory, no random numbers drawn
        field = TransformField(SceneFrame(torch.zeros(3), 1.0), resolution=resolution, **options)
    return sum(parameter.numel() for parameter in field.parameters())


def _lookup(planes: Float[Tensor, "P C H W"], points: Float[Tensor, "P N 2"]) -> Float[Tensor, "P C N"]:
    """Read P planes at (u, v) in [-1, 1], u along W; the outermost cells' centres lie at -1 and 1.

    On the CPU this is 1.5 to 3 times faster, forward and backward, than gathering corners or embedding
    bags, and planes in one batch are shared out over threads.
    """
    if points.shape[1] == 0:  # refused by grid_sample; a gradient of zeros all the same
        return planes.flatten(2)[..., :0]
    return functional.grid_sample(
        planes, points[:, :, None], padding_mode="border", align_corners=True
    ).squeeze(-1)


def _lines_at(planes: Float[Tensor, "P C E R"], position: float) -> Float[Tensor, "P C 1 R"]:
    """Ratio planes cut at one ratio, a position in [-1, 1].

    All Gaussians are drawn at one ratio, so interpolating along it first is the same bilinear lookup at a
    fraction of the cost.
    """
    cell = (position + 1.0) / 2.0 * (planes.shape[-2] - 1)
    low = min(int(cell), planes.shape[-2] - 2)
    return torch.lerp(planes[:, :, low : low + 1], planes[:, :, low + 1 : low + 2], cell - low)


def _multiplied(features: Float[Tensor, "3 C N"]) -> Float[Tensor, "C N"]:
    """Product over planes; faster than ``prod``, whose gradient looks for zeros."""
    return features[0] * features[1] * features[2]


def _head(width: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(hidden or width, outputs)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last) if hidden else nn.Sequential(last)


def _zero_last_layer(head: nn.Module) -> None:
    for parameter in list(head.parameters())[-2:]:
        nn.init.zeros_(parameter)


def _check_options(
    resolution: int,
    ratio_resolution: int,
    multipliers: Sequence[int],
    channels: int,
    width: int,
    head_width: int,
    heads: Sequence[str],
) -> None:
    for name, value in {"resolution": resolution, "ratio_resolution": ratio_resolution}.items():
        if value < LEAST_CELLS:
            raise InputError(f"{name}: expected at least {LEAST_CELLS} cells, found {value}.")
    if channels < 1 or width < 1:
        raise InputError(f"channels and width: expected positive numbers, found {channels} and {width}.")
    if head_width < 0:
        raise InputError(f"head_width: expected a width, or 0 for linear heads, found {head_width}.")
    if not multipliers or min(multipliers) < 1:
        raise InputError(f"multipliers: expected positive factors, found {list(multipliers)}.")
    known = residual_columns()
    if not heads or len(set(heads)) != len(heads) or not set(heads) <= set(known):
        raise InputError(
            f"heads: expected different names of {', '.join(known)}, found {', '.join(heads) or 'none'}."
        )
