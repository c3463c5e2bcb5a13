"""Training losses."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.metrics.ssim import SSIMReference, l1_and_ssim

Parts = dict[str, Tensor | float]
"""What a loss is made of, by name, for the log."""


def photometric_loss(
    render: Float[Tensor, "C H W 3"],
    photo: Float[Tensor, "C H W 3"] | SSIMReference,
    ssim_weight: float = 0.2,
) -> Float[Tensor, ""]:
    """(1 - w) L1 + w (1 - SSIM), averaged over images (Kerbl et al. 2023, Eq. 7).

    Args:
        render: images to improve.
        photo: what they should look like; an ``SSIMReference`` if several renders are compared with it.
        ssim_weight: w.
    """
    if ssim_weight == 0:
        return (render - (photo.image if isinstance(photo, SSIMReference) else photo)).abs().mean()
    mixed = l1_and_ssim(render, photo, l1_weight=1.0 - ssim_weight, ssim_weight=-ssim_weight)
    return mixed.mean() + ssim_weight
