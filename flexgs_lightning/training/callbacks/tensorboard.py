"""What TensorBoard shows beside curves and pictures: joint charts, hyper-parameters, and the protocol."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from flexgs_lightning.errors import InputError
from flexgs_lightning.settings import read_config
from flexgs_lightning.training.callbacks.test_report import measuring_protocol
from flexgs_lightning.training.scene_module import SceneModule

log = logging.getLogger(__name__)

CHARTS = {
    "Quality at each ratio": {
        title: ["Multiline", [f"^val_{name}/", f"^val/{name}$"]]
        for name, title in (("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("lpips", "LPIPS"))
    },
    "Training": {
        "Losses": ["Multiline", ["^train/(.*_)?loss$"]],
        "Ratio asked for and share selected": ["Multiline", ["^train/ratio$", "^train/selected$"]],
        "Bits a Gaussian": ["Multiline", ["^train/bits_"]],
        "Kilobytes at each ratio": ["Multiline", ["^val_kilobytes/"]],
        "Temperature": ["Multiline", ["^train/temperature$"]],
    },
}
"""Pages of charts with the regular expressions of their curves' names."""

SETTINGS = ("model", "data", "importance_refresh", "temperature", "seed_everything")
"""Parts of a run's configuration that are hyper-parameters."""
PLACES = {"data.root", "model.lpips_weights"}
"""Settings that say where files lie."""


class TensorBoardPages(Callback):
    """Fills TensorBoard's pages "Custom scalars", "HParams" and "Text".

    "Custom scalars" has one chart for each metric with a curve for each ratio. "HParams" lists runs by their
    settings and the metrics of their last test. "Text" states how the metrics are measured.
    """

    def __init__(self) -> None:
        self._protocol_stated = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the charts."""
        writer = _writer(trainer)
        if writer is not None:
            writer.add_custom_scalars(CHARTS)
        self._protocol_stated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """State the protocol, once: only when images were measured is it known whether LPIPS is."""
        if not trainer.sanity_checking and not self._protocol_stated:
            self._state_protocol(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """State the protocol, and enter the run among the others."""
        self._state_protocol(trainer, pl_module)
        writer = _writer(trainer)
        settings = hyper_parameters(Path(trainer.log_dir or trainer.default_root_dir))
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("test/", "test_"))
        }
        if writer is not None and settings and metrics:
            for summary in hparams(settings, metrics):
                writer._get_file_writer().add_summary(summary)

    def _state_protocol(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SceneModule)
        writer = _writer(trainer)
        if writer is not None:
            rows = (f"| {name} | {value} |" for name, value in measuring_protocol(module).items())
            writer.add_text("protocol", "\n".join(["| | |", "|---|---|", *rows]), module.iterations_trained)
            self._protocol_stated = True


def hyper_parameters(run: Path) -> dict[str, bool | int | float | str]:
    """Settings of a run by dotted name, from the configuration it was last started with; none without one."""
    configs = sorted(run.glob("config*.yaml"), key=lambda path: path.stat().st_mtime)
    if not configs:
        return {}
    try:
        settings = read_config(configs[-1])
    except InputError as error:  # somebody has changed it; the run has its settings all the same
        log.warning("%s", error)
        return {}
    chosen = {name: settings[name] for name in SETTINGS if name in settings}
    return {name: value for name, value in _flat(chosen).items() if name not in PLACES}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Leaves by dotted name; lists as text, and nothing where there is no value."""
    result: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            result[prefix + name] = value if isinstance(value, (bool, int, float)) else str(value)
    return result


def _writer(trainer: Trainer) -> SummaryWriter | None:
    """TensorBoard's writer in the process that logs."""
    if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
        return None
    writer = trainer.logger.experiment
    return writer if isinstance(writer, SummaryWriter) else None  # a silent one is no writer
