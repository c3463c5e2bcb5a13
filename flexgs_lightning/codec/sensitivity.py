"""How much the images lose by an error in each number of a model: what decides how finely it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.drawing import activated, alive
from flexgs_lightning.codec.views import Judged
from flexgs_lightning.rendering.rasterizer import rasterize


class Sensitivity(NamedTuple):
    """Second derivatives of the images' mean squared error by each number, at one ratio.

    An error d of a number costs S d^2 / 2 of mean squared error, if errors are independent.

    Attributes:
        values: [R, V] of a level's columns.
        sh_rest: [R, K - 1, 3].
        motion: [R, 2] by factors on a Gaussian's motion, and on its rotation's change: half of it is what
            the images lose without that.
    """

    values: Float[np.ndarray, "R V"]
    sh_rest: Float[np.ndarray, "R K 3"]
    motion: Float[np.ndarray, "R 2"]


def measure_sensitivity(
    arrays: ElasticModelArrays,
    views: Sequence[Judged],
    ratio: float,
    *,
    samples: int,
    seed: int,
    device: torch.device,
) -> Sensitivity:
    """Hutchinson's estimate of the diagonal of J^T J, J the Jacobian of all pixels of all views.

    For random signs r of the pixels, E[(J^T r)^2] is that diagonal: one backward pass a sample and view.

    Args:
        arrays: the model.
        views: cameras and times; those of training, because a number that no view sees gets few bits.
        ratio: which prefix is drawn.
        samples: random images a view.
        seed: of the random signs.
        device: where to draw.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.from_numpy(arrays.values_at(ratio)).to(device)
    sh_rest = torch.from_numpy(arrays.sh_rest[: len(values)].copy()).to(device)
    flags = torch.from_numpy(arrays.flags[: len(values)].copy()).to(device)
    everything = (values, sh_rest, torch.ones(len(values), 2, device=device))
    background = torch.tensor(arrays.background, device=device)
    sums = [torch.zeros_like(part) for part in everything]
    pixels = 0
    for view in views:
        living = alive(values, arrays.movement, view.time)
        who = slice(None) if living is None else living.nonzero().squeeze(1)
        leaves = tuple(part[who].requires_grad_() for part in everything)
        image = rasterize(
            activated(leaves[0], leaves[1], arrays.movement, flags[who], view.time, leaves[2]),
            view.camera.to(device),
            background=background,
            antialiased=arrays.antialiased,
        ).image
        pixels += samples * image[..., 0].numel()
        for sample in range(samples):
            signs = torch.randint(0, 2, image.shape, generator=generator).to(device).float().mul_(2).sub_(1)
            gradients = torch.autograd.grad(
                image, leaves, signs, retain_graph=sample + 1 < samples, allow_unused=True
            )
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total[who] += gradient.square()
    # Mean over pixels and channels of the squared error: its second derivative is 2 J^T J / (3 pixels).
    scale = 2.0 / (3 * pixels)
    return Sensitivity(*(total.double().cpu().numpy() * scale for total in sums))
