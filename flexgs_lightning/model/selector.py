"""GaussianSelector: which Gaussians to keep at a ratio (FlexGS's GsNet), and exact ranking."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.normalization import RatioAxis, SceneFrame, ratio_to_axis

INPUTS = 10
"""Position (3), scale (3) and rotation (4): xi of Eq. 5."""
_CHUNK = 1 << 18


class GumbelMask(NamedTuple):
    """A random selection.

    Attributes:
        mask: [N] exactly 0 or 1, with the gradient of ``soft`` (straight-through).
        soft: [N] the relaxed mask in (0, 1), from the same noise.
    """

    mask: Float[Tensor, " N"]
    soft: Float[Tensor, " N"]


class GaussianSelector(nn.Module):
    """Logits for leaving out or keeping each Gaussian at a ratio (FlexGS, Liu et al. 2025, Eqs. 3-7).

    h_e = ReLU(ReLU(e w1) W2) of the ratio and h_a = ReLU(ReLU(xi W1) W2) of the attributes are mixed by a
    linear layer: z = [h_e, h_a] W. Layers have biases. Because W is linear on a concatenation, it is kept as
    its two blocks, z = h_e W_e + h_a W_a, which shows what the whole method rests on: the ratio adds the same
    constant to every Gaussian, so **one ranking serves every ratio** and the kept sets are nested.

    Each Gaussian is judged by itself. Inputs are normalised by ``frame``; the ratio enters on an axis
    (``ratio_to_axis``).
    """

    def __init__(
        self,
        frame: SceneFrame,
        *,
        hidden: int = 64,
        lowest_ratio: float = 0.01,
        ratio_axis: RatioAxis = "log",
    ) -> None:
        """Draw initial weights from torch's global generator.

        Args:
            frame: the scene's centre and scale.
            hidden: width of both branches.
            lowest_ratio: the ratio at the lower end of the axis.
            ratio_axis: "log" or "linear".

        Raises:
            InputError: an option is out of range.
        """
        super().__init__()
        if hidden < 1:
            raise InputError(f"hidden: expected a positive width, found {hidden}.")
        ratio_to_axis(1.0, lowest_ratio, ratio_axis)  # refuses bad options now, not at the first step
        self.frame = frame
        self.lowest_ratio, self.ratio_axis = lowest_ratio, ratio_axis
        self.ratio_branch = _branch(1, hidden)
        self.attribute_branch = _branch(INPUTS, hidden)
        self.mix_ratio = nn.Linear(hidden, 2)
        self.mix_attributes = nn.Linear(hidden, 2, bias=False)

    def logits(
        self,
        means: Float[Tensor, "N 3"],
        log_scales: Float[Tensor, "N 3"],
        quats: Float[Tensor, "N 4"],
        ratio: float,
    ) -> Float[Tensor, "N 2"]:
        """[N, 2] logits (leave out, keep) at ``ratio``; differentiable in all three attributes.

        Args:
            means: [N, 3] in world units.
            log_scales: [N, 3] natural log of the standard deviations in world units.
            quats: [N, 4] (w, x, y, z), any length and sign.
            ratio: the share of Gaussians to keep, in (0, 1].

        Raises:
            InputError: the ratio lies outside (0, 1].
        """
        axis = means.new_tensor([ratio_to_axis(ratio, self.lowest_ratio, self.ratio_axis)])
        ratio_part = self.mix_ratio(self.ratio_branch(axis))
        return self._attribute_logits(means, log_scales, quats) + ratio_part

    @torch.no_grad()
    def scores(
        self, means: Float[Tensor, "N 3"], log_scales: Float[Tensor, "N 3"], quats: Float[Tensor, "N 4"]
    ) -> Float[Tensor, " N"]:
        """[N] noise-free z1 - z0 up to a constant: higher is kept first, at every ratio.

        Arguments as for ``logits``. In chunks, so that millions of Gaussians fit in memory.
        """
        chunks = zip(means.split(_CHUNK), log_scales.split(_CHUNK), quats.split(_CHUNK), strict=True)
        parts = [self._attribute_logits(*chunk) for chunk in chunks]
        return torch.cat([part[:, 1] - part[:, 0] for part in parts])

    def _attribute_logits(self, means: Tensor, log_scales: Tensor, quats: Tensor) -> Float[Tensor, "N 2"]:
        return self.mix_attributes(self.attribute_branch(self.frame.attributes(means, log_scales, quats)))

    @staticmethod
    def sample(
        logits: Float[Tensor, "N 2"], temperature: float, generator: torch.Generator | None = None
    ) -> GumbelMask:
        """Keep or leave out at random, hard forward and soft backward (Gumbel-softmax, Jang et al. 2017).

        A Gaussian is kept with probability softmax(logits)[1] whatever the temperature, which only sets how
        sharp the relaxed mask is. Of two classes only the difference matters, and the difference of two
        Gumbel variables is logistic: one draw for each Gaussian is enough.

        Args:
            logits: [N, 2] (leave out, keep).
            temperature: positive.
            generator: source of the noise, on the logits' device; torch's global one if None.

        Raises:
            ValueError: the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"GaussianSelector.sample: temperature must be positive, found {temperature}.")
        difference = logits[:, 1] - logits[:, 0]
        uniform = torch.rand(
            difference.shape, generator=generator, device=difference.device, dtype=difference.dtype
        )
        eps = torch.finfo(difference.dtype).eps
        noisy = difference + torch.logit(uniform, eps=eps)
        soft = torch.sigmoid(noisy / temperature)
        hard = (noisy > 0).to(soft)
        return GumbelMask(hard + (soft - soft.detach()), soft)  # the bracket is exactly 0


def rank(scores: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """[N] indices from the highest score to the lowest; equal scores in order of index, NaN last.

    The first ``count_at(e, N)`` are the Gaussians drawn at ratio e.
    """
    return torch.sort(scores.detach().nan_to_num(nan=-torch.inf), descending=True, stable=True).indices


def prefix_mask(order: Int[Tensor, " N"], count: int) -> Bool[Tensor, " N"]:
    """[N] True for the first ``count`` Gaussians of a ranking: exactly that many."""
    mask = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    mask[order[:count]] = True
    return mask


def _branch(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
