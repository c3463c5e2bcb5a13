"""Folders of checkpoints of groups of frames, each of which was trained by itself: a film."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexgs_lightning.codec.film_model import joined
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model, load

PLACES = ("*.ckpt", "*/checkpoints/last.ckpt", "*/*/checkpoints/last.ckpt")
"""Where a folder has them: in itself, or in run folders one or two levels down."""
_IN_COMMON = ("root", "downscale", "test_every", "images", "masks", "near_plane")
"""Options of the data that groups of one film share."""


def open_groups(folder: Path) -> Model:
    """Open checkpoints of groups of frames as one film.

    Raises:
        InputError: see ``read_groups``.
    """
    groups = read_groups(folder)
    if len(groups) == 1:
        return groups[0]
    first, last = groups[0].data["frames"][0], groups[-1].data["frames"][1]
    ends = [first, *(model.data["frames"][1] for model in groups)]
    film = joined(groups, [(end - first) / (last - first) for end in ends])
    return replace(film, data={**groups[0].data, "frames": [first, last]}, frames=last - first)


def read_groups(folder: Path) -> list[Model]:
    """The models of checkpoints of groups of frames, in the order of their frames.

    Raises:
        InputError: no checkpoint; one that was trained on all frames; groups that overlap, leave frames out
            or were not trained alike; see ``load``.
    """
    paths = next((found for place in PLACES if (found := sorted(folder.glob(place)))), [])
    if not paths:
        raise InputError(
            f"{folder}: expected checkpoints of groups of frames, {', '.join(PLACES[:-1])} or {PLACES[-1]}, "
            "found none."
        )
    groups = [(path, load(path)) for path in paths]
    for path, model in groups if len(groups) > 1 else []:
        if not model.data.get("frames"):
            raise InputError(
                f"{path}: expected a checkpoint of a group of frames (--data.frames), as there are "
                f"{len(groups)} in {folder}; found one of all frames."
            )
    groups.sort(key=lambda group: group[1].data.get("frames") or [])
    _require_sequence(groups)
    _require_alike(groups)
    return [model for _, model in groups]


def _require_sequence(groups: Sequence[tuple[Path, Model]]) -> None:
    for (before, first), (after, second) in itertools.pairwise(groups):
        (_, stop), (start, end) = first.data["frames"], second.data["frames"]
        if start != stop:
            fault = "are in both" if start < stop else "are in neither"
            frames = f"{min(start, stop)} to {min(max(start, stop), end) - 1}"
            raise InputError(
                f"{after}: its frames begin with {start}, expected {stop}, where those of {before} end: "
                f"frames {frames} {fault}."
            )


def _require_alike(groups: Sequence[tuple[Path, Model]]) -> None:
    first, expected = groups[0][0], _facts(groups[0][1])
    for path, other in groups[1:]:
        for name, found in _facts(other).items():
            if found != expected[name]:
                raise InputError(
                    f"{path}: groups of a film need one {name}: {first} has {expected[name]}, found {found}."
                )


def _facts(model: Model) -> dict[str, Any]:
    own = {
        "antialiased": model.antialiased,
        "background": model.background.tolist(),
        "elastic": model.elastic,
    }
    return {f"data.{name}": model.data.get(name) for name in _IN_COMMON} | own
