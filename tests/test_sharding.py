"""Gaussians shared out over processes: two that hold half each do what one does that holds all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from densification_scene import Scene, fake_rendering
from small_scene import around, ball
from torch import Tensor
from training_processes import together

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.rows import take
from flexgs_lightning.model.scene import Scene as ElasticScene
from flexgs_lightning.processes import ALONE, Shards
from flexgs_lightning.rendering.importance import removal_importance
from flexgs_lightning.rendering.sharded import renderer_of
from flexgs_lightning.rendering.types import Outputs
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.checks import check_savable
from flexgs_lightning.training.densification import MCMC, AdaptiveDensityControl
from flexgs_lightning.training.elastic import ElasticTraining
from flexgs_lightning.training.elastic.losses import importance_loss, sparsity_loss
from flexgs_lightning.training.elastic.stage import Iteration, descend, elastic_optimizer
from flexgs_lightning.training.elastic.subset import Subset
from flexgs_lightning.training.parallel import replicated, sum_gradients
from flexgs_lightning.training.ranking import rank_gaussians
from flexgs_lightning.training.sharding import deal_out

FIELDS = ("means", "quats", "scales", "opacities", "sh")
BACKGROUND = torch.tensor([0.1, 0.2, 0.3])
W = 2
EVERYTHING = Outputs(depth=True, weights=True, hits=True, absgrad=True)


def leaves(splats: Splats) -> Splats:
    return Splats(**{name: getattr(splats, name).detach().clone().requires_grad_() for name in FIELDS})


def drawn(splats: Splats, cameras: Cameras, shards: Shards, first: int, **options: Any) -> dict[str, Tensor]:
    """A rendering, and the gradients of a loss that tells pixels and cameras apart (the first's number)."""
    splats = leaves(splats)
    rendering = renderer_of(shards)(splats, cameras, background=BACKGROUND, **options)
    rendering.means2d.retain_grad()
    noise = torch.randn(4, 50, 50, 3, generator=torch.Generator().manual_seed(3))
    weights = noise[first : first + len(cameras), : cameras.height, : cameras.width]
    (rendering.image * weights).sum().backward()
    result = {name: getattr(rendering, name) for name in ("image", "alpha", "means2d", "radii")}
    if "outputs" in options:
        result |= {name: getattr(rendering, name) for name in ("depth", "weights", "hits")}
        result["absgrad"] = rendering.absgrad()
    result |= {f"{name} gradient": getattr(splats, name).grad for name in FIELDS}
    result["means2d gradient"] = rendering.means2d.grad
    return {name: value.detach() for name, value in result.items()}


def _draw(rank: int) -> dict[str, Any]:
    shards = Shards(rank, W)
    splats = ball()
    half = splats[torch.arange(rank, len(splats), W)]
    pair = around(4)[2 * rank : 2 * rank + 2]
    small = around(2, width=24, height=20)[1]
    results = {
        f"antialiased={antialiased}": drawn(
            half, pair, shards, 2 * rank, antialiased=antialiased, outputs=EVERYTHING
        )
        for antialiased in (False, True)
    }
    results["other sizes"] = drawn(half, (around(4)[0], small)[rank], shards, rank)
    results["no camera"] = drawn(half, around(4)[0][: 1 - rank], shards, 0, outputs=EVERYTHING)
    results["empty shard"] = drawn(splats if rank == 0 else splats[:0], around(4)[rank], shards, rank)
    results["empty scene"] = drawn(splats[:0], around(4)[rank], shards, rank)
    results["removal"] = sum(
        removal_importance(
            half,
            around(4)[i] if i < 3 else around(4)[0][:0],
            probes=3,
            generator=torch.Generator().manual_seed(i),
            renderer=renderer_of(shards),
        )
        for i in (rank, rank + W)
    )
    return results


@pytest.fixture(scope="module")
def renderings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(W, _draw, tmp_path_factory.mktemp("renderings"))


def assert_drawn_alike(
    found: dict[str, Tensor], expected: dict[str, Tensor], rank: int, images: slice
) -> None:
    """Images of this process's cameras; of Gaussians, what belongs to this process's, for all cameras."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("image", "alpha", "depth"):
            wanted = value[images]
        elif value.shape[:1] == (len(ball()),):
            wanted = value[rank::W]
        else:
            wanted = value[:, rank::W]
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6 * float(value.abs().max()))


@pytest.mark.parametrize("antialiased", [False, True])
def test_images_gradients_and_importance_are_those_of_one_process(
    antialiased: bool, renderings: list[dict[str, Any]]
) -> None:
    expected = drawn(ball(), around(4), ALONE, 0, antialiased=antialiased, outputs=EVERYTHING)
    assert expected["hits"].sum() > 10_000
    for rank, results in enumerate(renderings):
        images = slice(2 * rank, 2 * rank + 2)
        assert_drawn_alike(results[f"antialiased={antialiased}"], expected, rank, images)


def test_processes_may_have_images_of_other_sizes_or_none(renderings: list[dict[str, Any]]) -> None:
    cameras = around(4)[0], around(2, width=24, height=20)[1]
    both = [drawn(ball(), camera, ALONE, i) for i, camera in enumerate(cameras)]
    for rank, results in enumerate(renderings):
        found = results["other sizes"]
        torch.testing.assert_close(found["image"], both[rank]["image"])
        for name in FIELDS:
            total = sum(one[f"{name} gradient"] for one in both)[rank::W]  # type: ignore[index]
            torch.testing.assert_close(found[f"{name} gradient"], total, rtol=1e-4, atol=1e-4)
        means = torch.cat([one["means2d"] for one in both])
        torch.testing.assert_close(found["means2d"], means[:, rank::W])
    expected = drawn(ball(), around(4)[0], ALONE, 0, outputs=EVERYTHING)
    for rank, results in enumerate(renderings):
        assert_drawn_alike(results["no camera"], expected, rank, slice(0, 1 - rank))


def test_empty_shards_and_empty_scenes(renderings: list[dict[str, Any]]) -> None:
    expected = drawn(ball(), around(4)[:2], ALONE, 0)
    for rank, results in enumerate(renderings):
        torch.testing.assert_close(results["empty shard"]["image"], expected["image"][rank : rank + 1])
        assert torch.equal(results["empty scene"]["image"], BACKGROUND.expand(1, 30, 40, 3))
    torch.testing.assert_close(
        renderings[0]["empty shard"]["means gradient"], expected["means gradient"], rtol=1e-4, atol=1e-4
    )
    assert renderings[1]["empty shard"]["means gradient"].shape == (0, 3)


def test_removal_is_measured_view_by_view(renderings: list[dict[str, Any]]) -> None:
    """Three views of two processes, with the signs that each view has wherever it is drawn."""
    expected = sum(
        removal_importance(ball(), around(4)[i], probes=3, generator=torch.Generator().manual_seed(i))
        for i in range(3)
    )
    for rank, results in enumerate(renderings):
        torch.testing.assert_close(results["removal"], expected[rank::W], rtol=1e-4, atol=0)  # type: ignore[index]


# The second stage


def elastic(shards: Shards, count: int, **options: Any) -> ElasticScene:
    """The first Gaussians of the ball, or this process's of them."""
    torch.manual_seed(0)
    gaussians = Gaussians.from_splats(ball()[:count])
    own = Gaussians({name: shards.mine(rows) for name, rows in gaussians.params.items()})
    units = dict.fromkeys(residual_columns(), 0.01)
    frame = SceneFrame(torch.zeros(3), 4.0)
    return elastic_scene(own, frame, ElasticOptions(**options), units, shards=shards, total=count)


ORDERED: dict[str, Any] = {
    "residual_anchors": (0.1, 0.5),
    "field_heads": ("means", "scales"),
    "field_resolution": 4,
    "field_zero_init": False,
}
GSNET: dict[str, Any] = {"selection": "gsnet", "residual_anchors": ()}


def descended(shards: Shards, count: int, cameras: Cameras, first: int) -> dict[str, Tensor]:
    """All gradients of one iteration: prefixes of 1 and 4 in 10, and the full model."""
    model = elastic(shards, count, **ORDERED)
    photos = torch.rand(2, 30, 40, 3, generator=torch.Generator().manual_seed(5))

    def photometric(splats: Splats) -> Tensor:
        image = renderer_of(shards)(splats, cameras).image
        return (image - photos[first : first + len(cameras)]).abs().mean()

    options = ElasticTraining(sampling="list", ratios=(0.1, 0.4), prefixes=2)
    backward = lambda loss: (loss / shards.count).backward()  # noqa: E731
    descend(model, options, Iteration(0, photometric, backward))
    sum_gradients(replicated(model, shards).values())
    optimizer = elastic_optimizer(model, options, 1.0)
    assert optimizer is not None
    optimizer.step()  # also where tables are empty
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def masks(shards: Shards) -> dict[str, Tensor]:
    """Values and gradients of the losses on masks of 40 Gaussians, and what is drawn at 30 %."""
    model = elastic(shards, 40, **GSNET)
    mask = torch.rand(40, generator=torch.Generator().manual_seed(2))
    mask = shards.mine(mask).clone().requires_grad_()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    losses = importance_loss(mask, order, 0.3, shards), sparsity_loss(mask, 0.3, shards)
    (sum(losses) / shards.count).backward()
    means = model.eval().at(0.3).means
    with torch.no_grad():
        model.selection.network.mix_ratio.bias.copy_(torch.tensor([100.0, -100.0]))
    fallback = Subset(model.train(), 0.3, 1.0).splats.means
    return {
        "losses": torch.stack(losses).detach(),
        "gradient": mask.grad,
        "means": means.detach(),
        "fallback": fallback.detach(),
    }


def rankings(shards: Shards) -> dict[str, Tensor]:
    """Of 100 Gaussians by three views."""
    model = elastic(shards, 100, residual_anchors=(0.1,))
    views = [around(3)[i] for i in range(3)]
    return {
        importance: torch.stack(
            list(rank_gaussians(model, views, importance, lowest_ratio=0.1, background=BACKGROUND))
        )
        for importance in ("removal", "blending", "global_power")
    }


ORDER = torch.randperm(11, generator=torch.Generator().manual_seed(1))


def _second_stage(rank: int) -> dict[str, Any]:
    shards = Shards(rank, W)
    rows = torch.arange(33.0).reshape(11, 3)
    moved, table = take(shards.mine(rows), ORDER, shards), take(shards.mine(rows[:5]), ORDER[:5], shards)
    uneven = Gaussians.from_splats(ball()[:5] if rank == 0 else ball()[5:7])
    broken = Gaussians.from_splats(ball()[:3])
    if rank == 1:
        broken.params["scales"].data[2, 0] = torch.nan
    with pytest.raises(InputError) as refusal:
        check_savable(ElasticScene(broken, shards=shards), 7)
    return {
        "gradients": {n: descended(shards, n, around(2)[rank], rank) for n in (10, 40)},
        "masks": masks(shards),
        "rankings": rankings(shards),
        "reordered": (moved, table),
        "dealt out": deal_out(uneven, shards).splats().detach(),
        "refusal": str(refusal.value),
        "densified": densified(shards),
    }


@pytest.fixture(scope="module")
def second_stage(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(W, _second_stage, tmp_path_factory.mktemp("second_stage"))


@pytest.mark.parametrize("count", [10, 40])
def test_an_elastic_iteration_descends_alike(count: int, second_stage: list[dict[str, Any]]) -> None:
    """Of 10 Gaussians, the prefix at 10 % is in one process alone: the other has an empty table."""
    expected = descended(ALONE, count, around(2), 0)
    rows = elastic(ALONE, count, **ORDERED).row_names()
    for rank, results in enumerate(second_stage):
        for name, gradient in results["gradients"][count].items():
            own = expected[name][rank::W] if name in rows else expected[name]
            assert gradient.shape == own.shape, name
            assert (gradient - own).norm() <= 1e-5 * expected[name].norm(), name
    assert sum(len(results["gradients"][10]["parts.residuals.tables.0"]) for results in second_stage) == 1


def test_masks_are_judged_over_all_processes(second_stage: list[dict[str, Any]]) -> None:
    expected = masks(ALONE)
    for rank, results in enumerate(second_stage):
        torch.testing.assert_close(results["masks"]["losses"], expected["losses"])
        torch.testing.assert_close(results["masks"]["gradient"], expected["gradient"][rank::W])
    for name in ("means", "fallback"):
        found = torch.cat([results["masks"][name] for results in second_stage])
        assert sorted(found.tolist()) == sorted(expected[name].tolist()), name
    assert len(expected["means"]) == 12
    assert len(expected["fallback"]) == 1


def test_all_processes_rank_as_one_does(second_stage: list[dict[str, Any]]) -> None:
    for importance, ranking in rankings(ALONE).items():
        for results in second_stage:
            torch.testing.assert_close(results["rankings"][importance], ranking, rtol=1e-6, atol=0.0)


def test_rows_follow_their_gaussian_to_another_process(second_stage: list[dict[str, Any]]) -> None:
    for index, length in enumerate((11, 5)):  # all Gaussians; the table of a prefix
        expected = take(torch.arange(33.0).reshape(11, 3)[:length], ORDER[:length])
        for rank, results in enumerate(second_stage):
            assert torch.equal(results["reordered"][index], expected[rank::W])
    for rank, results in enumerate(second_stage):
        torch.testing.assert_close(results["dealt out"].means, ball().means[rank:7:W])


def test_no_process_saves_what_is_broken_in_another(second_stage: list[dict[str, Any]]) -> None:
    for results in second_stage:
        assert results["refusal"] == "No checkpoint written at step 7: 'scales' holds NaN or infinity."


# Densification


def densified(shards: Shards) -> dict[str, Any]:
    """What each density control makes of 40 Gaussians, or of a share of them, at its cap."""
    results: dict[str, Any] = {}
    controls = {
        "adaptive": AdaptiveDensityControl(
            start_step=0, every=10, reset_every=0, max_gaussians=50, grow_scale3d=1e3, prune_scale3d=1e4
        ),
        "mcmc": MCMC(start_step=0, every=10, growth=1.0, max_gaussians=57, noise_lr=0.0),
    }
    for name, control in controls.items():
        scene = _shared_out(shards)
        control.start(scene.learned, list(scene.optimizers.values()), 1.0, 1000)
        gradient = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(8)) / 100
        means2d = torch.zeros_like(gradient[:, shards.rank :: shards.count], requires_grad=True)
        means2d.grad = gradient[:, shards.rank :: shards.count].clone()
        rendering = fake_rendering(means2d, torch.full(means2d.shape, 4, dtype=torch.int32))
        penalty = control.regularization()
        if penalty is not None:
            (penalty / shards.count).backward()
            results["penalty"] = (penalty.item(), scene.params["opacities"].grad.clone())
        report = control.after_step(9, rendering)
        results[name] = (report, scene.gaussians.splats().detach())
    scene, control = _shared_out(shards), MCMC(max_gaussians=39)
    with pytest.raises(InputError) as refusal:
        control.start(scene.learned, list(scene.optimizers.values()), 1.0, 1000)
    return results | {"refusal": str(refusal.value)}


def _shared_out(shards: Shards) -> Scene:
    """This process's share of 40 Gaussians, of which three are dead; with Adam's first step behind it."""
    scene = Scene(40)
    with torch.no_grad():
        scene.params["opacities"][:3] = -9.0
    for name, parameter in scene.params.items():
        parameter.data = shards.mine(parameter.data).clone()
        parameter.grad = torch.zeros_like(parameter)
        scene.optimizers[name].step()
        parameter.grad = None
    scene.learned = ElasticScene(scene.gaussians, shards=shards, total=40)
    return scene


def test_adaptive_control_grows_where_the_gradient_is_highest_in_any_process(
    second_stage: list[dict[str, Any]],
) -> None:
    report, splats = densified(ALONE)["adaptive"]
    assert (report.cloned, report.pruned, report.count) == (10, 6, 44), "and drops the dead, clones included"
    assert all(results["densified"]["adaptive"][0] == report for results in second_stage)
    found = torch.cat([results["densified"]["adaptive"][1].means for results in second_stage])
    assert sorted(found.tolist()) == sorted(splats.means.tolist())


def test_mcmc_keeps_to_its_cap_over_all_processes(second_stage: list[dict[str, Any]]) -> None:
    alone = densified(ALONE)
    for rank, results in enumerate(second_stage):
        report = results["densified"]["mcmc"][0]
        assert (report.added, report.relocated, report.count) == (17, 3, 57)
        value, gradient = results["densified"]["penalty"]
        assert value == pytest.approx(alone["penalty"][0])
        torch.testing.assert_close(gradient, alone["penalty"][1][rank::W])
    assert sum(len(results["densified"]["mcmc"][1]) for results in second_stage) == 57


def test_a_cap_below_what_all_processes_hold_is_refused(second_stage: list[dict[str, Any]]) -> None:
    for results in second_stage:
        assert "max_gaussians: expected at least the 40 Gaussians" in results["densified"]["refusal"]
