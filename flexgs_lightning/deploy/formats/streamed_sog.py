"""Streamed SOG: ``lod-meta.json`` over SOG folders, which PlayCanvas and SuperSplat load by distance.

A binary tree parts space; each leaf names, for each level of detail, the rows of a SOG folder that show it
there. Levels replace each other: a viewer draws one of them in a leaf, so that together they take the bytes
of all. Level 0 is the finest. Layout: PlayCanvas, "Streamed SOG".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct

from flexgs_lightning.deploy.formats.bits import morton_order
from flexgs_lightning.deploy.formats.sog import META, is_free, is_sog_folder, write_sog_folder
from flexgs_lightning.deploy.formats.sog_reader import read_sog
from flexgs_lightning.deploy.formats.splat_file import (
    SplatFile,
    joined,
    require_drawable,
    require_plausible,
)
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import Natural, Positive, read_json, shown
from flexgs_lightning.splats import Splats

LOD_META = "lod-meta.json"
LEAF = 1 << 14
"""Gaussians of all levels from which on a node is parted."""
FOLDER = 1 << 17
"""Gaussians from which on a level goes on in another folder: what a viewer fetches at once."""


def write_streamed_sog(levels: Sequence[SplatFile], output: Path) -> None:
    """Write a folder with ``lod-meta.json`` and SOG folders ``LEVEL_NUMBER/``.

    It is new, or holds such a scene and nothing else, which is replaced as a file would be.

    Args:
        levels: the scene at several sizes, the finest first; each as SOG keeps it.
        output: the folder.

    Raises:
        InputError: no levels, or a coarser one has more Gaussians; see ``require_drawable``; the folder is
            not empty, or cannot be written.
    """
    counts = [len(level.splats) for level in levels]
    if not counts or counts != sorted(counts, reverse=True):
        raise InputError(f"{output}: levels of {counts} Gaussians; expected some, the largest first.")
    for level in levels:
        require_drawable(output, level.splats)
    if not is_free(output) and not _is_streamed(output):
        raise InputError(
            f"{output}: is not empty; expected a new folder, or one that holds just such a scene."
        )
    scenes = [level.splats.detach().to("cpu") for level in levels]
    folders = _Folders([scene.means.numpy() for scene in scenes])
    boxes = [_boxes(scene) for scene in scenes]
    tree = _tree(boxes, folders, [np.arange(count) for count in counts])
    meta = {
        "version": 1,
        "asset": {"generator": "flexgs-lightning"},
        "count": sum(counts),
        "counts": counts,
        "lodLevels": len(levels),
        "filenames": [f"{name}/meta.json" for name in folders.rows],
        "tree": tree,
    }
    with atomic_path(output) as temporary:
        temporary.mkdir()
        for name, parts in folders.rows.items():
            lod = int(name.partition("_")[0])
            rows = torch.from_numpy(np.concatenate(parts))
            part = SplatFile(scenes[lod][rows], levels[lod].antialiased)
            write_sog_folder(part, temporary / name, keep_order=True)
        (temporary / LOD_META).write_text(json.dumps(meta))


class _Folders:
    """The SOG folders of all levels, filled leaf by leaf.

    Attributes:
        rows: of each folder, by name and in the order of the leaves; ``LEVEL_NUMBER`` is a folder's name.
    """

    def __init__(self, centers: Sequence[np.ndarray]) -> None:
        """Begin without any, for levels with these centres, [N, 3] each."""
        self.centers = centers
        self.rows: dict[str, list[np.ndarray]] = {}

    def place(self, leaf: Sequence[np.ndarray]) -> dict[str, Any]:
        """Assign a leaf's rows of each level to folders, and tell where they are."""
        lods = {}
        for level, rows in enumerate(leaf):
            if len(rows):
                name = self._with_room(level, len(rows))
                offset = sum(map(len, self.rows[name]))
                self.rows[name].append(rows[morton_order(self.centers[level][rows])])
                lods[str(level)] = {"file": list(self.rows).index(name), "offset": offset, "count": len(rows)}
        return lods

    def _with_room(self, level: int, count: int) -> str:
        """The level's last folder, or a new one where that would hold too many."""
        own = [name for name in self.rows if name.startswith(f"{level}_")]
        if own and sum(map(len, self.rows[own[-1]])) + count <= FOLDER:
            return own[-1]
        name = f"{level}_{len(own)}"
        self.rows[name] = []
        return name


def _tree(boxes: Sequence[np.ndarray], folders: _Folders, rows: Sequence[np.ndarray]) -> dict[str, Any]:
    """The node of some rows of each level, with what is below it."""
    bound, halves = _bound(boxes, rows), _halves(folders.centers, rows)
    if halves is None:
        return {"bound": bound, "lods": folders.place(rows)}
    return {"bound": bound, "children": [_tree(boxes, folders, half) for half in halves]}


def _is_streamed(folder: Path) -> bool:
    if not (folder / LOD_META).is_file():
        return False
    return all(path.name == LOD_META or (path.is_dir() and is_sog_folder(path)) for path in folder.iterdir())


class Rows(Struct):
    """Which rows of which file a leaf has at a level."""

    file: Natural
    offset: Natural
    count: Positive


class Node(Struct):
    """A node of the tree: children, or rows by level, the finest being 0."""

    children: list[Node] = []
    lods: dict[Natural, Rows] | None = None


class LodMeta(Struct):
    """``lod-meta.json``, as far as it is read."""

    filenames: list[str]
    tree: Node


def read_streamed_sog(path: Path) -> SplatFile:
    """Read the finest level of the folder that a ``lod-meta.json`` lies in.

    Raises:
        InputError: not such a file; leaves that name files or rows that there are not; see ``read_sog``.
    """
    meta = read_json(path, LodMeta)
    names = meta.filenames
    wanted: dict[int, list[slice]] = {}
    for leaf in _leaves(meta.tree):
        where = leaf[min(leaf)]
        if where.file >= len(names):
            raise InputError(f"{path}: a leaf names rows of file {where.file}; there are {len(names)}.")
        wanted.setdefault(where.file, []).append(slice(where.offset, where.offset + where.count))
    parts, antialiased = [], False
    for file, slices in wanted.items():
        name = Path(names[file])
        if name.is_absolute() or ".." in name.parts or not name.name.lower().endswith((META, ".sog")):
            raise InputError(f"{path}: names {shown(names[file])}; expected SOG below the same folder.")
        part = read_sog(path.parent / name)
        antialiased |= part.antialiased
        if any(each.stop > len(part.splats) for each in slices):
            raise InputError(f"{path}: leaves name rows beyond the {len(part.splats):,} of '{name}'.")
        require_plausible(path, sum(each.stop - each.start for each in slices), len(part.splats))
        rows = np.concatenate([np.arange(each.start, each.stop) for each in slices])
        parts.append(part.splats[torch.from_numpy(rows)])
    if not parts:
        raise InputError(f"{path}: no leaf of the tree holds Gaussians.")
    return SplatFile(joined(parts), antialiased)


def _leaves(root: Node) -> list[dict[Natural, Rows]]:
    """``lods`` of each leaf that has some."""
    leaves, nodes = [], [root]
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.lods:
            leaves.append(node.lods)
    return leaves


def _boxes(splats: Splats) -> np.ndarray:
    """[N, 2, 3] lower and upper corner of the box around each ellipsoid of one standard deviation."""
    w, x, y, z = torch.nn.functional.normalize(splats.quats.double(), dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    ).view(-1, 3, 3)
    half = (rotation * splats.scales.double()[:, None, :]).square().sum(dim=-1).sqrt()
    means = splats.means.double()
    return torch.stack([means - half, means + half], dim=1).numpy()


def _bound(boxes: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Box around the Gaussians of all levels."""
    held = [box[index] for box, index in zip(boxes, rows, strict=True) if len(index)]
    low = np.min([each[:, 0].min(axis=0) for each in held], axis=0)
    high = np.max([each[:, 1].max(axis=0) for each in held], axis=0)
    return {"min": [float(f"{v:.7g}") for v in low], "max": [float(f"{v:.7g}") for v in high]}


def _halves(centers: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> list[list[np.ndarray]] | None:
    """The rows of both sides of the median along the longest axis; None where a node needs no parting.

    Every level that has Gaussians in the node has some on either side, so that none leaves a hole.
    """
    points = np.concatenate([each[index] for each, index in zip(centers, rows, strict=True)])
    if len(points) <= LEAF:
        return None
    axis = int(np.ptp(points, axis=0).argmax())
    middle = np.median(points[:, axis])
    below = [each[index, axis] < middle for each, index in zip(centers, rows, strict=True)]
    if any(len(side) and (side.all() or not side.any()) for side in below):
        return None
    return [[index[side ^ flip] for index, side in zip(rows, below, strict=True)] for flip in (False, True)]
