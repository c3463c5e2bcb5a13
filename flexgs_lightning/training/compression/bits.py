"""What a scene that is trained for bytes takes, as its entropy models count it."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.compression.quantization import Quantization
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.training.compression.parts import coded, quantization_of

_PIECE = 1 << 16
"""Gaussians whose bits are counted at a time."""


def bits_each(scene: Scene, quantization: Quantization, rows: int) -> dict[str, Tensor]:
    """Bits a Gaussian of each attribute, from Gaussians drawn at random; differentiable."""
    total = len(scene)
    device = scene.gaussians.device
    chosen = torch.randperm(total)[:rows].sort().values.to(device)
    bits = quantization.bits(coded(scene, quantization, chosen))
    return {name: values.sum() / len(chosen) for name, values in bits.items()}


@torch.no_grad()
def bits_at(scene: Scene, ratio: float) -> dict[str, float]:
    """Bits of the Gaussians up to a ratio by attribute, as the entropy models count them."""
    quantization = quantization_of(scene)
    if quantization is None:
        return {}
    in_training = quantization.training
    quantization.eval()
    found: Counter[str] = Counter()
    for chosen in torch.arange(count_at(ratio, len(scene)), device=scene.gaussians.device).split(_PIECE):
        bits = quantization.bits(coded(scene, quantization, chosen))
        found.update({name: float(values.sum()) for name, values in bits.items()})
    quantization.train(in_training)
    return dict(found)
