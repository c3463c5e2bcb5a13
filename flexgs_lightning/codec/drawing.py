"""Values of a level to splats, at a time where they move."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from flexgs_lightning.codec.movement import Movement
from flexgs_lightning.model.basis_motion import BasisMotion
from flexgs_lightning.model.compression.coordinates import PLACES
from flexgs_lightning.model.compression.layout import MOVES
from flexgs_lightning.model.motion import CENTER
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.splats import Splats

STANDING = Movement()
"""That of a scene that does not move."""


def activated(
    values: Float[Tensor, "R V"],
    sh_rest: Float[Tensor, "R K 3"],
    movement: Movement = STANDING,
    flags: UInt8[Tensor, " R"] | None = None,
    time: float | None = None,
    shares: Float[Tensor, "R 2"] | None = None,
) -> Splats:
    """Values of a level, ready to draw; differentiable in all of them, time centres too.

    Args:
        values: columns of the movement's layout.
        sh_rest: the other spherical harmonics.
        movement: how they move.
        flags: of each Gaussian; needed where they move.
        time: in [0, 1] over the group of frames, where they move.
        shares: how much each Gaussian goes of its way, and turns of its polynomial's turn; 1 by default.

    Raises:
        InputError: they move, and there is no time or one outside [0, 1].
    """
    parts = {name: values[:, place] for name, place in PLACES.items()}
    t = parts["opacities"].squeeze(1).clamp(0.0, 1.0)
    rotations, means = parts["rotations"], parts["means"]
    opacities = t * t * (3.0 - 2.0 * t)
    real = torch.ones_like(rotations[:, :1])
    if movement.moves:
        assert flags is not None
        conditions = Conditions(time=time)
        moving = {field.name: values[:, field.values] for field in movement.layout.motion}
        quats = torch.cat([moving.get("real_parts", real), rotations], dim=1)
        if movement.path != "none":
            shift, turn = _motion(means, quats, moving, movement, flags, conditions)
            if shares is not None:
                shift, turn = shift * shares[:, :1], turn * shares[:, 1 if "omega" in moving else 0, None]
            means, quats = means + shift, quats + turn
        if movement.varying:
            opacities = opacities * _life(moving, conditions.moment)
    else:
        quats = torch.cat([real, rotations], dim=1)
    return Splats(
        means=means,
        quats=quats,
        scales=parts["scales"].exp(),
        opacities=opacities,
        sh=torch.cat([parts["sh0"][:, None], sh_rest], dim=1),
    )


def _life(moving: dict[str, Tensor], time: float) -> Float[Tensor, " R"]:
    """What is left of opacities at a time."""
    away = (time - moving["time_centers"]) * torch.exp(-moving["time_scales"])
    return torch.exp(-away.square()).squeeze(1)


@torch.no_grad()
def alive(values: Float[Tensor, "R V"], movement: Movement, time: float | None) -> Bool[Tensor, " R"] | None:
    """Who is opaque enough to be drawn at a time; None for everybody."""
    if not movement.varying:
        return None
    moving = {field.name: values[:, field.values] for field in movement.layout.motion}
    t = values[:, 0].clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t) * _life(moving, Conditions(time=time).moment) >= movement.least_opacity


def _motion(
    means: Float[Tensor, "R 3"],
    quats: Float[Tensor, "R 4"],
    moving: dict[str, Tensor],
    movement: Movement,
    flags: UInt8[Tensor, " R"],
    conditions: Conditions,
) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R 4"]]:
    """What is added to places and quaternions at a time."""
    if movement.path == "polynomial":
        centers = moving.get("time_centers", torch.full_like(means[:, :1], CENTER.initial))
        distance = conditions.moment - centers
        *lower, slope = moving["motion"].split(3, dim=1)
        for coefficient in reversed(lower):  # Horner's rule
            slope = coefficient + slope * distance
        return slope * distance, moving["omega"] * distance
    bases = basis_motion(movement).to(means.device)
    raw = {"means": means, "quats": quats, "coefficients": moving["coefficients"]}
    found = bases(raw, len(means), conditions)
    who = (flags & MOVES).bool()[:, None]
    return who * (found["means"] - means), who * (found["quats"] - quats)


def basis_motion(movement: Movement, still: bool = False) -> BasisMotion:
    """The part of a scene that moves by a file's bases.

    Args:
        movement: with bases.
        still: whether to add one that does not move anything.
    """
    knots = torch.from_numpy(movement.knots)
    count = movement.order + still
    part = BasisMotion(count, len(knots), rigid=movement.path == "bases").requires_grad_(False)
    part.translations[:, : movement.order] = knots[..., :3]
    part.rotations[:, : movement.order] = knots[..., 3:]
    return part
