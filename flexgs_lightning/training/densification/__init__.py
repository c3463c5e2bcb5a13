"""Density control: where Gaussians are added, moved and removed during reconstruction."""

from flexgs_lightning.training.densification.adaptive import AdaptiveDensityControl
from flexgs_lightning.training.densification.base import Densification, DensificationReport
from flexgs_lightning.training.densification.mcmc import MCMC

__all__ = ["MCMC", "AdaptiveDensityControl", "Densification", "DensificationReport"]
