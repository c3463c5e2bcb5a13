"""Data-parallel training: every process holds the whole scene and renders cameras of its own.

Gradients and densification statistics are summed over the processes in every iteration, importance at every
refresh; everything else is computed by each process from equal numbers with equal seeds. So the replicas
stay equal bit for bit, which ``check_replicas`` verifies. Where Gaussians are shared out over the processes
(``training.sharding``), all this holds for the rest of the scene.
"""

# No `from __future__ import annotations` here: jsonargparse reads the strategy's types.
import contextlib
import itertools
import traceback
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from lightning.pytorch.strategies import DDPStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.processes import (
    ALONE,
    ProcessLostError,
    Shards,
    process_rank,
    sum_over_processes,
    world_size,
)

BUCKET_BYTES = 2**18
"""Gradients from this size on travel as they are, smaller ones together: a copy costs more than a call."""


def mean_over_processes(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means of named scalars over all processes, detached; the same names in every process."""
    stacked = torch.stack([value.detach() for value in values.values()])
    sum_over_processes(stacked)
    return dict(zip(values, stacked / world_size(), strict=True))


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their sums over the processes.

    Each process must have descended from its share of the loss: the mean over its own images, divided by the
    number of processes. Their sum is then the gradient of the mean over all images, and no pass over the
    gradients is spent on dividing them.

    The list may be another one in each iteration, as densification makes it, but must be the same in every
    process. There is nothing to gain from overlapping it with the backward pass: the rasterizer's backward
    is nearly all of it and yields the gradients of all attributes at once, at its end.
    """
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    large = [gradient for gradient in gradients if gradient.nbytes >= BUCKET_BYTES]
    small = [gradient for gradient in gradients if gradient.nbytes < BUCKET_BYTES]
    bucket = torch.cat([gradient.flatten() for gradient in small]) if small else None
    sum_over_processes(*large, *([] if bucket is None else [bucket]))
    if bucket is not None:
        parts = bucket.split([gradient.numel() for gradient in small])
        for gradient, part in zip(small, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def share_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values; the same tensors in every process.

    Equal seeds are not enough: another kind of processor may round the initial values otherwise.
    """
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def check_replicas(tensors: Mapping[str, Tensor], step: int) -> None:
    """Compare the processes' tensors by checksum.

    Args:
        tensors: the same names in every process.
        step: iterations completed, for the message.

    Raises:
        InputError: some tensor differs from process to process; every process raises it.
    """
    if world_size() == 1 or not tensors:
        return
    sums = torch.stack([checksum(tensor) for tensor in tensors.values()])
    extremes = torch.cat([sums, -sums])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    highest, lowest = extremes.chunk(2)
    for name, differs in zip(tensors, (highest != -lowest).tolist(), strict=True):
        if differs:
            raise InputError(
                f"Training stopped at step {step}: '{name}' is no longer the same in all {world_size()} "
                "processes. They must run the same release on the same kind of device. The last checkpoint "
                "is kept."
            )


def checksum(tensor: Tensor) -> Int[Tensor, ""]:
    """Sum of a float32 tensor's bits and shape as integers, weighted by place (modulo a prime); int64.

    Integer sums do not depend on their order, so equal tensors have equal sums on every device.
    """
    width = 4099
    bits = tensor.detach().contiguous().flatten().view(torch.int32)
    whole = len(bits) - len(bits) % width
    weights = torch.arange(1, width + 1, device=bits.device)
    rest = bits[whole:]
    return (
        (bits[:whole].view(-1, width).sum(dim=0) * weights).sum() + (rest * weights[: len(rest)]).sum()
    ) ^ len(bits)


def replicated(module: nn.Module, shards: Shards) -> dict[str, Tensor]:
    """Parameters and buffers that every process holds alike, by name."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    scenes = [child for child in module.modules() if isinstance(child, Scene)] if shards.several else []
    own = {id(row) for scene in scenes for row in scene.rows()}
    return {name: tensor for name, tensor in tensors if id(tensor) not in own}


class ReplicaStrategy(DDPStrategy):
    """Lightning's DDP without its wrapper, which fixes the list of parameters: densification changes it.

    The module adds up gradients itself (``sum_gradients``); starting processes, ranks, barriers and the
    writing of checkpoints by one process are Lightning's.
    """

    def __init__(self, timeout: float = 600.0, **kwargs: Any) -> None:
        """Describe the process group.

        Args:
            timeout: seconds that a process waits for the others before it gives up.
            kwargs: of ``DDPStrategy``.
        """
        super().__init__(timeout=timedelta(seconds=timeout), **kwargs)

    @property
    def shards(self) -> Shards:
        """Who holds the Gaussians."""
        return ALONE

    def configure_ddp(self) -> None:
        """Instead of wrapping, make replicas equal."""
        assert self.model is not None
        share_from_first(replicated(self.model, self.shards).values())

    @staticmethod
    def register() -> None:
        """Let ``ddp`` mean this strategy in this program, also where Lightning's ``auto`` chooses it."""
        StrategyRegistry.register(
            "ddp", ReplicaStrategy, "One process for each device, each with the whole scene", override=True
        )


def check_strategy(strategy: Strategy, processes: int) -> None:
    """Refuse what would train replicas that know nothing of each other, or fix the list of parameters.

    Raises:
        InputError: several processes under another strategy than ``ReplicaStrategy``.
    """
    if processes > 1 and not isinstance(strategy, ReplicaStrategy):
        raise InputError(
            f"trainer.strategy: {processes} processes need ddp or sharded (in Python, training.parallel's "
            f"ReplicaStrategy or training.sharding's ShardStrategy), found {type(strategy).__name__}."
        )


@contextlib.contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Turn what the process group raises when another process is gone into one clear message.

    Raises:
        InputError: instead of the communication library's own errors.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_communication_error(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"process {process_rank()} of {world_size()} lost the others: one was killed, failed or hung; if "
            f"it left a message, that stands above ({reason}). The last checkpoint is kept; the same command "
            "with --ckpt_path last goes on from it."
        ) from error


def _is_communication_error(error: RuntimeError) -> bool:
    """Lightning's and torchmetrics' calls raise whatever the library does, but always within torch's."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    in_torch = Path(place).is_relative_to(Path(dist.__file__).parent)
    return isinstance(error, (ProcessLostError, dist.DistError)) or in_torch
