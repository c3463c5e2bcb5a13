"""Scenes for tests of file formats, and how far two scenes are apart."""

from __future__ import annotations

import torch

from flexgs_lightning.deploy.formats.registry import FORMATS
from flexgs_lightning.splats import Splats

SINGLE_FILES = [name for name, each in FORMATS.items() if each.suffix.startswith(".")]
"""Names of the formats that are one file; streamed SOG is a folder."""


def scene(count: int, degree: int = 3, seed: int = 0) -> Splats:
    """Activations of float32 parameters such as training ends with, within what every format can hold."""
    g = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1)
    sh = torch.randn(count, (degree + 1) ** 2, 3, generator=g).mul_(0.12).clamp_(-0.9, 0.9)
    sh[:, 0] = torch.randn(count, 3, generator=g).clamp_(-1.6, 1.6)
    return Splats(
        means=torch.randn(count, 3, generator=g) * 3,
        quats=quats,
        scales=(torch.randn(count, 3, generator=g) * 0.7 - 2.5).exp(),
        opacities=(torch.randn(count, generator=g) * 3).sigmoid(),
        sh=sh,
    )


def matched(read: Splats, written: Splats) -> Splats:
    """``read`` in the order of ``written``: formats sort, so each Gaussian is found by its place and size."""
    keys = [torch.cat([each.means, each.scales.log()], dim=1) for each in (written, read)]
    nearest = torch.cdist(keys[0].double(), keys[1].double()).argmin(dim=1)
    assert nearest.unique().numel() == len(written) == len(read)
    return read[nearest]


def angles(a: Splats, b: Splats) -> torch.Tensor:
    """[N] radians between rotations."""
    first, second = (torch.nn.functional.normalize(each.quats.double(), dim=-1) for each in (a, b))
    return 2 * (first * second).sum(dim=-1).abs().clamp(max=1.0).acos()
