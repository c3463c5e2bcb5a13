"""RateDistortion: what the scene would take at each ratio, beside how well it draws there."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from flexgs_lightning.training.callbacks.elastic_validation import ElasticValidation
from flexgs_lightning.training.compression.bits import bits_at
from flexgs_lightning.training.scene_module import SceneModule


class RateDistortion(Callback):
    """Logs kilobytes at each validated ratio of a scene that is trained for bytes.

    TensorBoard gets curves ``val_kilobytes/5%`` and so on, and a picture of PSNR over kilobytes. Bytes are
    those of the entropy models; places of new Gaussians are not among them (about 2 bytes each in a file).
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count bits where ``ElasticValidation`` has measured, and at full size."""
        assert isinstance(pl_module, SceneModule)
        logger = trainer.logger
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(logger, TensorBoardLogger):
            return
        measured = {1.0: float(trainer.callback_metrics.get("val/psnr", float("nan")))}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ElasticValidation):
                measured |= {ratio: found["psnr"] for ratio, found in callback.results.items()}
        kilobytes = {ratio: sum(bits_at(pl_module.scene, ratio).values()) / 8000 for ratio in measured}
        if not any(kilobytes.values()):
            return
        step = pl_module.iterations_trained
        for ratio, size in kilobytes.items():
            logger.experiment.add_scalar(f"val_kilobytes/{100 * ratio:g}%", size, step)
        ratios = sorted(measured)
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.add_subplot(
            xscale="log", xlabel="kilobytes", ylabel="PSNR (dB)", title=f"{step:,} iterations"
        )
        axes.plot([kilobytes[ratio] for ratio in ratios], [measured[ratio] for ratio in ratios], "o-")
        for ratio in ratios:
            axes.annotate(f"{100 * ratio:g} %", (kilobytes[ratio], measured[ratio]))
        logger.experiment.add_figure("rate_distortion", figure, step)
