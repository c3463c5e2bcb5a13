"""The same budgets on export, render and view."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from small_scene import pixels

from flexgs_lightning import Splats, load
from flexgs_lightning.cli import main
from flexgs_lightning.deploy.budgets import Budget, parse_budget, parse_budgets
from flexgs_lightning.deploy.export import export
from flexgs_lightning.deploy.formats.ply import read_ply
from flexgs_lightning.deploy.render_command import render
from flexgs_lightning.deploy.viewer import viewer
from flexgs_lightning.deploy.viewer.command import view
from flexgs_lightning.errors import InputError

NAMES = ("ratio", "max_gaussians", "max_megabytes", "max_milliseconds", "profile")


class Recorder:
    """A model that notes what it is asked for."""

    def at(self, ratio: float | None = None, time: float | None = None, **budgets: Any) -> Splats:
        self.asked = (ratio, budgets["max_gaussians"], budgets["max_megabytes"]) if budgets else (ratio,)
        return Splats(*(torch.zeros(0, *shape) for shape in ((3,), (4,), (3,), (), (1, 3))))


def test_numbers_are_read_as_people_write_them() -> None:
    assert parse_budgets(["0.05", "1"], ["50k", "1M", "120000"], ["1.5"]) == [
        Budget(ratio=0.05),
        Budget(ratio=1.0),
        Budget(max_gaussians=50_000),
        Budget(max_gaussians=1_000_000),
        Budget(max_gaussians=120_000),
        Budget(max_megabytes=1.5),
    ]
    assert parse_budgets(None, None, None) == [parse_budget(None, None, None)] == [Budget()]
    assert parse_budget(None, "2k", None) == Budget(max_gaussians=2000)
    with pytest.raises(InputError, match="expected one of them"):
        parse_budget("0.1", None, "5")
    with pytest.raises(InputError, match=r"--max_megabytes: expected numbers .*found 'much'"):
        parse_budget(None, None, "much")


@pytest.mark.parametrize(
    ("budget", "asked"),
    [
        (Budget(), (1.0,)),
        (Budget(ratio=0.5), (0.5, None, None)),
        (Budget(max_gaussians=7), (None, 7, None)),
        (Budget(max_megabytes=2.5), (None, None, 2.5)),
    ],
)
def test_a_budget_asks_the_model(budget: Budget, asked: tuple[Any, ...]) -> None:
    model = Recorder()
    budget.of(model)  # type: ignore[arg-type]
    assert model.asked == asked


def test_the_commands_have_the_same_options() -> None:
    for command in (export, render, view):
        parameters = list(inspect.signature(command).parameters)
        assert [name for name in parameters if name in NAMES] == list(NAMES)


@pytest.fixture(scope="module")
def checkpoint(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    steps = ["--model.reconstruction_steps=1", "--model.elastic_training.steps=1", "--test_after_fit=false"]
    options = ["--model.lpips=none", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", f"--data.root={small_capture}", f"--runs={runs}", *steps, *options]) == 0
    return runs / "small" / "version_0" / "checkpoints" / "last.ckpt"


def test_every_command_means_the_same_by_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export and draw 300 Gaussians: the file's picture is the model's; the viewer begins with as many."""
    budget = ["--max-gaussians", "0.3k"]
    assert main(["export", f"--ckpt={checkpoint}", f"--output={tmp_path / 'small.ply'}", *budget]) == 0
    assert len(read_ply(tmp_path / "small.ply")) == 300
    data = load(checkpoint).data["root"]
    frames = (
        ["--ckpt", str(checkpoint), *budget],
        ["--ply", str(tmp_path / "small.ply"), "--data_root", data],
    )
    for name, options in zip("ab", frames, strict=True):
        assert main(["render", *options, f"--output={tmp_path / name}"]) == 0
    for path in (tmp_path / "a").iterdir():
        difference = pixels(path).astype(int) - pixels(tmp_path / "b" / path.name)
        assert abs(difference).max() <= 1
    begun: dict[str, Any] = {}

    class Closed:
        def __init__(self, *_: Any, **options: Any) -> None:
            begun.update(options)

        def wait(self) -> None:
            return None

    monkeypatch.setattr(viewer, "Viewer", Closed)
    assert main(["view", f"--ckpt={checkpoint}", *budget]) == 0
    assert begun["count"] == 300
    assert main(["view", f"--ply={tmp_path / 'small.ply'}", "--max-gaussians=1M"]) == 0
    assert begun["count"] == 300


def test_a_ply_is_not_cut(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"--ckpt={checkpoint}", f"--output={tmp_path / 'all.ply'}"]) == 0
    for option in ("--ratio=0.5", "--max-gaussians=10", "--max-megabytes=0.05"):
        assert main(["view", f"--ply={tmp_path / 'all.ply'}", option]) == 1
        assert "not an elastic model" in capsys.readouterr().err
