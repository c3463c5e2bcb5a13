"""Surgery: the one home of changes to which Gaussians a scene holds, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from flexgs_lightning.model.rows import take
from flexgs_lightning.processes import ALONE, Shards

if TYPE_CHECKING:
    from flexgs_lightning.model.scene import Scene

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam knows of each number, by its name in a state."""


class Surgery:
    """Keeps, appends and permutes Gaussians; whatever has a row for each follows.

    These are the parameters of the Gaussians and of the scene's parts, Adam's moments, the selection, and the
    statistics that are handed in. Parameters are replaced, in the scene and in the optimizers together,
    because a graph that is still alive would remember the shapes of the old ones. Moments and statistics of
    new Gaussians start at zero.

    In the first stage processes that share out the Gaussians each change their own, and ``Scene.elsewhere``
    is for the caller to count. An elastic scene's Gaussians have ranks over all processes, so all must call
    alike.
    """

    def __init__(
        self,
        scene: Scene,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        statistics: dict[str, Tensor] | None = None,
    ) -> None:
        """Take what has to follow.

        Args:
            scene: whose Gaussians change.
            optimizers: of its parameters, with Adam's moments or none yet.
            statistics: tensors [n, ...] by name; entries are replaced.
        """
        self._scene = scene
        self._optimizers = list(optimizers)
        self._statistics = {} if statistics is None else statistics

    @torch.no_grad()
    def keep(self, mask: Bool[Tensor, " n"]) -> None:
        """Let go of the Gaussians here whose mask is False."""
        shards = self._ranked_shards
        self._follow(shards.joined(mask).nonzero().squeeze(-1))

    @torch.no_grad()
    def append(self, rows: Mapping[str, Shaped[Tensor, "k ..."]]) -> None:
        """Add Gaussians behind the others.

        Args:
            rows: raw values of each attribute that a Gaussian has, by name.

        Raises:
            ValueError: the Gaussians have ranks and several processes hold them: whose should new ones be?
        """
        if self._ranked_shards.several:
            raise ValueError("Surgery.append: an elastic scene that several processes hold cannot grow.")
        gaussians = self._scene.gaussians
        count, added = len(gaussians), len(rows["means"])
        old = torch.arange(count, device=gaussians.device)
        self._follow(torch.cat([old, old.new_full((added,), -1)]))
        for name, parameter in gaussians.own().items():
            parameter[count:] = rows[name]

    @torch.no_grad()
    def permute(self, order: Int[Tensor, " N"]) -> None:
        """Store the Gaussians in a new order: the one at ``order[i]`` comes to place i."""
        self._follow(order)

    @property
    def _ranked_shards(self) -> Shards:
        """Who holds the others, where places are ranks; otherwise each process sees to its own."""
        return self._scene.shards if self._scene.elastic else ALONE

    def _follow(self, sources: Int[Tensor, " N"]) -> None:
        """New Gaussian i is the old one ``sources[i]``, or a new one where that is -1."""
        shards, scene = self._ranked_shards, self._scene
        places = {
            id(p): (module, name) for module in scene.modules() for name, p in module._parameters.items()
        }
        chosen = [(row, sources) for row in scene.gaussians.own().values()]
        for part in scene.each_part():
            chosen += [(row, part.sources_for(row, sources)) for row in part.rows()]
        for row, rows in chosen:
            taken = nn.Parameter(take(row.data, rows, shards), requires_grad=row.requires_grad)
            module, name = places[id(row)]
            setattr(module, name, taken)
            self._hand_over(row, taken, rows)
        for name, values in self._statistics.items():
            self._statistics[name] = take(values, sources, shards)
        scene.selection.follow(sources)
        if shards.several:
            scene.elsewhere = len(sources) - len(scene.gaussians)

    def _hand_over(self, old: nn.Parameter, new: nn.Parameter, sources: Int[Tensor, " N"]) -> None:
        """Let the optimizer of ``old`` go on with ``new``."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                for name in MOMENTS:
                    if name in state:
                        state[name] = take(state[name], sources, self._ranked_shards)
                optimizer.state[new] = state
