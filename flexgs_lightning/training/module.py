"""FlexGSModule: the LightningModule that trains a scene."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.data.ordering import HeldOutOrder
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.metrics.ssim import SSIMReference
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY
from flexgs_lightning.model.moving import moving_parts
from flexgs_lightning.rendering.types import Drawn, Outputs
from flexgs_lightning.training.camera_colors import CameraColors
from flexgs_lightning.training.checkpoint_facts import facts_of, take_over
from flexgs_lightning.training.checks import check_savable
from flexgs_lightning.training.clearance import clear_space
from flexgs_lightning.training.compression.parts import is_compressing
from flexgs_lightning.training.compression.stage import (
    begin_compression,
    compress_step,
    compression_optimizers,
)
from flexgs_lightning.training.elastic.stage import (
    Iteration,
    begin_elastic_stage,
    descend,
    elastic_optimizer,
)
from flexgs_lightning.training.guided_sampling import Evidence, sample_missing
from flexgs_lightning.training.initialization import initial_scene
from flexgs_lightning.training.losses import Parts, photometric_loss
from flexgs_lightning.training.moments import check_times, everyone_at, seen_at
from flexgs_lightning.training.optimization import (
    gaussian_optimizers,
    scale_to_batch,
    seed_generators,
    set_rates,
    step_all,
)
from flexgs_lightning.training.parallel import (
    check_strategy,
    mean_over_processes,
    replicated,
    sum_gradients,
)
from flexgs_lightning.training.resumable import check_moments
from flexgs_lightning.training.resuming import check_resume
from flexgs_lightning.training.scene_module import SceneModule
from flexgs_lightning.training.trainer import set_up


class FlexGSModule(SceneModule):
    """A 3D Gaussian Splatting scene and its training.

    The scene starts from the capture's SfM points when ``fit`` begins, or from a checkpoint.
    """

    # -- setting up ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Give the trainer what this training needs; see ``training.trainer.set_up``."""
        return set_up(self.trainer, self.stages.total)

    def setup(self, stage: str) -> None:
        """Place the initial Gaussians; a checkpoint replaces them right afterwards."""
        check_strategy(self.trainer.strategy, self.trainer.world_size)
        self.extent = self.capture.extent
        self.clear_space = clear_space(self.capture, self.clearance) if stage == "fit" else None
        if self.guided_sampling.every and self.shards.several:
            raise InputError(
                "model.guided_sampling: expected every 0 where several processes share out the Gaussians."
            )
        if self.learns_camera_colors and stage == "fit" and self.camera_colors is None:
            self.camera_colors = CameraColors(self.capture).to(self.device)
        if stage == "fit" and len(self.gaussians) == 0:
            if self.stages.reconstruction == 0 and self.start is None:
                raise InputError("model.reconstruction_steps: 0 needs --start_from, a checkpoint or PLY.")
            seed_generators(self.seed)
            self.started_trained = self.start is not None
            if moving_parts(self.motion) or (self.start is not None and self.start.moves):
                check_times(self.capture)
            start = None if self.start is None else self.start.scene
            self.scene = initial_scene(
                self.capture, self.initialization, self.sh_degree, start, self.first_parts(), self.shards
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for each attribute, and one for what else the scene learns."""
        optimizers = self._new_optimizers()
        if self.densifies:
            stage = (self.extent, self.stages.reconstruction, self.clear_space)
            self.densification.start(self.scene, optimizers, *stage)
        views = self.trainer.datamodule.batch_size * self.trainer.world_size  # type: ignore[attr-defined]
        scale_to_batch(optimizers, self.learning_rates.batch_rule, views)
        if self.loaded.moments is not None:  # Lightning is about to load them into these
            check_moments(self.trainer.ckpt_path, self.loaded.moments, optimizers)
            self.loaded.moments = None
        return optimizers

    def _new_optimizers(self) -> list[torch.optim.Optimizer]:
        decay = self.elastic_training.rate_decay if self.scene.elastic else 1.0
        colors = [] if self.camera_colors is None else [self.camera_colors.optimizer(decay)]
        if is_compressing(self.scene):
            options = (self.learning_rates, self.elastic_training, self.compression_training)
            return [*compression_optimizers(self.scene, *options, self.extent), *colors]
        optimizers = gaussian_optimizers(self.gaussians, self.learning_rates, self.extent, decay)
        added = elastic_optimizer(self.scene, self.elastic_training, self.extent)
        return [*optimizers.values(), *([] if added is None else [added]), *colors]

    def on_train_start(self) -> None:
        """Take up the densification statistics of a resumed run, now that there is something to fill."""
        if self.loaded.densification is not None:
            self.densification.load_state_dict(self.loaded.densification)
            self.loaded.densification = None

    # -- training --------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: ViewBatch, batch_idx: int) -> None:
        """Begin a stage, if no callback has: optimizers cannot change within a step."""
        if self.elastic_step is not None and not self.scene.elastic:
            begin_elastic_stage(self)
        if self.compression_step is not None and not is_compressing(self.scene):
            begin_compression(self)

    def on_train_end(self) -> None:
        """What the last iteration found has not been read yet."""
        self.finite_watch.read(self.scene)

    def training_step(self, batch: ViewBatch, batch_idx: int) -> None:
        """One iteration of the stage that it belongs to."""
        seed_generators(self.seed * 1_000_003 + self.iteration)
        if self.compression_step is not None or self.elastic_step is not None:
            self._train_elastic(batch)
        else:
            self._reconstruct(batch)

    def _reconstruct(self, batch: ViewBatch) -> None:
        """Render, compare, descend, densify."""
        step = self.iteration
        set_rates(self.plain_optimizers(), step, self.stages.reconstruction)
        background = self.training_background()
        everyone = everyone_at(self.scene, self.moments(batch))
        rendering = self.draw(everyone, batch, background, self.active_sh_degree)
        photos = batch.targets(background)
        image = self.taken(rendering.image, batch)
        loss = photometric_loss(image, photos, self.ssim_weight)
        penalty = self.densification.regularization()
        total = loss if penalty is None else loss + penalty
        self.finite_watch.look(self.scene, total.detach(), step)

        self.densification.before_backward(step, rendering)
        self._backward(total)
        self._step()
        report = self.densification.after_step(step, rendering)
        if report is not None:
            self.log_dict({f"densification/{name}": float(count) for name, count in report.counts().items()})
        if self.guided_sampling.is_due(step + 1, self.stages.reconstruction):
            self._add_missing()
        if self.is_time_to_log:
            parts: Parts = {} if penalty is None else {"regularization": penalty.detach()}
            self._log_progress(loss.detach(), parts, image, photos)

    @torch.no_grad()
    def _add_missing(self) -> None:
        """Add Gaussians for what the photos show and the scene does not have."""
        found = sample_missing(
            self.scene, self.capture.train_views, self._look, self.guided_sampling, self.extent
        )
        added = self.densification.add(found)
        self.log_dict({"guided_sampling/found": float(len(found)), "guided_sampling/added": float(added)})

    def _look(self, views: list[int]) -> Evidence:
        """What training views of one moment show, beside what is drawn for them."""
        background = self.evaluation_background
        batch = self.trainer.datamodule.train_batch(views).to(self.device)  # type: ignore[attr-defined]
        images, depths = [], []
        for view in batch.each():  # one after another, as in training: all at once take their memory together
            splats = seen_at(self.scene, 1.0, self.moments(view))
            rendering = self.draw(splats, view, background, self.active_sh_degree, Outputs(depth=True))
            images.append(self.taken(rendering.image, view))
            depths.append(rendering.depth)
        found = torch.cat(images), batch.targets(background), torch.cat(depths)
        return Evidence(batch.cameras, *found, self.guided_sampling)

    def _train_elastic(self, batch: ViewBatch) -> None:
        """Render the full model and subsets, compare each, descend; in the third stage count bits, too."""
        background = self.training_background()
        photos = batch.targets(background)
        reference = SSIMReference.of(photos)
        images: list[Tensor] = []

        def photometric(splats: Drawn) -> Tensor:
            drawn = self.taken(self.draw(splats, batch, background).image, batch)
            images.append(drawn.detach())  # without its graph, which ends with its own backward pass
            return photometric_loss(drawn, reference, self.ssim_weight)

        how = (photometric, self._backward, self.temperature, self.moments(batch))
        if (step := self.compression_step) is not None:
            set_rates(self.plain_optimizers(), step, self.stages.compression)
            options = (self.elastic_training, self.compression, self.compression_training)
            loss, parts = compress_step(self.scene, *options, Iteration(step, *how))
        else:
            step = cast(int, self.elastic_step)
            set_rates(self.plain_optimizers(), step, self.stages.elastic)
            loss, parts = descend(self.scene, self.elastic_training, Iteration(step, *how))
        self.finite_watch.look(self.scene, loss, self.iteration)
        self._step()
        if self.is_time_to_log:
            self._log_progress(loss, parts, images[0], photos)  # the full model, if it was drawn

    def _backward(self, loss: Tensor) -> None:
        """Backward from this process's share of a loss."""
        self.manual_backward(loss if self.trainer.world_size == 1 else loss / self.trainer.world_size)

    def _step(self) -> None:
        """Add up the processes' gradients, step."""
        colors = () if self.camera_colors is None else self.camera_colors.parameters()
        sum_gradients([*replicated(self.scene, self.shards).values(), *colors])
        step_all(cast(list[LightningOptimizer], self.optimizers()))

    def _log_progress(self, loss: Tensor, parts: Parts, image: Tensor, photos: Tensor) -> None:
        quality = psnr(image.detach(), photos).clamp_max(100.0).mean()
        known = {name: torch.as_tensor(value, device=self.device) for name, value in parts.items()}
        values = mean_over_processes({"loss": loss, "psnr": quality, **known})
        values["gaussians"] = torch.tensor(float(len(self.scene)), device=self.device)
        self.progress = {name: float(values[name]) for name in ("loss", "psnr", "gaussians")}
        self.log_dict({f"train/{name}": value for name, value in values.items()})
        groups = [group for optimizer in self.plain_optimizers() for group in optimizer.param_groups]
        self.log_dict({f"learning_rate/{group['name']}": group["lr"] for group in groups})

    # -- validation and test ---------------------------------------------------------------------------

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any] | None:
        """Render and measure held-out views; returns "render", "photo" and "metrics".

        None for another process's view.
        """
        return self._evaluate(batch, batch_idx, lpips=self.validation_lpips)

    def test_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any] | None:
        """As validation."""
        return self._evaluate(batch, batch_idx, lpips=True)

    def on_validation_epoch_end(self) -> None:
        """Log the per-image means."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the per-image means."""
        self._log_metrics("test")

    def _evaluate(self, batch: ViewBatch, batch_idx: int, lpips: bool) -> dict[str, Any] | None:
        views, trainer = len(self.capture.test_views), self.trainer
        repeated = HeldOutOrder.repeats(views, batch_idx, trainer.global_rank, trainer.world_size)
        if repeated and not self.shards.several:
            return None
        background = self.evaluation_background
        render = self.render(batch, background).image.clamp(0, 1)
        if repeated:  # drawn for the other processes' sake
            return None
        photo = self.image_metrics.photo(batch.targets(background), lpips)
        return {"render": render, "photo": photo, "metrics": self.image_metrics.update(render, photo)}

    def _log_metrics(self, split: str) -> None:
        means = self.image_metrics.compute()
        self.image_metrics.reset()
        self.log_dict({f"{split}/{name}": value for name, value in means.items()}, prog_bar=split == "test")

    # -- checkpoints -----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of; refuse to save a broken scene over a good one."""
        check_savable(self.scene, self.iteration)
        checkpoint[CHECKPOINT_KEY] = facts_of(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what ``on_save_checkpoint`` added, if training can go on with the options given."""
        check_resume(self, checkpoint)
        take_over(self, checkpoint)
