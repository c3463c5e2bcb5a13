"""Cameras where photographers would have stood, for a scene whose photos nobody has.

Nothing but the Gaussians says where that was. Where photos were taken from, many Gaussians are seen, each at
about a pixel's size or more, few are so large that they blur the picture, and what is there is solid. Seen
from behind, through a wall or from within something, the same scene shows large Gaussians that no photo ever
disagreed with; seen from outside, its frayed ends. And view-dependent colours were learned from the
directions of the photos: gradient descent adds up the harmonics of those directions, so a Gaussian's energy
is larger there than elsewhere. So candidates are drawn at random around and inside the scene and around what
it has most detail of, looked through at small size, and chosen for what they show well that the chosen ones
do not show yet; then others are tried beside these. Only the middle of their pictures counts: how wide the
photos were is not known, and what lies beyond their edges looks frayed from the right places, too. That holds
for an object that one walks around, and for a room that one stands in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import CHANNELS, Outputs, Rendering
from flexgs_lightning.splats import SH_C0, Splats
from flexgs_lightning.teacher.candidates import Whereabouts

_CANDIDATES = 5
"""Candidates drawn for each camera wanted."""
_STEPS = (0.25, 0.15)
"""How far neighbours of the chosen ones stand off in each round, relative to their distance."""
_NEIGHBOURS = 2
"""Neighbours of each in each round."""
_LOOKED_THROUGH = 96
"""Longest side in pixels of the candidates' pictures."""
_BLURRED = 5.0
"""Standard deviation in pixels of the final picture beyond which a Gaussian blurs it."""
_SOLID = (0.05, 0.95)
"""Below the first opacity a pixel shows nothing of the scene; from the second on what it shows is solid."""
_FOG_POWER = 4
"""How much pixels in between count against a view."""
_FAINT = 1e-6
"""Squared colour below which what depends on the view says nothing."""
_COUNTED = 30_000
"""Gaussians whose visibility is compared."""


@dataclass(frozen=True)
class Lens:
    """What all invented cameras share.

    Attributes:
        width: of their images in pixels.
        height: of their images in pixels.
        focal_length: in pixels.
    """

    width: int
    height: int
    focal_length: float

    @staticmethod
    def of_size(side: int) -> Lens:
        """Square, 60 degrees wide: nearly all of a phone's picture, whichever way up it was held."""
        return Lens(side, side, 0.5 * side / math.tan(math.radians(30)))

    def middle(self) -> Lens:
        """What is in every picture from there, however it is framed: the middle, 45 degrees wide."""
        side = min(self.width, self.height, round(2 * self.focal_length * math.tan(math.radians(22.5))))
        return Lens(side, side, self.focal_length)

    def camera(self, viewmat: Float[Tensor, "4 4"], longest_side: int | None = None) -> Cameras:
        """One camera, perhaps for a smaller picture of the same view."""
        K = torch.tensor(
            [
                [self.focal_length, 0.0, self.width / 2],
                [0.0, self.focal_length, self.height / 2],
                [0.0, 0.0, 1.0],
            ]
        )
        camera = Cameras(viewmat[None], K[None], self.width, self.height)
        if longest_side is None or longest_side >= max(self.width, self.height):
            return camera
        return of_size(camera, longest_side)


def of_size(cameras: Cameras, longest_side: int) -> Cameras:
    """The same views in pictures of the same shape, with that many pixels on the longer side."""
    factor = longest_side / max(cameras.width, cameras.height)
    return cameras.resized(max(1, round(cameras.width * factor)), max(1, round(cameras.height * factor)))


@torch.no_grad()
def invent_cameras(splats: Splats, count: int, lens: Lens, *, antialiased: bool, seed: int = 0) -> Cameras:
    """``count`` cameras, those that show most first; on the CPU.

    Args:
        splats: the scene, on the device to draw on.
        count: cameras wanted.
        lens: theirs.
        antialiased: as the scene is drawn.
        seed: of the candidates.

    Raises:
        InputError: hardly anything of the scene is opaque, or nothing of it can be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    scene = Whereabouts.of(splats, generator)
    gallery = _Gallery(splats, lens.middle(), antialiased, generator)
    drawn = (scene.anywhere, scene.around_subject)
    gallery.fill([drawn[i % 2](generator) for i in range(_CANDIDATES * count)], "Looking for cameras")
    for step in _STEPS:
        chosen = gallery.choose(count)
        beside = [scene.beside(viewmat, step, generator) for viewmat in chosen for _ in range(_NEIGHBOURS)]
        gallery.fill(beside, "Looking closer")
    chosen = gallery.choose(count)
    if not chosen:
        raise InputError("no viewpoint shows anything of the scene; give its cameras with --data.cameras.")
    return Cameras.stack([lens.camera(viewmat) for viewmat in chosen])


class _Gallery:
    """Candidates with what each shows."""

    def __init__(self, splats: Splats, lens: Lens, antialiased: bool, generator: torch.Generator) -> None:
        self._splats, self._lens, self._antialiased = splats, lens, antialiased
        self._largest = splats.scales.max(dim=1).values
        counted = torch.randperm(len(splats), generator=generator)[:_COUNTED]
        self._counted = counted.sort().values.to(splats.device)
        self._viewmats: list[Float[Tensor, "4 4"]] = []
        self._shown: list[Float[Tensor, " S"]] = []

    def fill(self, viewmats: Iterable[Float[Tensor, "4 4"]], what: str) -> None:
        """Look through cameras: how much of each Gaussian they show, worth less if unlike a photo."""
        for viewmat in tqdm(viewmats, desc=what, unit="view", leave=False):
            camera = self._lens.camera(viewmat, _LOOKED_THROUGH).to(self._splats.device)
            drawn = rasterize(
                self._splats, camera, antialiased=self._antialiased, outputs=Outputs(weights=True)
            )
            pixels = drawn.weights[0, self._counted] * (self._lens.width / camera.width) ** 2
            self._viewmats.append(viewmat)
            self._shown.append((pixels.clamp(max=1.0) * self._worth(drawn, camera)).cpu())

    def choose(self, count: int) -> list[Float[Tensor, "4 4"]]:
        """Greedily: next comes what adds most, where a Gaussian's n-th view counts for less and less."""
        shown = torch.stack(self._shown)
        seen = torch.zeros(shown.shape[1])
        chosen: list[int] = []
        for _ in range(min(count, len(shown))):
            gains = (shown / (1 + seen).square()).sum(dim=1)
            gains[chosen] = 0.0
            best = int(gains.argmax())
            if gains[best] <= 0:
                break
            chosen.append(best)
            seen += shown[best]
        return [self._viewmats[i] for i in chosen]

    def _worth(self, drawn: Rendering, camera: Cameras) -> Float[Tensor, ""]:
        weights = drawn.weights[0]
        depths = (self._splats.means @ camera.viewmats[0, 2, :3] + camera.viewmats[0, 2, 3]).clamp_min(1e-6)
        sizes = self._largest * self._lens.focal_length / depths
        total = weights.sum().clamp_min(1e-6)
        sharp = 1 - (weights * (sizes > _BLURRED)).sum() / total
        there = drawn.alpha > _SOLID[0]
        fog = (there & (drawn.alpha < _SOLID[1])).sum() / there.sum().clamp_min(1)
        return sharp * (1 - fog) ** _FOG_POWER * (weights * self._familiarity(drawn)).sum() / total

    def _familiarity(self, drawn: Rendering) -> Float[Tensor, " N"] | float:
        """Energy of each Gaussian's view-dependent colour in this direction, relative to its mean over all.

        Near 1.6 on the whole at the cameras of photos, often below 1 where nobody stood.
        """
        splats = self._splats
        if splats.has_features or splats.sh_degree == 0:
            return 1.0
        constant = (0.5 + SH_C0 * splats.sh[:, 0]).clamp_min(0.0)
        energy = (drawn.projection.features[0, :, CHANNELS] - constant).square().sum(dim=1)
        mean = splats.sh[:, 1:].square().sum(dim=(1, 2)) / (4 * math.pi)  # the basis is orthonormal
        return (energy + _FAINT) / (mean + _FAINT)
