"""Refusing impossible options and broken numbers."""

import numpy as np
import torch
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.processes import gather
from flexgs_lightning.training.optimization import MOST_STEPS
from flexgs_lightning.training.stages import Stages

FINITE_CHECK_INTERVAL = 100
"""Iterations from one search of all parameters for NaN and infinity to the next."""


def check_savable(scene: Scene, step: int) -> None:
    """Refuse to save a broken scene over a good one; all processes refuse if one of several shards is."""
    name = scene.first_non_finite()
    if scene.shards.several:
        name = next(filter(None, gather(name)), None)
    if name is not None:
        raise InputError(f"No checkpoint written at step {step}: '{name}' holds NaN or infinity.")


class FiniteWatch:
    """Stops before broken numbers spread: the loss of each iteration is looked at, and parameters regularly.

    The rasterizer culls Gaussians with NaN silently, so the loss alone does not show them. A GPU is not
    waited for: what an iteration finds there is read in the next one.
    """

    def __init__(self) -> None:
        self._step = 0
        self._found: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def look(self, scene: Scene, loss: Tensor, step: int) -> None:
        """Note an iteration's loss, detached, after reading what the one before noted.

        Raises:
            InputError: a loss, or the parameters that an iteration began with, hold NaN or infinity.
        """
        self.read(scene)
        values = [loss]
        if step % FINITE_CHECK_INTERVAL == 0:  # 0 * x is NaN for x of NaN or infinity
            values += [(parameter.detach() * 0).sum() for parameter in scene.parameters()]
        found = torch.stack(values).to("cpu", non_blocking=True)
        if loss.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._step, self._found = step, found
        if not loss.is_cuda:
            self.read(scene)

    def read(self, scene: Scene) -> None:
        """Read what the last iteration noted.

        Raises:
            InputError: see ``look``.
        """
        found, self._found = self._found, None
        if found is None:
            return
        if self._arrived is not None:
            self._arrived.synchronize()
        if np.isfinite(found.numpy()).all():  # in the host's memory by now
            return
        name = scene.first_non_finite()
        where = f"attribute '{name}' holds NaN or infinity" if name else "all attributes are finite"
        raise InputError(
            f"Training stopped at step {self._step}: loss {found[0].item():.4g}, {where}. The last good "
            "checkpoint is kept; lower the learning rate of that attribute, or look for broken photos."
        )


def check_appearance(appearance: str, sh_degree: int) -> None:
    """Refuse spherical harmonics of a degree that features leave unused.

    Raises:
        InputError: there are some.
    """
    if appearance == "features" and sh_degree > 0:
        raise InputError(
            f"model.sh_degree: expected 0 with model.appearance features, whose network sees the view; "
            f"found {sh_degree}."
        )


def check_options(stages: Stages, sh_degree: int, sh_interval: int, ssim_weight: float) -> None:
    """Refuse impossible options before anything expensive starts."""
    steps = stages.reconstruction
    if steps > MOST_STEPS:
        raise InputError(f"model.reconstruction_steps: expected at most {MOST_STEPS:,}, found {steps}.")
    if steps < 0 or stages.total < 1:
        raise InputError(
            f"model.reconstruction_steps: expected at least 1, or 0 with an elastic stage, found {steps}."
        )
    if not 0 <= sh_degree <= 3:
        raise InputError(f"model.sh_degree: expected 0 to 3, found {sh_degree}.")
    if sh_interval < 1:
        raise InputError(f"model.sh_degree_interval: expected at least 1, found {sh_interval}.")
    if not 0 <= ssim_weight <= 1:
        raise InputError(f"model.ssim_weight: expected 0 to 1, found {ssim_weight}.")
