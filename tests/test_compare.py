"""``flexgs compare``: methods from one first stage, cell by cell, resumed, isolated, refused."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from flexgs_lightning.cli import main
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.formats.ply import read_ply
from flexgs_lightning.evaluation.cell_folders import ERROR, RESULT
from flexgs_lightning.evaluation.comparison import methods
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import load, read_checkpoint
from flexgs_lightning.training.module import FlexGSModule

STEPS = 100
RATIOS = (0.1, 0.3, 1.0)
METHODS = ("prune", "prune:random", "prune-finetune", "iterative", "scratch:mcmc", "matryoshka", "flexgs")
FIRST_STAGE_STEPS = 300
SCRATCH_STEPS = FIRST_STAGE_STEPS + STEPS
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def first_stage(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a short first stage on white, every fifth photo held out."""
    runs = tmp_path_factory.mktemp("runs")
    options = [
        f"--model.reconstruction_steps={FIRST_STAGE_STEPS}",
        "--model.sh_degree_interval=100",
        "--model.lpips=none",
    ]
    protocol = ["--data.test_every=5", "--model.background=white"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", f"--data.root={small_capture}", f"--runs={runs}", *options, *protocol, *trainer]) == 0
    return runs / "small" / "version_0" / "checkpoints" / "last.ckpt"


def command(first_stage: Path, output: Path, *options: str, steps: int = STEPS) -> list[str]:
    """``flexgs compare`` as typed."""
    paths = ["--ckpt", str(first_stage), "--output", str(output), "--configs", str(CONFIGS)]
    return ["compare", *paths, "--steps", str(steps), "--device=cpu", *options]


def compare(first_stage: Path, output: Path, *options: str, steps: int = STEPS) -> int:
    return main(command(first_stage, output, *options, steps=steps))


def asked(methods: tuple[str, ...] = METHODS, ratios: tuple[float, ...] = RATIOS) -> list[str]:
    return ["--methods", *methods, "--ratios", *map(str, ratios)]


@pytest.fixture(scope="module")
def output(first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of all kinds of methods."""
    folder = tmp_path_factory.mktemp("compare")
    assert compare(first_stage, folder, *asked()) == 0
    return folder


@pytest.fixture(scope="module")
def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "comparison.json").read_text())


def psnr(report: dict[str, Any], method: str, ratio: float) -> float:
    (value,) = (r["psnr"] for r in report["cells"] if (r["method"], r["ratio"]) == (method, ratio))
    return value


# -- what is measured ----------------------------------------------------------------------------------


def test_every_method_draws_exactly_floor_e_n(report: dict[str, Any], first_stage: Path) -> None:
    total = len(load(first_stage))
    assert {(r["method"], r["ratio"]) for r in report["cells"]} == {(m, e) for m in METHODS for e in RATIOS}
    assert {(r["ratio"], r["gaussians"]) for r in report["cells"]} == {
        (ratio, count_at(ratio, total)) for ratio in RATIOS
    }


def test_training_for_one_ratio_is_worth_more_than_pruning(report: dict[str, Any]) -> None:
    """100 steps are worth a decibel where most Gaussians are gone, and pruning at random is worst."""
    for method in ("prune-finetune", "iterative"):
        assert psnr(report, method, 0.1) > psnr(report, "prune", 0.1) + 0.5, method
    assert psnr(report, "prune", 0.1) > psnr(report, "prune:random", 0.1) + 3.0


def test_the_full_scene_is_measured_as_flexgs_test_measures_it(
    report: dict[str, Any], first_stage: Path
) -> None:
    tested = json.loads((first_stage.parents[1] / "metrics.json").read_text())
    (cell,) = (r for r in report["cells"] if (r["method"], r["ratio"]) == ("prune", 1.0))
    for key in ("psnr", "ssim"):
        assert cell[key] == pytest.approx(tested["mean"][key], abs=1e-5)
    for key in ("images", "split", "psnr", "ssim", "lpips", "average"):
        assert report["protocol"][key] == tested["protocol"][key]
    assert report["protocol"]["background"] == [1.0, 1.0, 1.0]


def test_a_specialists_file_is_what_was_measured(output: Path, report: dict[str, Any]) -> None:
    for method in ("prune-finetune", "iterative", "scratch:mcmc"):
        (cell,) = (r for r in report["cells"] if (r["method"], r["ratio"]) == (method, 0.1))
        path = output / method.replace(":", "-") / "0.1" / "scene.ply"
        assert len(read_ply(path)) == cell["gaussians"]
        assert cell["megabytes"] == path.stat().st_size / 1e6


def test_training_cost_counts_an_elastic_training_once_and_specialists_each(report: dict[str, Any]) -> None:
    facts = report["methods"]
    assert {name: (facts[name]["trainings"], facts[name]["steps"]) for name in METHODS} == {
        "prune": (0, 0),
        "prune:random": (0, 0),
        "prune-finetune": (3, 3 * STEPS),
        "iterative": (3, 3 * STEPS),
        "scratch:mcmc": (3, 3 * SCRATCH_STEPS),
        "matryoshka": (1, STEPS),
        "flexgs": (1, STEPS),
    }
    assert all((facts[name]["seconds"] > 0) == (facts[name]["trainings"] > 0) for name in METHODS)


def test_specialists_train_at_the_published_rates_without_densification(output: Path) -> None:
    """Those that flexgs starts from; only positions' fall, as they do there."""

    def rates(folder: str) -> dict[str, tuple[float, float]]:
        (path,) = (output / folder / "training").glob("version_*/checkpoints/last.ckpt")
        groups = [g for o in read_checkpoint(path)["optimizer_states"] for g in o["param_groups"]]
        return {g["name"]: (g["initial"], g["final"]) for g in groups if g["name"] != "residuals"}

    specialist, elastic = rates("prune-finetune/0.1"), rates("flexgs")
    assert specialist == rates("iterative/0.1")
    assert specialist.pop("means") == elastic.pop("means")
    assert specialist == {name: (initial, initial) for name, (initial, _) in elastic.items()}
    (config,) = (output / "prune-finetune" / "0.1").glob("training/version_*/config.yaml")
    trained = yaml.safe_load(config.read_text())["model"]
    assert trained["reconstruction_steps"] == 0  # hence no densification
    assert trained["background"] == "white"


def test_a_model_from_scratch_learns_from_sfm_points_thinned_to_its_budget(
    output: Path, report: dict[str, Any], small_capture: Path, first_stage: Path
) -> None:
    """Not from the first stage, and worth more than the same number of its Gaussians."""
    budget = count_at(0.1, len(load(first_stage)))
    assert budget < len(read_colmap(small_capture).points)
    (config,) = (output / "scratch-mcmc" / "0.1").glob("training/version_*/config.yaml")
    trained = yaml.safe_load(config.read_text())
    assert trained.get("start_from") is None
    assert trained["model"]["reconstruction_steps"] == SCRATCH_STEPS
    assert trained["model"]["elastic_training"]["steps"] == 0
    assert trained["model"]["initialization"]["max_gaussians"] == budget
    assert trained["model"]["densification"]["class_path"].endswith("MCMC")
    assert trained["model"]["background"] == "white"
    assert trained["model"]["sh_degree_interval"] == 100
    assert psnr(report, "scratch:mcmc", 0.1) > psnr(report, "prune:random", 0.1) + 3.0


def test_a_training_from_scratch_can_be_of_any_length(first_stage: Path, tmp_path: Path) -> None:
    assert compare(first_stage, tmp_path, *asked(("scratch:mcmc",), (0.1,)), "--scratch_steps=20") == 0
    facts = json.loads((tmp_path / "comparison.json").read_text())["methods"]["scratch:mcmc"]
    assert (facts["steps"], facts["scratch_steps"]) == (20, 20)


# -- the report ----------------------------------------------------------------------------------------


def test_the_page_holds_table_costs_curves_grids_and_protocol(output: Path, report: dict[str, Any]) -> None:
    page = (output / "comparison.md").read_text()
    for method in METHODS:
        assert f"\n| {method} | " in page
    best = max(psnr(report, method, 0.1) for method in METHODS)
    assert f"**{best:.2f}**" in page
    assert page.count("<u>") >= len(RATIOS)
    assert "every 5th image by sorted name is held out" in page
    assert "mean of per-image values" in page
    first = report["first_stage"]
    assert first["seconds"] > 0
    assert f"after 300 iterations and {first['seconds']:,.0f} seconds" in page
    for method in METHODS:
        assert f"\n- {method}: {report['methods'][method]['cost']}" in page
    for line in page.splitlines():
        if line.startswith("![]("):
            assert (output / line[4:-1]).is_file(), line
    assert page.count("![](") == 3 + len(RATIOS)


def test_a_grid_shows_every_method_and_the_photo(output: Path) -> None:
    grid = Image.open(output / "grid_10pct.jpg")
    scale = 3  # 96 pixels are enlarged to at least 220
    assert grid.width >= 5 * 96 * scale
    assert grid.height >= 2 * 64 * scale  # six methods and the photo: two rows of five


@pytest.mark.parametrize("name", ["compare", "ablate", "represent", "unseen"])
def test_help_says_what_comes_out_and_explains_every_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    outcome = {"compare": "comparison.md", "ablate": "configs/ablations/BASE"}
    outcome |= {"represent": "representations.md", "unseen": "unseen.md"}
    assert outcome[name] in text
    _, *options = re.split(r" (?=--\w+ )", text.partition("options:")[2])
    explained = [option for option in options if re.search(r" [A-Z]\w+ .*\w{3}", option)]
    assert len(options) >= 7
    assert explained == options


# -- resuming, failing ---------------------------------------------------------------------------------


def test_finished_cells_are_not_run_again(
    first_stage: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained or measured, no file of a cell is touched, and the report is the same."""
    before = {path: path.stat().st_mtime_ns for path in output.rglob(RESULT)}
    text = (output / "comparison.json").read_bytes()
    monkeypatch.setattr(FlexGSModule, "training_step", None)
    monkeypatch.setattr("flexgs_lightning.evaluation.comparison.cells.measure", None)
    assert compare(first_stage, output, *asked()) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob(RESULT)} == before
    assert (output / "comparison.json").read_bytes() == text


def test_other_settings_do_not_mix_with_finished_cells(
    first_stage: Path, output: Path, refusal: Callable[[list[str]], str]
) -> None:
    message = refusal(command(first_stage, output, *asked(("flexgs",)), steps=STEPS + 1))
    assert f"{output / 'flexgs'}: holds results of steps {STEPS}, but now it is {STEPS + 1}" in message
    message = refusal(command(first_stage, output, *asked(("prune",)), "--seed=7"))
    assert f"{output / 'prune'}: holds results of seed 42, but now it is 7" in message


def test_a_failed_cell_is_reported_and_loses_no_other(
    first_stage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[[list[str]], str],
) -> None:
    train = methods.train

    def broken(folder: Path, *rest: Any) -> Any:
        if folder.name == "0.3":
            raise RuntimeError("the machine is on fire")
        return train(folder, *rest)

    monkeypatch.setattr(methods, "train", broken)
    arguments = asked(("prune-finetune", "prune"), (0.1, 0.3))
    cell = tmp_path / "prune-finetune" / "0.3"
    message = refusal(command(first_stage, tmp_path, *arguments, steps=3))
    assert f"1 of 4 cells failed, the first at {cell / ERROR}" in message
    assert "RuntimeError: the machine is on fire" in (cell / ERROR).read_text().splitlines()[0]
    assert "Traceback" in (cell / ERROR).read_text()
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert len(report["cells"]) == 3
    assert [(f["method"], f["ratio"]) for f in report["failed"]] == [("prune-finetune", 0.3)]
    assert (
        "prune-finetune at 30 %: RuntimeError: the machine is on fire"
        in (tmp_path / "comparison.md").read_text()
    )

    monkeypatch.undo()
    assert compare(first_stage, tmp_path, *arguments, steps=3) == 0
    assert not (cell / ERROR).exists()
    assert json.loads((tmp_path / "comparison.json").read_text())["failed"] == []


def test_a_broken_elastic_training_fails_all_its_ratios_but_is_tried_once(
    first_stage: Path, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    """A mistyped option is only known to the trainer's parser."""
    config = tmp_path / "mine.yaml"
    config.write_text("model: {elastic_training: {prefixs: 2}}\n")
    arguments = asked((str(config), "prune"), (0.1, 0.3))
    message = refusal(command(first_stage, tmp_path / "out", *arguments, steps=3))
    assert "2 of 4 cells failed" in message
    assert "prefixs" in (tmp_path / "out" / "mine" / "0.1" / ERROR).read_text()
    assert "have in common failed" in (tmp_path / "out" / "mine" / "0.3" / ERROR).read_text()


@pytest.mark.parametrize(
    ("method", "folder", "steps"),
    [
        ("iterative", "iterative/0.3", STEPS),
        ("matryoshka", "matryoshka", STEPS),
        ("scratch:mcmc", "scratch-mcmc/0.3", SCRATCH_STEPS),
    ],
)
def test_ctrl_c_and_the_same_command_go_on_as_if_nothing_had_happened(
    method: str,
    folder: str,
    steps: int,
    first_stage: Path,
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes in the middle of a training; the same parameters come out, bit for bit."""
    step, seen = FlexGSModule.training_step, []

    def interrupted(self: FlexGSModule, *arguments: Any) -> None:
        seen.append(self.iteration)
        if self.iteration == steps // 2:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, *arguments)

    monkeypatch.setattr(FlexGSModule, "training_step", interrupted)
    assert compare(first_stage, tmp_path, *asked((method,), (0.3,))) == 130
    assert not list(tmp_path.rglob(RESULT))
    assert compare(first_stage, tmp_path, *asked((method,), (0.3,))) == 0
    assert seen == list(range(steps))  # so the second time began where the first had ended

    def parameters(root: Path) -> dict[str, torch.Tensor]:
        (path,) = (root / folder / "training").glob("version_*/checkpoints/last.ckpt")
        return read_checkpoint(path)["state_dict"]

    expected, found = parameters(output), parameters(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# -- bad input -----------------------------------------------------------------------------------------


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that must fail with one message, and returns the message."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) == 1
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("flexgs: error: ")
        return last

    return run


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--methods", "prun"], ("--methods prun", "prune-finetune, iterative", "found 'prun'")),
        (["--methods", "scratch"], ("--methods scratch", "scratch:mcmc", "found 'scratch'")),
        (["--methods", "scratch:adc"], ("--methods scratch:adc", "scratch:mcmc")),
        (["--methods", "prune:beauty"], ("--methods prune:beauty", "lightgaussian", "found 'beauty'")),
        (["--methods", "prune", "prune"], ("--methods: expected different", "prune prune")),
        (["--methods", "flexgs+nothing"], ("flexgs/nothing.yaml", "ratio_list")),
        (["--methods", "missing.yaml"], ("missing.yaml: no such config",)),
        (["--methods", "flexgs", "--configs", "nowhere"], ("nowhere/flexgs.yaml: no such file",)),
        (["--ratios", "0"], ("--ratios", "expected a number in (0, 1], found 0.0")),
        (["--ratios", "0.1", "1.5"], ("--ratios", "expected a number in (0, 1], found 1.5")),
        (["--ratios", "0.00001"], ("--ratios", "less than one")),
        (["--ratios", "0.1", "0.1"], ("--ratios: expected different numbers",)),
        (["--steps", "0"], ("--steps: expected 1 to 1,000,000,000, found 0",)),
        (["--scratch_steps", "0"], ("--scratch_steps: expected 1 to 1,000,000,000, found 0",)),
        (["--iterative_scale", "-1"], ("--iterative_scale: expected a positive number",)),
        (["--config", "nowhere.yaml"], ("nowhere.yaml: no such config",)),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(
    options: list[str],
    parts: tuple[str, ...],
    first_stage: Path,
    tmp_path: Path,
    refusal: Callable[[list[str]], str],
) -> None:
    message = refusal(command(first_stage, tmp_path / "out", *options))
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"root": "ELSEWHERE"}, ("trained on", "elsewhere", "expected a checkpoint of the same scene")),
        ({"test_every": 8}, ("trained with data.test_every 5", "8", "measured as unseen")),
        ({"downscle": 2}, ("config.yaml: ", "'data'", "'downscle'")),
    ],
)
def test_a_checkpoint_of_another_scene_or_split(
    settings: dict[str, Any],
    parts: tuple[str, ...],
    first_stage: Path,
    tmp_path: Path,
    refusal: Callable[[list[str]], str],
) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    data = {name: str(other) if value == "ELSEWHERE" else value for name, value in settings.items()}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": data}))
    message = refusal(command(first_stage, tmp_path / "out", "--config", str(config)))
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ("model: {prefixs: 2}", ("mine.yaml", "'prefixs'")),
        ("model: {elastic_training: {steps: soon}}", ("mine.yaml", "model.elastic_training.steps", "soon")),
        ("data: 7", ("mine.yaml: data: expected settings by name, found 7",)),
        (
            "model: {densification: {class_path: MCMC, init_args: [1]}}",
            ("mine.yaml: model.densification.init_args: expected settings by name, found [1]",),
        ),
        (
            "model: {densification: {class_path: MCMC, init_args: null}}",
            ("mine.yaml: model.densification.init_args: expected settings by name, found None",),
        ),
    ],
)
def test_a_config_is_checked_as_fit_does_before_anything_is_made(
    settings: str,
    parts: tuple[str, ...],
    first_stage: Path,
    tmp_path: Path,
    refusal: Callable[[list[str]], str],
) -> None:
    (tmp_path / "mine.yaml").write_text(settings)
    options = ["--config", str(tmp_path / "mine.yaml"), *asked(("prune",), (0.3,))]
    message = refusal(command(first_stage, tmp_path / "out", *options))
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()


def test_iterative_pruning_needs_a_step_for_each_pruning(
    first_stage: Path, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    """0.95^k falls below a tenth at k = 45; rounding up on the way takes one more."""
    arguments = command(first_stage, tmp_path, *asked(("iterative",), (0.1,)), steps=9)
    assert "1 of 1 cells failed" in refusal(arguments)
    error = (tmp_path / "iterative" / "0.1" / ERROR).read_text()
    assert "--finetune_steps: iterative pruning needs more than 46 steps" in error
