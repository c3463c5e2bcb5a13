"""Cameras where photographers would have stood, for a scene whose photos nobody has.

Nothing but the Gaussians says where that was. Where photos were taken from, many Gaussians are seen, each at
about a pixel's size or more, few are so large that they blur the picture, and what is there is solid. Seen
from behind, through a wall or from within something, the same scene shows large Gaussians that no photo ever
disagreed with; seen from outside, its frayed ends. And photographers let a scene fill their pictures. So
candidates are drawn at random around and inside the scene, looked through at small size, and chosen for what
they show well that the chosen ones do not show yet. That holds for an object that one walks around, and for a
room that one stands in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Outputs
from flexgs_lightning.splats import Splats

_CANDIDATES = 5
"""Candidates in each of two rounds, for each camera wanted."""
_DISTANCES = (0.3, 4.0)
"""Range of the candidates' distances from the centre, relative to the radius that holds half the scene."""
_PROMISING = 0.15
"""Share of the first round's candidates around which the second looks."""
_STEP = 0.35
"""Standard deviation of the second round's positions, relative to the same radius."""
_LOOKED_THROUGH = 96
"""Longest side in pixels of the candidates' pictures."""
_BLURRED = 5.0
"""Standard deviation in pixels of the final picture beyond which a Gaussian blurs it."""
_SOLID = (0.05, 0.95)
"""Below the first opacity a pixel shows nothing of the scene; from the second on what it shows is solid."""
_FOG_POWER = 4
"""How much pixels in between count against a view."""
_FILLING_DISTANCE = 1.5
"""From where the scene fills a picture, relative to the radius as above."""
_BEYOND = 0.45
"""Standard deviation of the logarithm of distances beyond."""
_FEWEST_OPAQUE = 0.1
"""Opacity below which a Gaussian does not say where the scene is."""
_COUNTED = 30_000
"""Gaussians whose visibility is compared."""
_UP = (0.0, -1.0, 0.0)
"""Up in a world as COLMAP often leaves it; which way up a picture is matters to nobody here."""


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
    def of_size(longest_side: int) -> Lens:
        """4:3, 60 degrees wide: a phone's."""
        return Lens(longest_side, round(0.75 * longest_side), 0.5 * longest_side / math.tan(math.radians(30)))

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
        factor = longest_side / max(self.width, self.height)
        return camera.resized(max(1, round(self.width * factor)), max(1, round(self.height * factor)))


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
    scene = _Extent.of(splats)
    first = [scene.candidate(generator) for _ in range(_CANDIDATES * count)]
    gallery = _Gallery(splats, scene, lens, antialiased, generator)
    for viewmat in tqdm(first, desc="Looking for cameras", unit="view", leave=False):
        gallery.add(viewmat)
    promising = gallery.best(max(1, round(_PROMISING * len(first))))
    second = [scene.beside(promising[i % len(promising)], generator) for i in range(len(first))]
    for viewmat in tqdm(second, desc="Looking closer", unit="view", leave=False):
        gallery.add(viewmat)
    chosen = gallery.choose(count)
    if not chosen:
        raise InputError("no viewpoint shows anything of the scene; give its cameras with --data.cameras.")
    return Cameras.stack([lens.camera(viewmat) for viewmat in chosen])


@dataclass(frozen=True)
class _Extent:
    """Where the scene lies, in spite of strays.

    Attributes:
        targets: [T, 3] centres of opaque Gaussians within the radius that holds nine tenths of them.
        centre: [3] their median.
        radius: of the ball around it that holds half of them.
    """

    targets: Float[Tensor, "T 3"]
    centre: Float[Tensor, " 3"]
    radius: float

    @staticmethod
    def of(splats: Splats) -> _Extent:
        means = splats.means[splats.opacities > _FEWEST_OPAQUE].detach().cpu()
        if len(means) < 10:
            raise InputError(
                f"the scene: found {len(means)} Gaussians of opacity above 0.1, too few to look at."
            )
        centre = means.median(dim=0).values
        distances = (means - centre).norm(dim=1)
        within = distances <= distances.kthvalue(max(1, round(0.9 * len(means)))).values
        radius = distances.median().item()
        if not 0 < radius < math.inf:
            raise InputError("the scene: its Gaussians all lie in one place, or infinitely far apart.")
        return _Extent(means[within], centre, radius)

    def candidate(self, generator: torch.Generator) -> Float[Tensor, "4 4"]:
        """Anywhere around or inside, looking at some part of the scene."""
        direction = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
        near, far = (math.log(distance) for distance in _DISTANCES)
        distance = math.exp(near + (far - near) * torch.rand(1, generator=generator).item())
        return _look_at(self.centre + self.radius * distance * direction, self._target(generator))

    def beside(self, viewmat: Float[Tensor, "4 4"], generator: torch.Generator) -> Float[Tensor, "4 4"]:
        """Not far from another camera."""
        position = -viewmat[:3, :3].T @ viewmat[:3, 3]
        moved = position + _STEP * self.radius * torch.randn(3, generator=generator)
        return _look_at(moved, self._target(generator))

    def usual(self, viewmat: Float[Tensor, "4 4"]) -> float:
        """How likely photos are taken from as far away: 1 up to where the scene fills a picture."""
        position = -viewmat[:3, :3].T @ viewmat[:3, 3]
        beyond = float((position - self.centre).norm()) / (self.radius * _FILLING_DISTANCE)
        return math.exp(-0.5 * (math.log(max(1.0, beyond)) / _BEYOND) ** 2)

    def _target(self, generator: torch.Generator) -> Float[Tensor, " 3"]:
        """Between the centre and a Gaussian."""
        index = int(torch.randint(len(self.targets), (1,), generator=generator))
        return torch.lerp(self.centre, self.targets[index], torch.rand(1, generator=generator).item())


def _look_at(position: Float[Tensor, " 3"], target: Float[Tensor, " 3"]) -> Float[Tensor, "4 4"]:
    forward = torch.nn.functional.normalize(target - position + 1e-12, dim=0)
    up = torch.tensor(_UP)
    if abs(float(forward @ up)) > 0.99:
        up = torch.tensor([1.0, 0.0, 0.0])
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat[:3, 3] = -viewmat[:3, :3] @ position
    return viewmat


class _Gallery:
    """Candidates with what each shows."""

    def __init__(
        self, splats: Splats, extent: _Extent, lens: Lens, antialiased: bool, generator: torch.Generator
    ) -> None:
        self._splats, self._extent, self._lens, self._antialiased = splats, extent, lens, antialiased
        self._largest = splats.scales.max(dim=1).values
        counted = torch.randperm(len(splats), generator=generator)[:_COUNTED]
        self._counted = counted.sort().values.to(splats.device)
        self._viewmats: list[Float[Tensor, "4 4"]] = []
        self._shown: list[Float[Tensor, " S"]] = []

    def add(self, viewmat: Float[Tensor, "4 4"]) -> None:
        """Look through a camera: how much of each Gaussian it shows, worth less if unlike a photo."""
        camera = self._lens.camera(viewmat, _LOOKED_THROUGH).to(self._splats.device)
        drawn = rasterize(
            self._splats,
            camera,
            sh_degree=0,
            antialiased=self._antialiased,
            outputs=Outputs(weights=True),
        )
        weights = drawn.weights[0]
        depths = (self._splats.means @ camera.viewmats[0, 2, :3] + camera.viewmats[0, 2, 3]).clamp_min(1e-6)
        sizes = self._largest * self._lens.focal_length / depths
        total = weights.sum().clamp_min(1e-6)
        sharp = 1 - (weights * (sizes > _BLURRED)).sum() / total
        there = drawn.alpha > _SOLID[0]
        fog = (there & (drawn.alpha < _SOLID[1])).sum() / there.sum().clamp_min(1)
        worth = sharp * (1 - fog) ** _FOG_POWER * self._extent.usual(viewmat)
        pixels = weights[self._counted] * (self._lens.width / camera.width) ** 2
        self._viewmats.append(viewmat)
        self._shown.append((pixels.clamp(max=1.0) * worth).cpu())

    def best(self, count: int) -> list[Float[Tensor, "4 4"]]:
        """Those that show most."""
        order = torch.stack(self._shown).sum(dim=1).argsort(descending=True)
        return [self._viewmats[i] for i in order[:count].tolist()]

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
