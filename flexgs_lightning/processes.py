"""What processes that train together tell each other, and how they share out a scene's Gaussians.

Everything works on torch's default process group and does nothing where there is none, so the code that
calls it reads the same for one process and for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable


class ProcessLostError(RuntimeError):
    """A process that others wait for is gone."""


def world_size() -> int:
    """Number of processes that train together; with 1, nothing here costs anything."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def _wait(works: Sequence[Any]) -> None:
    for work in works:
        try:
            work.wait()
        except RuntimeError as error:
            raise ProcessLostError(str(error)) from error


def sum_over_processes(*tensors: Tensor) -> None:
    """Add up each tensor over all processes, in place; every process gets the same bits."""
    if world_size() > 1:
        _wait([dist.all_reduce(tensor, async_op=True) for tensor in tensors])


def gather(value: Any) -> list[Any]:
    """``value`` of every process, by rank, in every process; anything that can be pickled."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Shaped[Tensor, "R ..."]) -> list[Tensor]:
    """Rows of every process, by rank, in every process; their numbers may differ. No gradient."""
    if world_size() == 1:
        return [rows.detach()]
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    _wait([dist.all_gather(counts, count, async_op=True)])
    numbers = torch.cat(counts).tolist()
    padded = rows.new_zeros(max(numbers), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    found = [torch.empty_like(padded) for _ in numbers]
    if padded.numel():
        _wait([dist.all_gather(found, padded, async_op=True)])
    return [part[:number] for part, number in zip(found, numbers, strict=True)]


def exchange(
    rows: Shaped[Tensor, "S ..."], sent: Sequence[int], received: Sequence[int] | None = None
) -> tuple[Shaped[Tensor, "T ..."], list[int]]:
    """All-to-all: hand rows to their processes and get one's own; the gradient takes the way back.

    Every process must call it, also in the backward pass, in the same order.

    Args:
        rows: those for process 0, then those for process 1, and so on.
        sent: how many for each.
        received: how many come from each, where that is known; otherwise the processes tell each other.

    Returns:
        The rows from process 0, then those from process 1, and so on; how many from each.
    """
    if world_size() == 1:
        return rows, list(sent)
    if received is None:
        numbers = torch.tensor(sent, device=rows.device)
        answer = torch.empty_like(numbers)
        _wait([dist.all_to_all_single(answer, numbers, async_op=True)])
        received = answer.tolist()
    return _Exchange.apply(rows, list(sent), list(received)), list(received)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.splits = sent, received
        return _all_to_all(rows, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        sent, received = ctx.splits
        return _all_to_all(gradient, received, sent), None, None


def _all_to_all(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    found = rows.new_empty(sum(received), *rows.shape[1:])
    _wait([dist.all_to_all_single(found, rows.contiguous(), received, sent, async_op=True)])
    return found


@dataclass(frozen=True)
class Shards:
    """Which of a scene's Gaussians this process holds: all (``ALONE``), or one share of several.

    Where Gaussians have ranks, process r of W holds r, r + W, r + 2W, …: a prefix of M Gaussians then is a
    prefix in every process, of as many Gaussians in each, up to one.

    Attributes:
        rank: r.
        count: W; with more than 1, what adds up or collects is for all processes to call.
    """

    rank: int = 0
    count: int = 1

    @property
    def several(self) -> bool:
        """Whether other processes hold other Gaussians of this scene."""
        return self.count > 1

    def local(self, total: int) -> int:
        """How many of the first ``total`` Gaussians are here."""
        return len(range(self.rank, total, self.count))

    def mine(self, rows: Shaped[Tensor, "N ..."]) -> Shaped[Tensor, "n ..."]:
        """The rows of the Gaussians that are here."""
        return rows[self.rank :: self.count]

    def own(self, ranks: Int[Tensor, " M"]) -> Int[Tensor, " m"]:
        """Where those of M Gaussians that are here are stored, in the order given."""
        return ranks[self.holds(ranks)] // self.count if self.several else ranks

    def holds(self, ranks: Int[Tensor, " M"], process: int | None = None) -> Bool[Tensor, " M"]:
        """Which of M Gaussians are here, or at another process."""
        return ranks % self.count == (self.rank if process is None else process)

    def total(self, number: int, device: torch.device) -> int:
        """Sum of a number over the shards."""
        if not self.several:
            return number
        numbers = torch.tensor(number, device=device)
        sum_over_processes(numbers)
        return int(numbers)

    def parts(self, rows: Shaped[Tensor, "n ..."]) -> list[Tensor]:
        """Rows of each shard."""
        return gather_rows(rows) if self.several else [rows]

    def joined(self, rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "N ..."]:
        """Rows of all Gaussians by rank; no gradient."""
        if not self.several:
            return rows
        parts = self.parts(rows)
        whole = rows.new_empty(sum(map(len, parts)), *rows.shape[1:])
        for process, part in enumerate(parts):
            whole[process :: self.count] = part
        return whole

    def mean(self, values: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
        """Mean over the values of all shards; for losses, as ``sum``."""
        if not self.several:
            return values.mean()
        return self.sum(values.sum() / self.total(values.numel(), values.device))

    def sum(self, share: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Sum over the shards, in a loss that every process computes alike from it.

        Each process descends from its share of the loss, 1 / W of it, and what the others do with the sum is
        the same as here: so its gradient here is W times this process's own.
        """
        if not self.several:
            return share
        whole = share.detach().clone()
        sum_over_processes(whole)
        return whole + self.count * (share - share.detach())


ALONE = Shards()
"""One process holds all Gaussians, whatever others do."""
