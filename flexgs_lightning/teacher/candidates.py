"""Where cameras might stand: around a scene, inside it, and around what it has most detail of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.splats import Splats

_DISTANCES = (0.3, 4.0)
"""Range of distances from what is looked at, relative to the radius that holds half the scene."""
_SUBJECT_SIZES = (0.1, 0.2, 0.4, 0.8)
"""Scales at which the scene's subject is looked for, relative to the same radius."""
_SUBJECT_IN_VIEW = 0.25
"""Size of the subject of a picture, relative to its distance."""
_AIM = 0.15
"""Standard deviation of what is looked at from the subject, relative to its distance."""
_STEP_AIM = 0.5
"""How far a step turns a camera, relative to how far it moves it."""
_FEWEST_OPAQUE = 0.1
"""Opacity below which a Gaussian does not say where the scene is."""
_SAMPLE = 10_000
"""Gaussians whose places stand for the scene's detail."""
_SEEDS, _SHIFTS = 64, 20
"""Places from which the densest one is looked for, and steps on the way there."""
_UP = (0.0, -1.0, 0.0)
"""Up in a world as COLMAP often leaves it; which way up a picture is matters to nobody here."""


@dataclass(frozen=True)
class Whereabouts:
    """Where the scene lies, in spite of strays, and what of it photographers would look at.

    Where photos showed much, training put many Gaussians, so the densest place is what most photos have in
    their middle: the object that one walks around, which need not be in the middle of the scene. Seen from
    farther away, a wider neighbourhood is the subject.

    Attributes:
        targets: [T, 3] centres of opaque Gaussians within the radius that holds nine tenths of them.
        centre: [3] their median.
        radius: of the ball around it that holds half of them.
        subjects: [S, 3] the densest place at each scale, the smallest first.
    """

    targets: Float[Tensor, "T 3"]
    centre: Float[Tensor, " 3"]
    radius: float
    subjects: Float[Tensor, "S 3"]

    @staticmethod
    def of(splats: Splats, generator: torch.Generator) -> Whereabouts:
        """On the CPU.

        Raises:
            InputError: hardly anything of the scene is opaque, or all of it lies in one place.
        """
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
        targets = means[within]
        sample = targets[torch.randperm(len(targets), generator=generator)[:_SAMPLE]]
        subjects = [_densest(sample, size * radius) for size in _SUBJECT_SIZES]
        return Whereabouts(targets, centre, radius, torch.stack(subjects))

    def anywhere(self, generator: torch.Generator) -> Float[Tensor, "4 4"]:
        """A camera around or inside the scene, that looks at some part of it."""
        position = self.centre + self.radius * self._distance(generator) * _direction(generator)
        index = int(torch.randint(len(self.targets), (1,), generator=generator))
        target = torch.lerp(self.centre, self.targets[index], torch.rand(1, generator=generator).item())
        return look_at(position, target)

    def around_subject(self, generator: torch.Generator) -> Float[Tensor, "4 4"]:
        """A camera that looks at what is the subject from as far away."""
        distance = self._distance(generator)
        fits = [abs(math.log(size / (_SUBJECT_IN_VIEW * distance))) for size in _SUBJECT_SIZES]
        subject = self.subjects[fits.index(min(fits))]
        away = self.radius * distance
        target = subject + _AIM * away * torch.randn(3, generator=generator)
        return look_at(subject + away * _direction(generator), target)

    def beside(
        self, viewmat: Float[Tensor, "4 4"], step: float, generator: torch.Generator
    ) -> Float[Tensor, "4 4"]:
        """A camera not far from another, by a ``step`` relative to its distance, that looks almost there."""
        position = -viewmat[:3, :3].T @ viewmat[:3, 3]
        nearest = float((self.subjects - position).norm(dim=1).min())
        distance = max(nearest, _DISTANCES[0] * self.radius)
        moved, turned = step * distance * torch.randn(2, 3, generator=generator)
        return look_at(position + moved, position + distance * viewmat[2, :3] + _STEP_AIM * turned)

    @staticmethod
    def _distance(generator: torch.Generator) -> float:
        near, far = (math.log(distance) for distance in _DISTANCES)
        return math.exp(near + (far - near) * torch.rand(1, generator=generator).item())


def _densest(points: Float[Tensor, "P 3"], size: float) -> Float[Tensor, " 3"]:
    """Where points lie densest at this scale: mean shift (Comaniciu and Meer 2002) from several of them."""
    places = points[:_SEEDS]
    for _ in range(_SHIFTS):
        weights = _nearness(places, points, size)
        places = weights @ points / weights.sum(dim=1, keepdim=True)
    return places[_nearness(places, points, size).sum(dim=1).argmax()]


def _nearness(
    places: Float[Tensor, "Q 3"], points: Float[Tensor, "P 3"], size: float
) -> Float[Tensor, "Q P"]:
    return (1 + (torch.cdist(places, points) / size).square()) ** -2


def _direction(generator: torch.Generator) -> Float[Tensor, " 3"]:
    return torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)


def look_at(position: Float[Tensor, " 3"], target: Float[Tensor, " 3"]) -> Float[Tensor, "4 4"]:
    """[4, 4] world to camera."""
    forward = torch.nn.functional.normalize(target - position + 1e-12, dim=0)
    up = torch.tensor(_UP)
    if abs(float(forward @ up)) > 0.99:
        up = torch.tensor([1.0, 0.0, 0.0])
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat[:3, 3] = -viewmat[:3, :3] @ position
    return viewmat
