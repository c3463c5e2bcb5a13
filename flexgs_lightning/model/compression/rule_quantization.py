"""RuleQuantization: steps that follow what an error in each number costs, as the elastic file has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.compression.columns import from_columns, to_columns
from flexgs_lightning.model.compression.coordinates import WIDTH
from flexgs_lightning.model.compression.entropy import EntropyModel
from flexgs_lightning.model.compression.layout import DISTANCE, MOVES, TURNS, Layout, Path
from flexgs_lightning.model.compression.quantization import (
    Coded,
    Quantization,
    RawAt,
    entropy_from_plain,
)
from flexgs_lightning.model.compression.rounding import Rounding, require_rounding, rounded
from flexgs_lightning.model.compression.rule import Rule
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.motion import MOBILITY
from flexgs_lightning.model.part import Conditions, ParameterGroup
from flexgs_lightning.processes import Shards
from flexgs_lightning.records import shown

UPDATE = "update_"
"""Before the names of what moves Gaussians from one level to the next."""
_MOST = 256
"""Far more bases, or powers of time, than a file holds."""


class RuleQuantization(Quantization):
    """Columns rounded to steps of a rule, other harmonics to steps of a transform; all as the file does.

    Levels are the ratios at which the file holds the scene; in between, a Gaussian is rounded as at the next
    larger one. Places of a level's grid are not fixed in the file (it codes differences from predictions),
    which noise stands for best; those of the transformed harmonics are.

    Of a scene that moves, columns of motion are those of Gaussians as they are before they move: this part
    stands before those that move them.
    """

    kind = "rule_quantization"
    basis: Float[Tensor, "C D"]
    mixing: Float[Tensor, "13 13"]
    motion_mixing: Float[Tensor, "M M"]

    def __init__(
        self,
        rule: Rule,
        ratios: Sequence[float],
        frames: UInt8[Tensor, " N"],
        rounding: Rounding = "noise",
        sh_rounding: Rounding = "straight_through",
        entropy: Mapping[str, EntropyModel] | None = None,
        flags: UInt8[Tensor, " N"] | None = None,
    ) -> None:
        """Put together.

        Args:
            rule: sizes of steps.
            ratios: of the levels, ascending, the last one 1.
            frames: of each Gaussian, see ``coordinates``.
            rounding: of columns in training.
            sh_rounding: of transformed harmonics in training.
            entropy: by the names of ``coded_in``.
            flags: of a scene that moves, who does, see ``layout``; by default everybody.

        Raises:
            InputError: no such rounding, or ratios that do not ascend to 1.
        """
        super().__init__(rounding, entropy or {})
        require_rounding(sh_rounding)
        if not (sorted({*ratios, 1.0}) == list(ratios) and ratios[0] > 0):
            raise InputError(f"ratios of levels: expected ascending ones up to 1, found {shown(ratios)}.")
        self.sh_rounding: Rounding = sh_rounding
        self.ratios = tuple(ratios)
        self.layout = rule.layout
        self.frames = nn.Parameter(frames, requires_grad=False)
        if self.layout.motion:
            everybody = torch.full_like(frames, MOVES | TURNS)
            self.flags = nn.Parameter(everybody if flags is None else flags, requires_grad=False)
        for name in Rule.tensors(self.layout):
            self.register_buffer(name, getattr(rule, name).float().clone())

    @property
    def rule(self) -> Rule:
        """Sizes of steps."""
        names = Rule.tensors(self.layout)
        none = {} if self.layout.motion else {"motion_mixing": self.mixing.new_zeros(0, 0)}
        return Rule(**{name: getattr(self, name) for name in names}, **none, layout=self.layout)

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters as the file gives them back at a ratio."""
        level = next(i for i, ratio in enumerate(self.ratios) if ratio >= conditions.ratio)
        ranks = self._ranks(chosen)
        frames = self.frames[ranks]
        values = to_columns(self.layout, parameters, frames)
        steps = self.rule.steps(values.detach(), ranks, level)
        found = rounded(values, _of_columns(steps), self.rounding, self.training)
        raw = from_columns(self.layout, found, frames)
        sh = torch.cat([raw.pop("sh0")[:, None], self._sh_rest(parameters["sh"], steps)], dim=1)
        raw = {name: value.view_as(parameters[name]) for name, value in raw.items()}
        return parameters | self._moving(parameters, raw, ranks) | {"sh": sh}

    def _moving(
        self, parameters: Mapping[str, Tensor], raw: dict[str, Tensor], ranks: Int[Tensor, " M"]
    ) -> dict[str, Tensor]:
        """Without the motion of those who have no flag for it."""
        for field in self.layout.motion:
            if field.flag and self.layout.path == "bases":  # no coefficients of rigid motions stand still
                raw[MOBILITY] = parameters.get(MOBILITY, 1.0) * self._has(field.flag, ranks)
            elif field.flag:
                who = self._has(field.flag, ranks).view(-1, *[1] * (raw[field.name].ndim - 1))
                raw[field.name] = raw[field.name] * who
        return raw

    def _has(self, flag: int, ranks: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        return (self.flags[ranks] & flag > 0).to(self.mixing)

    def _sh_rest(self, sh: Float[Tensor, "M K 3"], steps: Float[Tensor, "M W"]) -> Float[Tensor, "M k 3"]:
        rest = sh[:, 1:]
        if not len(self.basis):
            return rest
        found = rounded(self.transformed(rest), steps[:, DISTANCE, None], self.sh_rounding, self.training)
        return (found @ self.basis).view_as(rest)

    def transformed(self, sh_rest: Float[Tensor, "M k 3"]) -> Float[Tensor, "M C"]:
        """Coefficients of the transform; differentiable."""
        return sh_rest.flatten(1) @ torch.linalg.pinv(self.basis)

    def coded_in(self, raw_at: RawAt, chosen: Int[Tensor, " M"]) -> dict[str, Coded]:
        """See ``Quantization``. New rows less what earlier columns predict; updates as differences of levels.

        Updates start from values that were rounded themselves. Motion is that of Gaussians that move.
        """
        found: dict[str, list[Coded]] = {}
        total, before, level_before = len(self.frames), 0, None
        for level, ratio in enumerate(self.ratios):
            rows = chosen[chosen < count_at(ratio, total)]
            parameters = raw_at(rows, ratio)
            values = to_columns(self.layout, parameters, self.frames[rows])
            steps = self.rule.steps(values.detach(), rows, level)
            means = parameters["means"].detach()
            coded = rounded(values, _of_columns(steps), self.rounding, self.training)
            if level_before is not None:
                change = values[:before] - level_before
                for field in self.layout.moved:
                    part = Coded(change[:, field.values], steps[:before, field.place], means[:before])
                    found.setdefault(UPDATE + field.name, []).append(part)
            new = {name: value[before:] for name, value in parameters.items()}
            for name, part in self._new(new, values[before:], coded[before:], steps[before:], rows[before:]):
                found.setdefault(name, []).append(part)
            before, level_before = len(rows), coded
        return {name: _joined(pieces) for name, pieces in found.items()}

    def _new(
        self,
        parameters: Mapping[str, Tensor],
        values: Float[Tensor, "M V"],
        coded: Float[Tensor, "M V"],
        steps: Float[Tensor, "M W"],
        rows: Int[Tensor, " M"],
    ) -> Iterator[tuple[str, Coded]]:
        """What is coded of rows that a level adds, by name; means are coded as cells."""
        means = parameters["means"].detach()
        left = values[:, :WIDTH] - coded[:, :WIDTH] @ self.mixing.T
        if self.layout.motion:
            moving = values[:, WIDTH:] - coded[:, WIDTH:] @ self.motion_mixing.T
            left = torch.cat([left, moving], dim=1)
        for field in self.layout.fields:
            if field.name == "means":
                continue
            part = Coded(left[:, field.values], steps[:, field.place], means)
            if field.flag:
                who = self.flags[rows] & field.flag > 0
                shares = parameters[MOBILITY][who] if MOBILITY in parameters else None
                part = Coded(part.values[who], steps[who, field.place], means[who], shares)
            yield field.name, part
        if len(self.basis):
            yield "sh_rest", Coded(self.transformed(parameters["sh"][:, 1:]), steps[:, DISTANCE, None], means)

    def _ranks(self, chosen: Chosen) -> Int[Tensor, " M"]:
        return torch.arange(chosen, device=self.frames.device) if isinstance(chosen, int) else chosen

    def groups(self) -> list[ParameterGroup]:
        """The entropy models', and frames and flags, which follow their Gaussians but are not learned."""
        own = [ParameterGroup("frames", [self.frames], "rows")]
        if self.layout.motion:
            own.append(ParameterGroup("flags", [self.flags], "rows"))
        return [*super().groups(), *own]

    def as_plain(self) -> dict[str, Any]:
        """See ``Part``."""
        own = {"basis": list(self.basis.shape), "ratios": list(self.ratios), "sh_rounding": self.sh_rounding}
        if self.layout.motion:
            own["layout"] = asdict(self.layout)
        return super().as_plain() | own

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> RuleQuantization:
        """See ``Part``."""
        layout = Layout(**values.get("layout", {}))
        if layout.path not in get_args(Path) or not 0 <= layout.order <= _MOST:
            raise InputError(
                f"layout of columns: expected a path and up to {_MOST} of its numbers, found {layout}."
            )
        rule = Rule.empty(layout, len(values["ratios"]), (values["basis"][0], values["basis"][1]))
        frames = torch.zeros(gaussians, dtype=torch.uint8)
        entropy = entropy_from_plain(values["entropy"])
        return cls(rule, values["ratios"], frames, values["rounding"], values["sh_rounding"], entropy)


def _of_columns(steps: Float[Tensor, "M W"]) -> Float[Tensor, "M V"]:
    """Steps of a level's values."""
    return torch.cat([steps[:, :DISTANCE], steps[:, DISTANCE + 1 :]], dim=1)


def _joined(pieces: list[Coded]) -> Coded:
    shares = [piece.shares for piece in pieces if piece.shares is not None]
    values, steps, means = (torch.cat([piece[i] for piece in pieces]) for i in range(3))
    return Coded(values, steps, means, torch.cat(shares) if shares else None)
