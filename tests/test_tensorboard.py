"""What a training leaves for TensorBoard, read back from its event files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from flexgs_lightning.lightning_cli import FlexGSCLI

STAGE = 20
RATIOS = ("5%", "20%")
OPTIONS = (
    f"--model.reconstruction_steps={STAGE}",
    f"--model.elastic_training.steps={STAGE}",
    "--model.elastic.selection=gsnet",
    "--model.elastic.residual_anchors=[]",
    "--model.background=white",
    "--elastic_validation.ratios=[0.05,0.2]",
    "--importance_refresh.every_n_steps=10",
    "--temperature.end=0.5",
    "--trainer.val_check_interval=10",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.lpips=squeeze",
    "--model.validation_lpips=true",
)


@pytest.fixture(scope="module")
def run(small_capture: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> FlexGSCLI:
    folder = tmp_path_factory.mktemp("tensorboard")
    weights = f"--model.lpips_weights={shared_data / 'lpips_squeeze'}"
    return FlexGSCLI(["fit", f"--data.root={small_capture}", f"--runs={folder}", weights, *OPTIONS])


@pytest.fixture(scope="module")
def events(run: FlexGSCLI) -> EventAccumulator:
    return EventAccumulator(
        str(run.run_folder), size_guidance={"images": 0, "tensors": 0, "histograms": 0}
    ).Reload()


def serialized(events: EventAccumulator, tag: str) -> bytes:
    content: bytes = events.Tensors(tag)[-1].tensor_proto.string_val[0]
    return content


def test_every_metric_has_a_curve_for_each_ratio_over_training(events: EventAccumulator) -> None:
    for metric in ("psnr", "ssim", "lpips"):
        assert [event.step for event in events.Scalars(f"val/{metric}")] == [10, 20, 30, 40]
        for ratio in RATIOS:
            assert [event.step for event in events.Scalars(f"val_{metric}/{ratio}")] == [30, 40]


def test_each_metrics_curves_share_one_chart(events: EventAccumulator) -> None:
    """The layout's expressions, matched as the plugin matches them."""
    layout = layout_pb2.Layout.FromString(serialized(events, "custom_scalars__config__"))
    charts = {chart.title: list(chart.multiline.tag) for page in layout.category for chart in page.chart}
    names = events.Tags()["scalars"]

    def shown(title: str) -> set[str]:
        return {name for name in names if any(re.match(tag, name) for tag in charts[title])}

    for metric, title in (("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("lpips", "LPIPS")):
        assert shown(title) == {f"val/{metric}", *(f"val_{metric}/{ratio}" for ratio in RATIOS)}
    parts = {"loss", "subset_loss", "full_loss", "importance_loss", "sparsity_loss"}
    assert shown("Losses") == {f"train/{part}" for part in parts}
    assert shown("Ratio asked for and share selected") == {"train/ratio", "train/selected"}
    assert shown("Temperature") == {"train/temperature"}


def test_temperature_and_selected_share_are_what_they_were(events: EventAccumulator) -> None:
    temperatures = {event.step: event.value for event in events.Scalars("train/temperature")}
    assert temperatures[40] == pytest.approx(0.5 ** (19 / STAGE))
    assert min(temperatures) > STAGE
    assert all(0 < event.value < 1 for event in events.Scalars("train/selected"))


def test_each_ratio_has_a_strip_of_pictures_at_every_validation(
    events: EventAccumulator, run: FlexGSCLI
) -> None:
    assert len(run.datamodule.capture.test_views) == 2
    for ratio in RATIOS:
        pictures = events.Images(f"val_ratio/{ratio}")
        assert [picture.step for picture in pictures] == [30, 40]
        assert (pictures[0].width, pictures[0].height) == (3 * 96, 2 * 64), "render, photo, error of 2 views"
    first, last = (events.Images(f"val_ratio/{ratio}")[-1].encoded_image_string for ratio in RATIOS)
    assert first != last


def test_importance_has_a_histogram_at_every_refresh(events: EventAccumulator, run: FlexGSCLI) -> None:
    found = events.Histograms("importance/log10")
    assert [event.step for event in found] == [20, 30]
    assert found[0].histogram_value.num == len(run.model.gaussians)


def hparams_of(events: EventAccumulator, tag: str) -> Any:
    content = events.summary_metadata[tag].plugin_data.content
    return HParamsPluginData.FromString(content)


def test_hyper_parameters_stand_with_the_final_metrics(events: EventAccumulator) -> None:
    start = hparams_of(events, metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    assert start["model.reconstruction_steps"].number_value == STAGE
    assert start["model.elastic.selection"].string_value == "gsnet"
    assert start["model.learning_rates.means"].number_value == pytest.approx(1.6e-4)
    assert start["temperature.end"].number_value == 0.5
    assert start["seed_everything"].number_value == 42
    assert not [name for name in start if "/" in start[name].string_value], "no places of this machine"
    infos = hparams_of(events, metadata.EXPERIMENT_TAG).experiment.metric_infos
    metrics = {info.name.tag for info in infos}
    assert metrics == {
        *(f"test/{metric}" for metric in ("psnr", "ssim", "lpips")),
        *(f"test_{metric}/{ratio}" for metric in ("psnr", "ssim", "lpips") for ratio in RATIOS),
    }
    assert metrics <= set(events.Tags()["scalars"]), "TensorBoard takes their values from the curves"


def test_the_protocol_is_stated(events: EventAccumulator) -> None:
    text = serialized(events, "protocol/text_summary").decode()
    for part in (
        "| images | images/ as shipped |",
        "| background | white |",
        "every 8th image",
        "| lpips | squeeze (lpips 0.1 linear layers), inputs in [-1, 1] |",
        "| average | mean of per-image values |",
    ):
        assert part in text, text


def test_the_worst_view_of_each_ratio_is_stated(run: FlexGSCLI, events: EventAccumulator) -> None:
    text = serialized(events, "worst views/text_summary").decode()
    report = json.loads((run.run_folder / "metrics.json").read_text())
    lowest = min(report["images"], key=lambda image: image["psnr"])
    assert f"| 100 % | {lowest['name']} | {lowest['psnr']:.2f} |" in text
    for ratio in ("0.05", "0.2"):
        worst = report["ratios"][ratio]["worst"]
        assert worst["psnr"] <= report["ratios"][ratio]["psnr"], "no view is worse than the worst"
        assert f"| {100 * float(ratio):g} % | {worst['name']} | {worst['psnr']:.2f} |" in text
