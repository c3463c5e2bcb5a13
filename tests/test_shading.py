"""Appearance as a choice: any number of channels, and shaders on either side of blending."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gsplat_stand_ins
import pytest
import reference_rasterizer as reference
import torch
from small_scene import around, ball
from torch import Tensor, nn
from training_processes import together

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.formats.ply import write_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering import sharded
from flexgs_lightning.rendering.importance import blending_importance, removal_importance
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.shading import Shader, view_directions, view_rays
from flexgs_lightning.rendering.types import Outputs, Renderer
from flexgs_lightning.splats import Splats

NAMES = ("means", "quats", "scales", "opacities", "features")
EVERYTHING = Outputs(depth=True, weights=True, hits=True, absgrad=True)
BACKGROUND = torch.tensor([0.1, 0.7, 0.4])


class Sheen(nn.Module, Shader):
    """Before blending: colours from features and the direction of view."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5 + 3, 3)

    def before(self, splats: Splats, cameras: Cameras) -> Tensor:
        features = splats.features.expand(len(cameras), -1, -1)
        return self.layer(torch.cat([features, view_directions(splats.means, cameras)], dim=-1)).sigmoid()


class Decoder(nn.Module, Shader):
    """Behind blending: colours from the drawn features and each pixel's ray."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5 + 3, 8), nn.Tanh(), nn.Linear(8, 3))

    def after(self, drawn: Tensor, alpha: Tensor, cameras: Cameras) -> Tensor:
        return self.layers(torch.cat([drawn, view_rays(cameras).to(drawn)], dim=-1)) * alpha


def scene(features: int, count: int = 60) -> Splats:
    """Gaussians in front of two cameras, some of them outside."""
    g = torch.Generator().manual_seed(0)
    return Splats(
        means=torch.randn(count, 3, generator=g) * torch.tensor([1.5, 1.0, 1.0]),
        quats=torch.randn(count, 4, generator=g),
        scales=0.05 + 0.3 * torch.rand(count, 3, generator=g),
        opacities=0.05 + 0.9 * torch.rand(count, generator=g),
        features=torch.randn(count, features, generator=g),
    )


def leaves(splats: Splats, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Splats:
    return Splats(
        **{name: getattr(splats, name).detach().to(device, dtype).requires_grad_() for name in NAMES}
    )


def toy(kind: type[nn.Module]) -> Any:
    torch.manual_seed(3)
    return kind()


@pytest.fixture(params=["cpu", "stand-ins", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Renderer]:
    """A device and what draws there."""
    if request.param != "stand-ins":
        return request.param, rasterize
    gsplat_stand_ins.install(monkeypatch.setattr)
    return "cpu", gsplat_stand_ins.rasterize


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    assert (found.cpu().double() - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 9])
def test_any_number_of_channels_is_blended(channels: int, backend: tuple[str, Renderer]) -> None:
    device, render = backend
    background = torch.linspace(0.2, 0.9, channels)
    cameras = around(2)
    ours, theirs = leaves(scene(channels), device=device), leaves(scene(channels), torch.float64)
    found = render(ours, cameras.to(device), background=background.to(device), outputs=EVERYTHING)
    drawn = theirs.features.expand(2, -1, -1)
    expected = reference.rasterize(theirs, cameras, background, channels=drawn)
    clear = ~expected.doubtful[..., None]
    assert clear.double().mean() > 0.98
    assert found.image.shape == (2, 30, 40, channels)
    for name, tolerance in {"image": 1e-4, "alpha": 1e-4, "depth": 1e-3}.items():
        difference = getattr(found, name).detach().cpu() - getattr(expected, name).detach()
        assert (difference * clear).abs().max() < tolerance, name
    cotangent, by_depth = noise(expected.image) * clear, noise(expected.alpha) * clear
    for rendering in (found, expected):
        at = rendering.image.device
        image, depth = rendering.image * cotangent.to(at), rendering.depth * by_depth.to(at)
        (image.sum() + (depth * rendering.alpha.detach()).sum()).backward()
    for name in NAMES:
        assert_close(getattr(ours, name).grad, getattr(theirs, name).grad, 1e-3, name)
    assert_close(found.absgrad(), expected.absgrad(), 1e-3, "absgrad")
    assert_close(found.weights, expected.weights, 1e-3, "weights")


def test_further_channels_leave_the_first_three_as_they_are() -> None:
    splats = scene(7)
    three = replace(splats, features=splats.features[:, :3])
    cameras = around(2)
    many, few = (rasterize(s, cameras, outputs=EVERYTHING) for s in (splats, three))
    assert torch.equal(many.image[..., :3], few.image)
    for name in ("alpha", "depth", "weights", "hits"):
        assert torch.equal(getattr(many, name), getattr(few, name)), name


@pytest.mark.parametrize("kind", [Sheen, Decoder])
def test_shaders_on_either_side_of_blending(kind: type[nn.Module], backend: tuple[str, Renderer]) -> None:
    """Image and all gradients, the shader's own too, against float64."""
    device, render = backend
    cameras = around(2)
    ours, theirs = leaves(scene(5), device=device), leaves(scene(5), torch.float64)
    shader = toy(kind).to(device)
    exact = copy.deepcopy(shader).cpu().double()
    found = render(ours, cameras.to(device), background=BACKGROUND.to(device), shader=shader)
    views = Cameras(cameras.viewmats.double(), cameras.Ks.double(), cameras.width, cameras.height)
    drawn = reference.rasterize(theirs, cameras, channels=exact.before(theirs, views))
    image = exact.after(drawn.image, drawn.alpha, views) + (1 - drawn.alpha) * BACKGROUND
    clear = ~drawn.doubtful[..., None]
    assert ((found.image.cpu() - image) * clear).abs().max() < 1e-4
    cotangent = noise(image) * clear
    (found.image * cotangent.to(device)).sum().backward()
    (image * cotangent).sum().backward()
    for name in NAMES:
        assert_close(getattr(ours, name).grad, getattr(theirs, name).grad, 1e-3, name)
    for (name, parameter), precise in zip(shader.named_parameters(), exact.parameters(), strict=True):
        assert_close(parameter.grad, precise.grad, 1e-3, name)


@pytest.mark.parametrize("kind", [Sheen, Decoder])
def test_shaders_gradients_are_difference_quotients(kind: type[nn.Module]) -> None:
    splats, cameras, shader = scene(5), around(2), toy(kind)

    def loss() -> Tensor:
        image = rasterize(splats, cameras, shader=shader).image.double()
        return (image * noise(image)).sum()

    (parameter, *_) = shader.parameters()
    (gradient,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        parameter += 1e-2 * direction
        above = loss()
        parameter -= 2e-2 * direction
        quotient = (above - loss()) / 2e-2
    torch.testing.assert_close((gradient * direction).sum().double(), quotient, rtol=1e-2, atol=0)


def test_rays_meet_what_is_drawn_where_they_pass() -> None:
    """A small Gaussian lies on the ray of the pixel on which it is drawn; directions agree with rays."""
    cameras = around(3)
    point = torch.tensor([[0.31, -0.22, 0.13]])
    splats = Splats(
        point, torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 1e-3), torch.ones(1), torch.zeros(1, 1, 3)
    )
    rendering = rasterize(splats, cameras)
    rays, directions = view_rays(cameras), view_directions(point, cameras)
    assert rays.shape == (3, 30, 40, 3)
    for c in range(3):
        x, y = rendering.means2d[c, 0].long().tolist()
        assert rendering.alpha[c, y, x] > 0
        assert (rays[c, y, x] @ directions[c, 0]) > 1 - 0.5 / 40**2  # within a pixel's half diagonal
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(3, 30, 40))


def test_importance_of_gaussians_with_features() -> None:
    splats = scene(4)
    harmonics = replace(splats, features=splats.features[:, :0], sh=torch.zeros(60, 1, 3))
    cameras = [around(2)]
    assert torch.equal(blending_importance(splats, cameras), blending_importance(harmonics, cameras))
    assert (removal_importance(splats, around(2)) > 0).any()


def test_splats_carry_one_appearance() -> None:
    splats = scene(4)
    assert splats.sh.shape == (60, 0, 3)
    assert splats[:7].detach().to("cpu").features.shape == (7, 4)
    with pytest.raises(ValueError, match="features, not spherical harmonics"):
        _ = splats.sh_degree
    with pytest.raises(ValueError, match="found 1 coefficients and 4 features"):
        replace(splats, sh=torch.zeros(60, 1, 3))
    with pytest.raises(ValueError, match="found 0 coefficients and 0 features"):
        replace(splats, features=torch.zeros(60, 0))
    with pytest.raises(ValueError, match=r"features must have shape \(60, F\), found \(59, 4\)"):
        replace(splats, features=torch.zeros(59, 4))


def test_shaders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    class Lost(Shader):
        def before(self, splats: Splats, cameras: Cameras) -> Tensor:
            return splats.features

    with pytest.raises(ValueError, match="a shader needs splats with features"):
        rasterize(ball(), around(1), shader=Shader())
    with pytest.raises(ValueError, match=r"must give \(1, 60, 'D'\) channels .* found \(60, 4\)"):
        rasterize(scene(4), around(1), shader=Lost())
    with pytest.raises(ValueError, match=r"background must be \[4\] or \[1, 4\], found \(3,\)"):
        rasterize(scene(4), around(1), background=BACKGROUND)
    with pytest.raises(InputError, match="a splat file holds spherical harmonics"):
        write_ply(scene(4), tmp_path / "scene.ply")
    assert not any(tmp_path.iterdir())


def _drawn(render: Renderer, splats: Splats, cameras: Cameras, first: int) -> dict[str, Tensor]:
    """Images and gradients through both shaders, from a loss that tells cameras apart."""
    results = {}
    for kind in (Sheen, Decoder):
        ours, shader = leaves(splats), toy(kind)
        rendering = render(ours, cameras, background=BACKGROUND, shader=shader, outputs=EVERYTHING)
        weights = noise(torch.empty(4, 30, 40, 3))[first : first + len(cameras)]
        (rendering.image * weights).sum().backward()
        results[f"{kind.__name__} image"] = rendering.image.detach()
        results |= {f"{kind.__name__} of {name}": getattr(ours, name).grad for name in NAMES}
        for name, parameter in shader.named_parameters():
            results[f"{kind.__name__} parameter {name}"] = parameter.grad
    return results


def _draw_share(rank: int) -> dict[str, Tensor]:
    return _drawn(sharded.rasterize, scene(5)[rank::2], around(4)[2 * rank : 2 * rank + 2], 2 * rank)


def test_several_processes_shade_as_one_does(tmp_path: Path) -> None:
    expected = _drawn(rasterize, scene(5), around(4), 0)
    found = together(2, _draw_share, tmp_path)
    for name, value in expected.items():
        if "image" in name:
            joined = torch.cat([results[name] for results in found])
        elif "parameter" in name:
            joined = sum(results[name] for results in found)
        else:
            joined = torch.stack([results[name] for results in found], dim=1).flatten(0, 1)
        assert_close(joined, value.double(), 1e-5, name)
