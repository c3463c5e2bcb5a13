"""Options of the third stage: what makes a scene small, and how it is trained."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
from dataclasses import dataclass
from typing import Literal

from flexgs_lightning.errors import require_fields
from flexgs_lightning.model.compression.quantization import UniformQuantization
from flexgs_lightning.model.compression.rounding import Rounding
from flexgs_lightning.training.optimization import LARGEST_RATE, MOST_STEPS

_MOST_LOSS = 100.0


@dataclass(frozen=True)
class Compression:
    """What makes a scene small in the third stage; modules combine freely.

    Args:
        quantization: "elastic_file" rounds as the elastic file does, to steps that follow what an error in
            each number costs, and ``flexgs compress`` takes over these steps; "uniform" rounds each
            attribute to equal steps over a range, as GSCodec Studio does.
        rounding: what stands in for rounding in training: "noise" or "straight_through".
        sh_rounding: the same for the spherical harmonics above the constant one ("elastic_file").
        psnr_loss: decibels that the steps of "elastic_file" are predicted to lose at full size before
            training; larger steps make smaller files.
        prefix_psnr_loss: the same at smaller sizes; null for ``psnr_loss``. What small sizes tell exactly,
            larger ones pay for.
        attributes: what "uniform" quantises, of quats, scales, opacities, sh0 and shN; and what Gaussians
            have beside because they move, or have features, over the range that each has when the stage
            begins.
        bits: of each of these: 2^bits values over its range.
        learned_steps: whether training moves the steps of "uniform".
        entropy: model of what numbers cost: "factorized" (a density a channel), "hash_grid" (a normal
            density whose mean and deviation follow the place), or "none".
        sh_mask: "learned" masks of the spherical harmonics above ``mask_degree``, by a logit a Gaussian; by
            "gradient", decided once by what the images ask of them; or "none".
        mask_degree: harmonics of this degree and below are never masked.
        mask_target: share of the Gaussians that should keep their harmonics ("learned").
        mask_threshold: gradient norm, as a share of the mean, from which harmonics are kept ("gradient").
        motion_mask: of a scene that moves, who does: "learned", by a logit a Gaussian; by "gradient", decided
            once by what the images ask of its motion; or "none", which with "elastic_file" leaves it to the
            file's own rule: those whose motion is worth its bits when the stage begins.
        motion_target: share of the Gaussians that should go on moving ("learned").
        motion_threshold: gradient by the share of its way that a Gaussian goes, in units of the mean, from
            which it goes on moving ("gradient").
    """

    quantization: Literal["elastic_file", "uniform", "none"] = "elastic_file"
    rounding: Rounding = "noise"
    sh_rounding: Rounding = "straight_through"
    psnr_loss: float = 0.7
    prefix_psnr_loss: float | None = None
    attributes: tuple[str, ...] = ("quats", "scales", "opacities", "sh0")
    bits: int = 8
    learned_steps: bool = False
    entropy: Literal["factorized", "hash_grid", "none"] = "factorized"
    sh_mask: Literal["learned", "gradient", "none"] = "none"
    mask_degree: int = 0
    mask_target: float = 0.2
    mask_threshold: float = 0.5
    motion_mask: Literal["learned", "gradient", "none"] = "none"
    motion_target: float = 0.5
    motion_threshold: float = 0.1

    def __post_init__(self) -> None:
        loss = f"a positive number of dB, at most {_MOST_LOSS:g}"
        checks = {
            "psnr_loss": (0 < self.psnr_loss <= _MOST_LOSS, loss),
            "prefix_psnr_loss": (
                self.prefix_psnr_loss is None or 0 < self.prefix_psnr_loss <= _MOST_LOSS,
                f"null or {loss}",
            ),
            "mask_degree": (0 <= self.mask_degree <= 2, "0 to 2"),
            "mask_target": (0 < self.mask_target < 1, "above 0, below 1"),
            "mask_threshold": (0 <= self.mask_threshold < LARGEST_RATE, "0 or more"),
            "motion_target": (0 < self.motion_target < 1, "above 0, below 1"),
            "motion_threshold": (0 <= self.motion_threshold < LARGEST_RATE, "0 or more"),
        }
        require_fields("model.compression.", self, checks)
        UniformQuantization(dict.fromkeys(self.attributes, self.bits))  # refuses what it cannot do


@dataclass(frozen=True)
class CompressionTraining:
    """How the third stage trains. Ratios are drawn as in the elastic stage, and the full model each time.

    Args:
        steps: iterations of the stage; 0 leaves it out.
        rate_weight: lambda of the loss L + lambda R, R the bits a Gaussian of everything that has an entropy
            model.
        rate_rows: Gaussians, drawn at random, whose bits an iteration counts.
        rate_share: rates of the Gaussians' attributes and the residuals, as a share of those that the stages
            before began with.
        rate_decay: share of these that the stage ends with, falling exponentially.
        sh_rest_boost: factor on the rate of the spherical harmonics above the constant one, which is too
            slow for a stage of hundreds of iterations.
        entropy_rate: learning rate of the entropy models; that of a hash grid falls to a hundredth.
        step_rate: learning rate of learned steps, in logarithms.
        mask_rate: learning rate of learned masks.
        mask_sparsity: weight of the share of Gaussians that keep what a learned mask may take.
        mask_divergence: weight of the divergence of that share from its target.
    """

    steps: int = 0
    rate_weight: float = 3e-5
    rate_rows: int = 8192
    rate_share: float = 0.3
    rate_decay: float = 0.1
    sh_rest_boost: float = 15.0
    entropy_rate: float = 5e-3
    step_rate: float = 1e-3
    mask_rate: float = 0.01
    mask_sparsity: float = 0.01
    mask_divergence: float = 0.1

    def __post_init__(self) -> None:
        names = ("rate_weight", "entropy_rate", "step_rate", "mask_rate", "mask_sparsity", "mask_divergence")
        checks = {name: (0 <= getattr(self, name) < LARGEST_RATE, "0 or more") for name in names}
        checks |= {
            "steps": (0 <= self.steps <= MOST_STEPS, f"0 to {MOST_STEPS:,}"),
            "rate_rows": (self.rate_rows >= 1, "1 or more"),
            "rate_share": (0 < self.rate_share < LARGEST_RATE, "a positive number"),
            "rate_decay": (0 < self.rate_decay <= 1, "above 0, at most 1"),
            "sh_rest_boost": (0 < self.sh_rest_boost < LARGEST_RATE, "a positive number"),
        }
        require_fields("model.compression_training.", self, checks)
