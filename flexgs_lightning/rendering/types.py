"""What passes between the steps of drawing, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.rendering.shading import Shader
from flexgs_lightning.splats import Splats

EPS2D = 0.3
"""Low-pass filter: added to the diagonal of every projected covariance, in square pixels."""
FAR_PLANE = 1e10


@dataclass(frozen=True)
class Footprint:
    """How Gaussians become ellipses on the image plane.

    Attributes:
        low_pass: square pixels added to projected covariances.
        margin: share of the image's size by which a Gaussian's centre may lie outside of it before the
            projection is linearised at the margin instead.
    """

    low_pass: float = EPS2D
    margin: float = 0.15


OURS = Footprint()
"""Gsplat's."""


class Falloff(NamedTuple):
    """A viewer's own falloff: gain (exp(-sigma) - floor) where exp(-sigma) is ``least`` or more, else 0.

    With gain = 1 / (1 - floor) it is 1 in the centre. Float32, like all that the kernels take.
    """

    gain: np.float32
    floor: np.float32
    least: np.float32

    @classmethod
    def of(cls, floor: float, least: float) -> Falloff:
        """Of a falloff that is 1 in the centre."""
        return cls(np.float32(1 / (1 - floor)), np.float32(floor), np.float32(least))


T = TypeVar("T")
Drawn = Splats | Sequence[Splats]
"""What cameras see: the same Gaussians for all, or each camera its own, which are as many for each."""

SHAPE, OPACITY, DEPTH, CHANNELS = slice(0, 3), 3, 4, slice(5, None)
"""Columns of ``Projection.features``."""


class Projection(NamedTuple):
    """N Gaussians on the image planes of C cameras: what is left to do is blending.

    Attributes:
        means2d: [C, N, 2] as in ``Rendering``.
        features: [C, N, 5 + D] three numbers for the shape, opacity, depth, and the D channels that are
            blended; differentiable.
        extents: [C, N, 2] float32 half width and height in pixels of what has to be drawn; 0 where culled.
        radii: [C, N, 2] int32 ``extents`` rounded up.
    """

    means2d: Float[Tensor, "C N 2"]
    features: Float[Tensor, "C N F"]
    extents: Float[Tensor, "C N 2"]
    radii: Int[Tensor, "C N 2"]


@dataclass(frozen=True)
class Outputs:
    """What to compute beside image and alpha; each costs time.

    Attributes:
        depth: ``Rendering.depth``.
        weights: ``Rendering.weights``.
        hits: ``Rendering.hits``.
        absgrad: ``Rendering.absgrad``, once the backward pass has run.
    """

    depth: bool = False
    weights: bool = False
    hits: bool = False
    absgrad: bool = False


IMAGE = Outputs()
"""Image and alpha alone."""


class Picture(NamedTuple):
    """What blending gives; see ``Rendering``. None is what was not asked for.

    Attributes:
        image: [C, H, W, D].
        alpha: [C, H, W, 1].
        depth: [C, H, W, 1].
        weights: [C, N].
        hits: [C, N] int32.
        absgrad: called after the backward pass, gives [C, N, 2].
    """

    image: Float[Tensor, "C H W D"]
    alpha: Float[Tensor, "C H W 1"]
    depth: Float[Tensor, "C H W 1"] | None = None
    weights: Float[Tensor, "C N"] | None = None
    hits: Int[Tensor, "C N"] | None = None
    absgrad: Callable[[], Float[Tensor, "C N 2"]] | None = None


@dataclass(frozen=True)
class Rendering:
    """What C cameras see of N Gaussians.

    Where several processes hold the Gaussians, images are those of this process's cameras, and what is said
    of Gaussians is said of the N that this process holds, through the cameras of all processes, by rank.

    Attributes:
        picture: the images, and what blending tells of the Gaussians.
        projection: the Gaussians as they were blended; its tensors are in the graph of the images.
        width: image width in pixels.
        height: image height in pixels.
    """

    picture: Picture
    projection: Projection
    width: int
    height: int

    @property
    def image(self) -> Float[Tensor, "C H W D"]:
        """Colour, or what the shader makes, background included; not clamped above 1."""
        return self.picture.image

    @property
    def alpha(self) -> Float[Tensor, "C H W 1"]:
        """Accumulated opacity."""
        return self.picture.alpha

    @property
    def depth(self) -> Float[Tensor, "C H W 1"]:
        """Expected camera-space z, sum(w z) / sum(w); 0 where alpha is 0."""
        return _asked_for(self.picture.depth, "depth")

    @property
    def means2d(self) -> Float[Tensor, "C N 2"]:
        """Projected centres in pixels; zero where culled.

        ``means2d.retain_grad()`` before backward keeps the gradient that densification reads.
        """
        return self.projection.means2d

    @property
    def radii(self) -> Int[Tensor, "C N 2"]:
        """int32 screen radii in pixels along x and y; 0 where culled."""
        return self.projection.radii

    @property
    def weights(self) -> Float[Tensor, "C N"]:
        """Sum over pixels of alpha_i T_i, the blending weight; without gradient."""
        return _asked_for(self.picture.weights, "weights")

    @property
    def hits(self) -> Int[Tensor, "C N"]:
        """int32 number of pixels to which the Gaussian contributes."""
        return _asked_for(self.picture.hits, "hits")

    def absgrad(self) -> Float[Tensor, "C N 2"]:
        """Sum over pixels of |d loss / d means2d| (Ye et al. 2024, "AbsGS"), after the backward pass.

        Where several processes hold the Gaussians, all must call it.
        """
        return _asked_for(self.picture.absgrad, "absgrad")()


def _asked_for(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"Rendering.{name}: not computed; ask for it with outputs=Outputs({name}=True).")
    return value


class Renderer(Protocol):
    """Draws Gaussians: ``rasterizer.rasterize``, or ``sharded.rasterize`` for several processes together."""

    def __call__(
        self,
        splats: Drawn,
        cameras: Cameras,
        *,
        background: Float[Tensor, " D"] | Float[Tensor, "C D"] | None = None,
        sh_degree: int | None = None,
        antialiased: bool = False,
        outputs: Outputs = IMAGE,
        shader: Shader | None = None,
    ) -> Rendering:
        """See ``rasterizer.rasterize``."""
        ...
