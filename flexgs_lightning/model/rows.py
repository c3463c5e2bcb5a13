"""Rows of Gaussians: taking them in another order, also where several processes hold them."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from flexgs_lightning.processes import ALONE, Shards, exchange


def take(
    rows: Shaped[Tensor, "m ..."], sources: Int[Tensor, " N"], shards: Shards = ALONE
) -> Shaped[Tensor, "n ..."]:
    """New rows from old ones: row i is old row ``sources[i]``, or zero where there is no such row.

    Args:
        rows: those that are here; of all Gaussians, or of a prefix of their ranking.
        sources: [N] an old place for each new one, over all processes; -1 for a new Gaussian.
        shards: who holds the rows, process r of W each r-th, (r + W)-th, … (``processes.Shards``). If there
            are several, all must call this with equal ``sources``.
    """
    if shards.several:
        return _take_from_all(rows, sources, shards)
    if len(rows) == 0:
        return rows.new_zeros(len(sources), *rows.shape[1:])
    inside = (sources >= 0) & (sources < len(rows))
    taken = rows[sources.clamp(0, len(rows) - 1)]
    return taken.masked_fill_(~inside.view(-1, *(1,) * (rows.ndim - 1)), 0)


def _take_from_all(
    rows: Shaped[Tensor, "m ..."], sources: Int[Tensor, " N"], shards: Shards
) -> Shaped[Tensor, "n ..."]:
    inside = (sources >= 0) & (sources < shards.total(len(rows), rows.device))
    outgoing = []
    for process in range(shards.count):
        theirs = Shards(process, shards.count)
        outgoing.append(shards.own(theirs.mine(sources)[theirs.mine(inside)]))
    came, counts = exchange(rows[torch.cat(outgoing)], [len(chosen) for chosen in outgoing])
    taken = rows.new_zeros(shards.local(len(sources)), *rows.shape[1:])
    for process, part in enumerate(came.split(counts)):
        taken[shards.mine(inside & shards.holds(sources, process))] = part
    return taken
