"""Adaptive density control: clone, split, prune, reset (Kerbl et al. 2023)."""

import torch
from gsplat.strategy.ops import reset_opa
from gsplat.utils import normalized_quat_to_rotmat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from flexgs_lightning.processes import sum_over_processes, world_size
from flexgs_lightning.rendering.types import Rendering
from flexgs_lightning.training.densification.base import Densification, DensificationReport
from flexgs_lightning.training.densification.checks import check_number, check_option

RESET_OPACITY = 0.01
"""Opacities are lowered to this (Kerbl et al. 2023), or to twice the pruning threshold if that is more."""

SPLIT = 1.6
"""The halves of a Gaussian are smaller by this factor (Kerbl et al. 2023)."""


class AdaptiveDensityControl(Densification):
    """Density control of 3D Gaussian Splatting (Kerbl et al. 2023, section 5.2), the default.

    Every ``every`` steps, Gaussians whose screen position's gradient is large on average are cloned where
    they are small and split in two where they are large; nearly transparent ones and, after the first
    ``reset_every`` steps, very large ones are pruned.

    Every ``reset_every`` steps, opacities are lowered to 0.01, so that Gaussians which the image does not
    need are pruned soon after. A reset spoils the image for a while, hence it only happens before
    ``stop_step`` and where one whole ``reset_every`` remains until the stage's end; a stage shorter than
    two intervals has none.

    The gradient of a view is that of its own loss: the loss must be the *mean* over the batch's cameras,
    those of all processes together. Each process measures its own cameras, and every process gets the sum;
    where several hold the Gaussians, each measures its own Gaussians through all cameras.

    Args:
        start_step: completed iterations before the first refinement.
        stop_step: refine and reset before this iteration only; null for half of the
            stage (15k of the published 30k): the Gaussians that come late need the rest to settle.
        every: iterations from one refinement to the next.
        grow_grad2d: grow where the mean norm of the gradient with respect to the screen position, in
            units of half the image's size, exceeds this.
        grow_scale3d: split rather than clone where the largest scale exceeds this part of the scene's
            extent.
        prune_opacity: remove Gaussians of lower opacity.
        prune_scale3d: remove Gaussians whose largest scale exceeds this part of the scene's extent.
        reset_every: iterations from one opacity reset to the next; 0 for no resets.
        max_gaussians: grow up to this number only, where the gradient is highest; null for no limit.

    Raises:
        InputError: an option is out of range.
    """

    kind = "adaptive"
    default_stop = 1 / 2

    def __init__(
        self,
        start_step: int = 500,
        stop_step: int | None = None,
        every: int = 100,
        grow_grad2d: float = 0.0002,
        grow_scale3d: float = 0.01,
        prune_opacity: float = 0.005,
        prune_scale3d: float = 0.1,
        reset_every: int = 3000,
        max_gaussians: int | None = None,
    ) -> None:
        super().__init__(start_step, stop_step, every)
        check_number("grow_grad2d", grow_grad2d)
        check_number("grow_scale3d", grow_scale3d)
        check_number("prune_opacity", prune_opacity, high=0.5)
        check_number("prune_scale3d", prune_scale3d)
        check_option(
            "prune_scale3d",
            prune_scale3d,
            prune_scale3d > grow_scale3d,
            f"more than grow_scale3d ({grow_scale3d}), or what is split would be pruned",
        )
        check_option("reset_every", reset_every, reset_every >= 0, "0 (never) or more")
        check_option(
            "max_gaussians", max_gaussians, max_gaussians is None or max_gaussians >= 1, "null or 1 or more"
        )
        self.grow_grad2d, self.grow_scale3d = grow_grad2d, grow_scale3d
        self.prune_opacity, self.prune_scale3d = prune_opacity, prune_scale3d
        self.reset_every, self.max_gaussians = reset_every, max_gaussians

    def before_backward(self, step: int, rendering: Rendering) -> None:
        """Keep the gradient of the screen positions."""
        if step + 1 < self._stop:
            rendering.means2d.retain_grad()

    @property
    def _cap(self) -> int | None:
        return self.max_gaussians

    def _initial_statistics(self) -> dict[str, Tensor]:
        """``grad2d`` [N]: sum of the gradient's norms; ``views`` [N]: cameras that saw the Gaussian."""
        zeros = torch.zeros(self._count, device=self._device)
        return {"grad2d": zeros, "views": zeros.clone()}

    def _observe(self, completed: int, rendering: Rendering) -> None:
        if completed >= self._stop:
            return
        gradient = rendering.means2d.grad
        if gradient is None:
            raise RuntimeError("densification: means2d has no gradient; call before_backward and backward.")
        # Per pixel -> per half image, and per mean over the batch of all processes -> per camera.
        cameras = gradient.shape[0] * (1 if self._shards.several else world_size())
        across, down = rendering.width * (cameras / 2), rendering.height * (cameras / 2)
        norms = torch.hypot(gradient[..., 0] * across, gradient[..., 1] * down)
        visible = (rendering.radii[..., 0] > 0) & (rendering.radii[..., 1] > 0)
        seen = torch.stack([torch.where(visible, norms, 0.0).sum(dim=0), visible.sum(dim=0)])
        if not self._shards.several:
            sum_over_processes(seen)
        self._statistics["grad2d"] += seen[0]
        self._statistics["views"] += seen[1]

    def _refine(self, completed: int, report: DensificationReport) -> None:
        report.cloned, report.split = self._grow()
        report.pruned += self._prune_useless(completed)
        self._statistics = self._initial_statistics()

    def _grow(self) -> tuple[int, int]:
        """Clone small and split large Gaussians of high gradient; return how many of each."""
        gradient = self._statistics["grad2d"] / self._statistics["views"].clamp_min(1)
        growing = self._within_cap(gradient > self.grow_grad2d, gradient)
        large = self._largest_scales() > self.grow_scale3d * self._scene_extent
        cloning, splitting = growing & ~large, growing & large
        cloned, divided = int(cloning.sum()), int(splitting.sum())
        if cloned:
            self._surgery.append({name: rows[cloning] for name, rows in self._scene.gaussians.own().items()})
        if divided:  # clones were appended and are not split
            halves = self._halves(splitting.nonzero().squeeze(1))
            self._surgery.append(halves)
            self._surgery.keep(~torch.cat([splitting, splitting.new_zeros(cloned + 2 * divided)]))
        return cloned, divided

    def _halves(self, chosen: Int[Tensor, " M"]) -> dict[str, Tensor]:
        """Two Gaussians for each of M, [2 M, ...]: drawn from its own distribution, and smaller."""
        rows = {name: values[chosen] for name, values in self._scene.gaussians.own().items()}
        scales, rotations = rows["scales"].exp(), normalized_quat_to_rotmat(normalize(rows["quats"], dim=-1))
        noise = torch.randn(2, len(chosen), 3, device=self._device)
        offsets = torch.einsum("nij,nj,bnj->bni", rotations, scales, noise)
        halves = {name: values.repeat(2, *(1,) * (values.ndim - 1)) for name, values in rows.items()}
        halves["means"] = (rows["means"] + offsets).reshape(-1, 3)
        halves["scales"] = (scales / SPLIT).log().repeat(2, 1)
        return halves

    def _within_cap(self, growing: Bool[Tensor, " N"], gradient: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Keep the candidates of highest gradient that fit below the cap; each adds one Gaussian."""
        if self.max_gaussians is None:
            return growing
        room = self.max_gaussians - self._total(self._count)
        if self._total(int(growing.sum())) <= room:
            return growing
        candidates = growing.nonzero().squeeze(1)
        rivals = self._shards.parts(gradient[candidates])
        order = torch.cat(rivals).argsort(descending=True, stable=True)
        fits = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        fits[order[:room]] = True
        chosen = torch.zeros_like(growing)
        chosen[candidates] = fits.split([len(part) for part in rivals])[self._shards.rank]
        return chosen

    def _prune_useless(self, completed: int) -> int:
        transparent = self._scene.peak_opacities() < self.prune_opacity
        reason = f"opacity below prune_opacity = {self.prune_opacity}"
        if completed <= self.reset_every:
            return self._prune(transparent, completed, reason)
        huge = self._largest_scales() > self.prune_scale3d * self._scene_extent
        reason += f" or scale above prune_scale3d = {self.prune_scale3d} of the scene's extent"
        return self._prune(transparent | huge, completed, reason)

    def _finish(self, completed: int, report: DensificationReport) -> None:
        if self._is_reset(completed):
            value = max(RESET_OPACITY, 2 * self.prune_opacity)
            reset_opa(self._params, self._optimizers, self._statistics, value)
            report.opacity_reset = True

    def _is_reset(self, completed: int) -> bool:
        recovers = completed + self.reset_every <= self._total_steps
        return (
            self.reset_every > 0 and completed % self.reset_every == 0 and completed < self._stop and recovers
        )

    def _largest_scales(self) -> Float[Tensor, " N"]:
        return self._params["scales"].exp().amax(dim=-1)
