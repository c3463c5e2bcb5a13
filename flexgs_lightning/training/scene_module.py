"""SceneModule: a scene, how it is trained and drawn, and where its training stands."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor

from flexgs_lightning.data.capture import Capture, ViewBatch
from flexgs_lightning.metrics.protocol import ImageMetrics
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.elastic import ElasticOptions
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import Appearance, MotionOptions, first_parts
from flexgs_lightning.model.part import Part
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.processes import Shards
from flexgs_lightning.rendering.sharded import renderer_of
from flexgs_lightning.rendering.types import IMAGE, Drawn, Outputs, Renderer, Rendering
from flexgs_lightning.training.camera_colors import CameraColors
from flexgs_lightning.training.checks import FiniteWatch, check_appearance, check_options
from flexgs_lightning.training.clearance import CameraClearance, ClearSpace
from flexgs_lightning.training.compression import Compression, CompressionTraining
from flexgs_lightning.training.compression.parts import is_compressing
from flexgs_lightning.training.densification import AdaptiveDensityControl, Densification
from flexgs_lightning.training.elastic import ElasticTraining
from flexgs_lightning.training.guided_sampling import GuidedSampling
from flexgs_lightning.training.initialization import Initialization
from flexgs_lightning.training.moments import Moments, moments_of, seen_at, shader_of
from flexgs_lightning.training.optimization import LearningRates, seed_generators
from flexgs_lightning.training.options import plain_arguments
from flexgs_lightning.training.parallel import replicated, share_from_first
from flexgs_lightning.training.sharding import shards_of
from flexgs_lightning.training.stages import Stages

BACKGROUNDS = {"black": 0.0, "white": 1.0, "random": 0.0}


@dataclass
class Loaded:
    """What a checkpoint holds beside the scene, kept until there is something to fill with it.

    Attributes:
        iteration: training steps completed.
        densification: see ``Densification.state_dict``; None after the first stage.
        moments: states of the optimizers, where training goes on.
    """

    iteration: int = 0
    densification: dict[str, Any] | None = None
    moments: list[dict[str, Any]] | None = None


class SceneModule(lightning.LightningModule):
    """What callbacks and stages know of a training; ``FlexGSModule`` adds what Lightning calls when.

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
        guided_sampling: GuidedSampling = GuidedSampling(),  # noqa: B008  (frozen)
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
            guided_sampling: how Gaussians are added where no other leads to; by default none are.
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
        options = plain_arguments(SceneModule, locals())
        super().__init__()
        self.options = options
        self.stages = Stages(reconstruction_steps, elastic_training.steps, compression_training.steps)
        check_options(self.stages, sh_degree, sh_degree_interval, ssim_weight)
        check_appearance(appearance, sh_degree)
        self.automatic_optimization = False
        self.sh_degree = sh_degree
        self.sh_degree_interval = sh_degree_interval
        self.background = background
        self.antialiased = antialiased
        self.ssim_weight = ssim_weight
        self.learning_rates = learning_rates
        self.densification = densification
        guided_sampling.check_motion(motion)
        self.guided_sampling = guided_sampling
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
        self.start: Model | None = None
        """A trained scene to start from, instead of points; to be set before ``fit``."""
        self.started_trained = False
        self.extent = 1.0
        self.clear_space: ClearSpace | None = None
        self.loaded = Loaded()
        self.finite_watch = FiniteWatch()
        self.progress: dict[str, float] = {}
        """What a progress bar may show of the iteration that was logged last."""

    # -- the scene -------------------------------------------------------------------------------------

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
    def capture(self) -> Capture:
        """The capture being trained or evaluated on."""
        return self.trainer.datamodule.capture  # type: ignore[attr-defined]

    # -- where training stands -------------------------------------------------------------------------

    @property
    def iteration(self) -> int:
        """Training steps completed, over resumes."""
        return self.trainer.global_step

    @property
    def iterations_trained(self) -> int:
        """As ``iteration``, also where a checkpoint is only evaluated."""
        return max(self.iteration, self.loaded.iteration)

    @property
    def elastic_step(self) -> int | None:
        """Iterations of the second stage completed; None in other stages."""
        return self.stages.elastic_step(self.iteration)

    @property
    def compression_step(self) -> int | None:
        """Iterations of the third stage completed; None in other stages."""
        return self.stages.compression_step(self.iteration)

    @property
    def densifies(self) -> bool:
        """Whether the scene is in a first stage, and has nothing yet of what a later one adds."""
        return self.stages.reconstruction > 0 and not self.scene.elastic and not is_compressing(self.scene)

    @property
    def is_time_to_log(self) -> bool:
        """Whether this number of iterations is one to log; 0 of ``log_every_n_steps`` logs nothing."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and self.iteration % every == 0

    def plain_optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers themselves, without Lightning's wrapping."""
        return cast(list[torch.optim.Optimizer], self.optimizers(use_pl_optimizer=False))

    @contextlib.contextmanager
    def new_stage(self) -> Iterator[None]:
        """Around what a later stage adds to the scene: alike in all processes, and with fresh optimizers."""
        self.trainer.strategy.optimizers = []  # the moments go before new ones come
        if self.densifies:
            self.densification.end()
        seed_generators(self.seed)  # networks start alike, also where a run is resumed just here
        yield
        share_from_first(replicated(self.scene, self.shards).values())
        self.trainer.strategy.optimizers = cast(list[torch.optim.Optimizer], self.configure_optimizers())

    # -- drawing ---------------------------------------------------------------------------------------

    @property
    def renderer(self) -> Renderer:
        """What draws the Gaussians, together with the other processes if several hold them."""
        return renderer_of(self.shards)

    def render(self, batch: ViewBatch, background: Tensor, ratio: float = 1.0) -> Rendering:
        """Draw the scene through the batch's cameras, each at its view's time."""
        return self.draw(seen_at(self.scene, ratio, self.moments(batch)), batch, background)

    def moments(self, batch: ViewBatch) -> Moments:
        """When cameras that draw together see a scene that moves; for all processes that hold it to ask."""
        return moments_of(self.scene, batch.times)

    def draw(
        self,
        splats: Drawn,
        batch: ViewBatch,
        background: Tensor,
        sh_degree: int | None = None,
        outputs: Outputs = IMAGE,
    ) -> Rendering:
        """Draw some of the scene; if several processes hold it, all must, each its own and its own batch."""
        return self.renderer(
            splats,
            batch.cameras,
            background=background,
            sh_degree=sh_degree,
            antialiased=self.antialiased,
            outputs=outputs,
            shader=shader_of(self.scene, batch.times),
        )

    def taken(self, image: Tensor, batch: ViewBatch) -> Tensor:
        """What the batch's cameras make of what is drawn, [C, H, W, 3]."""
        return image if self.camera_colors is None else self.camera_colors(image, batch.indices)

    @property
    def active_sh_degree(self) -> int:
        """Degree in use: raised step by step in a new scene, all of it in a trained one."""
        if self.scene.elastic or self.started_trained:
            return self.gaussians.sh_degree
        return min(self.iteration // self.sh_degree_interval, self.sh_degree)

    @property
    def evaluation_background(self) -> Tensor:
        """[3] colour behind the scene in validation, test and deployment."""
        return torch.full((3,), BACKGROUNDS[self.background], device=self.device)

    def training_background(self) -> Tensor:
        """[3] colour behind the scene in an iteration, which may be drawn at random."""
        if self.background == "random":
            return torch.rand(3, device=self.device)
        return self.evaluation_background
