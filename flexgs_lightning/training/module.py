"""FlexGSModule: the LightningModule that trains a scene."""

from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from jsonargparse import lazy_instance
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from flexgs_lightning.data.capture import Capture, ViewBatch
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics import ImageMetrics
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, CHECKPOINT_VERSION
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.rendering.rasterizer import Rendering, rasterize
from flexgs_lightning.training.densification import AdaptiveDensityControl, Densification
from flexgs_lightning.training.losses import photometric_loss
from flexgs_lightning.training.optimization import LearningRates, exponential_decay, gaussian_optimizers

FINITE_CHECK_INTERVAL = 100
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
        densification: Densification = lazy_instance(AdaptiveDensityControl),  # noqa: B008
        initial_opacity: float = 0.1,
        random_gaussians: int = 100_000,
        lpips: Literal["vgg", "alex", "squeeze", "none"] = "vgg",
        lpips_weights: Path | None = None,
        seed: int = 42,
    ) -> None:
        """Describe the training.

        Args:
            reconstruction_steps: iterations of plain 3DGS.
            sh_degree: highest degree of the spherical harmonics, 0 to 3.
            sh_degree_interval: iterations between two raises of the degree, which starts at 0.
            background: colour behind the scene and behind photos with alpha; "random" draws one for each
                iteration and evaluates on black.
            antialiased: keep each Gaussian's total weight under the rasterizer's low-pass filter.
            ssim_weight: share w of the loss (1 - w) L1 + w (1 - SSIM).
            learning_rates: Adam's learning rate for each attribute.
            densification: how Gaussians are added and removed.
            initial_opacity: opacity of a new scene's Gaussians.
            random_gaussians: number of Gaussians to start with if the capture has no SfM points.
            lpips: network of the LPIPS metric; "none" leaves it out.
            lpips_weights: folder with the network's weights; by default torch's own cache.
            seed: every iteration's random draws are a function of this and the iteration's number.
        """
        super().__init__()
        _check_options(reconstruction_steps, sh_degree, sh_degree_interval, ssim_weight)
        self.automatic_optimization = False
        self.reconstruction_steps = reconstruction_steps
        self.sh_degree = sh_degree
        self.sh_degree_interval = sh_degree_interval
        self.background = background
        self.antialiased = antialiased
        self.ssim_weight = ssim_weight
        self.learning_rates = learning_rates
        self.densification = densification
        self.initial_opacity = initial_opacity
        self.random_gaussians = random_gaussians
        self.seed = seed
        self.image_metrics = ImageMetrics(lpips=lpips, lpips_weights=lpips_weights)
        self.gaussians = Gaussians.empty(sh_degree)
        self.extent = 1.0
        self._densification_state: dict[str, Any] | None = None
        self._loaded_iteration = 0

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

    def setup(self, stage: str) -> None:
        """Place the initial Gaussians; a checkpoint replaces them right afterwards."""
        if self.trainer.world_size > 1:
            raise InputError(
                f"trainer.devices: training runs on one device, found {self.trainer.world_size} processes."
            )
        self.extent = self.capture.extent
        if stage == "fit" and len(self.gaussians) == 0:
            self.gaussians = self._initial_gaussians()

    def _initial_gaussians(self) -> Gaussians:
        torch.manual_seed(self.seed)
        points = self.capture.points
        if len(points):
            return Gaussians.from_points(
                points.positions, points.colors, sh_degree=self.sh_degree, opacity=self.initial_opacity
            )
        positions = torch.cat([view.camera.positions for view in self.capture.views])
        return Gaussians.random(
            positions,
            self.extent,
            count=self.random_gaussians,
            sh_degree=self.sh_degree,
            opacity=self.initial_opacity,
        )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for each attribute; densification resizes their states."""
        optimizers = gaussian_optimizers(self.gaussians, self.learning_rates, self.extent)
        self.densification.start(
            self.gaussians, optimizers, scene_extent=self.extent, total_steps=self.reconstruction_steps
        )
        return list(optimizers.values())

    def on_train_start(self) -> None:
        """Take up the densification statistics of a resumed run, now that there is something to fill."""
        if self._densification_state is not None:
            self.densification.load_state_dict(self._densification_state)
            self._densification_state = None

    # -- training --------------------------------------------------------------------------------------

    def training_step(self, batch: ViewBatch, batch_idx: int) -> None:
        """One iteration: render, compare, descend, densify."""
        step = self.iteration
        torch.manual_seed(self.seed * 1_000_003 + step)
        self._set_position_rate(step)
        background = self._training_background()
        rendering = self.render(batch, background, self.sh_degree_at(step))
        photos = batch.targets(background)
        loss = photometric_loss(rendering.image, photos, self.ssim_weight)
        penalty = self.densification.regularization()
        total = loss if penalty is None else loss + penalty
        self._check_finite(total, step)

        self.densification.before_backward(step, rendering)
        self.manual_backward(total)
        self._step_optimizers()
        report = self.densification.after_step(step, rendering)
        if report is not None:
            self.log_dict({f"densification/{name}": float(count) for name, count in report.counts().items()})
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_progress(loss, penalty, rendering, photos)

    def render(self, batch: ViewBatch, background: Tensor, sh_degree: int | None = None) -> Rendering:
        """Draw the scene through the batch's cameras."""
        return rasterize(
            self.gaussians.splats(),
            batch.cameras,
            background=background,
            sh_degree=sh_degree,
            antialiased=self.antialiased,
        )

    def sh_degree_at(self, step: int) -> int:
        """Degree in use at an iteration."""
        return min(step // self.sh_degree_interval, self.sh_degree)

    @property
    def evaluation_background(self) -> Tensor:
        """[3] colour behind the scene in validation, test and deployment."""
        return torch.full((3,), BACKGROUNDS[self.background], device=self.device)

    def _training_background(self) -> Tensor:
        if self.background == "random":
            return torch.rand(3).to(self.device)
        return self.evaluation_background

    def _set_position_rate(self, step: int) -> None:
        rates = self.learning_rates
        rate = exponential_decay(rates.means, rates.means_final, step, self.reconstruction_steps)
        self._optimizers()["means"].param_groups[0]["lr"] = rate * self.extent

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizers, list)
        return {optimizer.param_groups[0]["name"]: optimizer for optimizer in optimizers}

    def _step_optimizers(self) -> None:
        """Step every optimizer, but only the first through Lightning.

        Lightning's ``global_step`` counts each step of a ``LightningOptimizer``; here it has to count
        iterations, because schedules, logs and checkpoints all read it.
        """
        counted, *others = cast(list[LightningOptimizer], self.optimizers())
        for optimizer in others:
            optimizer.optimizer.step()
        counted.step()
        for optimizer in [counted, *others]:
            optimizer.zero_grad(set_to_none=True)

    def _check_finite(self, loss: Tensor, step: int) -> None:
        """Stop before a broken step spreads: parameters are searched when the loss breaks, and regularly.

        The rasterizer culls Gaussians with NaN silently, so the loss alone does not show them.
        """
        broken_loss = not torch.isfinite(loss)
        if not broken_loss and step % FINITE_CHECK_INTERVAL:
            return
        name = self.gaussians.first_non_finite()
        if not broken_loss and name is None:
            return
        where = f"attribute '{name}' holds NaN or infinity" if name else "all attributes are finite"
        raise InputError(
            f"Training stopped at step {step}: loss {loss.item():.4g}, {where}. The last good checkpoint is "
            "kept; lower the learning rate of that attribute, or look for broken photos."
        )

    def _log_progress(
        self, loss: Tensor, penalty: Tensor | None, rendering: Rendering, photos: Tensor
    ) -> None:
        mse = (rendering.image.detach().clamp(0, 1) - photos).square().mean()
        values: dict[str, Tensor | float] = {
            "loss": loss.detach(),
            "psnr": -10.0 * mse.clamp_min(1e-10).log10(),
        }
        self.log_dict({f"train/{name}": value for name, value in values.items()}, prog_bar=False)
        self.log_dict({**values, "gaussians": float(len(self.gaussians))}, prog_bar=True, logger=False)
        self.log("train/gaussians", float(len(self.gaussians)))
        if penalty is not None:
            self.log("train/regularization", penalty.detach())
        for name, optimizer in self._optimizers().items():
            self.log(f"learning_rate/{name}", optimizer.param_groups[0]["lr"])

    # -- validation and test ---------------------------------------------------------------------------

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        """Render and measure held-out views; returns images for callbacks."""
        return self._evaluate(batch)

    def test_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        """As validation."""
        return self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the per-image means."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the per-image means."""
        self._log_metrics("test")

    def _evaluate(self, batch: ViewBatch) -> dict[str, Tensor]:
        background = self.evaluation_background
        render = self.render(batch, background).image.clamp(0, 1)
        photo = batch.targets(background)
        return {"render": render, "photo": photo, **self.image_metrics.update(render, photo)}

    def _log_metrics(self, split: str) -> None:
        means = self.image_metrics.compute()
        self.image_metrics.reset()
        self.log_dict({f"{split}/{name}": value for name, value in means.items()}, prog_bar=split == "test")

    # -- checkpoints -----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of; refuse to save a broken scene over a good one."""
        name = self.gaussians.first_non_finite()
        if name is not None:
            raise InputError(
                f"No checkpoint written at step {self.iteration}: '{name}' holds NaN or infinity."
            )
        checkpoint[CHECKPOINT_KEY] = {
            "version": CHECKPOINT_VERSION,
            "sh_degree": self.sh_degree_at(self.iteration),
            "antialiased": self.antialiased,
            "background": self.evaluation_background.tolist(),
            "data": self.trainer.datamodule.options(),  # type: ignore[attr-defined]
            "seed": self.seed,
            "densification": self.densification.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what ``on_save_checkpoint`` added."""
        facts = checkpoint[CHECKPOINT_KEY]
        self.seed = facts["seed"]
        self._loaded_iteration = checkpoint["global_step"]
        self._densification_state = facts["densification"]


def _check_options(steps: int, sh_degree: int, sh_interval: int, ssim_weight: float) -> None:
    """Refuse impossible options before anything expensive starts."""
    if steps < 1:
        raise InputError(f"model.reconstruction_steps: expected at least 1, found {steps}.")
    if not 0 <= sh_degree <= 3:
        raise InputError(f"model.sh_degree: expected 0 to 3, found {sh_degree}.")
    if sh_interval < 1:
        raise InputError(f"model.sh_degree_interval: expected at least 1, found {sh_interval}.")
    if not 0 <= ssim_weight <= 1:
        raise InputError(f"model.ssim_weight: expected 0 to 1, found {ssim_weight}.")
