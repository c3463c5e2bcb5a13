"""Quantisation, entropy models and masks as parts of a scene, against references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from small_scene import ball
from torch import Tensor

from flexgs_lightning.codec.rans import Stream, Trace, magnitude, new_tables, plain_bits
from flexgs_lightning.errors import InputError
from flexgs_lightning.jit import kernel
from flexgs_lightning.model.compression.entropy import FactorizedDensity, at_least
from flexgs_lightning.model.compression.hash_grid import HashGrid, HashGridGaussian
from flexgs_lightning.model.compression.mask import kept_by_gradient
from flexgs_lightning.model.compression.quantization import RANGES, UniformQuantization, entropy_model
from flexgs_lightning.model.compression.rounding import rounded
from flexgs_lightning.model.compression.sh_mask import ShMask
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.surgery import Surgery

SMALL_GRID = {"resolutions_3d": (4, 16), "resolutions_2d": (8,), "rows_3d": 256, "rows_2d": 64}


def frame() -> SceneFrame:
    return SceneFrame(torch.zeros(3), 1.0)


# -- rounding ------------------------------------------------------------------------------------------


def test_rounding_is_to_the_nearest_and_noise_is_as_wide_as_a_step() -> None:
    torch.manual_seed(0)
    values, steps = torch.randn(1000, 3), torch.tensor([0.1, 0.25, 1.0])
    final = rounded(values, steps, training=False)
    assert torch.allclose(final / steps, (final / steps).round(), atol=1e-5)
    assert ((final - values).abs() <= steps / 2 + 1e-6).all()
    noise = (rounded(values, steps, "noise") - values) / steps
    assert noise.abs().max() <= 0.5 + 1e-5
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.05)
    through = rounded(values, steps, "straight_through")
    assert torch.allclose(through, final, atol=1e-6)


@pytest.mark.parametrize("rounding", ["noise", "straight_through"])
def test_gradients_of_rounding(rounding: str) -> None:
    values = torch.tensor([0.3, -1.26, 2.0], requires_grad=True)
    step = torch.tensor(0.25, requires_grad=True)
    torch.manual_seed(1)
    result = rounded(values, step, rounding)  # type: ignore[arg-type]
    by_value, by_step = torch.autograd.grad(result.sum(), (values, step))
    assert torch.equal(by_value, torch.ones(3))
    expected = (result - values) / step  # the noise of each number, or its rest
    assert by_step.item() == pytest.approx(expected.sum().item(), abs=1e-5)


# -- densities -----------------------------------------------------------------------------------------


def perturbed_density(channels: int = 3) -> FactorizedDensity:
    torch.manual_seed(2)
    density = FactorizedDensity(channels).double()
    with torch.no_grad():
        for parameter in density.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        density.center += torch.randn(channels)
    return density


def test_factorized_density_integrates_to_one_and_rises() -> None:
    density = perturbed_density()
    places = torch.linspace(-4000, 4000, 80_001, dtype=torch.float64)[:, None].repeat(1, 3)
    assert torch.allclose(density.probability(places, 0.1).sum(dim=0), torch.ones(3).double(), atol=1e-4)
    assert (density.cumulative_logits(places).diff(dim=0) > 0).all()
    near = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None].repeat(1, 3)
    coarse = density.probability(near, 0.4)  # additive: one wide step is four narrow ones
    parts = sum(density.probability(near + shift, 0.1) for shift in (-0.15, -0.05, 0.05, 0.15))
    assert torch.allclose(coarse, parts, atol=1e-12)


def test_gradients_of_bits_are_those_of_finite_differences() -> None:
    density = perturbed_density(2)
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    steps = torch.full((5, 2), 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, s: density.bits(v, s, v), (values, steps))
    gaussian = HashGridGaussian(2, frame(), hidden=8, **SMALL_GRID).double()
    means = torch.randn(5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v, s: gaussian.bits(v, s, means), (values, steps))


def test_what_is_below_the_floor_still_learns_to_rise() -> None:
    probability = torch.tensor([1e-9, 0.5], requires_grad=True)
    (-at_least(probability, 1e-6).log2()).sum().backward()
    assert probability.grad is not None
    assert probability.grad[0] < -1e5  # up, although the floor is what was counted
    assert probability.grad[1].item() == pytest.approx(-2 / math.log(2), rel=1e-5)


def learn(
    model: FactorizedDensity | HashGridGaussian, values: Tensor, means: Tensor, steps: int, rate: float
) -> float:
    """Bits a number of multiples of 1, after training with noise."""
    model.fit(values)
    tables = [p for name, p in model.named_parameters() if "tables" in name]
    others = [p for name, p in model.named_parameters() if "tables" not in name]
    optimizer = torch.optim.Adam([{"params": others}, {"params": tables, "lr": 0.005}], lr=rate)
    for _ in range(steps):
        bits = model.bits(rounded(values, 1.0), 1.0, means).mean()
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
    with torch.no_grad():
        return float(model.bits(values.round(), 1.0, means).mean())


@kernel
def code_numbers(encoding, sizes, signs, tables, intervals, data, state):  # type: ignore[no-untyped-def]
    for i in range(len(sizes)):
        sizes[i] = magnitude(encoding, sizes[i], tables, 0, intervals, data, state)
        if sizes[i] > 0:
            signs[i] = plain_bits(encoding, signs[i], 1, intervals, data, state)


def test_bits_are_those_of_an_actual_coder() -> None:
    """Numbers as a learned density counts them and as the elastic file's coder writes them."""
    torch.manual_seed(3)
    values = torch.distributions.Laplace(0.0, 2.0).sample((5_000, 1))
    estimated = learn(FactorizedDensity(1), values, torch.zeros(5_000, 3), 200, 0.02)
    numbers = values.round()[:, 0].numpy().astype(np.int64)
    trace = Trace()
    trace.reserve(30_000)
    sizes, signs = np.abs(numbers), (numbers < 0).astype(np.int64)
    code_numbers(True, sizes.copy(), signs.copy(), new_tables(1), trace.intervals, trace.data, trace.state)
    written = trace.to_bytes()
    shares = np.unique(numbers, return_counts=True)[1] / len(numbers)
    entropy = float(-(shares * np.log2(shares)).sum())
    assert estimated == pytest.approx(entropy, rel=0.02)
    assert estimated == pytest.approx(8 * len(written) / len(numbers), rel=0.03)
    stream = Stream(written)
    decoded, minus = np.zeros_like(sizes), np.zeros_like(signs)
    code_numbers(False, decoded, minus, new_tables(1), stream.intervals, stream.data, stream.state)
    assert stream.ended_well()
    assert (np.where(minus == 1, -decoded, decoded) == numbers).all()


def test_a_hash_grid_knows_what_lies_where() -> None:
    torch.manual_seed(4)
    means = torch.rand(3000, 3) * 1.6 - 0.8
    values = 20 * torch.where(means[:, :1] * means[:, 1:2] > 0, 1.0, -1.0) + torch.randn(3000, 1)
    alone = learn(FactorizedDensity(1), values, means, 150, 0.02)
    grid = HashGridGaussian(1, frame(), 16, resolutions_3d=(4,), resolutions_2d=(32,), rows_2d=2048)
    there = learn(grid, values, means, 150, 0.02)
    assert there < alone - 0.5  # one bit a number is there to be gained


def test_hash_grid_gaussian_is_a_normal_density() -> None:
    torch.manual_seed(5)
    model = HashGridGaussian(2, frame(), hidden=8, **SMALL_GRID).double()
    means = torch.randn(7, 3).double() * 3
    values = torch.randn(7, 2).double() * 2
    expected, deviation = (p.detach().numpy() for p in model.parameters_at(means))
    v = values.numpy()
    reference = norm.cdf(v + 0.2, expected, deviation) - norm.cdf(v - 0.2, expected, deviation)
    assert np.allclose(model.probability(values, 0.4, means).detach(), reference, atol=1e-12)
    far = expected + 12 * deviation  # where differences of numbers near 1 would be 0
    tail = norm.sf(far - 0.2, expected, deviation) - norm.sf(far + 0.2, expected, deviation)
    assert np.allclose(model.probability(torch.from_numpy(far), 0.4, means).detach() / tail, 1, atol=1e-6)
    sums = sum(model.probability(torch.full((7, 2), 0.4 * i).double(), 0.4, means) for i in range(-200, 201))
    assert torch.allclose(sums, torch.ones(7, 2).double(), atol=1e-9)


def test_hash_grid_features_are_signs_at_corners_and_linear_between() -> None:
    torch.manual_seed(6)
    grid = HashGrid((2,), (), rows_3d=27)
    corner = grid(torch.tensor([[-1.0, -1.0, 1.0], [-1.0, -1.0, 0.0]]))
    assert torch.equal(corner, grid.tables[0][[2, 1]].sign())
    between = grid(torch.tensor([[-1.0, -1.0, 0.5]]))
    assert torch.allclose(between, corner.mean(dim=0, keepdim=True))
    between.sum().backward()
    assert grid.tables[0].grad is not None
    assert torch.equal(grid.tables[0].grad[1:3], torch.full((2, 2), 0.5))


# -- masks ---------------------------------------------------------------------------------------------


def test_a_mask_turns_binary_and_meets_its_target() -> None:
    """Half of the Gaussians gain from their harmonics; the loss asks for as many."""
    mask = ShMask(200)
    worth = torch.linspace(-1, 1, 200)
    optimizer = torch.optim.Adam([mask.logits], lr=0.05)
    parameters = {"sh": torch.ones(200, 4, 3)}
    for step in range(200):
        mask.anneal(step / 200)
        kept = mask(parameters, 200, None)["sh"][:, 1:].mean(dim=(1, 2))  # type: ignore[arg-type]
        loss = -0.02 * (worth * kept).mean() + mask.loss(0.5, 0.0, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mask.temperature.item() == pytest.approx(0.1, rel=0.05)
    mask.eval()
    final = mask(parameters, 200, None)["sh"]  # type: ignore[arg-type]
    assert set(final[:, 1:].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(final[:, 0], torch.ones(200, 3))
    assert mask.share() == pytest.approx(0.5, abs=0.05)
    assert (final[150:, 1] == 1).all()
    assert (final[:50, 1] == 0).all()


def test_the_masks_loss_is_sparsity_and_divergence() -> None:
    mask = ShMask(10)
    share = torch.tensor(1.0).sigmoid().item()
    divergence = 0.2 * math.log(0.2 / share) + 0.8 * math.log(0.8 / (1 - share))
    assert mask.loss(0.2, 0.01, 0.1).item() == pytest.approx(0.01 * share + 0.1 * divergence, rel=1e-4)


def test_gradients_decide_a_mask_that_follows_its_gaussians() -> None:
    gradients = torch.zeros(4, 15, 3)
    gradients[1], gradients[3] = 1.0, 0.1
    kept = kept_by_gradient(gradients, 0.5)
    assert kept.tolist() == [False, True, False, False]
    mask = ShMask(4, degree=1, learned=False)
    mask.keep_only(kept)
    splats = ball()
    scene = Scene(Gaussians.from_splats(splats.with_sh_degree(3)[:4]), parts={"sh_mask": mask}, elastic=True)
    Surgery(scene).permute(torch.tensor([1, 0, 2, 3]))
    sh = scene.eval().at().sh
    assert (sh[0, 4:] == scene.gaussians.params["sh"][0, 4:]).all()
    assert (sh[1:, 4:] == 0).all()
    assert torch.equal(sh[:, :4], scene.gaussians.params["sh"][:, :4])


# -- a quantised scene ---------------------------------------------------------------------------------


def quantised_scene(**options: object) -> Scene:
    torch.manual_seed(7)
    bits = {"quats": 8, "scales": 6, "opacities": 8, "sh0": 8, "shN": 5}
    entropy = {
        "scales": entropy_model("factorized", 3, frame()),
        "sh0": entropy_model("hash_grid", 3, frame()),
    }
    part = UniformQuantization(bits, entropy=entropy, **options)  # type: ignore[arg-type]
    return Scene(Gaussians.from_splats(ball()), parts={"quantization": part})


def test_a_quantised_scene_lies_on_its_grid_where_it_is_not_trained() -> None:
    scene = quantised_scene().eval()
    parameters = scene.gaussians.params
    part = scene.each_part()[0]
    changed = part({name: value.detach() for name, value in parameters.items()}, len(scene), None)  # type: ignore[arg-type]
    for name, bits in {"quats": 8, "scales": 6, "opacities": 8}.items():
        low, high = RANGES[name]
        places = (changed[name] - low) / ((high - low) / (2**bits - 1))
        assert torch.allclose(places, places.round(), atol=2e-3)
        assert len(places.round().unique()) <= 2**bits
    assert torch.equal(changed["means"], parameters["means"])
    scene.train()
    assert not torch.equal(scene.at().scales, scene.at().scales)  # noise


def test_bits_of_a_scene_and_its_checkpoint() -> None:
    scene = quantised_scene(learned_steps=True).eval()
    part = scene.each_part()[0]
    assert isinstance(part, UniformQuantization)
    with torch.no_grad():
        part.log_steps["scales"] += 0.1
    coded = part.coded(dict(scene.gaussians.params))
    part.fit(coded)
    bits = part.bits(coded)
    assert {name: tuple(value.shape) for name, value in bits.items()} == {"scales": (400,), "sh0": (400,)}
    bits["sh0"].sum().backward()
    assert part.entropy["sh0"].grid.tables[0].grad.abs().sum() > 0
    assert [group.kind for group in part.groups()] == ["layers", "planes", "layers"]
    again = Scene.from_state(scene.state_dict(), scene.as_plain()).eval()
    again.load_state_dict(scene.state_dict())
    same = again.each_part()[0]
    assert isinstance(same, UniformQuantization)
    assert same.steps() == part.steps()
    for name, found in same.bits(same.coded(dict(again.gaussians.params))).items():
        assert torch.equal(found, bits[name])


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(InputError, match="expected 1 to 24 for any of quats"):
        UniformQuantization({"scales": 0})
    with pytest.raises(InputError, match="found 8 for 'color'"):
        UniformQuantization({"color": 8})
    with pytest.raises(InputError, match="factorized or hash_grid"):
        entropy_model("laplace", 3, frame())  # type: ignore[arg-type]
