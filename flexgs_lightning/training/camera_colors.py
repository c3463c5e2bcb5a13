"""What a capture's cameras do to colours, learned beside the scene."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.errors import InputError
from flexgs_lightning.training.optimization import falling

RATE = 1e-3
"""Adam's learning rate; a camera among thirty is seen in every thirtieth step."""
STATE = "camera_colors."
"""Where they stand in a checkpoint's ``state_dict``."""


class CameraColors(nn.Module):
    """A gain and an offset of each colour channel for each training camera.

    Cameras of one capture differ in exposure and white balance, and photos of one camera in exposure; a scene
    can only answer that with colours that change with the direction, or with fog. The drawn image becomes
    gain * image + offset before it is compared with the photo.

    Gains and offsets are relative to their mean over the cameras (gains to the geometric one), so that the
    mean camera leaves colours alone. That is what cameras without a photo to learn from are given: held-out
    ones, and every viewer of the scene.

    Args:
        capture: its training views say which cameras there are (``View.taken_by``).

    Raises:
        InputError: there is only one camera, which can differ from no other.
    """

    places: Tensor

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        taken_by = [view.taken_by for view in capture.train_views]
        names = sorted(set(taken_by))
        if len(names) < 2:
            raise InputError(
                f"model.camera_colors: expected several cameras, found {len(names)} in {capture.name}."
            )
        rows = {name: row for row, name in enumerate(names)}
        self.register_buffer("places", torch.tensor([rows[name] for name in taken_by]), persistent=False)
        self.log_gains = nn.Parameter(torch.zeros(len(names), 3))
        self.offsets = nn.Parameter(torch.zeros(len(names), 3))

    def forward(self, image: Float[Tensor, "C H W 3"], views: Int[Tensor, " C"]) -> Float[Tensor, "C H W 3"]:
        """Images as the cameras of training views would have taken them.

        Args:
            image: as the scene is.
            views: positions in the capture's training views.
        """
        cameras = self.places[views]
        gains = (self.log_gains - self.log_gains.mean(dim=0))[cameras].exp()
        offsets = (self.offsets - self.offsets.mean(dim=0))[cameras]
        return image * gains[:, None, None] + offsets[:, None, None]

    def optimizer(self, decay: float) -> torch.optim.Optimizer:
        """Adam of all of it, its rate falling to ``decay`` of its start over a stage."""
        group: dict[str, Any] = {"params": list(self.parameters()), "name": "camera_colors"}
        return torch.optim.Adam([group | falling(RATE, decay)], eps=1e-15)
