"""FilmModel: the groups of frames of a film as one model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

from flexgs_lightning.codec.conversion import model_of
from flexgs_lightning.codec.film import Film, place_in
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model


@dataclass(frozen=True)
class FilmModel(Model):
    """Models of groups of frames, one after the other; times run from 0 to 1 over all of them.

    A ratio is a share of each group's Gaussians; numbers of Gaussians are those of the largest group.

    Attributes:
        scene: of the largest group.
        groups: their models.
        bounds: [G + 1] where groups begin and end.
    """

    groups: tuple[Model, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def moves(self) -> bool:
        """Groups follow each other, so it does."""
        return True

    def to(self, device: torch.device | str) -> Model:
        """See ``Model``."""
        groups = tuple(group.to(device) for group in self.groups)
        return replace(self, groups=groups, background=self.background.to(device))

    def at_moment(self, time: float | None) -> tuple[Model, float | None]:
        """See ``Model``."""
        if time is None:
            raise InputError("time: this scene moves, expected a time in [0, 1], found none.")
        if not 0.0 <= time <= 1.0:
            raise InputError(f"time: expected a number in [0, 1], found {time}.")
        group, moment = place_in(self.bounds, time)
        return self.groups[group], moment if self.groups[group].moves else None


def model_of_film(film: Film, name: str = "scene") -> Model:
    """What is at hand of a film, as a checkpoint would hold it; see ``model_of``."""
    if len(film.groups) == 1:
        return model_of(film.groups[0], name, film.seconds)
    shares = [after - before for before, after in itertools.pairwise(film.bounds)]
    groups = tuple(
        model_of(group, name, film.seconds and film.seconds * share)
        for group, share in zip(film.groups, shares, strict=True)
    )
    largest = max(groups, key=len)
    return FilmModel(
        scene=largest.scene,
        sh_degree=largest.sh_degree,
        antialiased=largest.antialiased,
        background=largest.background,
        data={},
        iteration=0,
        name=name,
        seconds=film.seconds,
        groups=groups,
        bounds=film.bounds,
    )
