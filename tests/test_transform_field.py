"""TransformField: identity at construction, an exact lookup, and gradients that reach everything."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import displaced, residual_columns
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.transform_field import TransformField, base_resolution_for

ALL_HEADS = tuple(residual_columns())
SMALL: dict[str, Any] = {"resolution": 6, "ratio_resolution": 5, "channels": 3, "width": 8, "head_width": 8}


def make_field(*, perturbed: bool = True, **options: Any) -> TransformField:
    """A small field; ``perturbed`` moves every parameter off its special initial value."""
    torch.manual_seed(0)
    field = TransformField(SceneFrame(torch.tensor([0.5, -1.0, 0.2]), 2.0), **{**SMALL, **options})
    if perturbed:
        with torch.no_grad():
            for parameter in field.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return field


@pytest.fixture
def means() -> Tensor:
    """200 positions, many outside the unit ball."""
    return torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * 4


# --- identity and shapes -------------------------------------------------------------------------------


@pytest.mark.parametrize("head_width", [0, 64])
@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.3, 1.0])
def test_construction_is_the_identity(means: Tensor, ratio: float, head_width: int) -> None:
    field = make_field(perturbed=False, heads=ALL_HEADS, head_width=head_width)
    assert field.features(means, ratio).abs().min() > 0  # not for want of features
    for name, value in field.displacements(means, ratio).items():
        assert torch.equal(value, torch.zeros_like(value)), name


def test_shapes_and_heads(means: Tensor) -> None:
    paper = make_field().displacements(means, 0.1)
    shapes = {name: tuple(value.shape) for name, value in paper.items()}
    assert shapes == {"means": (200, 3), "scales": (200, 3), "quats": (200, 4)}
    all_heads = make_field(heads=ALL_HEADS).displacements(means, 0.1)
    shapes = {name: tuple(value.shape) for name, value in all_heads.items()}
    assert shapes["opacities"] == (200, 1)
    assert shapes["sh"] == (200, 3)
    assert set(make_field(heads=("opacities",)).displacements(means, 0.1)) == {"opacities"}
    assert make_field().displacements(means[:0], 0.1)["quats"].shape == (0, 4)


def test_the_papers_sizes() -> None:
    field = TransformField(SceneFrame(torch.zeros(3), 1.0))
    assert [tuple(plane.shape) for plane in field.spatial_planes] == [(3, 16, 64, 64), (3, 16, 128, 128)]
    assert [tuple(plane.shape) for plane in field.ratio_planes] == [(3, 16, 100, 64), (3, 16, 100, 128)]
    assert all(plane.eq(1).all() for plane in field.ratio_planes)
    assert all(plane.min() >= 0.1 and plane.max() <= 0.5 for plane in field.spatial_planes)
    networks = sum(p.numel() for part in (field.fuse, field.heads) for p in part.parameters())
    assert networks == (32 * 64 + 64) + 3 * (64 * 64 + 64) + (64 * 10 + 10)


# --- lookup --------------------------------------------------------------------------------------------


def bilinear(plane: np.ndarray, u: float, v: float) -> np.ndarray:
    """[C] of a [C, H, W] plane at u (along W) and v (along H) in [-1, 1], centres of end cells at -1, 1."""
    height, width = plane.shape[1:]
    x, y = (u + 1) / 2 * (width - 1), (v + 1) / 2 * (height - 1)
    value = np.zeros(plane.shape[0])
    for row in range(height):
        for column in range(width):
            value += plane[:, row, column] * max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
    return value


@pytest.mark.parametrize("ratio", [0.01, 0.037, 0.5, 1.0])
def test_features_against_a_float64_lookup(means: Tensor, ratio: float) -> None:
    """All six planes as true two-dimensional lookups, xe, ye and ze too."""
    field = make_field(multipliers=(1, 2, 4))
    points = field.frame.double().plane_coordinates(means[:25].double()).numpy()
    field.frame.float()
    e = 1 - 2 * math.log(ratio) / math.log(0.01)
    expected = []
    for x, y, z in points:
        levels = []
        for spatial, ratios in zip(field.spatial_planes, field.ratio_planes, strict=True):
            s, r = spatial.detach().double().numpy(), ratios.detach().double().numpy()
            product = bilinear(s[0], x, y) * bilinear(s[1], x, z) * bilinear(s[2], y, z)
            levels.append(product * bilinear(r[0], x, e) * bilinear(r[1], y, e) * bilinear(r[2], z, e))
        expected.append(np.concatenate(levels))
    found = field.features(means[:25], ratio)
    torch.testing.assert_close(found, torch.tensor(np.array(expected)).float(), atol=1e-5, rtol=1e-4)


def test_gradients_against_finite_differences() -> None:
    field = make_field(channels=2, ratio_resolution=3, resolution=3, multipliers=(1,), heads=ALL_HEADS)
    field.double()
    # Off the cells' edges and the unit sphere, where one-sided slopes differ.
    means = torch.tensor([[0.9, -0.31, 0.52], [4.13, 1.7, -3.2]], dtype=torch.float64, requires_grad=True)
    planes = [*field.spatial_planes, *field.ratio_planes]

    def displace(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(field.displacements(means, 0.07).values())

    assert torch.autograd.gradcheck(displace, (means, *planes), atol=1e-7)


def test_ratios_matter_and_the_log_axis_separates_small_ones(means: Tensor) -> None:
    log, linear = make_field(), make_field(ratio_axis="linear")

    def change(field: TransformField, a: float, b: float) -> float:
        return (field.features(means, a) - field.features(means, b)).abs().max().item()

    assert change(log, 0.01, 0.05) > 3 * change(linear, 0.01, 0.05) > 0
    assert change(log, 0.001, 0.01) == pytest.approx(0.0, abs=1e-5)  # below the lowest ratio: alike


# --- gradients and symmetries --------------------------------------------------------------------------


@pytest.mark.parametrize("head", ALL_HEADS)
def test_gradient_reaches_every_plane_and_the_whole_head(means: Tensor, head: str) -> None:
    """From each head alone: all six planes of all levels, every ratio cell, fusion and head."""
    field = make_field(heads=ALL_HEADS, multipliers=(1, 2))
    for ratio in (0.01, 0.02, 0.05, 0.15, 0.5, 1.0):
        field.displacements(means, ratio)[head].square().sum().backward()
    for plane in field.spatial_planes:
        assert plane.grad is not None
        assert (plane.grad.abs().sum(dim=(2, 3)) > 0).all()
    for plane in field.ratio_planes:
        assert plane.grad is not None
        assert (plane.grad.abs().sum(dim=(1, 3)) > 0).all()
    for parameter in [*field.fuse.parameters(), *field.heads[head].parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_at_construction_only_the_last_layers_learn(means: Tensor) -> None:
    field = make_field(perturbed=False)
    field.displacements(means, 0.1)["means"].sum().backward()
    assert field.heads["means"][-1].weight.grad.abs().sum() > 0
    assert field.fuse[0].weight.grad.abs().sum() == 0


def test_each_gaussian_moves_by_itself(means: Tensor) -> None:
    field = make_field(heads=ALL_HEADS)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    whole, permuted, few = (field.displacements(m, 0.1) for m in (means, means[order], means[:3]))
    for name, value in whole.items():
        torch.testing.assert_close(permuted[name], value[order])
        torch.testing.assert_close(few[name], value[:3])


def test_displacements_follow_the_worlds_units(means: Tensor) -> None:
    """A world 12 times larger and moved: positions move 12 times as far, all else is the same."""
    field = make_field(heads=ALL_HEADS)
    before = field.displacements(means, 0.1)
    shift = torch.tensor([5.0, -7.0, 2.0])
    field.frame = SceneFrame(field.frame.center * 12 + shift, 12 * field.frame.scale.item())
    after = field.displacements(means * 12 + shift, 0.1)
    assert before["means"].abs().max() > 0
    for name, value in before.items():
        factor = 12 if name == "means" else 1
        torch.testing.assert_close(after[name], factor * value, atol=1e-3, rtol=1e-3)


def test_raw_parameters_are_displaced() -> None:
    parameters = {
        "means": torch.randn(4, 3),
        "quats": torch.randn(4, 4) * 5,
        "scales": torch.randn(4, 3),
        "opacities": torch.randn(4),
        "sh": torch.randn(4, 16, 3),
    }
    changes = {"means": torch.ones(4, 3), "quats": torch.ones(4, 4), "sh": torch.ones(4, 3)}
    moved = displaced(parameters, changes)
    torch.testing.assert_close(moved["means"], parameters["means"] + 1)
    torch.testing.assert_close(moved["sh"][:, 0], parameters["sh"][:, 0] + 1)
    assert torch.equal(moved["sh"][:, 1:], parameters["sh"][:, 1:])
    units = parameters["quats"] / parameters["quats"].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(moved["quats"], units + 1)
    for name in ("scales", "opacities"):
        assert moved[name] is parameters[name]


def test_runs_under_autocast(means: Tensor) -> None:
    field = make_field(heads=ALL_HEADS)
    exact = field.displacements(means, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = field.displacements(means, 0.1)
    for name, value in exact.items():
        assert (rough[name].float() - value).norm() < 0.03 * value.norm()


# --- regularisers --------------------------------------------------------------------------------------


def test_regularisers_vanish_where_they_should() -> None:
    field = make_field(perturbed=False)
    assert field.ratio_deviation() == 0
    assert field.ratio_smoothness() == 0
    assert field.total_variation() > 0
    with torch.no_grad():
        for plane in field.spatial_planes:
            plane.fill_(0.3)
        for plane in field.ratio_planes:
            plane += torch.arange(5.0)[:, None]  # one more from cell to cell
    assert field.total_variation() == 0
    assert field.ratio_smoothness().item() == pytest.approx(2 * 1.0)
    assert field.ratio_deviation().item() == pytest.approx(2 * 2.0)


def test_regularisers_against_loops() -> None:
    field = make_field(channels=2, multipliers=(1,), resolution=3)
    spatial = field.spatial_planes[0].detach().double().numpy()
    ratios = field.ratio_planes[0].detach().double().numpy()
    across = [(spatial[..., i + 1] - spatial[..., i]) ** 2 for i in range(2)]
    down = [(spatial[..., i + 1, :] - spatial[..., i, :]) ** 2 for i in range(2)]
    steps = [(ratios[..., i + 1, :] - ratios[..., i, :]) ** 2 for i in range(4)]
    assert field.total_variation().item() == pytest.approx(np.mean(across) + np.mean(down), rel=1e-5)
    assert field.ratio_smoothness().item() == pytest.approx(np.mean(steps), rel=1e-5)
    assert field.ratio_deviation().item() == pytest.approx(np.abs(ratios - 1).mean(), rel=1e-5)


# --- size and state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"ratio_resolution": 16, "heads": ALL_HEADS, "head_width": 0}])
@pytest.mark.parametrize(("gaussians", "share"), [(40_000, 0.1), (63_000, 0.1), (90_000, 0.15)])
def test_the_field_keeps_within_its_share(gaussians: int, share: float, options: dict[str, Any]) -> None:
    resolution = base_resolution_for(gaussians, share, **options)

    def floats(size: int) -> int:
        field = TransformField(SceneFrame(torch.zeros(3), 1.0), resolution=size, **options)
        return sum(parameter.numel() for parameter in field.parameters())

    assert floats(resolution) <= share * gaussians * 59
    assert resolution == 64 or floats(resolution + 1) > share * gaussians * 59


def test_resolution_has_bounds(caplog: pytest.LogCaptureFixture) -> None:
    assert base_resolution_for(10_000_000, 0.1) == 64
    with caplog.at_level(logging.INFO):
        assert base_resolution_for(10, 0.1) == 8
    assert "smallest transform field" in caplog.text
    with pytest.raises(InputError, match="share: expected a positive number"):
        base_resolution_for(1000, 0.0)


def test_choosing_a_resolution_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    base_resolution_for(63_000, 0.1)
    assert torch.equal(torch.rand(4), expected)


def test_state_of_another_resolution_loads(means: Tensor) -> None:
    saved = make_field()
    fresh = make_field(perturbed=False, resolution=4, ratio_resolution=3)
    fresh.load_state_dict(saved.state_dict())
    for name, value in saved.displacements(means, 0.05).items():
        assert torch.equal(fresh.displacements(means, 0.05)[name], value)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_field(channels=4).load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1}, "resolution: expected at least 2 cells, found 1"),
        ({"ratio_resolution": 1}, "ratio_resolution: expected at least 2 cells, found 1"),
        ({"channels": 0}, "channels and width: expected positive numbers, found 0 and 8"),
        ({"width": 0}, "channels and width"),
        ({"head_width": -1}, "head_width: expected a width, or 0 for linear heads, found -1"),
        ({"multipliers": ()}, "multipliers: expected positive factors"),
        ({"multipliers": (1, 0)}, r"multipliers: expected positive factors, found \[1, 0\]"),
        ({"heads": ()}, "heads: expected different names of means, .* found none"),
        ({"heads": ("means", "colour")}, "found means, colour"),
        ({"heads": ("means", "means")}, "found means, means"),
        ({"lowest_ratio": 0.0}, "lowest_ratio"),
        ({"ratio_axis": "none"}, "ratio_axis"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_field(**options)


@pytest.mark.parametrize("ratio", [0.0, 1.5, math.nan])
def test_bad_ratios(means: Tensor, ratio: float) -> None:
    with pytest.raises(InputError, match="ratio: expected"):
        make_field().displacements(means, ratio)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(means: Tensor) -> None:
    field = make_field(heads=ALL_HEADS)
    expected = field.displacements(means, 0.07)
    found = field.cuda().displacements(means.cuda(), 0.07)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, atol=1e-3, rtol=1e-3)  # TF32 may be on
