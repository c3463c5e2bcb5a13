"""The scene's frame, GaussianSelector and the losses on its masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.normalization import SceneFrame, canonical_quats
from flexgs_lightning.model.selector import GaussianSelector, prefix_mask, rank
from flexgs_lightning.training.elastic.losses import importance_loss, sparsity_loss

RATIOS = (0.01, 0.02, 0.073, 0.29, 0.5, 1.0)


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, Tensor]:
    """500 Gaussians, some far outside the unit ball: means, log-scales, quaternions of any length."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(500, 3, generator=generator) * 3
    log_scales = torch.randn(500, 3, generator=generator) - 4
    return means, log_scales, torch.randn(500, 4, generator=generator) * 2


@pytest.fixture
def selector() -> GaussianSelector:
    torch.manual_seed(1)
    return GaussianSelector(SceneFrame(torch.tensor([0.3, -0.2, 0.1]), 1.5))


# --- frame ---------------------------------------------------------------------------------------------


def test_contraction_is_mip_nerf_360s() -> None:
    frame = SceneFrame(torch.tensor([1.0, 2.0, 3.0]), 2.0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(2)))
    for radius, expected in [(0.0, 0.0), (0.4, 0.4), (1.0, 1.0), (2.0, 1.5), (10.0, 1.9), (1e6, 2.0)]:
        contracted = frame.contract(frame.center + 2.0 * radius * directions)
        torch.testing.assert_close(contracted, expected * directions, atol=2e-5, rtol=1e-5)
        assert frame.plane_coordinates(frame.center + 2.0 * radius * directions).abs().max() <= 1.0


def test_contraction_is_smooth_at_the_centre_and_at_the_unit_sphere() -> None:
    frame = SceneFrame(torch.zeros(3), 1.0).double()
    points = torch.tensor([[0.0, 0, 0], [0.2, 0.1, -0.3], [0.999999, 0, 0], [1.000001, 0, 0], [3.0, 4, 5]])
    means = points.double().requires_grad_()
    assert torch.autograd.gradcheck(frame.contract, (means,), eps=1e-8, atol=1e-5)


def test_frame_from_cameras_holds_them() -> None:
    positions = torch.randn(20, 3) * 4 + 10
    frame = SceneFrame.from_cameras(positions)
    assert frame.contract(positions).norm(dim=-1).max() <= 1.0
    assert SceneFrame.from_cameras(positions[:1]).scale == 1.0


def test_canonical_quaternions_are_one_for_each_rotation() -> None:
    quats = torch.randn(100, 4, generator=torch.Generator().manual_seed(3))
    quats[:3] = torch.tensor([[0.0, -2, 1, 0], [0, 0, -3, 1], [0, 0, 0, -1]])
    canonical = canonical_quats(quats)
    torch.testing.assert_close(canonical.norm(dim=-1), torch.ones(100))
    assert (canonical[:, 0] >= 0).all()
    for factor in (-1.0, 7.0, -0.5):
        torch.testing.assert_close(canonical_quats(factor * quats), canonical)
    dots = (canonical * quats).sum(-1).abs() / quats.norm(dim=-1)
    torch.testing.assert_close(dots, torch.ones(100))
    assert canonical_quats(torch.zeros(1, 4)).abs().sum() == 0


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_frame_refuses_bad_scales(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        SceneFrame(torch.zeros(3), scale)


def test_frame_refuses_bad_centers() -> None:
    with pytest.raises(ValueError, match="center must be"):
        SceneFrame(torch.zeros(1, 3), 1.0)


# --- logits and ranking --------------------------------------------------------------------------------


def test_logits_are_the_papers_equations(selector: GaussianSelector, scene: tuple[Tensor, ...]) -> None:
    """Eqs. 3-7 written out in float64: [h_e, h_a] W on a concatenation."""
    means, log_scales, quats = (tensor.double() for tensor in scene)
    weights = {name: value.double() for name, value in selector.state_dict().items()}
    points = (means - weights["frame.center"]) / weights["frame.scale"]
    radius = points.norm(dim=-1, keepdim=True)
    inside = radius <= 1
    positions = torch.where(inside, points, (2 - 1 / radius) * points / radius)
    sizes = torch.log10(log_scales.exp() / weights["frame.scale"] / 0.01)
    units = quats / quats.norm(dim=-1, keepdim=True) * torch.where(quats[:, :1] < 0, -1.0, 1.0)

    def branch(name: str, x: Tensor) -> Tensor:
        for layer in ("0", "2"):
            x = (x @ weights[f"{name}.{layer}.weight"].T + weights[f"{name}.{layer}.bias"]).relu()
        return x

    h_a = branch("attribute_branch", torch.cat([positions, sizes, units], dim=1))
    for ratio in RATIOS:
        axis = 1 - 2 * math.log(ratio) / math.log(0.01)
        h_e = branch("ratio_branch", torch.full((1, 1), axis, dtype=torch.float64)).expand(len(h_a), -1)
        mixing = torch.cat([weights["mix_ratio.weight"], weights["mix_attributes.weight"]], dim=1)
        expected = torch.cat([h_e, h_a], dim=1) @ mixing.T + weights["mix_ratio.bias"]
        torch.testing.assert_close(selector.logits(*scene, ratio), expected.float(), atol=1e-5, rtol=1e-4)


def test_ranking_does_not_depend_on_the_ratio(selector: GaussianSelector, scene: tuple[Tensor, ...]) -> None:
    """In float64 every ratio gives the same order, that of ``scores``, although the logits differ."""
    selector = selector.double()
    attributes = [tensor.double() for tensor in scene]
    logits = [selector.logits(*attributes, ratio) for ratio in RATIOS]
    assert (logits[0] - logits[-1]).abs().max() > 1e-3
    expected = rank(selector.scores(*attributes))
    for z in logits:
        assert torch.equal(rank(z[:, 1] - z[:, 0]), expected)


def test_sets_are_nested_and_exact_for_any_two_ratios(
    selector: GaussianSelector, scene: tuple[Tensor, ...]
) -> None:
    ratios = sorted(torch.rand(40, generator=torch.Generator().manual_seed(4)).clamp_min(0.002).tolist())
    masks = []
    for ratio in ratios:  # ranked afresh each time, as two calls would
        mask = prefix_mask(rank(selector.scores(*scene)), count_at(ratio, 500))
        assert mask.sum() == math.floor(ratio * 500)
        masks.append(mask)
    for small in range(len(masks)):
        for large in range(small, len(masks)):
            assert not (masks[small] & ~masks[large]).any()


def test_each_gaussian_is_judged_by_itself(selector: GaussianSelector, scene: tuple[Tensor, ...]) -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(5))
    permuted = selector.logits(*(tensor[order] for tensor in scene), 0.1)
    torch.testing.assert_close(permuted, selector.logits(*scene, 0.1)[order])
    alone = selector.logits(*(tensor[7:8] for tensor in scene), 0.1)
    torch.testing.assert_close(alone, selector.logits(*scene, 0.1)[7:8])


def test_logits_do_not_depend_on_the_worlds_units(
    selector: GaussianSelector, scene: tuple[Tensor, ...]
) -> None:
    means, log_scales, quats = scene
    before = selector.logits(means, log_scales, quats, 0.1)
    shift = torch.tensor([5.0, -7.0, 2.0])
    selector.frame = SceneFrame(selector.frame.center * 12 + shift, 12 * selector.frame.scale.item())
    after = selector.logits(means * 12 + shift, log_scales + math.log(12), -3 * quats, 0.1)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_scores_in_chunks(
    selector: GaussianSelector, scene: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = selector.scores(*scene)
    monkeypatch.setattr("flexgs_lightning.model.selector._CHUNK", 64)
    torch.testing.assert_close(selector.scores(*scene), whole)
    assert not whole.requires_grad


def test_rank_breaks_ties_by_index_and_puts_nan_last() -> None:
    scores = torch.tensor([1.0, 3.0, math.nan, 1.0, 3.0, -math.inf, 2.0])
    assert rank(scores).tolist() == [1, 4, 6, 0, 3, 5, 2]
    assert rank(torch.zeros(5000)).equal(torch.arange(5000))
    assert rank(torch.zeros(0)).tolist() == []


def test_selector_refuses_bad_options() -> None:
    frame = SceneFrame(torch.zeros(3), 1.0)
    with pytest.raises(InputError, match="hidden: expected a positive width, found 0"):
        GaussianSelector(frame, hidden=0)
    with pytest.raises(InputError, match="lowest_ratio"):
        GaussianSelector(frame, lowest_ratio=1.5)
    with pytest.raises(InputError, match="ratio_axis"):
        GaussianSelector(frame, ratio_axis="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.0, 1.1, math.nan])
def test_logits_refuse_bad_ratios(
    selector: GaussianSelector, scene: tuple[Tensor, ...], ratio: float
) -> None:
    with pytest.raises(InputError, match="ratio: expected"):
        selector.logits(*scene, ratio)


# --- sampling and losses -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_masks_keep_with_the_softmax_probability(temperature: float) -> None:
    generator = torch.Generator().manual_seed(6)
    draws = 40_000
    for logits in ([0.0, 0.0], [1.3, -0.4], [-2.0, 1.0], [0.5, 5.0]):
        probability = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)[1].item()
        sample = GaussianSelector.sample(torch.tensor([logits]).expand(draws, 2), temperature, generator)
        deviation = math.sqrt(probability * (1 - probability) / draws)
        assert abs(sample.mask.mean().item() - probability) < 4 * deviation


def test_relaxed_masks_follow_gumbel_softmax() -> None:
    """Their distribution is that of softmax((z + g) / tau) with two Gumbel draws: quantiles agree."""
    draws, tau = 200_000, 0.7
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64).expand(draws, 2)
    generator = torch.Generator().manual_seed(7)
    gumbel = -(-torch.rand(draws, 2, generator=generator, dtype=torch.float64).log()).log()
    expected = torch.softmax((logits + gumbel) / tau, dim=1)[:, 1]
    soft = GaussianSelector.sample(logits, tau, generator).soft
    levels = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    torch.testing.assert_close(
        soft.logit().quantile(levels), expected.logit().quantile(levels), atol=0.04, rtol=0
    )


def test_masks_are_hard_forward_and_soft_backward() -> None:
    logits = torch.randn(400, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    logits.requires_grad_()
    weights = torch.randn(400, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    sample = GaussianSelector.sample(logits, 0.8, torch.Generator().manual_seed(10))
    assert set(sample.mask.tolist()) == {0.0, 1.0}
    assert torch.equal(sample.mask > 0.5, sample.soft > 0.5)
    (hard,) = torch.autograd.grad((weights * sample.mask).sum(), logits, retain_graph=True)
    (soft,) = torch.autograd.grad((weights * sample.soft).sum(), logits)
    assert torch.equal(hard, soft)
    slope = weights * (sample.soft * (1 - sample.soft) / 0.8).detach()
    torch.testing.assert_close(soft, torch.stack([-slope, slope], dim=1))


def test_sampling_is_reproducible_and_extreme_logits_are_finite() -> None:
    logits = torch.tensor([[0.0, 90.0], [90.0, 0.0]]).repeat(5000, 1).requires_grad_()
    first, second = (GaussianSelector.sample(logits, 0.5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.mask, second.mask)
    assert first.mask.tolist() == [1.0, 0.0] * 5000
    first.mask.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be positive"):
            GaussianSelector.sample(logits, temperature)


def test_selection_losses_by_hand() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    importance = torch.tensor([9.0, 8.0, 1.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    order = rank(importance)
    assert importance_loss(mask, order, 0.3).item() == pytest.approx(0.2)  # 1 is missing, 2 is too many
    assert importance_loss(prefix_mask(order, 3).float(), order, 0.3).item() == 0.0
    assert sparsity_loss(mask, 0.3).item() == 0.0
    assert sparsity_loss(mask, 0.05).item() == pytest.approx(0.25)
    with pytest.raises(InputError, match="less than one"):
        importance_loss(mask, order, 0.05)


def test_the_losses_teach_the_selector_importance_and_count(
    selector: GaussianSelector, scene: tuple[Tensor, ...]
) -> None:
    """Importance rises with size: after training, the kept share is e and the kept are the large ones."""
    importance = scene[1].sum(dim=-1).exp()
    order, ratios = rank(importance), (0.1, 0.2, 0.4)
    optimizer = torch.optim.Adam(selector.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for step in range(300):
        ratio = ratios[step % 3]
        mask = selector.sample(selector.logits(*scene, ratio), 1.0).mask
        loss = importance_loss(mask, order, ratio) + sparsity_loss(mask, ratio)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = rank(selector.scores(*scene))
    for ratio in ratios:
        count = count_at(ratio, 500)
        assert (prefix_mask(learned, count) & prefix_mask(order, count)).sum() > 0.85 * count
        expected_share = selector.logits(*scene, ratio).softmax(dim=1)[:, 1].mean().item()
        assert expected_share == pytest.approx(ratio, abs=0.06)
