"""Blending importance over views, and Global Importance."""

import math

import pytest
import torch

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering.importance import blending_importance, global_importance, hit_counts
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats


def scene(count: int, seed: int = 0) -> Splats:
    generator = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.rand(count, 3, generator=generator) * 2 - 1,
        quats=torch.randn(count, 4, generator=generator),
        scales=0.02 + 0.2 * torch.rand(count, 3, generator=generator),
        opacities=torch.rand(count, generator=generator),
        sh=torch.randn(count, 4, 3, generator=generator),
    )


def view(distance: float, width: int = 40, height: int = 30) -> Cameras:
    viewmat = torch.eye(4)
    viewmat[2, 3] = distance
    K = torch.tensor([[30.0, 0, width / 2], [0, 30.0, height / 2], [0, 0, 1]])
    return Cameras(viewmat[None], K[None], width, height)


def test_sums_over_batches_of_views_of_any_size() -> None:
    splats = scene(50)
    views = [Cameras.stack([view(4), view(5)]), view(6, 50, 20)]
    single = [[view(*arguments)] for arguments in ((4,), (5,), (6, 50, 20))]
    weights, hits = blending_importance(splats, iter(views)), hit_counts(splats, iter(views))
    assert weights.dtype == torch.float64
    assert hits.dtype == torch.int64
    torch.testing.assert_close(weights, sum(blending_importance(splats, part) for part in single))
    assert torch.equal(hits, sum(hit_counts(splats, part) for part in single))
    assert hits.sum() > 1000


def test_weights_are_the_gradient_of_the_image_by_a_scalar_colour_and_add_up_to_alpha() -> None:
    splats = scene(30)
    grey = Splats(splats.means, splats.quats, splats.scales, splats.opacities, torch.zeros(30, 1, 3))
    grey.sh.requires_grad_()
    rendering = rasterize(grey, view(4))
    rendering.image[..., 0].sum().backward()
    weights, hits = blending_importance(splats, [view(4)]), hit_counts(splats, [view(4)])
    basis = 0.28209479177387814
    torch.testing.assert_close(weights.float(), grey.sh.grad[:, 0, 0] / basis, rtol=1e-4, atol=1e-4)
    assert weights.sum().item() == pytest.approx(rendering.alpha.sum().item(), rel=1e-4)
    assert torch.equal(hits > 0, weights > 0)
    assert (weights <= hits).all()


def test_a_hidden_gaussian_counts_less_and_one_out_of_view_nothing() -> None:
    front = Splats(
        means=torch.tensor([[0.0, 0, 0], [0, 0, 1], [50, 0, 0]]),
        quats=torch.tensor([[1.0, 0, 0, 0]] * 3),
        scales=torch.full((3, 3), 0.3),
        opacities=torch.tensor([0.99, 0.99, 0.99]),
        sh=torch.zeros(3, 1, 3),
    )
    weights = blending_importance(front, [view(4)])
    assert weights[0] > 2 * weights[1] > 0
    assert weights[2] == 0
    assert hit_counts(front, [view(4)])[2] == 0


@pytest.mark.parametrize("count", [0, 1])
def test_few_or_no_gaussians_and_no_views(count: int) -> None:
    splats = scene(count)
    for views in ([], [view(4)]):
        weights = blending_importance(splats, views)
        assert weights.shape == hit_counts(splats, views).shape == (count,)
        for volume in ("clamped", "power", "none"):
            importance = global_importance(weights, splats.scales, volume)
            torch.testing.assert_close(importance, weights)


def test_no_graph_is_kept_and_the_antialiased_mode_is_passed_on() -> None:
    splats = scene(40)
    splats.opacities.requires_grad_()
    plain = blending_importance(splats, [view(20)])
    smooth = blending_importance(splats, [view(20)], antialiased=True)
    assert not plain.requires_grad
    assert smooth.sum() < 0.95 * plain.sum()


def test_volume_factors() -> None:
    volumes = torch.arange(1.0, 11.0)
    scales = torch.stack([volumes, torch.ones(10), torch.ones(10)], dim=1)
    weights = torch.full((10,), 2.0)
    clamped = global_importance(weights, scales, "clamped")
    expected = [2 * min(v / 9, 1) for v in range(1, 11)]
    torch.testing.assert_close(clamped, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    power = global_importance(weights, scales, "power")
    expected = [2 * (v / 9) ** 0.1 for v in range(1, 11)]
    torch.testing.assert_close(power, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    assert torch.equal(global_importance(weights, scales, "none"), weights.double())


def test_volume_factors_do_not_underflow() -> None:
    tiny = torch.full((10, 3), 1e-15)  # a volume of 1e-45 is zero in float32
    tiny[0] = 1e-16
    importance = global_importance(torch.ones(10), tiny, "clamped")
    assert importance[0].item() == pytest.approx(1e-3, rel=1e-5)
    assert math.isclose(importance[1].item(), 1.0)


def test_an_unknown_volume_factor_is_refused() -> None:
    with pytest.raises(InputError, match="clamped, power or none"):
        global_importance(torch.ones(2), torch.ones(2, 3), "cubic")  # type: ignore[arg-type]
