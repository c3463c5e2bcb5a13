"""Training losses."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.metrics.ssim import ssim


def photometric_loss(
    render: Float[Tensor, "C H W 3"], photo: Float[Tensor, "C H W 3"], ssim_weight: float = 0.2
) -> Float[Tensor, ""]:
    """(1 - w) L1 + w (1 - SSIM), averaged over images (Kerbl et al. 2023, Eq. 7)."""
    l1 = (render - photo).abs().mean()
    if ssim_weight == 0:
        return l1
    return (1.0 - ssim_weight) * l1 + ssim_weight * (1.0 - ssim(render, photo).mean())
