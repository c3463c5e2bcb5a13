"""Pruning: Gaussians that are not worth their bytes, by what they are alone."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from scipy.spatial import cKDTree

from flexgs_lightning.splats import Splats

LEAST_OPACITY = 0.005
"""Of GSCodec Studio's code."""
NEIGHBOURS = 16
STRAY = 10.0
"""Deviations of the mean log distance to neighbours beyond which a Gaussian is a stray."""


def worth_storing(splats: Splats, extent: float) -> Bool[torch.Tensor, " N"]:
    """[N] False for Gaussians that are faint, larger than the scene, or far from all others.

    Opacity, scale and outliers of a KD-tree are GSCodec Studio's three rules (arXiv:2506.01822, section
    III); thresholds of the latter two are not published, and these leave all but strays alone.

    Args:
        splats: the scene, on any device.
        extent: its radius in world units.
    """
    kept = (splats.opacities >= LEAST_OPACITY) & (splats.scales.amin(dim=1) <= extent)
    if len(splats) > NEIGHBOURS:
        kept &= torch.from_numpy(~strays(splats.means.detach().cpu().double().numpy())).to(kept.device)
    return kept


def strays(means: np.ndarray) -> Bool[np.ndarray, " N"]:
    """[N] points whose log mean distance to their neighbours is ``STRAY`` deviations above the median.

    The deviation is the median absolute one times 1.4826, which strays themselves do not change.
    """
    distances = np.asarray(cKDTree(means).query(means, NEIGHBOURS + 1)[0])[:, 1:].mean(axis=1)
    logs = np.log(np.maximum(distances, 1e-30))
    middle = np.median(logs)
    deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
    return np.asarray(logs > middle + STRAY * max(deviation, 1e-6))
