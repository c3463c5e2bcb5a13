"""FlexGSModule: the LightningModule that trains a scene."""

from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from lightning import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from flexgs_lightning.data.capture import Capture, ViewBatch
from flexgs_lightning.data.ordering import HeldOutOrder
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.protocol import ImageMetrics
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.metrics.ssim import SSIMReference
from flexgs_lightning.model.checkpoint import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    SCENE,
    require_fitting,
    scene_state,
)
from flexgs_lightning.model.elastic import ElasticOptions
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import Appearance, MotionOptions, first_parts, moving_parts
from flexgs_lightning.model.part import Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.processes import Shards
from flexgs_lightning.rendering.sharded import renderer_of
from flexgs_lightning.rendering.types import Drawn, Renderer, Rendering
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.camera_colors import STATE, CameraColors
from flexgs_lightning.training.checks import FiniteWatch, check_appearance, check_options, check_savable
from flexgs_lightning.training.clearance import CameraClearance, ClearSpace, clear_space
from flexgs_lightning.training.compression import Compression, CompressionTraining
from flexgs_lightning.training.compression.parts import is_compressing
from flexgs_lightning.training.compression.stage import (
    begin_compression,
    compress_step,
    compression_optimizers,
)
from flexgs_lightning.training.densification import AdaptiveDensityControl, Densification
from flexgs_lightning.training.elastic_stage import ElasticTraining, Parts, descend, elastic_optimizer
from flexgs_lightning.training.initialization import Initialization, clear, initial_scene, make_elastic
from flexgs_lightning.training.losses import photometric_loss
from flexgs_lightning.training.moments import (
    Moments,
    check_times,
    everyone_at,
    moments_of,
    seen_at,
    shader_of,
    times_of,
)
from flexgs_lightning.training.optimization import (
    LearningRates,
    gaussian_optimizers,
    residual_units,
    scale_to_batch,
    seed_generators,
    set_rates,
    step_all,
)
from flexgs_lightning.training.options import plain_arguments
from flexgs_lightning.training.parallel import (
    check_strategy,
    mean_over_processes,
    replicated,
    share_from_first,
    sum_gradients,
)
from flexgs_lightning.training.ranking import rank_gaussians
from flexgs_lightning.training.sharding import shards_of

BACKGROUNDS = {"black": 0.0, "white": 1.0, "random": 0.0}


class FlexGSModule(lightning.LightningModule):
    """A 3D Gaussian Splatting scene and its training.

    The scene starts from the capture's SfM points when ``fit`` begins, or from a checkpoint.
    """

    def __init__(
        self,
        reconstruction_steps: int = 15_000,
        sh_degree: int = 3,
        sh_degree_interval: int = 1_000,
        background: Literal["black", "white", "random"] = "black",
        antialiased: bool = False,
        ssim_weight: float = 0.2,
        learning_rates: LearningRates = LearningRates(),  # noqa: B008  (frozen)
        densification: Densification | None = None,
        clearance: CameraClearance = CameraClearance(),  # noqa: B008  (frozen)
        initialization: Initialization = Initialization(),  # noqa: B008  (frozen)
        motion: MotionOptions = MotionOptions(),  # noqa: B008  (frozen)
        appearance: Appearance = "sh",
        elastic: ElasticOptions = ElasticOptions(),  # noqa: B008  (frozen)
        elastic_training: ElasticTraining = ElasticTraining(),  # noqa: B008  (frozen)
        compression: Compression = Compression(),  # noqa: B008  (frozen)
        compression_training: CompressionTraining = CompressionTraining(),  # noqa: B008  (frozen)
        camera_colors: bool = False,
        lpips: Literal["vgg", "alex", "squeeze", "none"] = "vgg",
        lpips_weights: Path | None = None,
        validation_lpips: bool = False,
        seed: int = 42,
    ) -> None:
        """Describe the training.

        Args:
            reconstruction_steps: iterations of plain 3DGS, the first stage; 0 with ``--start_from``.
            sh_degree: highest degree of the spherical harmonics, 0 to 3.
            sh_degree_interval: iterations between two raises of the degree, which starts at 0.
            background: colour behind the scene and behind photos with alpha; "random" draws one for each
                iteration and evaluates on black.
            antialiased: keep each Gaussian's total weight under the rasterizer's low-pass filter.
            ssim_weight: share w of the loss (1 - w) L1 + w (1 - SSIM).
            learning_rates: Adam's learning rate for each attribute.
            densification: how Gaussians are added and removed, by default ``AdaptiveDensityControl``; it
                belongs to this module from now on.
            clearance: how near to the training cameras Gaussians may lie.
            initialization: what a new scene starts from.
            motion: how the scene moves, if the capture's views have times.
            appearance: what colours come from: spherical harmonics, or with ``sh_degree`` 0 features that a
                small network makes colours of after blending.
            elastic: what makes the scene elastic in the second stage.
            elastic_training: how the second stage trains; ``steps`` is its length.
            compression: what makes the scene small in the third stage.
            compression_training: how the third stage trains; ``steps`` is its length.
            camera_colors: learn each camera's gain and offset of colours, for captures whose cameras (or
                photos) differ in exposure or white balance. Held-out views are drawn as the mean camera sees
                them, and also measured after an affine fit of their colours ("psnr_color_corrected").
            lpips: network of the LPIPS metric; "none" leaves it out.
            lpips_weights: folder with the network's weights; by default torch's own cache.
            validation_lpips: measure LPIPS in validation, too, and not only in the test: the network takes
                longer than drawing does.
            seed: every iteration's random draws are a function of this and the iteration's number.
        """
        densification = AdaptiveDensityControl() if densification is None else densification
        options = plain_arguments(FlexGSModule, locals())
        super().__init__()
        self.options = options
        steps = reconstruction_steps + elastic_training.steps + compression_training.steps
        check_options(reconstruction_steps, steps, sh_degree, sh_degree_interval, ssim_weight)
        check_appearance(appearance, sh_degree)
        self.automatic_optimization = False
        self.reconstruction_steps = reconstruction_steps
        self.sh_degree = sh_degree
        self.sh_degree_interval = sh_degree_interval
        self.background = background
        self.antialiased = antialiased
        self.ssim_weight = ssim_weight
        self.learning_rates = learning_rates
        self.densification = densification
        self.clearance = clearance
        self.initialization = initialization
        self.motion = motion
        self.appearance = appearance
        self.seed = seed
        self.learns_camera_colors = camera_colors
        self.camera_colors: CameraColors | None = None
        self.image_metrics = ImageMetrics(
            lpips=lpips, lpips_weights=lpips_weights, correct_colors=camera_colors
        )
        self.validation_lpips = validation_lpips
        self.elastic_options = elastic
        self.elastic_training = elastic_training
        self.compression = compression
        self.compression_training = compression_training
        self.temperature = 1.0
        self.scene = Scene(Gaussians.empty(sh_degree))
        self.start: Splats | None = None
        self.extent = 1.0
        self.clear_space: ClearSpace | None = None
        self._densification_state: dict[str, Any] | None = None
        self._moments: list[dict[str, Any]] | None = None
        self._started_trained = False
        self._loaded_iteration = 0
        self._finite = FiniteWatch()
        self.progress: dict[str, float] = {}
        """What a progress bar may show of the iteration that was logged last."""

    @property
    def gaussians(self) -> Gaussians:
        """The Gaussians; this process's own if several hold them."""
        return self.scene.gaussians

    def first_parts(self) -> dict[str, Part]:
        """Parts of a new scene, from the first stage on; subclasses may add theirs."""
        return first_parts(self.motion, self.appearance)

    @property
    def shards(self) -> Shards:
        """Who holds the Gaussians."""
        return shards_of(self.trainer.strategy)

    @property
    def renderer(self) -> Renderer:
        """What draws the Gaussians, together with the other processes if several hold them."""
        return renderer_of(self.shards)

    @property
    def total_steps(self) -> int:
        """Iterations of all stages together."""
        stages = (self.elastic_training, self.compression_training)
        return self.reconstruction_steps + sum(stage.steps for stage in stages)

    @property
    def elastic_step(self) -> int | None:
        """Iterations of the second stage completed; None in other stages."""
        step = self.iteration - self.reconstruction_steps
        in_stage = step >= 0 and self.elastic_training.steps > 0 and self.compression_step is None
        return step if in_stage else None

    @property
    def compression_step(self) -> int | None:
        """Iterations of the third stage completed; None in other stages."""
        step = self.iteration - self.reconstruction_steps - self.elastic_training.steps
        return step if step >= 0 and self.compression_training.steps > 0 else None

    @property
    def _is_past_first(self) -> bool:
        """Whether the scene has what a later stage adds."""
        return self.scene.elastic or is_compressing(self.scene)

    @property
    def iteration(self) -> int:
        """Training steps completed, over resumes."""
        return self.trainer.global_step

    @property
    def iterations_trained(self) -> int:
        """As ``iteration``, also where a checkpoint is only evaluated."""
        return max(self.iteration, self._loaded_iteration)

    @property
    def capture(self) -> Capture:
        """The capture being trained or evaluated on."""
        return self.trainer.datamodule.capture  # type: ignore[attr-defined]

    # -- setting up ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Give the trainer what this training needs; see ``training.trainer.set_up``."""
        from flexgs_lightning.training.trainer import set_up  # it knows the callbacks, and these know us

        return set_up(self.trainer, self.total_steps)

    def setup(self, stage: str) -> None:
        """Place the initial Gaussians; a checkpoint replaces them right afterwards."""
        check_strategy(self.trainer.strategy, self.trainer.world_size)
        self.extent = self.capture.extent
        self.clear_space = clear_space(self.capture, self.clearance) if stage == "fit" else None
        if self.learns_camera_colors and stage == "fit" and self.camera_colors is None:
            self.camera_colors = CameraColors(self.capture).to(self.device)
        if stage == "fit" and len(self.gaussians) == 0:
            if self.reconstruction_steps == 0 and self.start is None:
                raise InputError("model.reconstruction_steps: 0 needs --start_from, a checkpoint or PLY.")
            seed_generators(self.seed)
            self._started_trained = self.start is not None
            if moving_parts(self.motion):
                check_times(self.capture)
            self.scene = initial_scene(
                self.capture, self.initialization, self.sh_degree, self.start, self.first_parts(), self.shards
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for each attribute, and one for what else the scene learns."""
        everything = self._new_optimizers()
        views = self.trainer.datamodule.batch_size * self.trainer.world_size  # type: ignore[attr-defined]
        scale_to_batch(everything, self.learning_rates.batch_rule, views)
        self._require_moments_of(everything)
        return everything

    def _new_optimizers(self) -> list[torch.optim.Optimizer]:
        decay = self.elastic_training.rate_decay if self.scene.elastic else 1.0
        colors = [] if self.camera_colors is None else [self.camera_colors.optimizer(decay)]
        if is_compressing(self.scene):
            options = (self.learning_rates, self.elastic_training, self.compression_training)
            return [*compression_optimizers(self.scene, *options, self.extent), *colors]
        optimizers = gaussian_optimizers(self.gaussians, self.learning_rates, self.extent, decay)
        added = elastic_optimizer(self.scene, self.elastic_training, self.extent)
        everything = [*optimizers.values(), *([] if added is None else [added]), *colors]
        if not self._is_past_first and self.reconstruction_steps > 0:
            self.densification.start(
                self.scene, everything, self.extent, self.reconstruction_steps, self.clear_space
            )
        return everything

    def _require_moments_of(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Lightning is about to load the states of a checkpoint into these, if training goes on from one."""
        from flexgs_lightning.training.resuming import check_moments

        states, self._moments = self._moments, None
        if states is not None:
            check_moments(self.trainer.ckpt_path, states, optimizers)

    def on_train_start(self) -> None:
        """Take up the densification statistics of a resumed run, now that there is something to fill."""
        if self._densification_state is not None:
            self.densification.load_state_dict(self._densification_state)
            self._densification_state = None

    # -- training --------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: ViewBatch, batch_idx: int) -> None:
        """Begin a stage, if no callback has: optimizers cannot change within a step."""
        if self.elastic_step is not None and not self.scene.elastic:
            self.begin_elastic_stage()
        if self.compression_step is not None and not is_compressing(self.scene):
            begin_compression(self)

    def on_train_end(self) -> None:
        """What the last iteration found has not been read yet."""
        self._finite.read(self.scene)

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
        set_rates(self._optimizers(), step, self.reconstruction_steps)
        background = self._training_background()
        everyone = everyone_at(self.scene, self.moments(batch))
        rendering = self.draw(everyone, batch, background, self.active_sh_degree)
        photos = batch.targets(background)
        image = self._taken(rendering.image, batch)
        loss = photometric_loss(image, photos, self.ssim_weight)
        penalty = self.densification.regularization()
        total = loss if penalty is None else loss + penalty
        self._finite.look(self.scene, total.detach(), step)

        self.densification.before_backward(step, rendering)
        self._backward(total)
        self._step()
        report = self.densification.after_step(step, rendering)
        if report is not None:
            self.log_dict({f"densification/{name}": float(count) for name, count in report.counts().items()})
        if self.is_time_to_log:
            parts: Parts = {} if penalty is None else {"regularization": penalty.detach()}
            self._log_progress(loss.detach(), parts, image, photos)

    def _train_elastic(self, batch: ViewBatch) -> None:
        """Render the full model and subsets, compare each, descend; in the third stage count bits, too."""
        background = self._training_background()
        photos = batch.targets(background)
        reference = SSIMReference.of(photos)
        images: list[Tensor] = []

        def photometric(splats: Drawn) -> Tensor:
            drawn = self._taken(self.draw(splats, batch, background).image, batch)
            images.append(drawn.detach())  # without its graph, which ends with its own backward pass
            return photometric_loss(drawn, reference, self.ssim_weight)

        how: dict[str, Any] = {
            "photometric": photometric, "backward": self._backward, "temperature": self.temperature,
        }  # fmt: skip
        if (step := self.compression_step) is not None:
            small = (self.compression, self.compression_training)
            set_rates(self._optimizers(), step, self.compression_training.steps)
            loss, parts = compress_step(self.scene, self.elastic_training, *small, step, **how)
        else:
            step = cast(int, self.elastic_step)
            set_rates(self._optimizers(), step, self.elastic_training.steps)
            loss, parts = descend(self.scene, self.elastic_training, step, moments=self.moments(batch), **how)
        self._finite.look(self.scene, loss, self.iteration)
        self._step()
        if self.is_time_to_log:
            self._log_progress(loss, parts, images[0], photos)  # the full model, if it was drawn

    # -- the second stage ------------------------------------------------------------------------------

    def begin_elastic_stage(self) -> Tensor:
        """Make the scene elastic, with fresh optimizers, and rank it; as ``refresh_importance``."""
        if self.reconstruction_steps > 0:
            self.densification.end()
        self.trainer.strategy.optimizers = []  # the moments go before new ones come
        seed_generators(self.seed)  # networks start alike, also where a run is resumed just here
        units = residual_units(self.learning_rates, self.extent, self.gaussians.attributes)
        too_close = clear(self.scene, self.clear_space, self.iteration)
        if self.logger is not None:  # self.log would drop a value of an iteration that is not one to log
            self.logger.log_metrics({"densification/too_close": too_close}, self.iteration)
        self.scene = make_elastic(self.scene, self.capture, self.elastic_options, units).to(self.device)
        share_from_first(replicated(self.scene, self.shards).values())
        self.trainer.strategy.optimizers = self.configure_optimizers()
        return self.refresh_importance()

    def refresh_importance(self) -> Tensor:
        """Rank the Gaussians by their importance over all training views; returns it, [N], in rank order.

        With "ordered" selection they are stored in that order, together with their optimizers' moments.
        """
        options = self.elastic_training
        order, importance = rank_gaussians(
            self.scene,
            [view.camera for view in self.capture.train_views],
            options.importance,
            lowest_ratio=options.lowest_ratio,
            background=self.evaluation_background,
            antialiased=self.antialiased,
            times=times_of(self.scene, self.capture.train_views),
        )
        if self.scene.selection.takes_over(order):
            Surgery(self.scene, self._optimizers()).permute(order)
        return importance

    def render(self, batch: ViewBatch, background: Tensor, ratio: float = 1.0) -> Rendering:
        """Draw the scene through the batch's cameras, each at its view's time."""
        return self.draw(seen_at(self.scene, ratio, self.moments(batch)), batch, background)

    def moments(self, batch: ViewBatch) -> Moments:
        """When cameras that draw together see a scene that moves; for all processes that hold it to ask."""
        return moments_of(self.scene, batch.times)

    def draw(
        self, splats: Drawn, batch: ViewBatch, background: Tensor, sh_degree: int | None = None
    ) -> Rendering:
        """Draw some of the scene; if several processes hold it, all must, each its own and its own batch."""
        return self.renderer(
            splats,
            batch.cameras,
            background=background,
            sh_degree=sh_degree,
            antialiased=self.antialiased,
            shader=shader_of(self.scene),
        )

    def _taken(self, image: Tensor, batch: ViewBatch) -> Tensor:
        """What the batch's cameras make of what is drawn, [C, H, W, 3]."""
        return image if self.camera_colors is None else self.camera_colors(image, batch.indices)

    @property
    def active_sh_degree(self) -> int:
        """Degree in use: raised step by step in a new scene, all of it in a trained one."""
        if self.scene.elastic or self._started_trained:
            return self.gaussians.sh_degree
        return min(self.iteration // self.sh_degree_interval, self.sh_degree)

    @property
    def evaluation_background(self) -> Tensor:
        """[3] colour behind the scene in validation, test and deployment."""
        return torch.full((3,), BACKGROUNDS[self.background], device=self.device)

    def _training_background(self) -> Tensor:
        if self.background == "random":
            return torch.rand(3, device=self.device)
        return self.evaluation_background

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return cast(list[torch.optim.Optimizer], self.optimizers(use_pl_optimizer=False))

    @property
    def is_time_to_log(self) -> bool:
        """Whether this number of iterations is one to log; 0 of ``log_every_n_steps`` logs nothing."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and self.iteration % every == 0

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
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
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
        from flexgs_lightning.training.resuming import training_options  # of the callbacks, too

        check_savable(self.scene, self.iteration)
        checkpoint[CHECKPOINT_KEY] = {
            "version": CHECKPOINT_VERSION,
            "sh_degree": self.active_sh_degree,
            "started_trained": self._started_trained,
            "antialiased": self.antialiased,
            "background": self.evaluation_background.tolist(),
            "data": self.trainer.datamodule.options(),  # type: ignore[attr-defined]
            "seconds": self.capture.seconds,
            "seed": self.seed,
            "options": training_options(self),
            "densification": None if self._is_past_first else self.densification.state_dict(),
            "scene": self.scene.as_plain(),
            "rows": [SCENE + name for name in self.scene.row_names()],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what ``on_save_checkpoint`` added, if training can go on with the options given."""
        from flexgs_lightning.training.resuming import check_resume

        check_resume(self, checkpoint)
        facts = checkpoint[CHECKPOINT_KEY]
        self.seed = facts["seed"]
        self._started_trained = facts["started_trained"]
        if self.camera_colors is None:  # the scene is as the mean camera sees it
            for name in [name for name in checkpoint["state_dict"] if name.startswith(STATE)]:
                del checkpoint["state_dict"][name]
        state = scene_state(checkpoint["state_dict"])
        if not self.shards.several:
            require_fitting(self.trainer.ckpt_path or "checkpoint", state, facts["scene"])
        self.scene = Scene.from_state(state, facts["scene"], self.shards, facts.get("total"))
        self._loaded_iteration = checkpoint["global_step"]
        self._densification_state = facts["densification"]
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._moments = checkpoint["optimizer_states"]
