"""Coordinates of a Gaussian in which errors of one size look alike: what is quantised, and coded.

[M, 13] numbers, whatever changes with the ratio, in the order of ``COLUMNS``:

- t of the opacity t^2 (3 - 2 t), a polynomial stand-in for sin^2;
- natural logarithms of the scales, descending at first;
- the mean, in world units;
- (x, y, z) of the quaternion (1, x, y, z);
- the constant spherical-harmonics coefficients of R, G, B.

Scales and rotation are those of the Gaussian's frame: of the 24 ways to name its axes, the one with
descending scales and the least rotation (``frames_of``).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

COLUMNS = {"opacities": 1, "scales": 3, "means": 3, "rotations": 3, "sh0": 3}
"""What changes with the ratio, in the order of coding, and how many numbers of a row each takes."""
WIDTH = sum(COLUMNS.values())
PLACES = {
    name: slice(stop - width, stop)
    for (name, width), stop in zip(COLUMNS.items(), itertools.accumulate(COLUMNS.values()), strict=True)
}
"""Columns of each attribute in a row."""
LEAST_REAL_PART = 0.05
"""A quaternion is divided by its real part, which a displacement must not bring to 0."""
OWN_FRAME = 4
"""The frame that leaves axes as they are."""
LEAST_T = 2.0**-12
"""Opacities lie this far from 0 and 1 in t, where a logit is finite."""


def frames_of(quats: Float[Tensor, "N 4"], scales: Float[Tensor, "N 3"]) -> UInt8[Tensor, " N"]:
    """Each Gaussian's frame, by number. Scales may be logarithms."""
    order = scales.argsort(dim=1, descending=True, stable=True)
    first = 4 * (order[:, 0] * 3 + order[:, 1])
    turns = _turns().to(quats)
    real = torch.stack(
        [quaternion_product(quats, turns[first + half])[:, 0].abs() for half in range(4)], dim=1
    )
    return (first + real.argmax(dim=1)).to(torch.uint8)


def all_frames(numbers: UInt8[Tensor, " N"]) -> bool:
    """Whether each is the number of a frame."""
    there = torch.zeros(256, dtype=torch.bool)
    there[: len(_turns())] = _turns().any(dim=1)
    return bool(there[numbers.long().cpu()].all())


def to_coordinates(
    quats: Float[Tensor, "M 4"],
    log_scales: Float[Tensor, "M 3"],
    means: Float[Tensor, "M 3"],
    opacities: Float[Tensor, " M"],
    sh0: Float[Tensor, "M 3"],
    frames: UInt8[Tensor, " M"],
) -> Float[Tensor, "M 13"]:
    """Coordinates of Gaussians; differentiable. Opacities are activated ones, in [0, 1]."""
    edge = 1.0 - torch.finfo(opacities.dtype).eps  # where the arcsine's slope is still finite
    t = 0.5 - ((1.0 - 2.0 * opacities).clamp(-edge, edge).arcsin() / 3.0).sin()
    turned = in_frames(functional.normalize(quats, dim=1), frames)
    turned = turned * torch.where(turned[:, :1] < 0, -1.0, 1.0)
    return torch.cat(
        [
            t[:, None],
            log_scales.gather(1, _orders().to(frames.device)[frames.long()]),
            means,
            turned[:, 1:] / turned[:, :1].clamp_min(LEAST_REAL_PART),
            sh0,
        ],
        dim=1,
    )


def in_frames(quats: Float[Tensor, "M 4"], frames: UInt8[Tensor, " M"]) -> Float[Tensor, "M 4"]:
    """Quaternions of Gaussians in the axes of their frames."""
    return quaternion_product(quats, _turns().to(quats)[frames.long()])


def out_of_frames(quats: Float[Tensor, "M 4"], frames: UInt8[Tensor, " M"]) -> Float[Tensor, "M 4"]:
    """The inverse of ``in_frames``."""
    back = _turns().to(quats)[frames.long()] * quats.new_tensor([1.0, -1.0, -1.0, -1.0])
    return quaternion_product(quats, back)


def from_coordinates(values: Float[Tensor, "M 13"], frames: UInt8[Tensor, " M"]) -> dict[str, Tensor]:
    """The inverse, as raw parameters: quats, scales (logarithms), means, opacities (logits) and sh0."""
    parts = {name: values[:, place] for name, place in PLACES.items()}
    rotations = torch.cat([torch.ones_like(values[:, :1]), parts["rotations"]], dim=1)
    order = _orders().to(frames.device)[frames.long()]
    return {
        "quats": out_of_frames(rotations, frames),
        "scales": parts["scales"].gather(1, order.argsort(dim=1)),
        "means": parts["means"],
        "opacities": logit_of(parts["opacities"].squeeze(1)),
        "sh0": parts["sh0"],
    }


def logit_of(t: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Logit of the opacity t^2 (3 - 2 t), whose complement is (1 - t)^2 (1 + 2 t)."""
    t = t.clamp(LEAST_T, 1 - LEAST_T)
    return 2 * (t.log() - (1 - t).log()) + (3 - 2 * t).log() - (1 + 2 * t).log()


def quaternion_product(left: Float[Tensor, "... 4"], right: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Hamilton product of quaternions (w, x, y, z)."""
    w, x, y, z = left.unbind(-1)
    a, b, c, d = right.unbind(-1)
    return torch.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        dim=-1,
    )


@functools.cache
def _orders() -> Int[Tensor, "36 3"]:
    """Of each frame the old axis that each new one is. Frames of axes (a, b, c) are 4 (3 a + b) and on."""
    orders = torch.zeros(36, 3, dtype=torch.long)
    for a, b, c in itertools.permutations(range(3)):
        orders[4 * (3 * a + b) : 4 * (3 * a + b) + 4] = torch.tensor([a, b, c])
    return orders


@functools.cache
def _turns() -> Float[Tensor, "36 4"]:
    """Of each frame the quaternion that rotations are multiplied by from the right; four are half turns
    apart."""
    turns = torch.zeros(36, 4, dtype=torch.float64)
    for a, b, c in itertools.permutations(range(3)):
        matrix = np.zeros((3, 3))
        matrix[[a, b, c], range(3)] = 1.0
        matrix[:, 2] *= np.linalg.det(matrix)
        first = torch.from_numpy(Rotation.from_matrix(matrix).as_quat()[[3, 0, 1, 2]])
        start = 4 * (3 * a + b)
        turns[start : start + 4] = quaternion_product(first.expand(4, 4), torch.eye(4, dtype=torch.float64))
    return turns
