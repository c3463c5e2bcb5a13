"""What of the CUDA backend can be tested without CUDA: what it asks gsplat for, and what it makes of it.

gsplat's kernels are replaced by stand-ins, so wrong arguments, background in the depth channel, a lost
gradient or a wrong tile range show as differences from the CPU backend.
"""

import sys
import types
from itertools import pairwise
from pathlib import Path

import gsplat
import pytest
import torch
from gsplat_stand_ins import draw, install, list_indices, rasterize
from torch import Tensor
from training_processes import together

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering import gsplat_backend, rasterizer, sharded
from flexgs_lightning.rendering.types import Outputs
from flexgs_lightning.splats import Splats

FIELDS = ("means", "quats", "scales", "opacities", "sh")
EVERYTHING = Outputs(depth=True, weights=True, hits=True, absgrad=True)


def scene(count: int = 60, seed: int = 0) -> Splats:
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "means": torch.randn(count, 3, generator=generator) * torch.tensor([1.5, 1.0, 1.0]),
        "quats": torch.randn(count, 4, generator=generator),
        "scales": 0.05 + 0.3 * torch.rand(count, 3, generator=generator),
        "opacities": 0.05 + 0.94 * torch.rand(count, generator=generator),
        "sh": 0.5 * torch.randn(count, 16, 3, generator=generator),
    }
    return Splats(**{name: value.requires_grad_() for name, value in fields.items()})


def two_cameras() -> Cameras:
    viewmats = torch.eye(4).repeat(2, 1, 1)
    viewmats[:, 2, 3] = torch.tensor([4.0, 5.0])
    viewmats[1, 0, 3] = 0.4
    K = torch.tensor([[32.0, 0, 21.0], [0, 34.0, 14.0], [0, 0, 1]])
    return Cameras(viewmats, K.repeat(2, 1, 1), 43, 29)


@pytest.fixture
def dense_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr)


def gradients(render, splats: Splats) -> dict[str, Tensor]:
    for name in FIELDS:
        getattr(splats, name).grad = None
    render.means2d.retain_grad()
    generator = torch.Generator().manual_seed(9)
    loss = sum(
        (output * torch.randn(output.shape, generator=generator)).sum()
        for output in (render.image, render.alpha, render.depth)
    )
    loss.backward()
    found = {name: getattr(splats, name).grad.clone() for name in FIELDS}
    return found | {"means2d": render.means2d.grad, "absgrad": render.absgrad()}


@pytest.mark.usefixtures("dense_kernels")
@pytest.mark.parametrize(("degree", "antialiased"), [(0, False), (1, True), (3, False)])
def test_agrees_with_the_cpu_backend(degree: int, antialiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat_backend, "INTERSECTIONS_PER_CHUNK", 16)
    splats, cameras = scene(), two_cameras()
    background = torch.tensor([[0.2, 0.5, 0.9], [0.7, 0.1, 0.3]])
    options = {
        "background": background,
        "sh_degree": degree,
        "antialiased": antialiased,
        "outputs": EVERYTHING,
    }
    ours, cpu = rasterize(splats, cameras, **options), rasterizer.rasterize(splats, cameras, **options)
    for name in ("image", "alpha", "depth", "means2d", "weights"):
        torch.testing.assert_close(getattr(ours, name), getattr(cpu, name), rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.hits, cpu.hits)
    assert torch.equal(ours.radii, cpu.radii)
    assert ours.radii.dtype == ours.hits.dtype == torch.int32
    assert (ours.radii == 0).any()  # else nothing was culled, and that path not tested
    assert list_indices.largest < ours.hits.sum() / 4  # listed in several chunks
    expected = gradients(cpu, splats)
    for name, gradient in gradients(ours, splats).items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


@pytest.mark.usefixtures("dense_kernels")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_importance_without_gradients(mode) -> None:
    splats, cameras = scene(20).detach(), two_cameras()
    expected = rasterizer.rasterize(splats, cameras, outputs=EVERYTHING)
    with mode():
        ours = rasterize(splats, cameras, outputs=EVERYTHING)
    torch.testing.assert_close(ours.weights, expected.weights, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.hits, expected.hits)
    assert not ours.image.requires_grad


@pytest.mark.usefixtures("dense_kernels")
def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(means2d, conics, colors, *rest, absgrad=False, **options):
        passes.append((colors.shape[-1], absgrad))
        return draw(means2d, conics, colors, *rest, **options)

    monkeypatch.setattr(gsplat, "rasterize_to_pixels", counted)
    monkeypatch.setattr(gsplat, "rasterize_to_indices_in_range", None)
    picture = rasterize(scene(5), two_cameras()).picture
    assert picture[2:] == (None, None, None, None)
    rasterize(scene(5), two_cameras(), outputs=Outputs(weights=True))
    rasterize(scene(5), two_cameras(), outputs=Outputs(depth=True, absgrad=True))
    assert passes == [(3, False), (3, False), (1, False), (4, True)]


def _draw_half(rank: int) -> dict[str, Tensor]:
    """One process's half of the Gaussians, through its own camera."""
    install(setattr)
    rasterizer.backend_of = lambda *_: gsplat_backend
    half = Splats(**{name: getattr(scene(), name)[rank::2].detach().requires_grad_() for name in FIELDS})
    ours = sharded.rasterize(half, two_cameras()[rank], **OPTIONS)
    ours.means2d.retain_grad()
    (ours.image * NOISE[rank]).sum().backward()
    names = ("image", "alpha", "depth", "means2d", "weights", "hits")
    return (
        {name: getattr(ours, name).detach() for name in names}
        | {f"{name} gradient": getattr(half, name).grad for name in FIELDS}
        | {"means2d gradient": ours.means2d.grad, "absgrad": ours.absgrad()}
    )


OPTIONS = {"sh_degree": 1, "antialiased": True, "outputs": EVERYTHING}
NOISE = torch.randn(2, 29, 43, 3, generator=torch.Generator().manual_seed(4))


def test_two_processes_with_half_of_the_gaussians_agree_with_the_cpu_backend(tmp_path: Path) -> None:
    splats = scene()
    cpu = rasterizer.rasterize(splats, two_cameras(), **OPTIONS)
    cpu.means2d.retain_grad()
    (cpu.image * NOISE).sum().backward()
    expected = {f"{name} gradient": getattr(splats, name).grad for name in FIELDS}
    for rank, found in enumerate(together(2, _draw_half, tmp_path)):
        for name in ("image", "alpha", "depth"):
            torch.testing.assert_close(found[name][0], getattr(cpu, name)[rank], rtol=1e-4, atol=1e-4)
        for name in ("means2d", "weights"):
            torch.testing.assert_close(found[name], getattr(cpu, name)[:, rank::2], rtol=1e-4, atol=1e-4)
        assert torch.equal(found["hits"], cpu.hits[:, rank::2])
        for name, gradient in expected.items():
            assert (found[name] - gradient[rank::2]).norm() <= 1e-3 * gradient.norm(), name
        for name, gradient in {"means2d gradient": cpu.means2d.grad, "absgrad": cpu.absgrad()}.items():
            assert (found[name] - gradient[:, rank::2]).norm() <= 1e-3 * gradient.norm(), name


@pytest.mark.usefixtures("dense_kernels")
@pytest.mark.parametrize(("cameras", "count"), [(0, 5), (2, 0)])
def test_no_cameras_and_no_gaussians_keep_the_way_back(cameras: int, count: int) -> None:
    splats, views = scene(count), two_cameras()[:cameras]
    rendering = rasterize(splats, views, background=torch.full((3,), 0.3), outputs=EVERYTHING)
    assert rendering.projection.features.shape == (cameras, count, 8)
    assert torch.equal(rendering.image, torch.full((cameras, 29, 43, 3), 0.3))
    rendering.image.sum().backward()
    assert not splats.means.grad.any()
    assert rendering.absgrad().shape == (cameras, count, 2)


def test_nothing_gives_the_background_and_a_backward_pass() -> None:
    splats, cameras = scene(0), two_cameras()
    background = torch.tensor([[0.2, 0.5, 0.9], [0.7, 0.1, 0.3]])
    rendering = rasterize(splats, cameras, background=background, outputs=EVERYTHING)
    assert torch.equal(rendering.image, background[:, None, None].expand(2, 29, 43, 3))
    assert not rendering.alpha.any()
    assert not rendering.depth.any()
    assert rendering.means2d.shape == rendering.radii.shape == (2, 0, 2)
    assert rendering.weights.shape == rendering.hits.shape == (2, 0)
    rendering.means2d.retain_grad()
    rendering.image.sum().backward()
    assert splats.means.grad.shape == (0, 3)


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_chunks_cover_every_intersection_once_and_end_where_tiles_do(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gsplat_backend, "INTERSECTIONS_PER_CHUNK", budget)
    sizes = torch.tensor([0, 3, 9, 0, 0, 5, 1, 0])
    starts = (sizes.cumsum(0) - sizes).int().reshape(2, 2, 2)
    chunks = list(gsplat_backend._chunks(starts, 18))
    assert chunks[0][0] == 0
    assert chunks[-1][1] == 18
    assert all(before[1] == after[0] for before, after in pairwise(chunks))
    borders = {*starts.flatten().tolist(), 18}
    for start, end in chunks:
        assert end in borders
        assert end - start <= budget or not any(start < border < end for border in borders)
    assert not list(gsplat_backend._chunks(torch.zeros(1, 2, 2, dtype=torch.int32), 0))


@pytest.fixture
def no_cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    gsplat_backend.require_kernels.cache_clear()
    yield
    gsplat_backend.require_kernels.cache_clear()


@pytest.mark.usefixtures("no_cache")
def test_missing_kernels_say_what_to_install_and_the_cpu_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", types.SimpleNamespace(_C=None))
    splats, cameras = scene(5), two_cameras()
    with pytest.raises(InputError) as caught:
        rasterize(splats, cameras)
    for part in ("nvcc", "C++ compiler", "ninja", "TORCH_CUDA_ARCH_LIST", "no CUDA toolkit was found"):
        assert part in str(caught.value)
    assert rasterizer.rasterize(splats, cameras).image.shape == (2, 29, 43, 3)


@pytest.mark.usefixtures("no_cache")
def test_a_failing_build_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> None:
            raise RuntimeError("Error building extension 'gsplat_cuda'\nand a long log")

    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", Broken("gsplat.cuda._backend"))
    with pytest.raises(InputError, match=r"RuntimeError: Error building extension 'gsplat_cuda'\)"):
        gsplat_backend.require_kernels()


@pytest.mark.usefixtures("no_cache")
def test_present_kernels_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", types.SimpleNamespace(_C=object()))
    gsplat_backend.require_kernels()
