"""Choosing the rounding of spherical harmonics by what the images lose, not number by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from flexgs_lightning.codec.drawing import activated, alive
from flexgs_lightning.codec.encoder import Encoding, Plan
from flexgs_lightning.codec.views import Judged
from flexgs_lightning.rendering.rasterizer import rasterize

STEPS = 160
"""Images that a refinement draws, by default."""
RATE = 0.03
"""Adam's learning rate in quantisation steps; falls to a tenth."""


def refined(
    plan: Plan,
    encoding: Encoding,
    measuring: Sequence[Judged],
    device: torch.device,
    steps: int = STEPS,
    seed: int = 0,
) -> Plan:
    """A plan whose spherical harmonics, coded with the same steps, draw nearer to the uncoded model.

    Rounding each number to the nearest step leaves errors that add up where Gaussians overlap, and all that
    is too small for a step is lost on the same side. Here the transformed coefficients are moved, by the
    gradient of the images' squared error through the rounding (straight-through), so that the errors of
    different Gaussians and of places, shapes and opacities make up for each other. Photos play no part.

    Args:
        plan: what ``encoding`` was made from.
        encoding: fixes the steps and everything but the other spherical harmonics.
        measuring: views, of training.
        device: where to draw.
        steps: images drawn.
        seed: of the order of views.
    """
    numbers, arrays, decoded = plan.numbers, plan.arrays, encoding.decoded
    if not len(numbers.basis) or steps == 0:
        return plan
    generator = torch.Generator().manual_seed(seed)
    source, shape = arrays.sh_rest[encoding.ranks], arrays.sh_rest.shape
    matrix = torch.from_numpy(numbers.basis.astype(np.float32) * numbers.basis_scales).to(device)
    sizes = torch.from_numpy(encoding.sh_steps)[:, None].to(device)
    values = torch.from_numpy(decoded.levels[-1].values).to(device)
    flags = torch.from_numpy(decoded.flags).to(device)
    moved = (torch.from_numpy(numbers.transformed(source)).to(device) / sizes).requires_grad_()
    background = torch.tensor(arrays.background, device=device)
    optimizer = torch.optim.Adam([moved], lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    views: list[int] = []
    still = None if arrays.movement.moves else arrays.splats().to(device)
    for _ in range(steps):
        views = views or torch.randperm(len(measuring), generator=generator).tolist()
        view = measuring[views.pop()]
        camera, time = view.camera.to(device), view.time
        rounded = moved + (moved.round() - moved).detach()
        sh_rest = ((rounded * sizes) @ matrix).reshape(shape)
        living = alive(values, arrays.movement, time)
        who = slice(None) if living is None else living
        with torch.no_grad():
            wanted = arrays.splats(time).to(device) if still is None else still
            target = rasterize(wanted, camera, background=background, antialiased=arrays.antialiased).image
        image = rasterize(
            activated(values[who], sh_rest[who], arrays.movement, flags[who], time),
            camera,
            background=background,
            antialiased=arrays.antialiased,
        ).image
        optimizer.zero_grad()
        (image - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    result = np.empty_like(arrays.sh_rest)
    result[encoding.ranks] = ((moved.detach() * sizes) @ matrix).reshape(shape).cpu().numpy()
    return replace(plan, arrays=replace(arrays, sh_rest=result))
