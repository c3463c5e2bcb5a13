"""metrics.json: what ``flexgs test`` measured, and under which protocol."""

import itertools
import json
import logging
import platform
import statistics
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from flexgs_lightning.files import atomic_path
from flexgs_lightning.metrics.protocol import worst_view
from flexgs_lightning.processes import gather
from flexgs_lightning.training.callbacks.checkpointing import LAST, checkpoint_folder
from flexgs_lightning.training.callbacks.elastic_validation import ElasticValidation
from flexgs_lightning.training.callbacks.over_time import (
    FLICKER,
    FlickerMeter,
    as_table,
    draw_curves,
    over_time,
)
from flexgs_lightning.training.scene_module import SceneModule

log = logging.getLogger(__name__)
LIBRARIES = ("flexgs-lightning", "torch", "lightning", "gsplat", "numba")


class TestReport(Callback):
    """Writes ``metrics.json`` into the run folder when a test ends, ``metrics_step_<n>.json`` of a kept step.

    It holds PSNR, SSIM and LPIPS for each image and averaged over images, the worst view, number of
    Gaussians, megabytes of parameters, milliseconds for a render, the protocol and the versions of the
    libraries. TensorBoard's "Text" page gets the worst view at each ratio. Of a capture that moves also: the
    metrics at each moment and by camera, the worst frame, and flicker (``over_time``), as curves and a table.
    """

    __test__ = False  # the name is no invitation to pytest

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._flicker: FlickerMeter | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        assert isinstance(pl_module, SceneModule)
        self._images = []
        capture = pl_module.capture
        self._flicker = FlickerMeter(capture.test_views) if capture.moves else None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note each image's metrics, and time another render of it."""
        assert isinstance(pl_module, SceneModule)
        if outputs is None and not pl_module.shards.several:
            return
        milliseconds = self._time_render(pl_module, batch) / len(batch)
        flicker = None if self._flicker is None else self._flicker.measure(pl_module, batch, outputs)
        if outputs is None:  # drawn for the other processes' sake
            return
        for i, name in enumerate(batch.names):
            metrics = {key: value[i].item() for key, value in outputs["metrics"].items()}
            if flicker is not None:
                metrics[FLICKER] = flicker
            self._images.append({"name": name, **metrics, "milliseconds": milliseconds})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report on the images of all processes."""
        assert isinstance(pl_module, SceneModule)
        path = Path(trainer.log_dir or trainer.default_root_dir) / _file_name(trainer)
        images = itertools.chain.from_iterable(gather(self._images))
        self._images = sorted(images, key=lambda image: str(image["name"]))
        report = self._report(pl_module)
        if not trainer.is_global_zero:
            return
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
        log.info("Metrics of each image: %s", path)
        if isinstance(trainer.logger, TensorBoardLogger):
            text = worst_views(report)
            trainer.logger.experiment.add_text("worst views", text, pl_module.iterations_trained)
            if "over_time" in report:
                draw_curves(report["over_time"], trainer.logger.experiment)
                table = as_table(report["over_time"])
                trainer.logger.experiment.add_text("over time", table, pl_module.iterations_trained)

    def _time_render(self, module: SceneModule, batch: Any) -> float:
        """Milliseconds of one render, the second of this view: caches are warm, as in a viewer."""
        self._synchronize(module)
        start = time.perf_counter()
        module.render(batch, module.evaluation_background)
        self._synchronize(module)
        return 1e3 * (time.perf_counter() - start)

    @staticmethod
    def _synchronize(module: SceneModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)

    def _report(self, module: SceneModule) -> dict[str, Any]:
        not_means = ("name", "milliseconds", FLICKER)
        keys = [key for key in self._images[0] if key not in not_means] if self._images else []
        parameters = _parameter_count(module)
        capture = module.capture
        callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
        ratios = next((c.results for c in callbacks if isinstance(c, ElasticValidation)), {})
        return {
            "mean": {key: statistics.fmean(image[key] for image in self._images) for key in keys},
            "worst": worst_view(self._images),
            "ratios": {f"{ratio:g}": result for ratio, result in ratios.items()},
            **(
                {"over_time": over_time(self._images, capture.test_views, module.scene)}
                if capture.moves
                else {}
            ),
            "gaussians": len(module.scene),
            "megabytes": 4 * parameters / 1e6,
            "milliseconds": statistics.median(image["milliseconds"] for image in self._images),
            "iteration": module.iterations_trained,
            "capture": capture.name,
            "protocol": measuring_protocol(module),
            "device": device_name(module.device),
            "versions": {library: version(library) for library in LIBRARIES},
            "images": self._images,
        }


def worst_views(report: Mapping[str, Any]) -> str:
    """The worst held-out view at each ratio, as a Markdown table; 100 % is the full model."""
    found = {ratio: result["worst"] for ratio, result in report["ratios"].items()}
    found = {ratio: worst for ratio, worst in (found | {"1": report["worst"]}).items() if worst is not None}
    rows = (f"| {100 * float(r):g} % | {found[r]['name']} | {found[r]['psnr']:.2f} |" for r in found)
    return "\n".join(["| ratio | worst view | PSNR |", "|---|---|---|", *rows])


def _file_name(trainer: Trainer) -> str:
    """The finished run's report is not that of a checkpoint on the way."""
    tested = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve()
    if tested is None or tested.name == LAST or tested.parent != checkpoint_folder(trainer).resolve():
        return "metrics.json"
    return f"metrics_{tested.stem}.json"


def _parameter_count(module: SceneModule) -> int:
    """Learned numbers of the scene, those of all shards together."""
    everything = sum(parameter.numel() for parameter in module.scene.parameters())
    own = sum(row.numel() for row in module.scene.rows())
    return everything - own + module.shards.total(own, module.device)


def measuring_protocol(module: SceneModule) -> dict[str, str | None]:
    """How held-out views are measured, for every report: each of these choices moves the numbers."""
    capture = module.capture
    return {
        "name": module.trainer.datamodule.protocol,  # type: ignore[attr-defined]
        "images": capture.protocol,
        "split": capture.split,
        "background": module.background if module.background != "random" else "black",
        **module.image_metrics.protocol(),
    }


def device_name(device: torch.device) -> str:
    """The machine's name for the device, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
