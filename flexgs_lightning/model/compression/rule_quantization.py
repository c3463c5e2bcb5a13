"""RuleQuantization: steps that follow what an error in each number costs, as the elastic file has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.compression.coordinates import (
    COLUMNS,
    PLACES,
    WIDTH,
    from_coordinates,
    to_coordinates,
)
from flexgs_lightning.model.compression.entropy import EntropyModel
from flexgs_lightning.model.compression.quantization import (
    Coded,
    Quantization,
    RawAt,
    entropy_from_plain,
)
from flexgs_lightning.model.compression.rounding import Rounding, require_rounding, rounded
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.part import Conditions, ParameterGroup
from flexgs_lightning.processes import Shards
from flexgs_lightning.records import shown

_STEPS = torch.tensor([max(1, ([16, 19, 23, 27][c & 3] << (c >> 2)) >> 4) for c in range(96)]).float()
"""Size of the step of each class, in units of a column."""
UPDATE = "update_"
"""Before the names of what moves Gaussians from one level to the next."""


@dataclass(frozen=True)
class Rule:
    """Step classes as a function of opacity, scales, place, rank and level; four classes an octave.

    Attributes:
        weights: [14, 7] of the 13 columns and the other harmonics, over 1, t, t^2, three scales and the
            logarithm of the distance from ``centre``, in the units of the elastic file's integers.
        curves: [L, 6, 2] constant and slope over ln(rank) of each level and attribute.
        bounds: [14, 2] smallest and largest class.
        units: [14] value of 1 of each column's integers.
        origin: [3] place of integer 0.
        centre: [3] where distances are measured from, in world units.
        basis: [C, D] transform of the other spherical harmonics.
        mixing: [13, 13] weights of the prediction of each column from those before it, of coordinates.
    """

    weights: Float[Tensor, "14 7"]
    curves: Float[Tensor, "L 6 2"]
    bounds: Float[Tensor, "14 2"]
    units: Float[Tensor, " 14"]
    origin: Float[Tensor, " 3"]
    centre: Float[Tensor, " 3"]
    basis: Float[Tensor, "C D"]
    mixing: Float[Tensor, "13 13"]

    def classes(
        self, values: Float[Tensor, "M 13"], ranks: Int[Tensor, " M"], level: int
    ) -> Float[Tensor, "M 14"]:
        """Step class of each number, as coordinates, rank and level say."""
        features = self._features(values)
        logs = (ranks.to(values) + 1).log()[:, None]
        curves = self.curves[level]
        widths = torch.tensor([*COLUMNS.values(), 1], device=values.device)
        found = (curves[:, 0] + logs * curves[:, 1]).repeat_interleave(widths, dim=1)
        found = (found + features @ self.weights.T).round()
        return found.clamp(self.bounds[:, 0], self.bounds[:, 1])

    def steps(
        self, values: Float[Tensor, "M 13"], ranks: Int[Tensor, " M"], level: int
    ) -> Float[Tensor, "M 14"]:
        """Size of the step of each number."""
        classes = self.classes(values, ranks, level).long()
        return _STEPS.to(values)[classes.clamp(0, len(_STEPS) - 1)] * self.units

    def _features(self, values: Float[Tensor, "M 13"]) -> Float[Tensor, "M 7"]:
        t = (values[:, :1] / self.units[0]).clamp(0, 4096)
        scales = values[:, PLACES["scales"]] / self.units[1]
        away = ((values[:, PLACES["means"]] - self.centre) / self.units[4]).abs().amax(dim=1, keepdim=True)
        mantissa, exponent = torch.frexp(away.clamp_min(1.0))
        distance = 1024 * (exponent - 1 + 2 * mantissa - 1)  # linear within each octave
        return torch.cat([torch.ones_like(t), t, t * t / 4096, scales, distance], dim=1)


class RuleQuantization(Quantization):
    """Coordinates rounded to steps of a rule, other harmonics to steps of a transform; all as the file does.

    Levels are the ratios at which the file holds the scene; in between, a Gaussian is rounded as at the next
    larger one. Places of a level's grid are not fixed in the file (it codes differences from predictions),
    which noise stands for best; those of the transformed harmonics are.
    """

    kind = "rule_quantization"
    basis: Float[Tensor, "C D"]
    mixing: Float[Tensor, "13 13"]

    def __init__(
        self,
        rule: Rule,
        ratios: Sequence[float],
        frames: UInt8[Tensor, " N"],
        rounding: Rounding = "noise",
        sh_rounding: Rounding = "straight_through",
        entropy: Mapping[str, EntropyModel] | None = None,
    ) -> None:
        """Put together.

        Args:
            rule: sizes of steps.
            ratios: of the levels, ascending, the last one 1.
            frames: of each Gaussian, see ``coordinates``.
            rounding: of coordinates in training.
            sh_rounding: of transformed harmonics in training.
            entropy: by the names of ``coded_in``.

        Raises:
            InputError: no such rounding, or ratios that do not ascend to 1.
        """
        super().__init__(rounding, entropy or {})
        require_rounding(sh_rounding)
        if not (sorted({*ratios, 1.0}) == list(ratios) and ratios[0] > 0):
            raise InputError(f"ratios of levels: expected ascending ones up to 1, found {shown(ratios)}.")
        self.sh_rounding: Rounding = sh_rounding
        self.ratios = tuple(ratios)
        self.frames = nn.Parameter(frames, requires_grad=False)
        for field in fields(rule):
            self.register_buffer(field.name, getattr(rule, field.name).float().clone())

    @property
    def rule(self) -> Rule:
        """Sizes of steps."""
        return Rule(**{field.name: getattr(self, field.name) for field in fields(Rule)})

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters as the file gives them back at a ratio."""
        level = next(i for i, ratio in enumerate(self.ratios) if ratio >= conditions.ratio)
        frames, ranks = self._of(chosen)
        values = self._coordinates(parameters, frames)
        steps = self.rule.steps(values.detach(), ranks, level)
        raw = from_coordinates(rounded(values, steps[:, :WIDTH], self.rounding, self.training), frames)
        sh = torch.cat([raw.pop("sh0")[:, None], self._sh_rest(parameters["sh"], steps)], dim=1)
        return {**parameters, **raw, "sh": sh}

    def _sh_rest(self, sh: Float[Tensor, "M K 3"], steps: Float[Tensor, "M 14"]) -> Float[Tensor, "M k 3"]:
        rest = sh[:, 1:]
        if not len(self.basis):
            return rest
        found = rounded(self.transformed(rest), steps[:, WIDTH:], self.sh_rounding, self.training)
        return (found @ self.basis).view_as(rest)

    def transformed(self, sh_rest: Float[Tensor, "M k 3"]) -> Float[Tensor, "M C"]:
        """Coefficients of the transform; differentiable."""
        return sh_rest.flatten(1) @ torch.linalg.pinv(self.basis)

    def coded_in(self, raw_at: RawAt, chosen: Int[Tensor, " M"]) -> dict[str, Coded]:
        """See ``Quantization``. New rows less what earlier columns predict; updates as differences of levels.

        Updates start from values that were rounded themselves.
        """
        found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        total, before, level_before = len(self.frames), 0, None
        for level, ratio in enumerate(self.ratios):
            rows = chosen[chosen < count_at(ratio, total)]
            parameters = raw_at(rows, ratio)
            frames, ranks = self._of(rows)
            values = self._coordinates(parameters, frames)
            steps = self.rule.steps(values.detach(), ranks, level)
            means = parameters["means"].detach()
            coded = rounded(values, steps[:, :WIDTH], self.rounding, self.training)
            if level_before is not None:
                change = values[:before] - level_before
                self._add(found, UPDATE, change, steps[:before], means[:before])
            left = values[before:] - coded[before:] @ self.mixing.T
            self._add(found, "", left, steps[before:], means[before:])
            if len(self.basis):
                rest = self.transformed(parameters["sh"][before:, 1:])
                found.setdefault("sh_rest", []).append((rest, steps[before:, WIDTH:], means[before:]))
            before, level_before = len(rows), coded
        return {name: Coded(*map(torch.cat, zip(*pieces, strict=True))) for name, pieces in found.items()}

    @staticmethod
    def _add(
        found: dict[str, list[tuple[Tensor, Tensor, Tensor]]],
        prefix: str,
        values: Float[Tensor, "M 13"],
        steps: Float[Tensor, "M 14"],
        means: Float[Tensor, "M 3"],
    ) -> None:
        for name, place in PLACES.items():
            if prefix or name != "means":  # new rows' means are coded as cells
                pieces = found.setdefault(prefix + name, [])
                pieces.append((values[:, place], steps[:, place], means))

    def _coordinates(self, parameters: Mapping[str, Tensor], frames: Tensor) -> Float[Tensor, "M 13"]:
        return to_coordinates(
            parameters["quats"],
            parameters["scales"],
            parameters["means"],
            parameters["opacities"].sigmoid(),
            parameters["sh"][:, 0],
            frames,
        )

    def _of(self, chosen: Chosen) -> tuple[UInt8[Tensor, " M"], Int[Tensor, " M"]]:
        """Frames and ranks of some Gaussians."""
        ranks = torch.arange(chosen, device=self.frames.device) if isinstance(chosen, int) else chosen
        return self.frames[ranks], ranks

    def groups(self) -> list[ParameterGroup]:
        """The entropy models', and the frames, which follow their Gaussians but are not learned."""
        return [*super().groups(), ParameterGroup("frames", [self.frames], "rows")]

    def as_plain(self) -> dict[str, Any]:
        """See ``Part``."""
        sizes = {"basis": list(self.basis.shape)}
        return {**super().as_plain(), **sizes, "ratios": list(self.ratios), "sh_rounding": self.sh_rounding}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> RuleQuantization:
        """See ``Part``."""
        levels = len(values["ratios"])
        shapes = {
            "weights": (14, 7), "curves": (levels, 6, 2), "bounds": (14, 2), "units": (14,), "origin": (3,),
            "centre": (3,), "basis": tuple(values["basis"]), "mixing": (WIDTH, WIDTH),
        }  # fmt: skip
        rule = Rule(**{name: torch.zeros(shape) for name, shape in shapes.items()})
        frames = torch.zeros(gaussians, dtype=torch.uint8)
        entropy = entropy_from_plain(values["entropy"])
        return cls(rule, values["ratios"], frames, values["rounding"], values["sh_rounding"], entropy)
