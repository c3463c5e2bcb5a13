"""Parts of the evaluation: scores, iterative pruning, ablations, tables, unseen ratios."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from small_scene import around, ball

from flexgs_lightning.cli import main
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.comparison.methods import Elastic, iterative_schedule, one_ratio, scaled
from flexgs_lightning.evaluation.comparison.names import ABLATIONS, ELASTIC_CONFIGS, ablations, parse_methods
from flexgs_lightning.evaluation.iterative_pruning import next_count, rounds_needed
from flexgs_lightning.evaluation.scores import Score, pruning_order, pruning_scores
from flexgs_lightning.evaluation.scratch import first_refined, growth_needed, refinements, scratch_settings
from flexgs_lightning.evaluation.study import Schedule
from flexgs_lightning.evaluation.tables import difference_table, quality_table, worst_table
from flexgs_lightning.evaluation.training import merged, train
from flexgs_lightning.evaluation.unseen import dips
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.model.elastic import ElasticOptions
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Outputs
from flexgs_lightning.training.elastic import ElasticTraining

CONFIGS = Path(__file__).parents[1] / "configs"
TWO_CHANGES = {"without_both_losses", "gsnet", "field"}
"""Ablations that cannot be one option: the losses together, and what GsNet and heads imply."""
OVERLAYS = sorted((CONFIGS / ABLATIONS).glob("*/*.yaml"))


# -- scores --------------------------------------------------------------------------------------------


def scores(score: Any, seed: int = 0) -> torch.Tensor:
    cameras = around(3)
    return pruning_scores(ball(), [cameras[i] for i in range(3)], score, antialiased=False, seed=seed)


def test_lightgaussians_score_is_hits_times_opacity_times_a_root_of_the_volume() -> None:
    splats, cameras = ball(), around(3)
    rendering = rasterize(splats, cameras, outputs=Outputs(hits=True))
    volume = splats.scales.double().prod(dim=-1)
    v90 = volume.sort().values[round(0.9 * len(volume)) - 1]
    expected = rendering.hits.sum(dim=0) * splats.opacities.double() * (volume / v90) ** 0.1
    torch.testing.assert_close(scores("lightgaussian"), expected, rtol=1e-6, atol=0)


def test_blending_score_adds_up_to_the_opacity_of_the_images() -> None:
    """sum_i alpha_i T_i of a pixel is its alpha."""
    alpha = rasterize(ball(), around(3)).alpha.double().sum()
    assert scores("blending").sum().item() == pytest.approx(alpha.item(), rel=1e-5)


@pytest.mark.parametrize("score", get_args(Score))
def test_every_score_orders_all_gaussians(score: Any) -> None:
    cameras, black = around(3), torch.zeros(3)
    views = [cameras[i] for i in range(3)]
    order = pruning_order(ball(), views, score, background=black, antialiased=False, seed=0)
    assert torch.equal(order.sort().values, torch.arange(len(ball())))
    if score != "removal":
        assert (scores(score)[order].diff() <= 0).all()


def test_random_and_opacity_scores() -> None:
    assert torch.equal(scores("random", seed=1), scores("random", seed=1))
    assert not torch.equal(scores("random", seed=1), scores("random", seed=2))
    assert torch.equal(scores("opacity"), ball().opacities.double())


# -- iterative pruning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "keep"), [(1000, 10), (1000, 999), (63_000, 630), (7, 1), (50, 50)])
def test_every_round_removes_five_percent_and_the_last_ends_exactly(start: int, keep: int) -> None:
    count, rounds = start, 0
    while count > keep:
        left = next_count(count, keep)
        assert keep <= left < count
        assert left == keep or left - 1 < 0.95 * count <= left or left == count - 1
        count, rounds = left, rounds + 1
    assert (count, rounds) == (keep, rounds_needed(start, keep))


def test_iterative_schedule_keeps_the_published_proportion() -> None:
    every, steps = iterative_schedule(Schedule(1, 20_000), 10)
    assert steps == 20_000
    assert every / (steps - 10 * every) == pytest.approx(1_000 / 5_000, rel=1e-2)
    assert iterative_schedule(Schedule(1, 1, iterative_scale=1.0), 10) == (1_000, 15_000)


# -- from scratch --------------------------------------------------------------------------------------


def test_mcmc_refines_up_to_five_sixths_of_the_stage() -> None:
    """At 600, 700, … 4,900 of 6,000 steps; in 720 steps not once."""
    assert refinements(6_000) == 44
    assert (refinements(720), refinements(721)) == (0, 1)
    assert first_refined() == 720


@pytest.mark.parametrize(
    ("start", "budget", "steps"), [(1_000, 1_000, 10), (50, 60, 6_000), (100, 9_999, 1_000)]
)
def test_growth_fills_the_budget_and_is_no_more_than_it_takes(start: int, budget: int, steps: int) -> None:
    growth, rounds = growth_needed(start, budget, refinements(steps)), refinements(steps)
    assert growth >= 0.05

    def grown(rate: float) -> int:
        count = start
        for _ in range(rounds):
            count = min(budget, int((1 + rate) * count))
        return count

    assert grown(growth) == budget
    assert growth == 0.05 or grown(growth / 1.1) < budget


def test_too_short_a_training_from_scratch_is_refused_where_it_would_have_to_grow() -> None:
    with pytest.raises(InputError, match=r"--scratch_steps: .* 100 points cannot become 101 Gaussians.* 720"):
        scratch_settings(100, 101, 720)
    settings = scratch_settings(100, 40, 720)["model"]
    assert settings["initialization"]["max_gaussians"] == 40
    assert settings["densification"]["init_args"]["max_gaussians"] == 40


def test_a_model_from_scratch_that_grows_ends_with_its_budget(small_capture: Path, tmp_path: Path) -> None:
    points, budget, steps = len(read_colmap(small_capture).points), 2_000, 730
    assert points < budget
    settings = merged({"data": {"root": str(small_capture)}}, scratch_settings(points, budget, steps))
    training = train(tmp_path, None, settings, steps)
    assert (len(load(training.checkpoint)), training.steps) == (budget, steps)


# -- methods and ablations -----------------------------------------------------------------------------


def effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Every setting of an elastic stage by name, defaults included."""
    model = settings["model"]
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in model.get("elastic", {}).items()}
    training = {
        name: tuple(v) if isinstance(v, list) else float(v) if name.endswith("_rate") else v
        for name, v in model["elastic_training"].items()
    }
    return {**asdict(ElasticOptions(**options)), **asdict(ElasticTraining(**training))}


def elastic(name: str) -> Elastic:
    (method,) = parse_methods([name], CONFIGS)
    assert isinstance(method, Elastic)
    return method


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parent.name}+{path.stem}")
def test_an_ablation_changes_one_thing(path: Path) -> None:
    """And it does change it: an overlay that repeats its base measures nothing."""
    base, changed = path.parent.name, f"{path.parent.name}+{path.stem}"
    first, second = effective(elastic(base).settings), effective(elastic(changed).settings)
    different = [name for name in first if first[name] != second[name]]
    asked = yaml.safe_load(path.read_text())["model"]
    assert set(different) == {name for group in asked.values() for name in group}
    assert len(different) == (2 if path.stem in TWO_CHANGES else 1)
    assert path.read_text().startswith("# ")  # says what it is for


def test_both_bases_have_ablations_and_they_are_all_run() -> None:
    names = ablations(["flexgs-paper", "flexgs"], CONFIGS)
    assert len(names) == len(OVERLAYS) + 2
    table_3 = ("selector", "field", "sparsity_loss", "importance_loss", "both_losses")
    assert {f"flexgs-paper+without_{name}" for name in table_3} < set(names)
    assert {path.parent.name for path in OVERLAYS} <= set(ELASTIC_CONFIGS)


def test_a_method_takes_the_second_stage_of_its_config_and_nothing_else() -> None:
    """The capture, the first stage and the background are the same for all."""
    for name in ELASTIC_CONFIGS:
        settings = elastic(name).settings
        assert set(settings) <= {"model", "importance_refresh", "temperature"}
        assert set(settings["model"]) <= {"elastic", "elastic_training"}


def test_fine_tuning_draws_one_ratio_at_constant_rates() -> None:
    specialist = effective(one_ratio({}))
    assert specialist["rate_decay"] == 1.0
    assert (specialist["ratios"], specialist["full_weight"], specialist["prefixes"]) == ((1.0,), 0.0, 1)


def test_intervals_keep_their_share_of_a_shorter_stage() -> None:
    settings = elastic("flexgs-paper").settings
    steps = settings["model"]["elastic_training"]["steps"]
    every = settings["importance_refresh"]["every_n_steps"]
    assert scaled(settings, steps)["importance_refresh"]["every_n_steps"] == every
    assert scaled(settings, steps // 2)["importance_refresh"]["every_n_steps"] == every // 2
    assert scaled(settings, 2 * steps)["importance_refresh"]["every_n_steps"] == every * 2
    assert scaled(settings, 1)["importance_refresh"]["every_n_steps"] == 1


def test_merging_settings_replaces_lists_and_keeps_what_is_not_named() -> None:
    first = {"a": {"b": 1, "c": [1, 2]}, "d": 2}
    assert merged(first, {"a": {"c": [3]}}, {"e": None}) == {"a": {"b": 1, "c": [3]}, "d": 2, "e": None}
    assert first == {"a": {"b": 1, "c": [1, 2]}, "d": 2}


# -- tables --------------------------------------------------------------------------------------------


def comparison() -> dict[str, Any]:
    """Two ratios of two methods, and an ablation of one that failed at the second."""
    values = {
        ("prune", 0.1): (20.004, 0.50, 0.30),
        ("flexgs", 0.1): (22.0, 0.60, 0.20),
        ("flexgs+less", 0.1): (21.5, 0.60, 0.25),
        ("prune", 1.0): (30.0, 0.90, 0.10),
        ("flexgs", 1.0): (29.0, 0.90, 0.10),
    }
    cells = [
        {"method": m, "ratio": e, "gaussians": int(100 * e), "psnr": p, "ssim": s, "lpips": d}
        for (m, e), (p, s, d) in values.items()
    ]
    cost = {"trainings": 1, "steps": 2000, "seconds": 61.4}
    return {"methods": dict.fromkeys(["prune", "flexgs", "flexgs+less"], cost), "cells": cells}


def test_best_and_second_best_are_marked_for_each_ratio_and_metric() -> None:
    table = {line.split(" | ")[0]: line.split(" | ")[1:] for line in quality_table(comparison()).splitlines()}
    assert table["| PSNR / SSIM / LPIPS"][:2] == ["10 % (10)", "100 % (100)"]
    assert table["| prune"][0] == "20.00 / <u>0.500</u> / 0.300"
    assert table["| flexgs"][0] == "**22.00** / **0.600** / **0.200**"
    assert table["| flexgs+less"][0] == "<u>21.50</u> / **0.600** / <u>0.250</u>"
    assert table["| prune"][1] == "**30.00** / 0.900 / 0.100"  # what all share is no distinction
    assert table["| flexgs+less"][1] == "failed"
    assert table["| flexgs"][2:] == ["1", "2,000", "61 |"]


def test_worst_views_are_stated_and_older_reports_without_them_still_read() -> None:
    report = comparison()
    assert worst_table(report).splitlines()[2] == "| prune | – | – |"
    report["cells"][0]["worst"] = {"name": "wall.png", "psnr": 7.4}
    assert worst_table(report).splitlines()[2] == "| prune | 7.40 (wall.png) | – |"


def test_an_ablation_is_compared_with_its_base() -> None:
    assert difference_table(comparison()).splitlines()[-1] == "| flexgs+less | -0.50 |  |"


def test_dips_are_falls_below_any_smaller_ratio() -> None:
    psnr = {0.01: 20.0, 0.02: 19.8, 0.04: 19.96, 0.05: 22.0, 0.1: 21.5, 0.2: 23.0}
    found = dips(psnr, tolerance=0.05)
    assert [(dip["ratio"], round(dip["depth"], 6)) for dip in found] == [(0.02, 0.2), (0.1, 0.5)]
    assert dips(psnr, tolerance=0.5) == []


# -- unseen ratios and ablations as typed --------------------------------------------------------------


@pytest.fixture(scope="module")
def first_stage(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    options = ["--model.reconstruction_steps=60", "--model.lpips=none", "--test_after_fit=false"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", f"--data.root={small_capture}", f"--runs={runs}", *options, *trainer]) == 0
    return runs / "small" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def ablated(first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ablations of one base, from a folder of configs of their own."""
    root = tmp_path_factory.mktemp("ablate")
    configs = root / "configs"
    (configs / ABLATIONS / "matryoshka").mkdir(parents=True)
    (configs / "matryoshka.yaml").write_text((CONFIGS / "matryoshka.yaml").read_text())
    for name, change in {"list": "sampling: list", "light": "full_weight: 0.1"}.items():
        overlay = configs / ABLATIONS / "matryoshka" / f"{name}.yaml"
        overlay.write_text(f"model: {{elastic_training: {{{change}}}}}\n")
    options = ["--ckpt", str(first_stage), "--configs", str(configs), "--output", str(root / "out")]
    schedule = ["--bases", "matryoshka", "--steps", "12", "--ratios", "0.1", "0.3", "--device=cpu"]
    assert main(["ablate", *options, *schedule]) == 0
    return root / "out"


def test_one_command_runs_all_ablations_and_shows_what_each_does(ablated: Path) -> None:
    page = (ablated / "comparison.md").read_text()
    report = json.loads((ablated / "comparison.json").read_text())
    assert list(report["methods"]) == ["matryoshka", "matryoshka+light", "matryoshka+list"]
    assert len(report["cells"]) == 6
    assert report["methods"]["matryoshka+list"]["settings"]["model"]["elastic_training"]["sampling"] == "list"
    assert "| change | 10 % | 30 % |" in page
    assert "| matryoshka+list | " in page


def test_unseen_ratios_of_elastic_models(ablated: Path, tmp_path: Path) -> None:
    runs = [ablated / name / "training" / "version_0" for name in ("matryoshka", "matryoshka+list")]
    ckpts = [str(run / "checkpoints" / "last.ckpt") for run in runs]
    ratios = ["--trained", "0.05", "0.2", "--tested", "0.1", "--points", "5"]
    assert main(["unseen", "--ckpts", *ckpts, *ratios, "--output", str(tmp_path), "--device=cpu"]) == 0
    report = json.loads((tmp_path / "unseen.json").read_text())
    assert list(report["models"]) == ["matryoshka", "matryoshka+list"]
    found = [result["ratio"] for result in report["models"]["matryoshka"]["ratios"]]
    assert found == sorted(found)
    assert {0.05, 0.1, 0.2, 1.0} < set(found)
    assert len(found) == 7  # 2 trained, 1 tested, and 5 of the curve, which begins with one of them
    assert (tmp_path / "unseen.png").stat().st_size > 5_000
    page = (tmp_path / "unseen.md").read_text()
    assert "| PSNR | 5 % | 10 % (unseen) | 20 % | dips |" in page
    (cell,) = (r for r in report["models"]["matryoshka"]["ratios"] if r["ratio"] == 0.1)
    compared = json.loads((ablated / "matryoshka" / "0.1" / "cell.json").read_text())
    assert cell["psnr"] == pytest.approx(compared["psnr"], abs=1e-5)


def test_one_unseen_ratio_is_enough(ablated: Path, tmp_path: Path) -> None:
    ckpt = ablated / "matryoshka" / "training" / "version_0" / "checkpoints" / "last.ckpt"
    options = ["--trained", "0.5", "--tested=[]", "--points", "2", "--output", str(tmp_path), "--device=cpu"]
    assert main(["unseen", "--ckpts", str(ckpt), *options]) == 0
    (model,) = json.loads((tmp_path / "unseen.json").read_text())["models"].values()
    assert [result["ratio"] for result in model["ratios"]] == [0.5, 1.0]


def test_unseen_mixes_no_protocols(ablated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photos of another size give another PSNR; one config for all settles it."""
    runs = [ablated / name / "training" / "version_0" for name in ("matryoshka", "matryoshka+list")]
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"]["downscale"] = 2
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    ckpts = [str(run / "checkpoints" / "last.ckpt") for run in (runs[0], other)]
    options = ["--trained", "0.5", "--tested=[]", "--points", "2", "--device=cpu"]
    command = ["unseen", "--ckpts", *ckpts, *options, "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert f"{ckpts[1]}: would be measured with images " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--config", str(runs[0] / "config.yaml")]) == 0


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ("expected an elastic model, found one of the first stage only",)),
        (["--points", "1"], ("--points and --tolerance", "found 1")),
        (["--trained", "2"], ("--trained and --tested", "expected a number in (0, 1], found 2.0")),
        (["--trained", "0.00001"], ("--trained and --tested", "less than one")),
        (["--trained", "0.1", "--tested", "0.1"], ("--trained and --tested", "different", "found 0.1 0.1")),
        (["--trained=[]", "--tested=[]"], ("--trained and --tested", "different numbers, found none")),
    ],
)
def test_unseen_refuses(
    options: list[str],
    parts: tuple[str, ...],
    first_stage: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--ckpts", str(first_stage), "--output", str(tmp_path / "out"), "--device=cpu"]
    assert main(["unseen", *arguments, *options]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()
