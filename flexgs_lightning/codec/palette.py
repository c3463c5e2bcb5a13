"""Codebooks: a few numbers, or a few vectors, that stand for many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

CODES = 256
"""Entries of a codebook of numbers: what a byte can tell apart."""
_ROUNDS_1D = 60
_ROUNDS = 10
_CELL = 512
"""Entries from which on a cell is parted before it is clustered."""
_PARTS = 32
"""Into so many at most."""
_ROWS = 1 << 14
"""Vectors compared with a cell's entries at a time."""


def codebook(values: np.ndarray, emphasis: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that represent ``values`` with a small sum of weighted squared errors (Lloyd's algorithm).

    Args:
        values: any shape.
        emphasis: a value's weight is the number of values around it to the power of minus this: 0 cares for
            the many in the middle only, 1 for a rare large Gaussian as much as for thousands of usual ones.

    Returns:
        [256] float32 in ascending order; uint8 indices of the nearest of them, in the shape of ``values``.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    distinct = np.unique(ordered)
    if len(distinct) <= CODES:
        codes = np.concatenate([distinct, np.full(CODES - len(distinct), distinct[-1])])
    else:
        codes = _lloyd(ordered, emphasis)
    codes = codes.astype(np.float32)
    edges = (codes[1:].astype(np.float64) + codes[:-1]) / 2
    return codes, np.searchsorted(edges, values, side="left").astype(np.uint8)


def _lloyd(ordered: np.ndarray, emphasis: float) -> np.ndarray:
    """[256] for sorted values, from a start between equal mass and equal widths.

    The start keeps its mark: codes at equal distances cost fewer bytes for the same error once indices are
    compressed, so that a better start for the error alone made files a tenth larger for nothing.
    """
    counts, edges = np.histogram(ordered, bins=1024)
    around = counts[np.clip(np.searchsorted(edges, ordered, side="right") - 1, 0, len(counts) - 1)]
    weights = around ** -float(emphasis)
    mass = np.concatenate([[0.0], weights.cumsum()])
    sums = np.concatenate([[0.0], (weights * ordered).cumsum()])
    shares = (np.arange(CODES) + 0.5) / CODES
    even = ordered[0] + shares * (ordered[-1] - ordered[0])
    codes = np.sort((ordered[np.searchsorted(mass[1:], shares * mass[-1])] + even) / 2)
    for _ in range(_ROUNDS_1D):
        ends = np.searchsorted(ordered, (codes[1:] + codes[:-1]) / 2)
        starts, ends = np.concatenate([[0], ends]), np.concatenate([ends, [len(ordered)]])
        held = mass[ends] - mass[starts]
        codes = np.where(ends > starts, (sums[ends] - sums[starts]) / np.maximum(held, 1e-300), codes)
    return codes


def palette(
    vectors: Float[Tensor, "N D"], size: int, seed: int = 0
) -> tuple[Float[Tensor, "K D"], Int[Tensor, " N"]]:
    """Vectors that represent ``vectors`` with a small sum of squared errors.

    Plain k-means compares each vector with each entry, which for a million Gaussians and 65,536 entries
    takes hours without a GPU. Here vectors are dealt out to ever smaller cells, and each of the last ones is
    clustered by itself with its share of the entries. A seed gives the same palette on the same machine.

    Args:
        vectors: float32 on the CPU.
        size: the most entries; with as many distinct vectors or fewer, each is its own entry.
        seed: of the vectors that clusters start from.

    Returns:
        the entries; the index of each vector's.
    """
    if len(vectors) <= size:
        return vectors.clone(), torch.arange(len(vectors))
    vectors, place, times = _distinct(vectors)
    if len(vectors) <= size:
        return vectors, place
    generator = torch.Generator().manual_seed(seed)
    labels = torch.empty(len(vectors), dtype=torch.int64)
    entries: list[Tensor] = []
    done = 0
    with tqdm(total=len(vectors), desc="SH palette", unit="Gaussian", leave=False) as progress:
        for rows, share in _cells(vectors, torch.arange(len(vectors)), size, generator):
            own, own_labels = _cluster(vectors[rows], times[rows], share, generator)
            entries.append(own)
            labels[rows] = own_labels + done
            done += share
            progress.update(len(rows))
    return torch.cat(entries), labels[place]


def _distinct(
    vectors: Float[Tensor, "N D"],
) -> tuple[Float[Tensor, "M D"], Int[Tensor, " N"], Float[Tensor, " M"]]:
    """Vectors that differ, in the order of their first, which of them each is, and how often each occurs.

    Harmonics of scenes that were trained for bytes are multiples of steps, and most of them 0.
    """
    rows = np.ascontiguousarray(vectors.numpy() + np.float32(0))  # -0 is 0
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, place, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    kept = torch.from_numpy(first[order])
    return vectors[kept], torch.from_numpy(rank[place]), torch.from_numpy(times[order]).to(vectors)


def _cells(
    vectors: Float[Tensor, "N D"], rows: Int[Tensor, " n"], size: int, generator: torch.Generator
) -> Iterator[tuple[Int[Tensor, " m"], int]]:
    """Deal rows out to cells small enough to be clustered by themselves, and the entries to the cells."""
    parts = min(_PARTS, size // _CELL)
    if parts < 2:
        yield rows, size
        return
    sample = rows[torch.randperm(len(rows), generator=generator)[: 64 * parts]]
    centers, _ = _cluster(vectors[sample], torch.ones(len(sample)), parts, generator)
    part_of = _nearest(vectors[rows], centers)
    members = [rows[part_of == part] for part in range(len(centers))]
    members = [each for each in members if len(each)]
    if len(members) == 1:  # hardly apart: any parts do, and a cell must not be larger than memory
        members = list(rows.chunk(parts))
    for each, share in zip(members, _shares([len(each) for each in members], size), strict=True):
        yield from _cells(vectors, each, share, generator)


def _shares(counts: list[int], size: int) -> list[int]:
    """How many of ``size`` entries each cell gets: by its vectors, and at least one where there are any."""
    total = sum(counts)
    shares = [min(max(1, size * count // total), count) for count in counts]
    by_rest = sorted(range(len(counts)), key=lambda i: counts[i] - shares[i], reverse=True)
    while (missing := size - sum(shares)) != 0:
        step = 1 if missing > 0 else -1
        for i in by_rest[: abs(missing)]:
            if 1 <= shares[i] + step <= counts[i]:
                shares[i] += step
    return shares


def _cluster(
    vectors: Float[Tensor, "n D"], times: Float[Tensor, " n"], size: int, generator: torch.Generator
) -> tuple[Float[Tensor, "k D"], Int[Tensor, " n"]]:
    """k-means from random members, each counted as often as it occurs.

    An entry that loses all its vectors takes the one worst represented.

    Returns:
        the entries; the index of each vector's.
    """
    if len(vectors) <= size:
        return vectors, torch.arange(len(vectors))
    entries = vectors[torch.randperm(len(vectors), generator=generator)[:size]]
    labels = _nearest(vectors, entries)
    for _ in range(_ROUNDS):
        held = torch.zeros(size).index_add_(0, labels, times)
        sums = torch.zeros_like(entries).index_add_(0, labels, vectors * times.unsqueeze(1))
        empty = torch.nonzero(held == 0).squeeze(1)
        entries = sums / held.clamp_min(1).unsqueeze(1)
        if len(empty):
            errors = (vectors - entries[labels]).square().sum(dim=1) * times
            entries[empty] = vectors[errors.topk(len(empty)).indices]
        labels = _nearest(vectors, entries)
    return entries, labels


def _nearest(vectors: Float[Tensor, "n D"], entries: Float[Tensor, "k D"]) -> Int[Tensor, " n"]:
    """Index of the entry with the smallest distance to each vector."""
    half = entries.square().sum(dim=1) / 2
    return torch.cat([(half - rows @ entries.T).argmin(dim=1) for rows in vectors.split(_ROWS)])
