"""ElasticValidation: all metrics at every ratio asked for."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.errors import InputError
from flexgs_lightning.images import side_by_side
from flexgs_lightning.metrics.protocol import ImageMetrics, worst_view
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.processes import gather
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.callbacks.validation_images import evenly_spread
from flexgs_lightning.training.scene_module import SceneModule

PAPER_AND_UNSEEN = (0.01, 0.02, 0.05, 0.1, 0.15, 0.3)
PANEL_WIDTH = 320
"""Pixels of a picture in a strip: every validation writes one strip for each ratio."""


class ElasticValidation(Callback):
    """Measures an elastic scene at several ratios, trained or not, in validation and test.

    Curves are named ``val_psnr/5%`` and so on, so that TensorBoard groups a metric's ratios. The full model
    is measured by the module itself. In validation each ratio also gets a strip of pictures: render, photo
    and error of some held-out views.

    Args:
        ratios: ratios in (0, 1].
        views: number of views in each strip, spread evenly over the held-out ones.
    """

    def __init__(self, ratios: tuple[float, ...] = PAPER_AND_UNSEEN, views: int = 2) -> None:
        if not all(0 < ratio <= 1 for ratio in ratios) or len(set(ratios)) < len(ratios):
            raise InputError(
                f"elastic_validation.ratios: expected different numbers in (0, 1], found {list(ratios)}."
            )
        if views < 0:
            raise InputError(f"elastic_validation.views: expected 0 or more, found {views}.")
        self.ratios = ratios
        self.views = views
        self.results: dict[float, dict[str, Any]] = {}
        self._splats: dict[float, Splats] = {}
        self._metrics: dict[float, ImageMetrics] = {}
        self._images: dict[float, list[dict[str, Any]]] = {}
        self._panels: dict[float, dict[int, UInt8[np.ndarray, "H W 3"]]] = {}

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Measure the batch at each ratio."""
        if not trainer.sanity_checking:
            self._measure(*args[:3])

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """As in validation."""
        self._measure(*args[:3])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the per-image means and the strips."""
        self._log(pl_module, "val")
        self._log_strips(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the per-image means; ``results`` keeps them for the report."""
        self._log(pl_module, "test")

    def _measure(self, module: LightningModule, outputs: dict[str, Any] | None, batch: ViewBatch) -> None:
        assert isinstance(module, SceneModule)
        if not module.scene.elastic or (outputs is None and not module.shards.several):
            return
        for ratio in self._drawable(module):
            render = self._rendered(module, ratio, batch)
            if outputs is None:  # drawn for the other processes' sake
                continue
            values = self._metrics_at(ratio, module).update(render, outputs["photo"])
            named = zip(batch.names, values["psnr"].tolist(), strict=True)
            self._images.setdefault(ratio, []).extend({"name": name, "psnr": psnr} for name, psnr in named)
            if module.trainer.validating:
                self._keep_panels(ratio, render, outputs["photo"].image, batch.indices.tolist(), module)

    def _rendered(self, module: SceneModule, ratio: float, batch: ViewBatch) -> Float[Tensor, "C H W 3"]:
        if module.scene.moves:
            return module.render(batch, module.evaluation_background, ratio).image
        if ratio not in self._splats:
            self._splats[ratio] = module.scene.at(ratio).detach()
        return module.draw(self._splats[ratio], batch, module.evaluation_background).image

    def _log(self, module: LightningModule, split: str) -> None:
        """Every process has all ratios, also one without a held-out view: the others would wait for it."""
        assert isinstance(module, SceneModule)
        self.results, of_processes = {}, gather(self._images)
        total = len(module.scene)
        for ratio in self._drawable(module):
            metrics = self._metrics_at(ratio, module)
            means = {name: value.item() for name, value in metrics.compute().items()}
            metrics.reset()
            worst = worst_view(image for images in of_processes for image in images.get(ratio, ()))
            self.results[ratio] = {"gaussians": count_at(ratio, total), **means, "worst": worst}
            module.log_dict({f"{split}_{name}/{100 * ratio:g}%": value for name, value in means.items()})
        self._splats, self._images = {}, {}

    def _keep_panels(
        self,
        ratio: float,
        renders: Float[Tensor, "C H W 3"],
        photos: Float[Tensor, "C H W 3"],
        indices: list[int],
        module: SceneModule,
    ) -> None:
        chosen = evenly_spread(self.views, len(module.capture.test_views))
        for render, photo, index in zip(renders, photos, indices, strict=True):
            if index in chosen:
                panel = side_by_side(_reduced(render), _reduced(photo))
                self._panels.setdefault(ratio, {})[index] = panel

    def _log_strips(self, trainer: Trainer, module: LightningModule) -> None:
        """One picture for each ratio, of the views of all processes from top to bottom."""
        assert isinstance(module, SceneModule)
        panels: dict[float, dict[int, UInt8[np.ndarray, "H W 3"]]] = {}
        for of_process in gather(self._panels):
            for ratio, by_view in of_process.items():
                panels.setdefault(ratio, {}).update(by_view)
        self._panels = {}
        if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
            return
        for ratio, by_view in panels.items():
            narrowest = min(panel.shape[1] for panel in by_view.values())
            strip = [by_view[index] for index in sorted(by_view) if by_view[index].shape[1] == narrowest]
            trainer.logger.experiment.add_image(
                f"val_ratio/{100 * ratio:g}%",
                np.concatenate(strip),
                global_step=module.iterations_trained,
                dataformats="HWC",
            )

    def _drawable(self, module: SceneModule) -> list[float]:
        """Ratios that hold at least one Gaussian of this scene."""
        if not module.scene.elastic:
            return []
        return [ratio for ratio in self.ratios if ratio * len(module.scene) >= 1]

    def _metrics_at(self, ratio: float, module: SceneModule) -> ImageMetrics:
        if ratio not in self._metrics:
            self._metrics[ratio] = module.image_metrics.like().to(module.device)
        return self._metrics[ratio]


def _reduced(image: Float[Tensor, "H W 3"]) -> Float[Tensor, "h w 3"]:
    """At most ``PANEL_WIDTH`` pixels wide."""
    height, width = image.shape[:2]
    if width <= PANEL_WIDTH:
        return image
    size = (max(1, round(height * PANEL_WIDTH / width)), PANEL_WIDTH)
    return adaptive_avg_pool2d(image.permute(2, 0, 1), size).permute(1, 2, 0)
