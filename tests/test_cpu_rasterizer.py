"""The CPU rasterizer against an independent float64 implementation, and its own properties."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import reference_rasterizer as reference
import torch
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Outputs, Rendering
from flexgs_lightning.splats import Splats

NAMES = ("means", "quats", "scales", "opacities", "sh")
EVERYTHING = Outputs(depth=True, weights=True, hits=True, absgrad=True)


@pytest.fixture(autouse=True)
def _keep_thread_count() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_splats(
    count: int = 120,
    seed: int = 0,
    degree: int = 3,
    scale: float = 0.12,
    opacity: tuple[float, float] = (0.05, 0.95),
    depth: tuple[float, float] = (1.5, 6.0),
) -> Splats:
    """Random anisotropic Gaussians around the axis of the first of ``make_cameras``."""
    random = torch.Generator().manual_seed(seed)
    z = depth[0] + (depth[1] - depth[0]) * torch.rand(count, generator=random)
    xy = (torch.rand(count, 2, generator=random) - 0.5) * 1.4 * z[:, None]
    return Splats(
        means=torch.cat([xy, z[:, None]], 1),
        quats=torch.randn(count, 4, generator=random) * 2,
        scales=scale * torch.exp(0.7 * torch.randn(count, 3, generator=random)),
        opacities=opacity[0] + (opacity[1] - opacity[0]) * torch.rand(count, generator=random),
        sh=0.4 * torch.randn(count, (degree + 1) ** 2, 3, generator=random),
    )


def make_cameras(count: int = 1, width: int = 37, height: int = 23) -> Cameras:
    """Cameras with off-centre principal points; each but the first is turned and moved."""
    random = torch.Generator().manual_seed(5)
    rotations = torch.linalg.matrix_exp(
        torch.stack([_cross(0.1 * i * torch.randn(3, generator=random)) for i in range(count)])
    )
    viewmats = torch.eye(4).repeat(count, 1, 1)
    viewmats[:, :3, :3] = rotations
    viewmats[:, :3, 3] = 0.2 * torch.arange(count)[:, None] * torch.randn(count, 3, generator=random)
    fx, fy = 0.9 * width, 1.4 * height
    K = torch.tensor([[fx, 0.0, 0.47 * width], [0.0, fy, 0.56 * height], [0.0, 0.0, 1.0]])
    return Cameras(viewmats, K.repeat(count, 1, 1), width, height)


def _cross(v: Tensor) -> Tensor:
    x, y, z = v.tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def leaves(splats: Splats, dtype: torch.dtype = torch.float32) -> Splats:
    return Splats(**{name: getattr(splats, name).to(dtype).clone().requires_grad_() for name in NAMES})


def relative(found: Tensor, expected: Tensor) -> float:
    norm = expected.norm().item()
    return (found.double() - expected).norm().item() / norm if norm else found.abs().sum().item()


def check(splats: Splats, cameras: Cameras, background: Tensor | None = None, **options: object) -> Rendering:
    """Compare every output and every gradient with the reference; return the rendering."""
    ours, theirs = leaves(splats), leaves(splats, torch.float64)
    found = rasterize(ours, cameras, background=background, outputs=EVERYTHING, **options)
    expected = reference.rasterize(theirs, cameras, background, **options)
    clear = ~expected.doubtful[..., None]
    assert clear.double().mean() > 0.98

    assert torch.equal(found.radii, expected.radii)
    for name, tolerance in {"image": 2e-6, "alpha": 1e-6, "depth": 2e-4}.items():
        error = (getattr(found, name) - getattr(expected, name)).abs() * clear
        assert error.max() < tolerance, name
    culled = (found.radii == 0).all(-1)
    for c, means2d in enumerate(expected.means2d):
        assert (found.means2d[c] - means2d)[~culled[c]].abs().max() < 1e-4
    assert found.means2d[culled].abs().sum() == 0
    if clear.all():
        assert torch.equal(found.hits, expected.hits.int())
        torch.testing.assert_close(found.weights.double(), expected.weights, rtol=1e-5, atol=1e-5)
        assert not found.weights.requires_grad

    random = torch.Generator().manual_seed(1)
    cotangents = {
        name: torch.randn(getattr(expected, name).shape, generator=random) * clear
        for name in ("image", "alpha", "depth")
    }
    found.means2d.retain_grad()
    for rendering in (found, expected):
        sum((getattr(rendering, name) * v).sum() for name, v in cotangents.items()).backward()
    for name in NAMES:
        assert relative(getattr(ours, name).grad, getattr(theirs, name).grad) < 1e-5, name
    means2d_grad = torch.stack([means2d.grad for means2d in expected.means2d])
    assert found.means2d.grad.shape == (len(cameras), len(splats), 2)
    assert relative(found.means2d.grad, means2d_grad * ~culled[..., None]) < 1e-5
    assert relative(found.absgrad(), expected.absgrad()) < 1e-5
    return found


class TestAgainstReference:
    @pytest.mark.parametrize("size", [(37, 23), (16, 16), (1, 1), (15, 33), (64, 48)])
    def test_partial_tiles(self, size: tuple[int, int]) -> None:
        check(make_splats(), make_cameras(1, *size))

    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_stored_degree(self, degree: int) -> None:
        check(make_splats(degree=degree), make_cameras())

    @pytest.mark.parametrize("degree", [0, 1, 2])
    def test_lower_degree_than_stored(self, degree: int) -> None:
        check(make_splats(degree=3), make_cameras(), sh_degree=degree)

    def test_negative_colours_are_clamped(self) -> None:
        splats = make_splats(degree=1)
        check(replace(splats, sh=splats.sh * 5), make_cameras())

    def test_background(self) -> None:
        check(make_splats(40), make_cameras(), torch.tensor([0.3, 0.9, 0.1]))

    def test_background_per_camera(self) -> None:
        check(make_splats(40), make_cameras(2), torch.tensor([[0.3, 0.9, 0.1], [1.0, 0.0, 0.5]]))

    def test_antialiased(self) -> None:
        splats = make_splats(scale=0.03, opacity=(0.3, 0.99))
        found = check(splats, make_cameras(), antialiased=True)
        classic = rasterize(splats, make_cameras())
        assert found.alpha.sum() < classic.alpha.sum()

    def test_several_cameras(self) -> None:
        check(make_splats(), make_cameras(3))

    def test_opaque_stack_saturates(self) -> None:
        splats = make_splats(300, opacity=(0.9, 1.0), scale=0.4)
        found = check(splats, make_cameras())
        assert found.alpha.max() > 0.999
        assert (found.hits == 0).sum() > (found.radii[..., 0] == 0).sum()  # some lie wholly behind

    def test_alpha_cap_blocks_the_gradient(self) -> None:
        splats = make_splats(60, opacity=(0.9995, 1.0), scale=2.0)
        check(splats, make_cameras(), torch.ones(3))

    @pytest.mark.parametrize("near", [0.01, 0.35])
    def test_gaussians_across_the_near_plane(self, near: float) -> None:
        splats = make_splats(300, depth=(-0.3, 0.6), scale=0.02)
        assert make_cameras().near_plane == 0.01
        found = check(splats, replace(make_cameras(), near_plane=near))
        culled = found.radii[0, :, 0] == 0
        assert culled[splats.means[:, 2] < near].all()
        assert not culled[splats.means[:, 2] > near].all()
        assert not culled.all()

    def test_each_of_several_cameras_has_the_near_plane(self) -> None:
        found = check(make_splats(200), replace(make_cameras(3), near_plane=3.0))
        assert (
            0
            < (found.radii[..., 0] > 0).sum()
            < (rasterize(make_splats(200), make_cameras(3)).radii[..., 0] > 0).sum()
        )

    def test_centres_outside_the_image(self) -> None:
        splats = make_splats(200, scale=0.5)
        check(replace(splats, means=splats.means * torch.tensor([3.0, 3.0, 1.0])), make_cameras())

    def test_needles_and_flakes(self) -> None:
        splats = make_splats(80)
        check(replace(splats, scales=splats.scales * torch.tensor([6.0, 1.0, 0.02])), make_cameras())


class TestReference:
    """The reference itself: its gradients by finite differences, its harmonics by scipy."""

    @pytest.mark.parametrize("name", NAMES)
    def test_gradient_is_the_difference_quotient(self, name: str) -> None:
        splats, cameras = leaves(make_splats(25, degree=2, scale=0.3), torch.float64), make_cameras()
        cotangent = torch.randn(1, 23, 37, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

        def loss(candidate: Splats) -> Tensor:
            drawn = reference.rasterize(candidate, cameras)
            outputs = torch.cat([drawn.image, drawn.alpha, drawn.depth], -1)
            return (outputs * cotangent * ~drawn.doubtful[..., None]).sum()

        (gradient,) = torch.autograd.grad(loss(splats), getattr(splats, name))
        detached = splats.detach()
        tensor, step = getattr(detached, name), 1e-7
        for index in torch.linspace(0, tensor.numel() - 1, 12).long().tolist():
            shift = torch.zeros_like(tensor).view(-1)
            shift[index] = step
            shift = shift.view_as(tensor)
            above, below = (loss(replace(detached, **{name: tensor + sign * shift})) for sign in (1.0, -1.0))
            quotient = (above - below).item() / (2 * step)
            assert gradient.view(-1)[index].item() == pytest.approx(quotient, rel=1e-4, abs=1e-4)

    def test_harmonics(self) -> None:
        from scipy.special import sph_harm_y

        directions = torch.nn.functional.normalize(
            torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1
        )
        basis = reference.spherical_harmonics(directions, 3)
        theta, phi = torch.arccos(directions[:, 2]), torch.atan2(directions[:, 1], directions[:, 0])
        for column, (degree, order) in enumerate((n, m) for n in range(4) for m in range(-n, n + 1)):
            value = torch.from_numpy(sph_harm_y(degree, abs(order), theta.numpy(), phi.numpy()))
            real = value.real if order >= 0 else value.imag
            expected = real * (2**0.5 if order else 1)
            torch.testing.assert_close(basis[:, column], expected, rtol=1e-12, atol=1e-12)


class TestProperties:
    def test_batch_equals_single_cameras(self) -> None:
        splats, cameras = make_splats(), make_cameras(3)
        batch = rasterize(splats, cameras, outputs=EVERYTHING)
        for c in range(3):
            single = rasterize(splats, cameras[c], outputs=EVERYTHING)
            for name in ("image", "alpha", "depth", "means2d", "radii", "weights", "hits"):
                assert torch.equal(getattr(batch, name)[c], getattr(single, name)[0]), name

    def test_order_of_gaussians_does_not_matter(self) -> None:
        splats, cameras = make_splats(), make_cameras(2, 64, 48)
        order = torch.randperm(len(splats), generator=torch.Generator().manual_seed(0))
        found = draw_with_gradients(splats, cameras)
        shuffled = draw_with_gradients(splats[order], cameras)
        assert torch.equal(found["image"], shuffled["image"])
        assert torch.equal(found["weights"][:, order], shuffled["weights"])
        for name in NAMES:
            assert torch.equal(found[f"v_{name}"][order], shuffled[f"v_{name}"]), name

    def test_bit_identical_for_any_number_of_threads(self) -> None:
        splats, cameras = make_splats(3000, scale=0.03), make_cameras(2, 150, 90)
        torch.set_num_threads(1)
        expected = draw_with_gradients(splats, cameras)
        torch.set_num_threads(2)
        for _ in range(3):
            for name, tensor in draw_with_gradients(splats, cameras).items():
                assert torch.equal(tensor, expected[name]), name

    def test_what_else_is_asked_for_does_not_change_the_image(self) -> None:
        splats, cameras = make_splats(), make_cameras()
        plain, counted = rasterize(splats, cameras), rasterize(splats, cameras, outputs=EVERYTHING)
        for name in ("depth", "weights", "hits"):
            with pytest.raises(ValueError, match=rf"Rendering.{name}: not computed"):
                getattr(plain, name)
        with pytest.raises(ValueError, match=r"Rendering.absgrad: not computed"):
            plain.absgrad()
        assert torch.equal(plain.image, counted.image)
        assert torch.equal(plain.alpha, counted.alpha)

    def test_weights_sum_to_alpha(self) -> None:
        drawn = rasterize(make_splats(), make_cameras(), outputs=EVERYTHING)
        torch.testing.assert_close(drawn.weights.sum(), drawn.alpha.sum(), rtol=1e-5, atol=0)

    def test_unused_outputs_cost_no_gradient(self) -> None:
        splats = leaves(make_splats())
        drawn = rasterize(splats, make_cameras())
        (by_alpha,) = torch.autograd.grad(drawn.alpha.sum(), splats.opacities)
        assert by_alpha.abs().sum() > 0

    def test_non_contiguous_inputs(self) -> None:
        splats, cameras = make_splats(), make_cameras()
        strided = replace(splats, means=splats.means.T.contiguous().T, sh=splats.sh.mT.contiguous().mT)
        assert torch.equal(rasterize(splats, cameras).image, rasterize(strided, cameras).image)

    def test_callers_may_run_at_once(self) -> None:
        splats, cameras = make_splats(2000, scale=0.03), make_cameras(1, 150, 90)
        expected, found = draw_with_gradients(splats, cameras), []
        callers = [
            threading.Thread(target=lambda: found.append(draw_with_gradients(splats, cameras)))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(found) == 4
        for result in found:
            assert all(torch.equal(result[name], expected[name]) for name in expected)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_works_in_a_forked_child(self) -> None:
        rasterize(make_splats(), make_cameras())
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            finite = rasterize(make_splats(), make_cameras()).image.isfinite().all()
            os._exit(0 if finite else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def draw_with_gradients(splats: Splats, cameras: Cameras) -> dict[str, Tensor]:
    ours = leaves(splats)
    drawn = rasterize(ours, cameras, outputs=EVERYTHING)
    random = torch.Generator().manual_seed(3)
    loss = (drawn.image * torch.randn(drawn.image.shape, generator=random)).sum() + drawn.depth.mean()
    loss.backward()
    outputs = {name: getattr(drawn, name).detach() for name in ("image", "alpha", "depth", "weights", "hits")}
    return outputs | {f"v_{name}": getattr(ours, name).grad for name in NAMES}


class TestNothingToDraw:
    @pytest.mark.parametrize(
        "change",
        [
            lambda splats: splats[:0],
            lambda splats: replace(splats, means=splats.means - torch.tensor([0.0, 0.0, 50.0])),
            lambda splats: replace(splats, means=splats.means + torch.tensor([1000.0, 0.0, 0.0])),
            lambda splats: replace(splats, opacities=torch.full_like(splats.opacities, 1 / 256)),
            lambda splats: replace(splats, means=splats.means * torch.nan),
        ],
        ids=["empty", "behind", "beside", "transparent", "nan"],
    )
    def test_gives_background_and_zero_gradients(self, change: Callable[[Splats], Splats]) -> None:
        splats, background = leaves(change(make_splats())), torch.tensor([0.2, 0.4, 0.6])
        drawn = rasterize(splats, make_cameras(2), background=background, outputs=EVERYTHING)
        assert torch.equal(drawn.image, background.expand(2, 23, 37, 3))
        for nothing in (drawn.alpha, drawn.depth, drawn.means2d, drawn.radii, drawn.weights, drawn.hits):
            assert nothing.abs().sum() == 0
        assert drawn.means2d.shape == (2, len(splats), 2)
        (drawn.image.sum() + drawn.depth.sum()).backward()
        for name in NAMES:
            gradient = getattr(splats, name).grad
            assert gradient.shape == getattr(splats, name).shape
            assert gradient.abs().sum() == 0

    @pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities"])
    def test_one_broken_gaussian_is_culled(self, name: str) -> None:
        splats = make_splats()
        broken = getattr(splats, name).clone()
        broken[7] = torch.nan
        kept = torch.arange(len(splats)) != 7
        found = rasterize(replace(splats, **{name: broken}), make_cameras())
        assert torch.equal(found.image, rasterize(splats[kept], make_cameras()).image)
        assert found.radii[0, 7].sum() == 0


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"splats.means must be torch.float32, found torch.float64"):
        rasterize(leaves(make_splats(), torch.float64), make_cameras())


def test_works_where_no_cache_can_be_written() -> None:
    """A read-only package and home: each process compiles for itself."""
    code = (
        "import numba.core.caching as caching; caching.CacheImpl._locator_classes = [];"
        "from flexgs_lightning import jit;"
        "f = jit.kernel(lambda x: jit.exp_negative(x));"
        "import numpy as np; raise SystemExit(not abs(f(np.float32(1.0)) - np.exp(-1.0)) < 1e-7)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_package_imports_without_numba() -> None:
    """Data-loading workers import the package and must not pay for the compiler."""
    code = "import sys, flexgs_lightning.rendering.rasterizer; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_loops_over_pixels_are_vectorised() -> None:
    """Forward and backward cost about 1.5 times an exp, a product and a sum of torch over the pixels.

    Without vectorisation it is 17 times. Processor time of one thread, and a yardstick that uses
    the same vector units, make this hold on slow and busy machines too.
    """
    torch.set_num_threads(1)
    splats = make_splats(400, scale=50.0, opacity=(0.005, 0.006), degree=0)  # each covers the image
    splats = leaves(replace(splats, means=splats.means * torch.tensor([0.0, 0.0, 1.0])))
    cameras = make_cameras(1, 128, 128)
    x = torch.rand(128 * 128)
    y = torch.empty_like(x)

    def draw() -> None:
        rasterize(splats, cameras).image.sum().backward()

    def yardstick() -> None:
        for _ in range(len(splats)):
            torch.exp(x, out=y)
            y.mul_(x)
            y.sum()

    ratio = seconds(draw) / seconds(yardstick)
    assert ratio < 4, f"drawing costs {ratio:.1f} times the yardstick"


def seconds(function: Callable[[], None]) -> float:
    """Least processor time of this thread over some calls."""
    function()
    times = []
    for _ in range(7):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return min(times)
