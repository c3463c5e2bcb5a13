"""One scene, one table of attributes, one home of surgery."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from glow import glowing, use_glow
from small_scene import ball
from test_parallel import succeed
from test_sharded_training import SHARDED, arguments
from torch import Tensor
from training_processes import run, scene

from flexgs_lightning import load
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.attributes import ATTRIBUTES, Attribute, residual_columns
from flexgs_lightning.model.budget import ply_bytes_per_gaussian
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import GsNet
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.training.elastic import ElasticTraining
from flexgs_lightning.training.elastic.stage import elastic_optimizer
from flexgs_lightning.training.optimization import LearningRates, gaussian_optimizers

UNITS = dict.fromkeys(residual_columns(), 1.0)


# -- surgery -------------------------------------------------------------------------------------------------


def tagged(selection: str = "ordered", count: int = 40) -> tuple[Scene, list[torch.optim.Optimizer]]:
    """An elastic scene whose every row, moments included, says which Gaussian's it is."""
    options = ElasticOptions(residual_anchors=(0.1, 0.5))
    if selection == "gsnet":
        options = ElasticOptions(selection="gsnet", residual_anchors=())
    frame = SceneFrame(torch.zeros(3), 1.0)
    model = elastic_scene(Gaussians.from_splats(ball()[:count]), frame, options, UNITS)
    added = elastic_optimizer(model, ElasticTraining(), 1.0)
    optimizers = [*gaussian_optimizers(model.gaussians, LearningRates(), 1.0).values()]
    optimizers += [] if added is None else [added]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        for row in model.rows():
            tags = torch.arange(1.0, len(row) + 1).view(-1, *(1,) * (row.ndim - 1))
            row.copy_(tags.expand_as(row))
            for optimizer in optimizers:
                if row in optimizer.state:
                    optimizer.state[row]["exp_avg"].copy_(100 * row)
                    optimizer.state[row]["exp_avg_sq"].copy_(1000 * row)
    return model, optimizers


def tags_of(row: Tensor) -> list[int]:
    flat = row.detach().flatten(1) if row.ndim > 1 else row.detach()[:, None]
    assert (flat == flat[:, :1]).all()
    return [int(tag) for tag in flat[:, 0]]


def check_follows(model: Scene, optimizers: list[torch.optim.Optimizer], expected: list[int]) -> None:
    """Everything with a row for each Gaussian has the expected ones; 0 stands for a new one."""
    for name, parameter in model.gaussians.own().items():
        assert tags_of(parameter) == expected, name
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    for row in model.rows():
        assert sum(p is row for p in held) == 1, "optimizers hold the scene's own parameters"
        (state,) = [optimizer.state[row] for optimizer in optimizers if row in optimizer.state]
        assert state["exp_avg"].shape == row.shape
        tags = [tag if tag in expected else 0 for tag in tags_of(row)]
        assert tags_of(state["exp_avg"]) == [100 * tag for tag in tags]
        assert tags_of(state["exp_avg_sq"]) == [1000 * tag for tag in tags]
    assert all(
        len(optimizer.state) == len(optimizer.param_groups[0]["params"]) for optimizer in optimizers[:5]
    )


def test_keeping_some_keeps_all_that_is_theirs() -> None:
    model, optimizers = tagged()
    statistics = {"views": torch.arange(1.0, 41)}
    mask = torch.arange(40) % 3 != 1
    kept = [i + 1 for i in range(40) if i % 3 != 1]
    Surgery(model, optimizers, statistics).keep(mask)
    assert len(model) == len(kept) == 27
    check_follows(model, optimizers, kept)
    assert statistics["views"].tolist() == kept
    first, second = (tags_of(table) for table in model.parts["residuals"].tables)
    assert first == [1, 3, 0][:2], "the prefix of 10 % has 2 rows now"
    assert second == [tag if tag <= 20 else 0 for tag in kept[:13]], "who enters a prefix starts at zero"


def test_new_gaussians_start_without_moments() -> None:
    model, optimizers = tagged()
    statistics = {"views": torch.ones(40)}
    rows = {name: 0 * values[:3] for name, values in model.gaussians.own().items()}
    Surgery(model, optimizers, statistics).append(rows)
    assert len(model) == 43
    check_follows(model, optimizers, [*range(1, 41), 0, 0, 0])
    assert statistics["views"].tolist() == [1] * 40 + [0] * 3


def test_a_new_order_is_everybodys() -> None:
    model, optimizers = tagged()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    Surgery(model, optimizers).permute(order)
    check_follows(model, optimizers, [i + 1 for i in order.tolist()])


def test_a_networks_importance_follows_what_is_kept() -> None:
    model, optimizers = tagged("gsnet")
    assert isinstance(model.selection, GsNet)
    model.selection.importance_order.copy_(torch.arange(39, -1, -1))
    Surgery(model, optimizers).keep(torch.arange(40) % 2 == 0)
    assert model.selection.importance_order.tolist() == list(range(19, -1, -1))
    Surgery(model, optimizers).append({name: rows[:1] for name, rows in model.gaussians.own().items()})
    assert model.selection.importance_order.tolist() == [*range(19, -1, -1), 20]
    assert sorted(model.eval().ranking().tolist()) == list(range(21))


def test_a_graph_that_is_still_alive_does_no_harm() -> None:
    model, optimizers = tagged()
    alive = model.at(1.0).means.sum()
    Surgery(model, optimizers).keep(torch.arange(40) < 30)
    model.at(1.0).means.sum().backward()
    assert model.gaussians.params["means"].grad.shape == (30, 3)
    assert alive.requires_grad


# -- the table -----------------------------------------------------------------------------------------------


def test_bytes_and_columns_follow_from_the_table() -> None:
    assert [ply_bytes_per_gaussian(degree) for degree in range(4)] == [68, 104, 164, 248]
    assert residual_columns() == {"means": 3, "quats": 4, "scales": 3, "opacities": 1, "sh": 3}
    with pytest.raises(ValueError, match="there is a 'means' already"):
        Gaussians.empty().extended([Attribute("means", (2,), rate=1.0)])
    with pytest.raises(ValueError, match="positive rate of 'glow', found -1"):
        Attribute("glow", (2,), rate=-1.0)
    with pytest.raises(ValueError, match="no such attributes: glow"):
        Gaussians({"glow": torch.zeros(1, 2)} | {n: a.fresh(1, 0) for n, a in ATTRIBUTES.items()})


def test_a_new_attribute_is_trained_densified_shared_out_resumed_and_pruned(
    small_capture: Path, tmp_path: Path
) -> None:
    """Brought by a part, and nothing else: no line of the package knows of it."""
    with glowing():
        whole = FlexGSCLI(arguments(small_capture, tmp_path / "whole", "--data.batch_size=2"))
        folder = whole.run_folder / "checkpoints"
        expected = scene(folder / "last.ckpt")
        glow = expected["scene.gaussians.params.glow"]
        start = len(scene(folder / "step_6.ckpt")["scene.gaussians.params.glow"])
        assert len(glow) == len(expected["scene.gaussians.params.means"]) > start, (
            "densified, like the others"
        )
        assert ((glow - 0.25).abs() > 0.05).any(), "learned"
        table = expected["scene.parts.residuals.tables.3"]
        assert table.shape[1] == 15, "displaced in small prefixes"
        assert table[:, 14].abs().max() > 0

        resumed = FlexGSCLI(
            arguments(
                small_capture,
                tmp_path / "whole",
                "--data.batch_size=2",
                f"--ckpt_path={folder / 'step_18.ckpt'}",
            )
        )
        again = scene(resumed.run_folder / "checkpoints" / "last.ckpt")
        assert all(torch.equal(again[name], value) for name, value in expected.items())

        model = load(folder / "last.ckpt")
        Surgery(model.scene).keep(torch.arange(len(model)) % 2 == 0)
        assert torch.equal(model.gaussians.params["glow"].detach(), glow[::2])
        lit = model.at(0.5).opacities
        raw = model.gaussians.params["opacities"].detach()[: len(lit)].sigmoid()
        assert not torch.allclose(lit, raw, atol=1e-3)

    succeed(run(2, arguments(small_capture, tmp_path / "two", SHARDED), tmp_path / "logs", use_glow))
    shared = scene(next((tmp_path / "two").glob("**/last.ckpt")))
    assert shared.keys() == expected.keys()
    assert shared["scene.gaussians.params.glow"].shape == glow.shape
    close = (shared["scene.gaussians.params.glow"] - glow).abs().amax(dim=1) < 1e-2
    assert close.float().mean() > 0.98


def test_load_needs_every_kind_of_part(small_capture: Path, tmp_path: Path) -> None:
    with glowing():
        trained = FlexGSCLI(arguments(small_capture, tmp_path))

    with pytest.raises(InputError, match=r"expected one of .*residuals, field.*found 'glow'"):
        load(trained.run_folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("name", "rate"), [("quats", -1.0), ("scales", float("nan")), ("sh0", 0.0), ("shN", 0.0)]
)
def test_impossible_rates_are_named(name: str, rate: float) -> None:
    with pytest.raises(InputError, match=f"learning_rates.{name}: expected"):
        LearningRates(**{name: rate})
