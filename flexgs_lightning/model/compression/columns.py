"""Raw parameters to the columns of a layout, of scenes that stand still and that move, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexgs_lightning.model.compression.coordinates import (
    LEAST_REAL_PART,
    PLACES,
    WIDTH,
    from_coordinates,
    in_frames,
    out_of_frames,
    to_coordinates,
)
from flexgs_lightning.model.compression.layout import WIDEST, Layout

_ROTATIONS = PLACES["rotations"]


def to_columns(
    layout: Layout, parameters: Mapping[str, Tensor], frames: UInt8[Tensor, " M"]
) -> Float[Tensor, "M V"]:
    """Values of Gaussians in a layout's columns, without the distance; differentiable.

    Args:
        layout: which columns.
        parameters: raw ones, as they are whatever the time.
        frames: of each Gaussian, see ``coordinates``; their own where bases are free.
    """
    still = to_coordinates(
        parameters["quats"],
        parameters["scales"],
        parameters["means"],
        parameters["opacities"].sigmoid(),
        parameters["sh"][:, 0],
        frames,
    )
    if layout.path == "free_bases":
        turned = parameters["quats"][:, 1:]
        still = torch.cat([still[:, : _ROTATIONS.start], turned, still[:, _ROTATIONS.stop :]], dim=1)
    if not layout.motion:
        return still
    parameters = dict(parameters)
    if layout.varying:
        parameters["time_scales"] = parameters["time_scales"].clamp_max(WIDEST)
    return torch.cat([still, motion_columns(layout, parameters, parameters, frames)], dim=1)


def motion_columns(
    layout: Layout,
    parameters: Mapping[str, Tensor],
    constant: Mapping[str, Tensor],
    frames: UInt8[Tensor, " M"],
) -> Float[Tensor, "M C"]:
    """[M, C] columns of motion.

    Args:
        layout: which.
        parameters: raw ones, at any ratio.
        constant: the same at ratio 1, for what is the same at all levels.
        frames: of each Gaussian.
    """
    columns = [parameters["means"][:, :0]]
    for field in layout.motion:
        if field.name == "omega":
            quats = constant["quats"].double()
            length = quats.norm(dim=1, keepdim=True)
            real = in_frames(quats / length, frames)[:, :1]
            real = torch.where(real < 0, -1.0, 1.0) * real.abs().clamp_min(LEAST_REAL_PART)
            columns.append(in_frames(constant["omega"].double(), frames) / (length * real))
        elif field.name == "real_parts":
            columns.append(parameters["quats"][:, :1])
        else:
            values = (parameters if field.moved else constant)[field.name]
            columns.append(values.reshape(len(values), -1))
    return torch.cat([column.float() for column in columns], dim=1)


def from_columns(
    layout: Layout, values: Float[Tensor, "M V"], frames: UInt8[Tensor, " M"]
) -> dict[str, Tensor]:
    """The inverse of ``to_columns`` as raw parameters, [M, C] each, with ``sh0`` in place of ``sh``.

    Quaternions have the length at which the real part in their frame is 1, but where bases are free.
    """
    raw = from_coordinates(values[:, :WIDTH], frames)
    for field in layout.motion:
        columns = values[:, field.values]
        if field.name == "omega":
            raw["omega"] = out_of_frames(columns, frames)
        elif field.name == "real_parts":
            raw["quats"] = torch.cat([columns, values[:, _ROTATIONS]], dim=1)
        else:
            raw[field.name] = columns
    return raw
