"""Where Gaussians' features become colours: on either side of blending."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.splats import Splats


class Shader:
    """Makes colours of feature vectors; this one draws the features as they are.

    Subclasses, which may be ``nn.Module``s too, override either method or both. Where several processes hold
    the Gaussians, each holds the shader: ``before`` sees this process's Gaussians and every camera, ``after``
    this process's images, so that the parameters' gradients add up over the processes.
    """

    def before(self, splats: Splats, cameras: Cameras) -> Float[Tensor, "C N D"]:
        """The channels to blend, for each camera and Gaussian; ``view_directions`` may help."""
        return splats.features.expand(len(cameras), -1, -1)

    def after(
        self, drawn: Float[Tensor, "C H W D"], alpha: Float[Tensor, "C H W 1"], cameras: Cameras
    ) -> Float[Tensor, "C H W E"]:
        """The image, over nothing, from the blended channels; ``view_rays`` may help."""
        return drawn


class RayShader(Shader):
    """Makes colours of blended features along rays.

    Args:
        shade: [..., D] features and [..., 3] unit rays, both times their coverage, to [..., 3] colours times
            the same.
    """

    def __init__(self, shade: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._shade = shade

    def after(
        self, drawn: Float[Tensor, "C H W D"], alpha: Float[Tensor, "C H W 1"], cameras: Cameras
    ) -> Float[Tensor, "C H W 3"]:
        """The image."""
        return self._shade(drawn, alpha * view_rays(cameras))


def view_directions(means: Float[Tensor, "N 3"], cameras: Cameras) -> Float[Tensor, "C N 3"]:
    """Unit vectors in world space from the cameras to the Gaussians."""
    return normalize(means - cameras.positions[:, None], dim=-1)


def view_rays(cameras: Cameras) -> Float[Tensor, "C H W 3"]:
    """Unit vectors in world space from the cameras through the pixels' centres."""
    columns = torch.arange(cameras.width, device=cameras.device) + 0.5
    rows = torch.arange(cameras.height, device=cameras.device) + 0.5
    Ks = cameras.Ks[:, :, :, None, None]
    y = (rows[:, None] - Ks[:, 1, 2]) / Ks[:, 1, 1]
    x = (columns - Ks[:, 0, 2] - Ks[:, 0, 1] * y) / Ks[:, 0, 0]
    rays = torch.stack([x, y.expand_as(x), torch.ones_like(x)], dim=-1)
    return normalize(torch.einsum("chwi,cij->chwj", rays, cameras.viewmats[:, :3, :3]), dim=-1)
