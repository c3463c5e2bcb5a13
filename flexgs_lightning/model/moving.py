"""What a new scene has beside Gaussians: motion, lives, and appearance, as the options say."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
from dataclasses import dataclass
from typing import Literal

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.basis_motion import BASES_RATE, BasisMotion
from flexgs_lightning.model.feature_appearance import FeatureAppearance
from flexgs_lightning.model.lifespan import LEAST_OPACITY, Lifespan
from flexgs_lightning.model.motion import PolynomialMotion
from flexgs_lightning.model.part import Part


@dataclass(frozen=True)
class MotionOptions:
    """How a scene moves; by default it does not.

    Args:
        path: how Gaussians move: "none" not at all; "polynomial" each on a polynomial of its own around its
            own time (Spacetime Gaussians); "bases" by mixtures of a few rigid motions that all share (Shape
            of Motion); "free_bases" by sums of a few shared trajectories (DynMF).
        degree: of the polynomials.
        bases: number of shared trajectories.
        knots: control points of each, over the group of frames.
        bases_rate: learning rate of the trajectories; translations' times the scene's extent.
        opacity: "constant" in time, or "varying": each Gaussian has a centre and a width in time, and is only
            drawn while it is opaque enough.
        width: width in time that Gaussians start with, in groups of frames.
        least_opacity: with varying opacity, Gaussians are not drawn while they are less opaque than this;
            the default changes no image.

    Raises:
        InputError: an option is out of range.
    """

    path: Literal["none", "polynomial", "bases", "free_bases"] = "none"
    degree: int = 3
    bases: int = 10
    knots: int = 10
    bases_rate: float = BASES_RATE
    opacity: Literal["constant", "varying"] = "constant"
    width: float = 1.0
    least_opacity: float = LEAST_OPACITY

    def __post_init__(self) -> None:
        """Make each part once: what is not used now is out of range all the same."""
        try:
            Lifespan(self.width, self.least_opacity)
            PolynomialMotion(self.degree)
            BasisMotion(self.bases, self.knots, rate=self.bases_rate)
        except InputError as error:
            raise InputError(f"model.motion.{error}") from error


Appearance = Literal["sh", "features"]


def first_parts(motion: MotionOptions, appearance: Appearance) -> dict[str, Part]:
    """The parts of a new scene; networks' weights come from torch's global generator."""
    parts = moving_parts(motion)
    if appearance == "features":
        parts["appearance"] = FeatureAppearance(in_time=motion.opacity == "varying")
    return parts


def moving_parts(options: MotionOptions) -> dict[str, Part]:
    """The parts of a new scene that moves like this; none if it does not.

    Who is not drawn is known first, so that nobody's place is computed in vain.
    """
    varying = options.opacity == "varying"
    parts: dict[str, Part] = {}
    if varying:
        parts["lifespan"] = Lifespan(options.width, options.least_opacity)
    if options.path == "polynomial":
        parts["motion"] = PolynomialMotion(options.degree, centered=varying)
    if options.path in ("bases", "free_bases"):
        parts["motion"] = BasisMotion(
            options.bases, options.knots, rigid=options.path == "bases", rate=options.bases_rate
        )
    return parts
