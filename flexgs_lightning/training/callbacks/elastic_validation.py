"""ElasticValidation: all metrics at every ratio asked for."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.metrics import ImageMetrics
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.module import FlexGSModule

PAPER_AND_UNSEEN = (0.01, 0.02, 0.05, 0.1, 0.15, 0.3)


class ElasticValidation(Callback):
    """Measures an elastic scene at several ratios, trained or not, in validation and test.

    Curves are named ``val_psnr/5%`` and so on, so that TensorBoard groups a metric's ratios. The full model
    is measured by the module itself.

    Args:
        ratios: ratios in (0, 1].
    """

    def __init__(self, ratios: tuple[float, ...] = PAPER_AND_UNSEEN) -> None:
        for ratio in ratios:
            count_at(ratio, 10**9)  # refuses ratios outside (0, 1]
        self.ratios = ratios
        self.results: dict[float, dict[str, float]] = {}
        self._splats: dict[float, Splats] = {}
        self._metrics: dict[float, ImageMetrics] = {}

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Measure the batch at each ratio."""
        if not trainer.sanity_checking:
            self._measure(*args[:3])

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """As in validation."""
        self._measure(*args[:3])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the per-image means."""
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the per-image means; ``results`` keeps them for the report."""
        self._log(pl_module, "test")

    def _measure(self, module: LightningModule, outputs: dict[str, Tensor] | None, batch: ViewBatch) -> None:
        assert isinstance(module, FlexGSModule)
        if outputs is None:
            return
        if module.elastic is None:
            return
        for ratio in self._drawable(module):
            if ratio not in self._splats:
                self._splats[ratio] = module.elastic.at(ratio).detach()
            render = rasterize(
                self._splats[ratio],
                batch.cameras,
                background=module.evaluation_background,
                antialiased=module.antialiased,
            ).image
            self._metrics_at(ratio, module).update(render, outputs["photo"])

    def _log(self, module: LightningModule, split: str) -> None:
        """Every process has all ratios, also one without a held-out view: the others would wait for it."""
        assert isinstance(module, FlexGSModule)
        self.results = {}
        for ratio in self._drawable(module):
            metrics = self._metrics_at(ratio, module)
            means = {name: value.item() for name, value in metrics.compute().items()}
            metrics.reset()
            self.results[ratio] = {"gaussians": count_at(ratio, len(module.gaussians)), **means}
            module.log_dict({f"{split}_{name}/{100 * ratio:g}%": value for name, value in means.items()})
        self._splats = {}

    def _drawable(self, module: FlexGSModule) -> list[float]:
        """Ratios that hold at least one Gaussian of this scene."""
        if module.elastic is None:
            return []
        return [ratio for ratio in self.ratios if ratio * len(module.elastic) >= 1]

    def _metrics_at(self, ratio: float, module: FlexGSModule) -> ImageMetrics:
        if ratio not in self._metrics:
            self._metrics[ratio] = module.image_metrics.like().to(module.device)
        return self._metrics[ratio]
