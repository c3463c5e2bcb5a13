"""Refusing impossible options and broken numbers."""

import torch
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.elastic import ElasticGaussians
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.processes import Shards, gather

FINITE_CHECK_INTERVAL = 100
"""Iterations from one search of all parameters for NaN and infinity to the next."""


def check_savable(scene: Gaussians | ElasticGaussians, shards: Shards, step: int) -> None:
    """Refuse to save a broken scene over a good one; all processes refuse if one of several shards is."""
    name = scene.first_non_finite()
    if shards.several:
        name = next(filter(None, gather(name)), None)
    if name is not None:
        raise InputError(f"No checkpoint written at step {step}: '{name}' holds NaN or infinity.")


def check_finite(scene: Gaussians | ElasticGaussians, loss: Tensor, step: int) -> None:
    """Stop before a broken step spreads: parameters are searched when the loss breaks, and regularly.

    The rasterizer culls Gaussians with NaN silently, so the loss alone does not show them.
    """
    broken_loss = not torch.isfinite(loss)
    if not broken_loss and step % FINITE_CHECK_INTERVAL:
        return
    name = scene.first_non_finite()
    if not broken_loss and name is None:
        return
    where = f"attribute '{name}' holds NaN or infinity" if name else "all attributes are finite"
    raise InputError(
        f"Training stopped at step {step}: loss {loss.item():.4g}, {where}. The last good checkpoint is "
        "kept; lower the learning rate of that attribute, or look for broken photos."
    )


def check_options(
    reconstruction_steps: int, steps: int, sh_degree: int, sh_interval: int, ssim_weight: float
) -> None:
    """Refuse impossible options before anything expensive starts."""
    if reconstruction_steps < 0 or steps < 1:
        raise InputError(
            f"model.reconstruction_steps: expected at least 1, or 0 with an elastic stage, "
            f"found {reconstruction_steps}."
        )
    if not 0 <= sh_degree <= 3:
        raise InputError(f"model.sh_degree: expected 0 to 3, found {sh_degree}.")
    if sh_interval < 1:
        raise InputError(f"model.sh_degree_interval: expected at least 1, found {sh_interval}.")
    if not 0 <= ssim_weight <= 1:
        raise InputError(f"model.ssim_weight: expected 0 to 1, found {ssim_weight}.")
