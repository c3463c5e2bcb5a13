"""Checkpoints: reading them safely, and the facts they carry beside Lightning's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.gaussians import PARAMETERS, Gaussians
from flexgs_lightning.splats import Splats

CHECKPOINT_KEY = "flexgs"
"""Entry of a Lightning checkpoint that marks it as this package's."""
CHECKPOINT_VERSION = 1
_STATE_PREFIX = "gaussians.params."


@dataclass(frozen=True)
class Model:
    """What a checkpoint holds for use outside training.

    Attributes:
        gaussians: the scene.
        sh_degree: degree of the spherical harmonics that training had reached.
        antialiased: whether it was trained with the antialiased rasterizer.
        background: colour behind the scene, [3] float32.
        data: options of the data module that it was trained on (``root``, ``downscale``, …).
        iteration: training steps done.
    """

    gaussians: Gaussians
    sh_degree: int
    antialiased: bool
    background: torch.Tensor
    data: dict[str, Any]
    iteration: int

    def splats(self) -> Splats:
        """The scene ready to draw, without gradients and without unused spherical harmonics."""
        splats = self.gaussians.splats().detach()
        bases = (self.sh_degree + 1) ** 2
        return Splats(splats.means, splats.quats, splats.scales, splats.opacities, splats.sh[:, :bases])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of this package. Only tensors and plain values are unpickled.

    Raises:
        InputError: the file is missing, truncated, not this package's, of another version, or holds
            objects that only unpickling arbitrary code could restore.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises five kinds, depending on where the damage is
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: not a readable checkpoint, expected a complete file written by this package ({reason})."
        ) from error
    facts = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(facts, dict):
        raise InputError(f"{path}: not a checkpoint of this package, it has no '{CHECKPOINT_KEY}' entry.")
    if facts.get("version") != CHECKPOINT_VERSION:
        raise InputError(
            f"{path}: checkpoint of version {facts.get('version')}, "
            f"this release reads version {CHECKPOINT_VERSION}."
        )
    return checkpoint


def load(path: str | Path) -> Model:
    """Open a trained model: ``load("runs/fox/version_0/checkpoints/last.ckpt").splats()``.

    Raises:
        InputError: as ``read_checkpoint``, or parameters are missing.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint["state_dict"]
    missing = [name for name in PARAMETERS if _STATE_PREFIX + name not in state]
    if missing:
        raise InputError(
            f"{path}: Gaussian parameters are missing from the checkpoint: {', '.join(missing)}."
        )
    gaussians = Gaussians({name: state[_STATE_PREFIX + name] for name in PARAMETERS})
    facts = checkpoint[CHECKPOINT_KEY]
    return Model(
        gaussians=gaussians,
        sh_degree=facts["sh_degree"],
        antialiased=facts["antialiased"],
        background=torch.tensor(facts["background"]),
        data=facts["data"],
        iteration=checkpoint["global_step"],
    )
