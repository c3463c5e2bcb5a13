"""Removal importance, and the rankings that choose what a small model keeps."""

import math
from typing import Any

import pytest
import torch

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selector import rank
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.rendering.importance import blending_importance, removal_importance
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Rendering
from flexgs_lightning.splats import Splats
from flexgs_lightning.training import ranking
from flexgs_lightning.training.ranking import rank_by_removal, rank_gaussians

BLACK = torch.zeros(3)


def scene(count: int, seed: int = 0) -> Splats:
    """A cloud with much that hides much else; opacities stay clear of the rasterizer's cap."""
    generator = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.rand(count, 3, generator=generator) * 2 - 1,
        quats=torch.randn(count, 4, generator=generator),
        scales=0.02 + 0.3 * torch.rand(count, 3, generator=generator) ** 3,
        opacities=0.1 + 0.85 * torch.rand(count, generator=generator),
        sh=0.7 * torch.randn(count, 1, 3, generator=generator),
    )


def view(turn: float) -> Cameras:
    """From 4 units away, turned about the y axis by ``turn`` radians."""
    angle = torch.tensor(turn)
    viewmat = torch.eye(4)
    viewmat[0, 0] = viewmat[2, 2] = angle.cos()
    viewmat[0, 2], viewmat[2, 0] = angle.sin(), -angle.sin()
    viewmat[2, 3] = 4.0
    K = torch.tensor([[30.0, 0, 20], [0, 30.0, 15], [0, 0, 1]])
    return Cameras(viewmat[None], K[None], 40, 30)


VIEWS = [view(0.8 * i) for i in range(8)]


@pytest.mark.parametrize("background", [BLACK, torch.tensor([1.0, 0.5, 0.2])])
def test_removal_importance_is_what_the_image_loses(background: torch.Tensor) -> None:
    splats = scene(25)
    cameras = view(0.3)
    image = rasterize(splats, cameras, background=background).image.double()
    expected = torch.zeros(25, dtype=torch.float64)
    for i in range(25):
        others = splats[torch.arange(25) != i]
        change = image - rasterize(others, cameras, background=background).image
        expected[i] = change.square().sum()
    generator = torch.Generator().manual_seed(0)
    found = removal_importance(splats, cameras, probes=3000, generator=generator, background=background)
    assert found.dtype == torch.float64
    assert expected.max() > 100 * expected.min()
    seen = expected > 1e-3  # below that, the thresholds at which pixels skip a Gaussian show
    assert seen.sum() > 15
    # 3000 probes leave a standard deviation of 2.6 %; five of them, and the thresholds
    torch.testing.assert_close(found[seen], expected[seen], rtol=0.15, atol=0.0)


def test_removal_importance_sums_over_a_batch_and_ignores_what_no_view_sees() -> None:
    splats = scene(30)
    splats.means[3] = torch.tensor([0.0, 0.0, -50.0])
    both = Cameras.stack([view(0.0), view(1.0)])

    def measured(cameras: Cameras) -> torch.Tensor:
        return removal_importance(splats, cameras, probes=2000, generator=torch.Generator().manual_seed(1))

    apart = measured(view(0.0)) + measured(view(1.0))
    torch.testing.assert_close(measured(both), apart, rtol=0.25, atol=1e-3)
    assert apart[3] == 0
    assert removal_importance(scene(0), view(0.0)).shape == (0,)


def test_ranking_by_removal_keeps_more_of_the_image_than_blending_weights_do() -> None:
    splats = scene(400)
    images = [rasterize(splats, cameras).image for cameras in VIEWS]

    def error(order: torch.Tensor, count: int) -> float:
        pairs = zip(VIEWS, images, strict=True)
        kept = splats[order[:count]]
        return sum(
            float((rasterize(kept, cameras).image - image).square().mean()) for cameras, image in pairs
        )

    found = rank_by_removal(lambda chosen, conditions: splats[chosen], 400, VIEWS, 0.02, background=BLACK)
    assert torch.equal(found.order.sort().values, torch.arange(400))
    by_weight = rank(blending_importance(splats, VIEWS))
    for count in (20, 40, 100):
        assert error(found.order, count) < 0.9 * error(by_weight, count), count


def test_each_round_draws_what_the_last_one_kept() -> None:
    splats = scene(100)
    drawn: list[tuple[set[int], float]] = []

    def draw(chosen: torch.Tensor, conditions: Conditions) -> Splats:
        drawn.append((set(chosen.tolist()), conditions.ratio))
        return splats[chosen]

    order = rank_by_removal(draw, 100, VIEWS, 0.1, background=BLACK).order.tolist()
    assert [ratio for _, ratio in drawn] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert [len(chosen) for chosen, _ in drawn] == [100, 50, 25, 12, 6]
    for chosen, _ in drawn:
        assert chosen == set(order[: len(chosen)])


def test_ranking_does_not_depend_on_how_gaussians_are_stored() -> None:
    splats = scene(60)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    one = rank_by_removal(lambda chosen, conditions: splats[chosen], 60, VIEWS, 0.1, background=BLACK)
    other = splats[shuffled]
    two = rank_by_removal(lambda chosen, conditions: other[chosen], 60, VIEWS, 0.1, background=BLACK)
    assert torch.equal(shuffled[two.order], one.order)
    torch.testing.assert_close(two.importance, one.importance, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("count", [1, 200, 201, 399, 1800])
def test_probed_views_are_an_even_spread(count: int) -> None:
    views = ranking.probed_views(count)
    assert len(views) == min(count, ranking.PROBES)
    assert views == sorted(set(views)) == ranking.probed_views(count)
    for k, i in enumerate(views):
        assert k * count // len(views) <= i < (k + 1) * count // len(views)


def test_of_many_views_no_more_are_drawn_than_there_are_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    splats = scene(400)
    views = [view(2 * math.pi * i / 72) for i in range(72)]
    images = [rasterize(splats, cameras).image for cameras in views]
    rendered: list[Cameras] = []

    def counted(splats: Splats, cameras: Cameras, **options: Any) -> Rendering:
        rendered.append(cameras)
        return rasterize(splats, cameras, **options)

    def error(probes: int) -> float:
        """Of the better tenth of the Gaussians, in all views."""
        rendered.clear()
        monkeypatch.setattr(ranking, "PROBES", probes)
        draw = lambda chosen, conditions: splats[chosen]  # noqa: E731
        kept = splats[rank_by_removal(draw, 400, views, 0.1, background=BLACK).order[:40]]
        pairs = zip(views, images, strict=True)
        return sum(float((rasterize(kept, camera).image - image).square().mean()) for camera, image in pairs)

    monkeypatch.setattr(ranking, "renderer_of", lambda shards: counted)
    all_views = error(72)
    assert len(rendered) == 5 * 72, "five rounds"
    some = error(18)
    assert len(rendered) == 5 * 18
    assert some < 1.05 * all_views


def elastic(splats: Splats) -> Scene:
    residuals = RatioResiduals(len(splats), (0.1, 0.3), dict.fromkeys(residual_columns(), 1.0))
    return Scene(Gaussians.from_splats(splats), parts={"residuals": residuals}, elastic=True)


def test_a_refreshed_ranking_measures_what_prefixes_have_learned() -> None:
    model = elastic(scene(100))
    first = rank_gaussians(model, VIEWS, "removal", lowest_ratio=0.1, background=BLACK).order
    Surgery(model).permute(first)
    residuals = model.parts["residuals"]
    with torch.no_grad():  # in prefixes up to 10 %, the first Gaussian is all but transparent
        column = 3 + 4 + 3
        residuals.tables[0][0, column] = -20.0
        residuals.tables[1][0, column] = -20.0
    second = rank_gaussians(model, VIEWS, "removal", lowest_ratio=0.05, background=BLACK).order
    assert 0 not in second[:10].tolist()


@pytest.mark.parametrize("importance", ["removal", "blending", "global", "global_power"])
def test_views_that_see_nothing_are_refused(importance: str) -> None:
    splats = scene(10)
    splats.means[:, 1] += 1e3
    with pytest.raises(InputError, match="no training view sees any Gaussian"):
        rank_gaussians(elastic(splats), VIEWS, importance, lowest_ratio=0.1, background=BLACK)  # type: ignore[arg-type]
