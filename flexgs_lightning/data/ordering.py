"""Which views a process sees at which iteration."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


def training_batches(sizes: Sequence[tuple[int, int]], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Deal out the training views for ever: the batch of iteration k is the k-th item.

    Pass after pass, all views are drawn in an order that only ``seed`` and the number of the pass decide.
    Each drawn view joins the waiting batch of its image size, which is yielded when it is full. So no
    view is drawn twice in a pass, no batch is short, and no batch mixes sizes; what is left waiting at
    the end of a pass goes on in the next.

    Args:
        sizes: width and height of each training view.
        batch_size: views per batch, over all processes.
        seed: of the order.
    """
    waiting: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number in itertools.count():
        for index in _shuffled(len(sizes), seed, number):
            batch = waiting[sizes[index]]
            batch.append(index)
            if len(batch) == batch_size:
                yield batch.copy()
                batch.clear()


def _shuffled(count: int, seed: int, number: int) -> list[int]:
    """A permutation by sorted random keys: NumPy promises to keep the raw stream, not ``shuffle``."""
    keys = np.random.PCG64([seed, number]).random_raw(count)
    order: list[int] = np.argsort(keys, kind="stable").tolist()
    return order


class TrainingOrder(Sampler[list[int]]):
    """One process's share of ``training_batches``, from the current iteration to the last.

    With W processes the batches hold ``batch_size * W`` views and each process takes its own slice: two
    processes with one view each see what one process with two views sees.

    Args:
        sizes: width and height of each training view.
        batch_size: views per process.
        seed: of the order.
        rank: number of this process.
        world_size: number of processes, W.
        iterations: length of the training, counted from its beginning; None for endless.
        first: the iteration to begin with, asked for at each ``iter``: a resumed run goes on from there.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        iterations: int | None = None,
        first: Callable[[], int] = lambda: 0,
    ) -> None:
        self.sizes = sizes
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.iterations = iterations
        self.first = first

    def __iter__(self) -> Iterator[list[int]]:
        batches = training_batches(self.sizes, self.batch_size * self.world_size, self.seed)
        share = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for batch in itertools.islice(batches, self.first(), self.iterations):
            yield batch[share]

    def __len__(self) -> int:
        """All iterations, also those before ``first``: Lightning counts a resumed epoch from its start."""
        if self.iterations is None:
            raise TypeError("An endless training order has no length.")
        return self.iterations


class HeldOutOrder(Sampler[list[int]]):
    """Each held-out view once, in order, one per batch, dealt out over the processes.

    Every process has as many batches, because Lightning leaves out the evaluation in a process without any,
    for which the others would wait, and because processes may have to draw together. Where views do not
    suffice, the last one is repeated; whoever measures must skip that (``repeats``).
    """

    def __init__(self, count: int, rank: int = 0, world_size: int = 1) -> None:
        batches = -(-count // world_size)
        self.indices = [min(rank + i * world_size, count - 1) for i in range(batches)]

    @staticmethod
    def repeats(count: int, batch: int, rank: int, world_size: int) -> bool:
        """Whether batch number ``batch`` of process ``rank`` only repeats a view."""
        return batch * world_size + rank >= count

    def __iter__(self) -> Iterator[list[int]]:
        return ([index] for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)
