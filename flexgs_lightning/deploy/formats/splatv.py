"""``.splatv``: a scene that moves, for players in browsers (antimatter15's splaTV, gsplat.js).

Little endian: magic 0x674b and the length of a JSON text as uint32; the JSON text, a list of one chunk
``{"type": "splat", "size", "texwidth": 4096, "texheight", "cameras"}``; then the chunk's ``size`` bytes: a
texture of four texels of four uint32 a Gaussian, 1,024 Gaussians a row. The 16 words of a Gaussian are

    0-2   position at its own time, float32
    3-4   quaternion w, x, y, z, as float16 as all that follows but the colour
    5-6   scales x, y, z, and 0
    7     red, green, blue, opacity, a byte each
    8-12  coefficients of the time's first, second and third power, x, y, z each, and 0
    13-14 change of the quaternion per unit of time
    15    time centre, width

Players draw position + sum_k c_k d^k with d = t - centre, opacity exp(-(d / width)^2), and no colour that
changes with the direction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.gaussians import activate
from flexgs_lightning.model.lifespan import Lifespan
from flexgs_lightning.model.motion import CENTER, MOBILITY, PolynomialMotion
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.splats import SH_C0

NAME, SUFFIX = "splatv", ".splatv"
MAGIC = 0x674B
DEGREE = 3
"""Powers of time that a file holds."""
ALWAYS = 1e4
"""Width of what does not come and go, in groups of frames."""
_ROW = 1024
"""Gaussians in a row of the texture."""
_WORDS = 16


@torch.no_grad()
def write_splatv(model: Model, ratio: float, cameras: Cameras, path: Path) -> int:
    """Write a moving scene at a ratio; returns the number of Gaussians.

    Args:
        model: with polynomial motion of degree 3 at most, opacity constant or varying, and SH, of which the
            constant colour is kept.
        ratio: share of its Gaussians.
        cameras: at least one, where players begin to look from.
        path: the file.

    Raises:
        InputError: the scene does not move, or not like that; or the file cannot be written.
    """
    words = _words(model, ratio)
    rows = -(-len(words) // _ROW)
    texture = np.zeros((rows * _ROW, _WORDS), np.uint32)
    texture[:, 15] = np.array([0.5, 1.0], np.float16).view(np.uint32)  # a width of 0 would divide by it
    texture[: len(words)] = words
    chunk = {
        "type": "splat",
        "size": texture.nbytes,
        "texwidth": 4 * _ROW,
        "texheight": rows,
        "cameras": [_plain(cameras, i) for i in range(len(cameras))],
    }
    header = json.dumps([chunk], separators=(",", ":")).encode()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(np.array([MAGIC, len(header)], "<u4").tobytes())
        file.write(header)
        file.write(texture.astype("<u4", copy=False).tobytes())
    return len(words)


def _words(model: Model, ratio: float) -> np.ndarray:
    """[N, 16] uint32."""
    scene = model.scene
    chosen = scene.first(ratio)
    parameters = scene.gaussians.rows(chosen)
    moving: list[PolynomialMotion] = []
    for part in scene.each_part():
        if isinstance(part, PolynomialMotion):
            moving.append(part)
        elif not part.moves:
            parameters = part(parameters, chosen, Conditions(ratio))
        elif not isinstance(part, Lifespan):
            raise InputError(
                f"--format {NAME}: holds polynomial motion, found '{part.kind}'; --time exports a moment of "
                "any scene."
            )
    if not moving or moving[0].degree > DEGREE:
        found = f"degree {moving[0].degree}" if moving else "none"
        raise InputError(
            f"--format {NAME}: expected polynomial motion of degree {DEGREE} at most, found {found}."
        )
    still = activate(parameters)
    if still.has_features:
        raise InputError(f"--format {NAME}: holds plain colours, found features that a network shades.")
    colors = (0.5 + SH_C0 * still.sh[:, 0]).clamp(0, 1)
    count = len(still)
    center = parameters.get(CENTER.name)
    center = still.means.new_full((count,), CENTER.initial) if center is None else center
    scales = parameters.get("time_scales")
    width = still.means.new_full((count,), ALWAYS) if scales is None else scales.exp()
    motion = still.means.new_zeros(count, DEGREE, 3)
    share = parameters.get(MOBILITY, still.means.new_ones(count))[:, None]
    motion[:, : moving[0].degree] = parameters["motion"] * share[..., None]
    quats = still.quats.norm(dim=-1, keepdim=True)
    return np.concatenate(
        [
            still.means.cpu().numpy().astype("<f4").view(np.uint32),
            _halves(still.quats / quats),
            _halves(_padded(still.scales)),
            _bytes(torch.cat([colors, still.opacities[:, None]], dim=1)),
            _halves(_padded(motion.flatten(1))),
            _halves(parameters["omega"] * share / quats),
            _halves(torch.stack([center, width], dim=1)),
        ],
        axis=1,
    )


def _padded(values: Float[Tensor, "N D"]) -> Float[Tensor, "N d"]:
    """A zero behind an odd number of columns."""
    return torch.cat([values, values.new_zeros(len(values), 1)], dim=1)


def _halves(values: Float[Tensor, "N D"]) -> np.ndarray:
    """[N, D / 2] words of two float16 each, the first in the low half."""
    largest = float(np.finfo(np.float16).max)
    halves = values.clamp(-largest, largest).cpu().numpy().astype("<f2")
    return np.ascontiguousarray(halves).view("<u4")


def _bytes(values: Float[Tensor, "N 4"]) -> np.ndarray:
    """[N, 1] words of four bytes each."""
    scaled = (values.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(scaled).view("<u4")


def _plain(cameras: Cameras, index: int) -> dict[str, Any]:
    """A camera as players want it: rotation by rows camera to world, focal lengths in pixels."""
    viewmat, K = cameras.viewmats[index], cameras.Ks[index]
    return {
        "id": index,
        "img_name": f"{index:05d}",
        "width": cameras.width,
        "height": cameras.height,
        "position": cameras.positions[index].tolist(),
        "rotation": viewmat[:3, :3].T.tolist(),
        "fx": K[0, 0].item(),
        "fy": K[1, 1].item(),
    }
