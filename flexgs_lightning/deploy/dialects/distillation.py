"""All Gaussians together: fitted through an emulation of a viewer to what we draw of them.

Adapting each Gaussian by itself leaves what depends on the others (order, occlusion, many faint ones on top
of each other) and what the viewer rounds. A short training makes up for most of it. The teacher is our own
picture of the splats as they are, through the capture's training cameras; the student is the viewer's picture
of the adapted ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.dialects.closed_form import adapted, typical_pixel
from flexgs_lightning.deploy.dialects.table import Dialect
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats

STEPS = 400
"""Pictures that a file is fitted to unless another number is asked for."""
RATES = {"means": 0.02, "quats": 0.002, "scales": 0.02, "opacities": 0.05, "sh0": 0.01, "shN": 0.002}
"""Adam's first step: pixels, unit quaternions, log-scales, logits, harmonics; falls to 0 along a cosine."""
_LEAST_OPACITY, _LEAST_SCALE = 1e-4, 1e-30
_KEPT_BYTES = 1 << 28
"""Pictures of the teacher that are kept; beyond it each is drawn anew."""


def distilled(
    splats: Splats, antialiased: bool, dialect: Dialect, cameras: Sequence[Cameras], steps: int = STEPS
) -> Splats:
    """Splats that look in a viewer as ``splats`` look here; the same for the same arguments.

    Args:
        splats: on the CPU.
        antialiased: whether they are drawn here with compensated opacities.
        dialect: of the viewer.
        cameras: of the capture, one each; a Gaussian that none of them sees stays as it is.
        steps: pictures to fit to, one after the other; with 0, each Gaussian is adapted by itself.
    """
    start = adapted(splats, antialiased, dialect, cameras)
    if steps == 0:
        return start
    student = _Student(start, typical_pixel(splats, cameras))
    teacher = _Teacher(splats, antialiased, cameras)
    optimizer = torch.optim.Adam(student.groups(), eps=1e-15, fused=True)
    random = torch.Generator().manual_seed(0)
    order: list[int] = []
    for step in tqdm(range(steps), desc="Fitting to the viewer", unit="picture", leave=False):
        order = order or torch.randperm(len(cameras), generator=random).tolist()
        i = order.pop()
        for group in optimizer.param_groups:
            group["lr"] = RATES[group["name"]] * 0.5 * (1 + math.cos(math.pi * step / steps))
        picture = dialect.emulation(student.splats(), cameras[i])
        optimizer.zero_grad()
        functional.mse_loss(picture, teacher.picture(i)).backward()
        optimizer.step()
    return student.splats().detach()


class _Student:
    """What is learned of a file, in units in which a step means as much for every Gaussian."""

    def __init__(self, start: Splats, pixel: Float[Tensor, " N"]) -> None:
        """``pixel`` is a pixel's width at each Gaussian."""
        self._means, self._pixel = start.means, pixel[:, None]
        values = {
            "means": torch.zeros_like(start.means),
            "quats": functional.normalize(start.quats, dim=1),
            "scales": start.scales.clamp_min(_LEAST_SCALE).log(),
            "opacities": start.opacities.clamp(_LEAST_OPACITY, 1 - _LEAST_OPACITY).logit(),
            "sh0": start.sh[:, :1],
            "shN": start.sh[:, 1:],
        }
        self._values = {name: value.clone().requires_grad_() for name, value in values.items()}

    def groups(self) -> list[dict[str, object]]:
        """For an optimizer, by name."""
        return [{"name": name, "params": [value]} for name, value in self._values.items() if value.numel()]

    def splats(self) -> Splats:
        """As they are now."""
        value = self._values
        return Splats(
            means=self._means + self._pixel * value["means"],
            quats=value["quats"],
            scales=value["scales"].exp(),
            opacities=value["opacities"].sigmoid(),
            sh=torch.cat([value["sh0"], value["shN"]], dim=1),
        )


class _Teacher:
    """Our own pictures of the splats as they are."""

    def __init__(self, splats: Splats, antialiased: bool, cameras: Sequence[Cameras]) -> None:
        """Nothing is drawn yet."""
        self._splats, self._antialiased, self._cameras = splats, antialiased, cameras
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    @torch.no_grad()
    def picture(self, i: int) -> Float[Tensor, "H W 3"]:
        """What a screen shows of it through camera i."""
        if i in self._kept:
            return self._kept[i]
        image = rasterize(self._splats, self._cameras[i], antialiased=self._antialiased).image[0].clamp(0, 1)
        if self._bytes + image.nbytes <= _KEPT_BYTES:
            self._kept[i] = image
            self._bytes += image.nbytes
        return image
