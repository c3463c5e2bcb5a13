"""Films as models: their groups of frames one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from flexgs_lightning.codec.conversion import model_of
from flexgs_lightning.codec.film import Film
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.sequence import SceneSequence


def model_of_film(film: Film, name: str = "scene") -> Model:
    """What is at hand of a film, as a checkpoint would hold it; see ``model_of``."""
    shares = [after - before for before, after in itertools.pairwise(film.bounds)]
    groups = [
        model_of(group, name, film.seconds and film.seconds * share)
        for group, share in zip(film.groups, shares, strict=True)
    ]
    return replace(joined(groups, film.bounds), frames=film.frames)


def joined(groups: Sequence[Model], bounds: Sequence[float]) -> Model:
    """Models of groups of frames, one after the other in time, as one; what else it has is the largest's.

    Args:
        groups: in the order of time; of one background and filter.
        bounds: [G + 1] where groups begin and end, from 0 to 1.
    """
    if len(groups) == 1:
        return groups[0]
    seconds = [group.seconds for group in groups if group.seconds is not None]
    return replace(
        max(groups, key=len),
        scene=SceneSequence([group.scene for group in groups], bounds),
        seconds=sum(seconds) if len(seconds) == len(groups) else None,
    )
