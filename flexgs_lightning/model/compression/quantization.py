"""Quantization: a part of the scene that makes it what a coder would give back, and counts the bits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.compression.entropy import EntropyModel, EntropyName, FactorizedDensity
from flexgs_lightning.model.compression.hash_grid import HashGridGaussian
from flexgs_lightning.model.compression.rounding import Rounding, require_rounding, rounded
from flexgs_lightning.model.gaussians import Chosen
from flexgs_lightning.model.motion import MOBILITY
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import Conditions, ParameterGroup, Part
from flexgs_lightning.processes import Shards
from flexgs_lightning.records import shown

RANGES: dict[str, tuple[float, float]] = {
    "quats": (-1.0, 1.0),
    "scales": (-10.0, 2.0),
    "opacities": (-15.0, 15.0),
    "sh0": (-2.0, 4.0),
    "shN": (-2.0, 2.0),
}
"""Raw values that ``UniformQuantization`` tells apart (GSCodec Studio's code; shN is not quantised there)."""


_FARTHEST = 1e6
"""Of a range."""


class Coded(NamedTuple):
    """Numbers of some Gaussians as an entropy model sees them.

    Attributes:
        values: [M, C] before rounding.
        steps: broadcasts to [M, C].
        means: [M, 3] where the Gaussians lie, without gradient.
        shares: [M] of each Gaussian's bits that count; None for all.
    """

    values: Float[Tensor, "M C"]
    steps: Tensor | float
    means: Float[Tensor, "M 3"]
    shares: Float[Tensor, " M"] | None = None


RawAt = Callable[[Chosen, float], Mapping[str, Tensor]]
"""Raw parameters of some Gaussians at a ratio."""


class Quantization(Part):
    """What all quantisations share: entropy models by the name of what they count, and how to round.

    In training numbers are rounded with gradients (``rounding``), otherwise for good.
    """

    def __init__(self, rounding: Rounding, entropy: Mapping[str, EntropyModel]) -> None:
        """Put together.

        Args:
            rounding: what stands in for rounding in training.
            entropy: models by the names of ``coded``; what has none is not counted.

        Raises:
            InputError: no such rounding.
        """
        super().__init__()
        require_rounding(rounding)
        self.rounding: Rounding = rounding
        self.entropy = nn.ModuleDict(dict(entropy))

    @abstractmethod
    def coded_in(self, raw_at: RawAt, chosen: Int[Tensor, " M"]) -> dict[str, Coded]:
        """What a coder codes of some Gaussians, by name.

        Args:
            raw_at: raw parameters of some Gaussians at a ratio, before quantisation.
            chosen: [M] which Gaussians, ascending.
        """

    def bits(self, coded: Mapping[str, Coded]) -> dict[str, Float[Tensor, " M"]]:
        """Bits of each Gaussian, by name of what has an entropy model; differentiable."""
        found = {}
        models = self.models()
        for name, (values, steps, means, shares) in coded.items():
            if name in models:
                values = rounded(values, steps, self.rounding, self.training)
                bits = models[name].bits(values, steps, means).sum(dim=1)
                found[name] = bits if shares is None else bits * shares
        return found

    def models(self) -> dict[str, EntropyModel]:
        """The entropy models by name."""
        return cast(dict[str, EntropyModel], dict(self.entropy.items()))

    @torch.no_grad()
    def fit(self, coded: Mapping[str, Coded]) -> None:
        """Fit all entropy models to what a coder would code."""
        for name, model in self.models().items():
            if name in coded and len(coded[name].values):
                model.fit(coded[name].values)

    def groups(self) -> list[ParameterGroup]:
        """The entropy models'."""
        tables: list[nn.Parameter] = []
        layers: list[nn.Parameter] = []
        for name, parameter in self.entropy.named_parameters():
            (tables if ".tables." in name else layers).append(parameter)
        groups = [ParameterGroup("entropy", layers, "layers"), ParameterGroup("hash_grid", tables, "planes")]
        return [group for group in groups if group.parameters]

    def as_plain(self) -> dict[str, Any]:
        """See ``Part``."""
        models = {name: {"model": _name_of(m), **m.as_plain()} for name, m in self.models().items()}
        return {"rounding": self.rounding, "entropy": models}


def entropy_model(name: EntropyName, channels: int, frame: SceneFrame, **sizes: Any) -> EntropyModel:
    """A new model by name; initial weights come from torch's global generator.

    Raises:
        InputError: unknown name.
    """
    if name == "factorized":
        return FactorizedDensity(channels, **sizes)
    if name == "hash_grid":
        return HashGridGaussian(channels, frame, **sizes)
    raise InputError(f"entropy model: expected factorized or hash_grid, found {name}.")


def entropy_from_plain(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, EntropyModel]:
    """Models to load a state into; a frame is data that the state brings."""
    frame = SceneFrame(torch.zeros(3), 1.0)
    return {
        name: entropy_model(
            values["model"],
            values["channels"],
            frame,
            **{key: value for key, value in values.items() if key not in ("model", "channels")},
        )
        for name, values in plain.items()
    }


def _name_of(model: nn.Module) -> EntropyName:
    return "hash_grid" if isinstance(model, HashGridGaussian) else "factorized"


class UniformQuantization(Quantization):
    """Each attribute's raw numbers in equal steps over a range, as GSCodec Studio has it.

    Quaternions are normalised first. What lies outside its range is clamped. Of a scene that moves, numbers
    are those before Gaussians move: this part stands before those that move them.
    """

    kind = "uniform_quantization"

    def __init__(
        self,
        bits: Mapping[str, int],
        rounding: Rounding = "noise",
        learned_steps: bool = False,
        entropy: Mapping[str, EntropyModel] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
        of_motion: Sequence[str] = (),
    ) -> None:
        """Describe the grid.

        Args:
            bits: of each attribute (quats, scales, opacities, sh0, shN, and whatever has a range) that is
                quantised: 2^bits values.
            rounding: see ``Quantization``.
            learned_steps: whether steps are trained, each attribute's own; ranges then only clamp.
            entropy: see ``Quantization``.
            ranges: lowest and highest raw value of attributes; by default ``RANGES``.
            of_motion: names of attributes that only those need that move.

        Raises:
            InputError: an unknown attribute or rounding, a number of bits out of 1 to 24, or no range.
        """
        super().__init__(rounding, entropy or {})
        known = {**RANGES, **(ranges or {})}
        for name, count in bits.items():
            if name not in known or not 1 <= count <= 24:
                raise InputError(
                    f"model.compression.bits: expected 1 to 24 for any of {', '.join(known)}, "
                    f"found {count} for {shown(name)}."
                )
        self.bits_each, self.of_motion = dict(bits), tuple(of_motion)
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in known.items()}
        for name, (low, high) in self.ranges.items():
            if not -_FARTHEST <= low < high <= _FARTHEST:
                raise InputError(f"range of {shown(name)}: expected lowest and highest, found {low}, {high}.")
        self.learned_steps = learned_steps
        first = {
            name: torch.tensor((high - low) / (2 ** bits[name] - 1)).log()
            for name, (low, high) in self.ranges.items()
            if name in bits
        }
        self.log_steps = nn.ParameterDict(
            {name: nn.Parameter(value, requires_grad=learned_steps) for name, value in first.items()}
        )

    def forward(
        self, parameters: dict[str, Tensor], chosen: Chosen, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Raw parameters as a coder gives them back."""
        result = dict(parameters)
        for name, (values, steps, *_) in self.coded(parameters).items():
            low = self.ranges[name][0]
            found = rounded(values - low, steps, self.rounding, self.training) + low
            _put(result, name, found)
        return result

    def coded_in(self, raw_at: RawAt, chosen: Int[Tensor, " M"]) -> dict[str, Coded]:
        """See ``Quantization``: the full model's, by attribute."""
        return self.coded(raw_at(chosen, 1.0))

    def coded(self, parameters: Mapping[str, Tensor]) -> dict[str, Coded]:
        """Numbers of each attribute that is quantised, and its steps."""
        means, mobility = parameters["means"].detach(), parameters.get(MOBILITY)
        return {
            name: Coded(
                _clamped(_numbers(parameters, name), self.ranges[name]),
                step.exp(),
                means,
                mobility if name in self.of_motion else None,
            )
            for name, step in self.log_steps.items()
        }

    def steps(self) -> dict[str, float]:
        """Size of each attribute's steps."""
        return {name: float(step.detach().exp()) for name, step in self.log_steps.items()}

    def groups(self) -> list[ParameterGroup]:
        """The entropy models', and steps if they are learned."""
        steps: Iterable[nn.Parameter] = self.log_steps.values() if self.learned_steps else ()
        learned = [ParameterGroup("steps", list(steps), "layers")] if self.learned_steps else []
        return super().groups() + learned

    def as_plain(self) -> dict[str, Any]:
        """See ``Part``."""
        ranges = {name: list(limits) for name, limits in self.ranges.items()}
        own: dict[str, Any] = {"bits": self.bits_each, "learned_steps": self.learned_steps, "ranges": ranges}
        if self.of_motion:
            own["of_motion"] = list(self.of_motion)
        return super().as_plain() | own

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], gaussians: int, shards: Shards) -> UniformQuantization:
        """See ``Part``."""
        return cls(**{**values, "entropy": entropy_from_plain(values["entropy"])})


def _numbers(parameters: Mapping[str, Tensor], name: str) -> Float[Tensor, "M C"]:
    """[M, C] raw numbers of an attribute."""
    if name == "quats":
        return functional.normalize(parameters["quats"], dim=-1)
    if name == "sh0":
        return parameters["sh"][:, 0]
    if name == "shN":
        return parameters["sh"][:, 1:].flatten(1)
    return parameters[name].flatten(1) if parameters[name].ndim > 1 else parameters[name][:, None]


def _put(parameters: dict[str, Tensor], name: str, values: Float[Tensor, "M C"]) -> None:
    """The inverse of ``_numbers``, in place."""
    if name in ("sh0", "shN"):
        sh = parameters["sh"]
        first, rest = (
            (values[:, None], sh[:, 1:]) if name == "sh0" else (sh[:, :1], values.view_as(sh[:, 1:]))
        )
        parameters["sh"] = torch.cat([first, rest], dim=1)
    else:
        parameters[name] = values.view_as(parameters[name])


def _clamped(values: Tensor, limits: tuple[float, float]) -> Tensor:
    return values.clamp(*limits)
