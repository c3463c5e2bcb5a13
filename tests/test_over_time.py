"""Quality over time: flicker, metrics of each moment and camera, the worst frame."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from film import FRAMES, write_film
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.streaming import ImageCache, ViewDataset
from flexgs_lightning.metrics.psnr import flicker_psnr
from flexgs_lightning.training.callbacks.over_time import FlickerMeter, as_table, over_time
from flexgs_lightning.training.module import FlexGSModule


def test_a_lasting_error_does_not_flicker_and_jitter_does() -> None:
    torch.manual_seed(0)
    frames = torch.rand(3, 8, 8, 3) * 0.5 + 0.2
    biased = frames + 0.1
    assert flicker_psnr(biased[:1], biased[1:2], frames[:1], frames[1:2]).item() > 100
    jitter = frames + 0.1 * torch.tensor([1.0, -1.0, 1.0])[:, None, None, None]
    found = flicker_psnr(jitter[:2], jitter[1:], frames[:2], frames[1:])
    assert found.tolist() == pytest.approx([-20 * math.log10(0.2)] * 2, abs=1e-4)
    frozen = flicker_psnr(frames[:1], frames[:1], frames[:1], frames[1:2])
    expected = -10 * math.log10((frames[1] - frames[0]).square().mean())
    assert frozen.item() == pytest.approx(expected, abs=1e-4), "what does not move at all, flickers"


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[FlexGSModule, Path]:
    """A scene that stands still, trained for a moment and tested on a film."""
    folder = tmp_path_factory.mktemp("film")
    data = CaptureDataModule(str(write_film(folder / "film")), downscale=4)
    module = FlexGSModule(reconstruction_steps=3, sh_degree=0, lpips="none")
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="run"),
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert trainer.log_dir is not None
    return module, Path(trainer.log_dir)


def test_the_report_tells_every_moment(tested: tuple[FlexGSModule, Path]) -> None:
    module, folder = tested
    report = json.loads((folder / "metrics.json").read_text())
    over, images = report["over_time"], report["images"]
    assert [frame["frame"] for frame in over["frames"]] == list(range(FRAMES))
    assert [frame["time"] for frame in over["frames"]] == pytest.approx([k / FRAMES for k in range(FRAMES)])
    by_frame = {image["name"]: image for image in images}
    for k, frame in enumerate(over["frames"]):
        assert frame["psnr"] == pytest.approx(by_frame[f"cam03/{k:04d}"]["psnr"]), "there is one test camera"
    worst = min(images, key=lambda image: image["psnr"])
    assert worst["name"] == f"cam03/{over['worst_frame']['frame']:04d}"
    assert over["cameras"]["cam03"]["psnr"] == pytest.approx(report["mean"]["psnr"])

    views = module.capture.test_views
    photos = [torch.from_numpy(view.source.read())[None] / 255.0 for view in views]
    changes = [-10 * (b - a).square().mean().log10() for a, b in itertools.pairwise(photos)]
    found = [image["flicker"] for image in images if "flicker" in image]
    assert found == pytest.approx([float(change) for change in changes], abs=1e-3), "the render stands still"
    assert over["flicker"] == pytest.approx(np.mean(found))
    assert "flicker" not in images[0], "there is no frame before the first"
    assert "flicker" not in report["mean"]


def test_curves_go_over_frames(tested: tuple[FlexGSModule, Path]) -> None:
    _, folder = tested
    events = EventAccumulator(str(folder))
    events.Reload()
    report = json.loads((folder / "metrics.json").read_text())
    curve = events.Scalars("test_over_time/psnr")
    assert [point.step for point in curve] == list(range(FRAMES))
    assert [point.value for point in curve] == pytest.approx(
        [f["psnr"] for f in report["over_time"]["frames"]]
    )
    assert len(events.Scalars("test_over_time/flicker")) == FRAMES - 1
    assert "over time/text_summary" in events.Tags()["tensors"]


def test_frames_dealt_out_over_processes_flicker_alike(tested: tuple[FlexGSModule, Path]) -> None:
    """A process that sees every second frame must read and draw the one before."""
    module, _ = tested
    views = module.capture.test_views
    dataset = ViewDataset(views, ImageCache((), 0))

    def outputs(batch: ViewBatch) -> dict[str, Any]:
        render = module.render(batch, module.evaluation_background).image.clamp(0, 1)
        return {"render": render, "photo": module.image_metrics.photo(batch.targets(torch.zeros(3)), False)}

    def measured(order: list[int]) -> dict[int, float | None]:
        meter, found = FlickerMeter(views), {}
        for index in order:
            batch = dataset[[index]]
            assert isinstance(batch, ViewBatch)
            with torch.no_grad():
                found[index] = meter.measure(module, batch, outputs(batch))
        return found

    in_order = measured(list(range(FRAMES)))
    assert in_order.pop(0) is None
    dealt = measured(list(range(0, FRAMES, 2))) | measured(list(range(1, FRAMES, 2)))
    assert dealt.pop(0) is None
    assert dealt == pytest.approx(in_order)


def test_moments_are_means_over_cameras(tested: tuple[FlexGSModule, Path]) -> None:
    views = tested[0].capture.views[: 2 * FRAMES]
    images = [{"name": view.name, "psnr": float(i), "milliseconds": 1.0} for i, view in enumerate(views)]
    report = over_time(images, views)
    assert [frame["psnr"] for frame in report["frames"]] == [k + FRAMES / 2 for k in range(FRAMES)]
    assert report["worst_frame"]["frame"] == 0
    assert report["cameras"]["cam01"]["psnr"] == FRAMES + (FRAMES - 1) / 2
    assert "flicker" not in report
    assert as_table(report).splitlines() == [
        "| camera | psnr |",
        "|---|---|",
        "| cam00 | 5.500 |",
        "| cam01 | 17.500 |",
        "| worst frame (0) | 6.000 |",
    ]
