"""``flexgs rd``: what is written is read back and measured, cell by cell; and what its numbers mean."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from splat_files import scene

from flexgs_lightning.cli import main
from flexgs_lightning.codec.decoder import read_elastic
from flexgs_lightning.codec.recipes.halves import read_halves, rounded
from flexgs_lightning.codec.recipes.images import read_images, write_images
from flexgs_lightning.codec.recipes.pruning import worth_storing
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.cell_folders import ERROR, RESULT
from flexgs_lightning.evaluation.published import published_codecs
from flexgs_lightning.evaluation.rate_distortion.bjontegaard import bd_rate, frontier
from flexgs_lightning.evaluation.rate_distortion.gscodec import Compression, Gscodec, Modules, modules_of
from flexgs_lightning.evaluation.rate_distortion.names import OVERLAYS, Settings, parse_systems
from flexgs_lightning.evaluation.rate_distortion.rave import (
    anchor_counts,
    drawn_anchor,
    interpolated_order,
    nested_order,
    rates_between,
)
from flexgs_lightning.evaluation.rate_distortion.tuning import Tuning
from flexgs_lightning.evaluation.study import Schedule, Study, open_study
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.settings import CONFIGS

SYSTEMS = ("ply", "ply.xz", "gsplat-png", "egs", "one-size", "cogs", "rave:3", "gscodec")
OVERLAY_FILES = (CONFIGS / OVERLAYS).glob("*.yaml")
LOSSES = ("0.2", "1")


@pytest.fixture(scope="module")
def checkpoint(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short elastic training on few Gaussians, its first stage kept."""
    runs = tmp_path_factory.mktemp("runs")
    options = [
        "--config=flexgs",
        "--model.reconstruction_steps=120",
        "--model.elastic_training.steps=30",
        "--model.elastic.residual_anchors=[0.3]",
        "--model.sh_degree=1",
        "--model.sh_degree_interval=40",
        "--model.initialization.max_gaussians=1500",
        "--model.densification.max_gaussians=1500",
        "--model.lpips=none",
        "--test_after_fit=false",
        "--trainer.limit_val_batches=0",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", f"--data.root={small_capture}", f"--runs={runs}", *options]) == 0
    return runs / "small" / "version_0" / "checkpoints" / "last.ckpt"


def rd(checkpoint: Path, output: Path, *options: str, systems: tuple[str, ...] = SYSTEMS) -> int:
    common = ["--ckpt", str(checkpoint), "--output", str(output), "--device=cpu", "--refine-steps=0"]
    rates = ["--ratios", "0.3", "1", "--losses", *LOSSES, "--stops", *LOSSES, "--lambdas", "0.002", "1"]
    return main(["rd", *common, *rates, "--rates=6", "--scale=0.005", "--systems", *systems, *options])


@pytest.fixture(scope="module")
def output(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rd")
    assert rd(checkpoint, folder) == 0
    return folder


@pytest.fixture(scope="module")
def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "rd.json").read_text())


@pytest.fixture(scope="module")
def study(checkpoint: Path) -> Study:
    return open_study(checkpoint, [], schedule=Schedule(1, 1), device="cpu", seed=1)


def points(report: dict[str, Any], system: str, setting: str) -> list[dict[str, Any]]:
    (cell,) = (c for c in report["cells"] if (c["system"], c["setting"]) == (system, setting))
    return cell["points"]


def test_every_system_is_measured_at_every_setting(report: dict[str, Any]) -> None:
    formats = {(name, ratio) for name in ("ply", "ply.xz", "gsplat-png") for ratio in ("1", "0.3")}
    trained = {(name, loss) for name in ("egs", "one-size", "cogs") for loss in LOSSES}
    others = {("rave:3", "context"), ("rave:3", "global"), ("gscodec", "0.002"), ("gscodec", "1")}
    assert {(cell["system"], cell["setting"]) for cell in report["cells"]} == formats | trained | others
    assert report["failed"] == []


def test_bytes_are_those_of_files_and_quality_is_of_what_they_hold(
    output: Path, report: dict[str, Any], checkpoint: Path
) -> None:
    total = len(load(checkpoint))
    for ratio in ("1", "0.3"):
        (plain,), (packed,) = points(report, "ply", ratio), points(report, "ply.xz", ratio)
        assert plain["bytes"] == (output / "ply" / ratio / "scene.ply").stat().st_size
        assert packed["bytes"] < plain["bytes"]
        assert packed["psnr"] == plain["psnr"]
        assert plain["gaussians"] == count_at(float(ratio), total)
    (png,) = points(report, "gsplat-png", "1")
    assert png["bytes"] < 0.5 * points(report, "ply", "1")[0]["bytes"]
    assert png["psnr"] > points(report, "ply", "1")[0]["psnr"] - 1.0
    assert sum(png["attributes"].values()) == png["bytes"]


def test_the_elastic_file_is_measured_at_every_cut(output: Path, report: dict[str, Any]) -> None:
    cuts = points(report, "egs", "0.2")
    whole = output / "egs" / "0.2" / "scene.egs"
    assert cuts[-1]["bytes"] == whole.stat().st_size
    assert len(read_elastic(whole)) == cuts[-1]["gaussians"]
    for key in ("bytes", "gaussians"):
        values = [cut[key] for cut in cuts]
        assert values == sorted(set(values))
    assert len(cuts) > 2
    assert all(sum(cut["attributes"].values()) >= 0.99 * cut["bytes"] for cut in cuts)
    assert cuts[-1]["psnr"] > cuts[0]["psnr"]
    assert points(report, "egs", "1")[-1]["bytes"] < cuts[-1]["bytes"]
    assert [path.name for path in whole.parent.glob("*.egs")] == ["scene.egs"]


def test_one_size_takes_fewer_bytes_than_elastic(report: dict[str, Any]) -> None:
    for loss in LOSSES:
        assert points(report, "one-size", loss)[0]["bytes"] < points(report, "egs", loss)[-1]["bytes"]


def test_cogs_prunes_further_where_more_may_be_lost(output: Path, report: dict[str, Any]) -> None:
    (first,), (last,) = (points(report, "cogs", loss) for loss in LOSSES)
    assert last["gaussians"] < first["gaussians"] < points(report, "ply", "1")[0]["gaussians"]
    assert last["bytes"] < first["bytes"]
    assert len(read_halves(output / "cogs" / LOSSES[1] / "scene.halves")) == last["gaussians"]
    assert last["training"]["steps"] > first["training"]["steps"]


def test_the_page_holds_tables_and_the_curve(output: Path) -> None:
    page = (output / "rd.md").read_text()
    for part in ("BD-rate", "What being elastic costs", "by attribute", "cut at every chunk", "Protocol"):
        assert part in page
    assert (output / "rd.png").stat().st_size > 10_000


def test_what_is_finished_is_not_run_again(
    checkpoint: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {path: path.stat().st_mtime_ns for path in output.rglob(RESULT)}
    monkeypatch.setattr("flexgs_lightning.evaluation.rate_distortion.cells.measure", None)
    assert rd(checkpoint, output, "--report", str(tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob(RESULT)} == times
    assert json.loads((tmp_path / "rd.json").read_text()) == json.loads((output / "rd.json").read_text())


def test_a_failing_cell_stops_no_other(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr("flexgs_lightning.evaluation.rate_distortion.files.write_images", fail)
    assert rd(checkpoint, tmp_path, systems=("gsplat-png", "ply")) == 1
    assert "2 of 4 cells failed" in capsys.readouterr().err
    assert "no room" in (tmp_path / "gsplat-png" / "1" / ERROR).read_text()
    assert (tmp_path / "ply" / "1" / RESULT).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "zip"], "expected any of"),
        (["--systems", "ply.gz"], "expected any of"),
        (["--systems", "ply", "ply"], "different systems"),
        (["--losses", "0"], "--losses"),
        (["--scale", "0"], "--scale"),
        (["--systems", "rave:1"], "expected any of"),
        (["--systems", "gscodec+cake"], "png"),
        (["--rates", "1"], "--rates"),
        (["--lambdas", "-1"], "--lambdas"),
        (["--ratios", "2"], "--ratios"),
    ],
)
def test_bad_options_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["rd", "--ckpt", str(checkpoint), "--output", str(tmp_path), "--device=cpu", *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- tuning --------------------------------------------------------------------------------------------


def test_tuning_improves_what_a_file_holds(study: Study) -> None:
    tuning = Tuning(study.splats, study, rounded)
    before = tuning.judged_psnr()
    tuning.train(60)
    assert tuning.judged_psnr() > before + 0.3


def test_tuning_goes_on_from_its_file_as_if_it_had_not_stopped(study: Study, tmp_path: Path) -> None:
    through = Tuning(study.splats, study, rounded)
    through.train(4)
    through.keep(torch.arange(len(through)) % 2 == 0)
    through.save(tmp_path / "state.pt", {"loss": 0.5})
    through.train(4)
    resumed = Tuning(study.splats, study, rounded)
    assert resumed.load(tmp_path / "state.pt") == {"loss": 0.5}
    resumed.train(4)
    for name, values in through.gaussians.params.items():
        torch.testing.assert_close(resumed.gaussians.params[name], values, rtol=0, atol=0)


def test_gradient_scores_are_norms_of_the_summed_gradient(study: Study) -> None:
    """Of some Gaussians, drawn alone; by finite differences of one opacity's share."""
    tuning = Tuning(study.splats, study)
    chosen = torch.arange(0, len(tuning), 3)
    scores = tuning.gradient_scores(chosen)
    assert scores.shape == chosen.shape
    assert (scores >= 0).all()
    alone = Tuning(study.splats[chosen], study).gradient_scores()
    torch.testing.assert_close(scores, alone, rtol=1e-3, atol=1e-6)


# -- numbers -------------------------------------------------------------------------------------------


def line(factor: float, low: float, high: float) -> list[tuple[float, float]]:
    """Bytes double with every 2 dB."""
    return [(factor * 1000 * 2 ** (quality / 2), quality) for quality in np.linspace(low, high, 7)]


def test_bd_rate_of_curves_a_factor_apart_is_that_factor() -> None:
    assert bd_rate(line(0.8, 20, 30), line(1.0, 22, 34)) == pytest.approx(-0.2, abs=1e-6)
    assert bd_rate(line(1.5, 20, 30), line(1.0, 20, 30)) == pytest.approx(0.5, abs=1e-6)


def test_bd_rate_against_numerical_integration() -> None:
    """Curves of different shape: the mean of log bytes over 24 to 30 dB, by hand."""
    bent = [(math.exp(0.02 * q * q - 0.5 * q + 10), q) for q in np.linspace(24, 32, 41)]
    straight = line(1.0, 20, 30)
    q = np.linspace(24, 30, 10_001)
    difference = (0.02 * q * q - 0.5 * q + 10) - (np.log(1000) + q / 2 * np.log(2))
    assert bd_rate(bent, straight) == pytest.approx(math.expm1(np.trapezoid(difference, q) / 6), rel=1e-3)


def test_bd_rate_against_hardly_a_curve_is_that_at_its_points() -> None:
    assert bd_rate(line(0.8, 20, 30), line(1.0, 25, 25.05)) == pytest.approx(-0.2, abs=1e-4)
    assert bd_rate(line(0.8, 20, 30), [line(1.0, 25, 26)[0]]) == pytest.approx(-0.2, abs=1e-4)


def test_bd_rate_of_what_cannot_be_compared_is_none() -> None:
    assert bd_rate(line(1, 20, 24), line(1, 25, 30)) is None
    assert bd_rate([(10, 20)], line(1, 10, 30)) is None
    assert bd_rate(line(1, 20, 24), [(5000, 19.9)]) is None
    assert bd_rate(line(1, 20, 24), line(2, 23.95, 24.01)) is None
    assert frontier([(3, 9), (1, 5), (2, 4), (3, 8), (4, 9)]) == [(1, 5), (3, 9)]


def test_published_figures_of_codecs() -> None:
    tables = {(t.source.split(",")[0], t.benchmark): t for t in published_codecs()}
    gscodec = tables["arXiv:2506.01822", "tanks_and_temples"].methods
    assert gscodec["Static GSCodec lambda 0.01"]["mean"] == {
        "psnr": 23.74, "ssim": 0.841, "lpips": 0.189, "size": 7.16,
    }  # fmt: skip
    cogs = tables["README of Fast-3DGS (runner-up of COGS 2025)", "mipnerf360"].methods["COGS 2025 runner-up"]
    assert cogs["bonsai"]["gaussians"] == 296058
    scenes = [row for name, row in cogs.items() if name != "mean"]
    assert np.mean([row["psnr"] for row in scenes]) == pytest.approx(cogs["mean"]["psnr"], abs=0.01)
    assert np.mean([row["size"] for row in scenes]) == pytest.approx(cogs["mean"]["size"], abs=0.01)
    for table in published_codecs():
        for scenes_of in table.methods.values():
            assert all(
                20 < row["psnr"] < 35 and 0 < row["lpips"] < row["ssim"] < 1 for row in scenes_of.values()
            )


# -- RAVE ----------------------------------------------------------------------------------------------


def test_rave_anchors_are_nested_and_chosen_from_the_finest_down(study: Study) -> None:
    tuning = Tuning(study.splats, study)
    anchors = anchor_counts(len(tuning), 4)
    assert anchors[0] == count_at(0.05, len(tuning))
    assert anchors[-1] == count_at(0.85, len(tuning))
    ratios = [high / low for low, high in itertools.pairwise(anchors)]
    assert max(ratios) / min(ratios) < 1.05
    order = nested_order(tuning, anchors)
    assert torch.equal(order.sort().values, torch.arange(len(tuning)))
    whole = tuning.gradient_scores()
    finest = set(whole.topk(anchors[-1]).indices.tolist())
    assert set(order[: anchors[-1]].tolist()) == finest
    inner = order[: anchors[-1]][tuning.gradient_scores(order[: anchors[-1]]).topk(anchors[-2]).indices]
    assert set(inner.tolist()) == set(order[: anchors[-2]].tolist())


def test_rave_draws_every_anchor_and_the_finest_most() -> None:
    anchors = [10, 20, 40, 80]
    draws = [drawn_anchor(anchors, 0, step) for step in range(6000)]
    counts = [draws.count(anchor) for anchor in anchors]
    expected = np.geomspace(1, 8, 4) / np.geomspace(1, 8, 4).sum() * 6000
    np.testing.assert_allclose(counts, expected, rtol=0.12)
    assert draws[:10] == [drawn_anchor(anchors, 0, step) for step in range(10)]


def test_rave_orders_only_what_an_anchor_adds_and_by_the_render_that_was_asked_for(study: Study) -> None:
    tuning = Tuning(study.splats, study)
    anchors = [100, 300, 700]
    scores = {count: tuning.gradient_scores(count) for count in anchors}
    for ranking, measured in (("context", 300), ("global", 700)):
        order = interpolated_order(tuning, anchors, ranking)
        for low, high in itertools.pairwise((0, *anchors)):
            assert torch.equal(order[low:high].sort().values, torch.arange(low, high))
        added = scores[measured][order[100:300]]
        assert bool((added[:-1] >= added[1:]).all()), ranking


def test_rave_writes_a_file_for_each_rate(output: Path, report: dict[str, Any], checkpoint: Path) -> None:
    total = len(load(checkpoint))
    for setting in ("context", "global"):
        rates = points(report, "rave:3", setting)
        counts = [rate["gaussians"] for rate in rates]
        assert counts == rates_between(count_at(0.05, total), count_at(0.85, total), 6)
        assert [rate["anchor"] for rate in rates][0::5] == [True, True]
        assert [rate["bytes"] for rate in rates] == sorted(rate["bytes"] for rate in rates)
        file = output / "rave-3" / setting / f"{counts[2]}.halves"
        assert file.stat().st_size == rates[2]["bytes"]
        assert rates[-1]["psnr"] > rates[0]["psnr"] + 1.0
    assert "rave:3 context" in (output / "rd.md").read_text()


# -- GSCodec -------------------------------------------------------------------------------------------


def test_gscodec_takes_fewer_bytes_where_bits_weigh_more(output: Path, report: dict[str, Any]) -> None:
    (light,), (heavy,) = (points(report, "gscodec", weight) for weight in ("0.002", "1"))
    assert set(light["bits"]) == {"scales", "quats", "sh0"}
    assert sum(heavy["bits"].values()) < sum(light["bits"].values())

    def counted(point: dict[str, Any]) -> float:
        return sum(point["attributes"][name] for name in light["bits"]) / point["gaussians"]

    assert counted(heavy) < counted(light)
    assert len(read_images(output / "gscodec" / "0.002" / "scene.images")) == light["gaussians"]
    assert light["colored"] <= light["gaussians"]


def test_gscodec_goes_on_from_its_file_as_if_it_had_not_stopped(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compression() -> Compression:
        return Compression(Tuning(study.splats, study), Modules(rounding="straight_through"), 0.01, 10)

    through, train = compression(), Tuning.train
    through.train(tmp_path / "a.pt")

    def until_the_fifth(self: Tuning, *arguments: Any, **options: Any) -> None:
        if self.step == 5:
            raise KeyboardInterrupt
        train(self, *arguments, **options)

    stopped = compression()
    monkeypatch.setattr(Tuning, "train", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path / "b.pt")
    monkeypatch.setattr(Tuning, "train", train)
    resumed = compression()
    resumed.train(tmp_path / "b.pt")
    assert resumed.tuning.step == 10
    for name, values in through.tuning.gaussians.params.items():
        torch.testing.assert_close(resumed.tuning.gaussians.params[name], values, rtol=0, atol=0)
    assert resumed.counted_bits() == through.counted_bits()


@pytest.mark.parametrize("overlay", [None, *sorted(path.stem for path in OVERLAY_FILES)])
def test_every_overlay_of_gscodec_trains_and_is_written(
    study: Study, tmp_path: Path, overlay: str | None
) -> None:
    settings = Settings((1.0,), (0.1,), (0.1,), 0.001, 0, None, 2, (0.01,), CONFIGS)
    (system,) = parse_systems(["gscodec" if overlay is None else f"gscodec+{overlay}"], settings)
    assert isinstance(system, Gscodec)
    if overlay is not None:
        assert system.modules != Modules(), "an overlay changes something"
    tuning = Tuning(study.splats, study)
    compression = Compression(tuning, system.modules, 0.01, 2)
    compression.train(tmp_path / "state.pt")
    splats, colored = compression.result()
    assert len(splats) <= len(tuning)
    assert (len(splats) == len(tuning)) or system.modules.pruning
    write_images(splats, tmp_path / "scene.images", system.modules.recipe, colored)
    assert len(read_images(tmp_path / "scene.images")) == len(splats)


def test_pruning_takes_the_faint_the_huge_and_the_stray() -> None:
    splats = scene(400, 1)
    means, scales, opacities = (
        splats.means.clone(),
        splats.scales.clone(),
        splats.opacities.clamp(0.01),
    )
    means[0], scales[1], opacities[2] = 3000.0, 50.0, 0.004
    kept = worth_storing(dataclasses.replace(splats, means=means, scales=scales, opacities=opacities), 20.0)
    assert (~kept).nonzero().flatten().tolist() == [0, 1, 2]


def test_unknown_modules_are_refused() -> None:
    with pytest.raises(InputError, match="colour"):
        modules_of({"colour": 3}, "here")
    with pytest.raises(InputError, match="rounding: expected noise, straight_through, found up"):
        modules_of({"rounding": "up"}, "here")
    with pytest.raises(InputError, match="bits"):
        modules_of({"bits": 9}, "here")
