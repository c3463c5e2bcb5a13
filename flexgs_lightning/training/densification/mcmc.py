"""MCMC: relocation, sampling and noise with a fixed budget (Kheradmand et al. 2024, arXiv 2404.09591)."""

import math

import torch
from gsplat.utils import normalized_quat_to_rotmat
from jaxtyping import Float, Int
from torch import Tensor, nn

from flexgs_lightning.training.densification.base import Densification, DensificationReport
from flexgs_lightning.training.densification.checks import check_number, check_option

NOISE_SHARPNESS = 100.0
NOISE_OPACITY = 0.005
"""Noise moves Gaussians of about this opacity or less: its gate is sigmoid(100 (0.005 - o))."""
MAX_OPACITY = 1.0 - torch.finfo(torch.float32).eps
SERIES_TERMS = 100


class MCMC(Densification):
    """3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024, arXiv 2404.09591).

    Every ``every`` steps, dead Gaussians are moved onto live ones, drawn in proportion to opacity, and
    the set grows by ``growth`` up to ``max_gaussians`` in the same way; opacities and scales of those
    that now share a place are lowered so that together they draw what one drew (equation 9). After every
    step up to the stage's end, ``stop_step`` or not, positions get noise, shaped by each Gaussian's
    covariance, that fades with the positions' learning rate. Two regularisers take opacity and size from
    Gaussians that the image does not need.

    Where several processes hold the Gaussians, dead ones move onto live ones of the same process, and each
    adds to its own as many as is its part of all opacity.

    Args:
        start_step: completed iterations before the first refinement.
        stop_step: relocate and grow before this iteration only; null for 5/6 of the stage
            (25k of the published 30k).
        every: iterations from one refinement to the next.
        max_gaussians: never more than this number.
        growth: part by which the number of Gaussians grows at a refinement.
        min_opacity: a Gaussian of lower opacity is dead.
        noise_lr: factor of the noise, times the learning rate of positions.
        opacity_reg: weight of the mean opacity in the loss.
        scale_reg: weight of the mean scale (world units) in the loss.

    Raises:
        InputError: an option is out of range.
    """

    kind = "mcmc"
    default_stop = 5 / 6

    def __init__(
        self,
        start_step: int = 500,
        stop_step: int | None = None,
        every: int = 100,
        max_gaussians: int = 1_000_000,
        growth: float = 0.05,
        min_opacity: float = 0.005,
        noise_lr: float = 5e5,
        opacity_reg: float = 0.01,
        scale_reg: float = 0.01,
    ) -> None:
        super().__init__(start_step, stop_step, every)
        check_option("max_gaussians", max_gaussians, max_gaussians >= 1, "1 or more")
        check_number("growth", growth)
        check_option("min_opacity", min_opacity, 0 < min_opacity < 1, "a number between 0 and 1")
        check_number("noise_lr", noise_lr)
        check_number("opacity_reg", opacity_reg)
        check_number("scale_reg", scale_reg)
        self.max_gaussians, self.growth, self.min_opacity = max_gaussians, growth, min_opacity
        self.noise_lr, self.opacity_reg, self.scale_reg = noise_lr, opacity_reg, scale_reg

    def regularization(self) -> Tensor | None:
        """``opacity_reg`` x mean opacity + ``scale_reg`` x mean scale; None if both weights are 0."""
        if self.opacity_reg == 0 and self.scale_reg == 0:
            return None
        opacity = self._shards.mean(self._params["opacities"].sigmoid())
        scale = self._shards.mean(self._params["scales"].exp())
        return self.opacity_reg * opacity + self.scale_reg * scale

    @property
    def _cap(self) -> int | None:
        return self.max_gaussians

    def _refine(self, completed: int, report: DensificationReport) -> None:
        report.relocated = self._relocate_dead(completed)
        report.added = self._add()

    def _finish(self, completed: int, report: DensificationReport) -> None:
        self._perturb()

    def _relocate_dead(self, completed: int) -> int:
        """Move each dead Gaussian onto a live one; return how many moved."""
        # Compared as logits, like the lower bound in _share, so that rounding cannot make a copy dead.
        is_dead = self._params["opacities"] < logit(self.min_opacity)
        if self._scene.moves:  # or never there while the scene lasts
            is_dead |= self._scene.peak_opacities() < self.min_opacity
        dead = is_dead.nonzero().squeeze(1)
        self._check_enough_left(len(dead), completed, f"dead: opacity below min_opacity = {self.min_opacity}")
        if len(dead) in (0, self._count):  # the latter only where other processes have live ones
            return 0
        chances = self._params["opacities"].sigmoid().masked_fill(is_dead, 0.0)
        parents = sample(chances, len(dead))
        self._share(parents)
        for name, param in self._scene.gaussians.own().items():
            param[dead] = param[parents]
            self._forget_moments(name, dead)
        return len(dead)

    def _add(self) -> int:
        """Grow towards the cap by copies of Gaussians; return how many."""
        count = self._total(self._count)
        wanted = min(self.max_gaussians, int((1 + self.growth) * count)) - count
        chances = self._params["opacities"].sigmoid()
        added = self._part_of(wanted, chances)
        if added <= 0:
            return 0
        parents = sample(chances, added)
        self._share(parents)
        self._surgery.append({name: rows[parents] for name, rows in self._scene.gaussians.own().items()})
        return added

    def _part_of(self, wanted: int, chances: Float[Tensor, " N"]) -> int:
        """How many of those to be added come from here: as is this shard's part of all chances."""
        if not self._shards.several:
            return wanted
        weights = torch.cat(self._shards.parts(chances.double().sum().reshape(1)))
        ends = (weights.cumsum(dim=0) / weights.sum() * wanted).round().long().tolist()
        return ends[self._shards.rank] - ([0, *ends])[self._shards.rank]

    def _share(self, parents: Int[Tensor, " M"]) -> None:
        """Lower opacity and scale of ``parents`` [M], each listed once for every copy it will get."""
        copies = torch.bincount(parents, minlength=self._count)
        shared = copies.nonzero().squeeze(1)
        opacities, scales = self._params["opacities"], self._params["scales"]
        new_opacities, factors = relocation(opacities[shared].sigmoid(), copies[shared] + 1)
        opacities[shared] = new_opacities.logit().clamp_min(logit(self.min_opacity)).to(opacities)
        scales[shared] += factors.log().to(scales)[:, None]
        for name in self._scene.gaussians.own():
            self._forget_moments(name, shared)

    def _forget_moments(self, name: str, rows: Int[Tensor, " M"]) -> None:
        """Zero Adam's moments of Gaussians that are no longer what they were."""
        if name in self._optimizers:
            for key, value in self._optimizers[name].state[self._params[name]].items():
                if key != "step":
                    value[rows] = 0

    def _perturb(self) -> None:
        """Add noise Sigma eta, gated by opacity, to the positions (equation 8)."""
        if "means" not in self._optimizers or self.noise_lr == 0:
            return
        means = self._params["means"]
        lr = self._optimizers["means"].param_groups[0]["lr"]
        gates = (NOISE_SHARPNESS * (NOISE_OPACITY - self._params["opacities"].sigmoid())).sigmoid()
        rotations = normalized_quat_to_rotmat(nn.functional.normalize(self._params["quats"], dim=-1))
        variances = (2 * self._params["scales"]).exp()
        # Sigma eta = R S^2 R^T eta, and R^T eta is distributed as eta itself.
        shaped = torch.einsum("nij,nj->ni", rotations, variances * torch.randn_like(means))
        means += (lr * self.noise_lr) * gates[:, None] * shaped


def logit(probability: float) -> float:
    """Inverse of the sigmoid."""
    return math.log(probability) - math.log1p(-probability)


def relocation(
    opacities: Float[Tensor, " M"], counts: Int[Tensor, " M"]
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Opacity, and factor of the scales, with which ``counts`` Gaussians in one place draw what one drew.

    Kheradmand et al. 2024, equation 9: with o the old opacity and N the count, the new opacity is
    o' = 1 - (1 - o)^(1/N), and scales are multiplied by

        o / sum_{i=1..N} sum_{k=0..i-1} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1).

    Summing over i first leaves one series, sum_{j=1..N} C(N, j) (-1)^(j-1) o'^j / sqrt(j). Its terms are
    bounded by (N o')^j / j! <= (-ln(1 - o))^j / j!, and -ln(1 - o) < 17 in float32, so that in float64 it
    is exact to about 1e-9 for every N, and :data:`SERIES_TERMS` terms are enough.

    Args:
        opacities: [M] old opacities in (0, 1).
        counts: [M] Gaussians that share the place afterwards, the old one included.

    Returns:
        New opacities [M] and factors [M], float64.
    """
    old = opacities.double().clamp(max=MAX_OPACITY)
    total = counts.double()
    new = -torch.expm1(torch.log1p(-old) / total)
    term, series = torch.ones_like(new), torch.zeros_like(new)
    for j in range(1, min(int(counts.max()), SERIES_TERMS) + 1):
        term = term * new * (total - (j - 1)) / j  # C(N, j) o'^j, which is 0 for j > N
        series += (-1) ** (j - 1) * term / math.sqrt(j)
    return new, old / series


def sample(chances: Float[Tensor, " N"], number: int) -> Int[Tensor, " M"]:
    """Draw ``number`` indices with replacement in proportion to ``chances``.

    By inversion in float64: ``torch.multinomial`` stops at 2^24 categories.
    """
    cumulative = chances.double().cumsum(dim=0)
    draws = torch.rand(number, dtype=torch.float64, device=chances.device) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_max(len(chances) - 1)
