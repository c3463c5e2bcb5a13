"""Sharded training: every process holds some of the Gaussians, all of them draw together.

For scenes whose Gaussians, with their gradients and Adam's moments, do not fit one device. What else there is
(networks, views, schedules) every process has, as in data-parallel training.

In the first stage each process densifies its own share, so shares differ in size; the scene's Gaussians in
order are those of the first process, then those of the second, and so on. From the second stage on, Gaussians
have ranks, and process r of W holds ranks r, r + W, r + 2W, … (``processes.Shards``).

Checkpoints are those of one process that holds all: shares are put together when one is written, and each
process takes its own when one is read. A run that goes on with as many processes as wrote its checkpoint has
every Gaussian where it was.
"""

# No `from __future__ import annotations` here: jsonargparse reads the strategy's types.
import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from lightning import Trainer
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, SCENE, read_checkpoint
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.surgery import MOMENTS
from flexgs_lightning.processes import ALONE, Shards, exchange, gather
from flexgs_lightning.training.parallel import ReplicaStrategy, replicated


class ShardStrategy(ReplicaStrategy):
    """``ReplicaStrategy``, but for the Gaussians: these are shared out over the processes."""

    @property
    def shards(self) -> Shards:
        """Who holds the Gaussians."""
        return Shards(self.global_rank, self.world_size)

    def setup(self, trainer: Trainer) -> None:
        """Keep the Gaussians out of the copies of the first process's values that Lightning hands out."""
        assert self.model is not None
        everything = dict(self.model.named_parameters())
        ignored = sorted(everything.keys() - replicated(self.model, self.shards).keys())
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, ignored)
        super().setup(trainer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Put the shares together on the first process's CPU, and let it write them."""
        if self.shards.several:
            checkpoint = whole_checkpoint(checkpoint, self.shards)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """This process's share of a checkpoint."""
        if not self.shards.several:
            return super().load_checkpoint(checkpoint_path, weights_only)
        return own_share(read_checkpoint(checkpoint_path, mapped=True), self.shards)

    @staticmethod
    def register() -> None:
        """Let ``sharded`` mean this strategy."""
        StrategyRegistry.register(
            "sharded", ShardStrategy, "One process for each device, each with some Gaussians", override=True
        )


def shards_of(strategy: Strategy) -> Shards:
    """Who holds the Gaussians under a strategy."""
    return strategy.shards if isinstance(strategy, ReplicaStrategy) else ALONE


def deal_out(gaussians: Gaussians, shards: Shards) -> Gaussians:
    """Move Gaussians between processes from the first stage's order to the second's."""
    if not shards.several:
        return gaussians
    start = sum(gather(len(gaussians))[: shards.rank])
    places = torch.arange(start, start + len(gaussians), device=gaussians.device)
    owners = places % shards.count
    order = owners.argsort(stable=True)
    sent = owners.bincount(minlength=shards.count).tolist()
    rows = {name: exchange(values.detach()[order], sent)[0] for name, values in gaussians.own().items()}
    return gaussians.like(rows)


def whole_checkpoint(checkpoint: dict[str, Any], shards: Shards) -> dict[str, Any]:
    """A checkpoint of all Gaussians from those of all processes; in the first one only, on its CPU."""
    checkpoint = _copy(checkpoint)
    facts = checkpoint[CHECKPOINT_KEY]
    ranked = facts["scene"]["elastic"]
    if not ranked:
        facts["shares"] = gather(len(checkpoint["state_dict"][f"{SCENE}gaussians.params.means"]))
    for container, key in _per_gaussian(checkpoint):
        container[key] = _collect(container[key], ranked, shards)
    return checkpoint


def own_share(checkpoint: dict[str, Any], shards: Shards) -> dict[str, Any]:
    """This process's part of a checkpoint of all Gaussians; ``total`` tells how many these are."""
    facts = checkpoint[CHECKPOINT_KEY]
    own = slice(shards.rank, None, shards.count)
    shares = facts.get("shares", [])
    if len(shares) == shards.count:
        end = sum(shares[: shards.rank + 1])
        own = slice(end - shares[shards.rank], end)
    for container, key in _per_gaussian(checkpoint):
        facts["total"] = max(facts.get("total", 0), len(container[key]))
        container[key] = container[key][own]
    owned: dict[str, Any] = apply_to_collection(checkpoint, Tensor, torch.clone)  # and let go of the file
    return owned


def _per_gaussian(checkpoint: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every tensor of a checkpoint with a row for each Gaussian: where it is, and its name there."""
    state = checkpoint["state_dict"]
    yield from ((state, name) for name in checkpoint[CHECKPOINT_KEY]["rows"])
    for optimizer in checkpoint["optimizer_states"]:
        for group in optimizer["param_groups"]:
            for number in group["params"] if group.get("per_gaussian") else ():
                moments = optimizer["state"].get(number, {})
                yield from ((moments, name) for name in MOMENTS if name in moments)
    densification = checkpoint[CHECKPOINT_KEY]["densification"]
    if densification is not None:
        yield from ((densification["statistics"], name) for name in densification["statistics"])


def _collect(rows: Shaped[Tensor, "n ..."], ranked: bool, shards: Shards) -> Shaped[Tensor, "N ..."]:
    """All rows in the first process, one share after the other so that its device holds no more than two."""
    counts = gather(len(rows))
    ends = [0, *torch.tensor(counts).cumsum(0).tolist()]
    if shards.rank > 0:
        if len(rows):
            dist.send(rows.contiguous(), dst=0)
        return rows[:0]
    whole = torch.empty(ends[-1], *rows.shape[1:], dtype=rows.dtype)
    for process, (start, end) in enumerate(pairwise(ends)):
        part = rows if process == 0 else rows.new_empty(counts[process], *rows.shape[1:])
        if process > 0 and len(part):
            dist.recv(part, src=process)
        whole[slice(process, None, shards.count) if ranked else slice(start, end)] = part.cpu()
    return whole


def _copy(value: Any) -> Any:
    """New containers around the same tensors: a state is the optimizer's own, not a copy."""
    if isinstance(value, dict):
        twin = copy.copy(value)
        twin.update({key: _copy(inner) for key, inner in value.items()})
        return twin
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
