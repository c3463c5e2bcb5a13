"""How much the images lose by an error in each number of a model: what decides how finely it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.codec.arrays import ElasticModelArrays, activated
from flexgs_lightning.rendering.rasterizer import rasterize


class Sensitivity(NamedTuple):
    """Second derivatives of the images' mean squared error by each number, at one ratio.

    An error d of a number costs S d^2 / 2 of mean squared error, if errors are independent.

    Attributes:
        values: [R, 13] of a level's columns.
        sh_rest: [R, K - 1, 3].
    """

    values: Float[np.ndarray, "R 13"]
    sh_rest: Float[np.ndarray, "R K 3"]


def measure_sensitivity(
    arrays: ElasticModelArrays,
    cameras: Sequence[Cameras],
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
        cameras: views; those of training, because a number that no view sees gets few bits.
        ratio: which prefix is drawn.
        samples: random images a view.
        seed: of the random signs.
        device: where to draw.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.from_numpy(arrays.values_at(ratio)).to(device).requires_grad_()
    sh_rest = torch.from_numpy(arrays.sh_rest[: len(values)].copy()).to(device).requires_grad_()
    background = torch.tensor(arrays.background, device=device)
    sums = [torch.zeros_like(values), torch.zeros_like(sh_rest)]
    pixels = 0
    for camera in cameras:
        image = rasterize(
            activated(values, sh_rest),
            camera.to(device),
            background=background,
            antialiased=arrays.antialiased,
        ).image
        pixels += samples * image[..., 0].numel()
        for sample in range(samples):
            signs = torch.randint(0, 2, image.shape, generator=generator).to(device).float().mul_(2).sub_(1)
            gradients = torch.autograd.grad(
                image, (values, sh_rest), signs, retain_graph=sample + 1 < samples
            )
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.square()
    # Mean over pixels and channels of the squared error: its second derivative is 2 J^T J / (3 pixels).
    scale = 2.0 / (3 * pixels)
    return Sensitivity(*(total.double().cpu().numpy() * scale for total in sums))
