"""The CUDA backend against the CPU backend on the real points of the Mip-NeRF 360 garden.

Both compute in float32, CUDA with fast exponentials, in another order, and with transmittances recovered
from 1 - alpha in its backward pass (relative error up to 3e-4 where a pixel saturates). So values agree
closely but for the few pixels where a Gaussian falls on the other side of a threshold (alpha 1/255,
transmittance 1e-4, a radius rounded up). Tolerances are on means and norms, with a bound on outliers.
"""

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import gsplat
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from flexgs_lightning.cameras import NEAR_PLANE, Cameras
from flexgs_lightning.rendering import gsplat_backend
from flexgs_lightning.rendering.importance import removal_importance
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import EPS2D, FAR_PLANE, Outputs, Rendering
from flexgs_lightning.splats import SH_C0, Splats

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]  # gsplat's kernels compile at first use
log = logging.getLogger(__name__)
FIELDS = ("means", "quats", "scales", "opacities", "sh")
EVERYTHING = Outputs(depth=True, weights=True, hits=True, absgrad=True)
BACKGROUND = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7], [0.0, 1.0, 0.5]])


@pytest.fixture(scope="module")
def garden(shared_data: Path) -> tuple[Splats, Cameras]:
    """138,766 Gaussians as large as their neighbours are far, and three cameras of 648x420."""
    data = np.load(shared_data / "garden_sfm" / "test_garden.npz")
    points = data["means3d"]
    distances = cKDTree(points).query(points, k=4)[0][:, 1:].mean(axis=1)
    count, generator = len(points), torch.Generator().manual_seed(0)
    sh = 0.1 * torch.randn(count, 16, 3, generator=generator)
    sh[:, 0] = (torch.from_numpy(data["colors"]).float() / 255 - 0.5) / SH_C0
    spread = torch.exp(0.5 * torch.randn(count, 3, generator=generator))
    splats = Splats(
        means=torch.from_numpy(points),
        quats=torch.randn(count, 4, generator=generator),
        scales=torch.from_numpy(distances).float().clamp(1e-4, 1.0)[:, None] * spread,
        opacities=torch.rand(count, generator=generator).clamp(0.002, 0.999),
        sh=sh,
    )
    matrices = (torch.from_numpy(data[name]) for name in ("viewmats", "Ks"))
    return splats, Cameras(*matrices, int(data["width"]), int(data["height"]))


def render(splats: Splats, cameras: Cameras, device: str, **options) -> tuple[Rendering, dict[str, Tensor]]:
    """Draw on a device and pull a random loss back; outputs and gradients on the CPU."""
    leaves = {name: getattr(splats, name).to(device).detach().requires_grad_() for name in FIELDS}
    rendering = rasterize(Splats(**leaves), cameras.to(device), outputs=EVERYTHING, **options)
    rendering.means2d.retain_grad()
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(len(cameras), cameras.height, cameras.width, 5, generator=generator)).to(device)
    depth = rendering.depth * rendering.alpha.detach()  # else nearly empty pixels rule the gradient
    (torch.cat([rendering.image, rendering.alpha, depth], dim=-1) * weights).sum().backward()
    gradients = {name: leaf.grad.cpu() for name, leaf in leaves.items()}
    for name, gradient in {"means2d": rendering.means2d.grad, "absgrad": rendering.absgrad()}.items():
        gradients[name] = gradient.transpose(0, 1).flatten(1).cpu()  # a row per Gaussian
    picture, projection = (
        type(values)(*(value.detach().cpu() if isinstance(value, Tensor) else value for value in values))
        for values in (rendering.picture, rendering.projection)
    )
    return Rendering(picture, projection, rendering.width, rendering.height), gradients


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).double().norm() / expected.double().norm()).item()


def relative_without_outliers(found: Tensor, expected: Tensor) -> float:
    """Relative norm without the thousandth of Gaussians that differ most.

    Perturbing this scene by 1e-7 on the CPU alone changes gradients of positions and scales by 2 %, all of
    it in a few huge Gaussians close to a camera.
    """
    differences = (found - expected).reshape(len(found), -1).norm(dim=-1)
    kept = differences <= differences.kthvalue(int(0.999 * len(differences))).values
    return relative(found[kept], expected[kept])


@pytest.mark.parametrize(
    ("degree", "antialiased", "count"),
    [(0, False, 1), (1, False, 1), (2, True, 1), (3, False, 3), (3, True, 3)],
)
def test_agrees_with_the_cpu(garden, degree: int, antialiased: bool, count: int) -> None:
    splats, cameras = garden[0], garden[1][:count]
    options = {"sh_degree": degree, "antialiased": antialiased, "background": BACKGROUND[:count]}
    expected, expected_gradients = render(splats, cameras, "cpu", **options)
    options["background"] = options["background"].cuda()
    found, gradients = render(splats, cameras, "cuda", **options)

    errors = {
        "image mean": (found.image - expected.image).abs().mean().item(),
        "image off": ((found.image - expected.image).abs() > 2e-3).float().mean().item(),
        "alpha mean": (found.alpha - expected.alpha).abs().mean().item(),
        "depth": relative(found.depth * expected.alpha, expected.depth * expected.alpha),
        "weights": relative(found.weights, expected.weights),
        "hits": ((found.hits - expected.hits).abs().sum() / expected.hits.sum()).item(),
    }
    errors |= {
        f"gradient of {name}": relative(gradients[name], expected_gradients[name]) for name in gradients
    }
    log.info("degree %d, antialiased %s, %d cameras: %s", degree, antialiased, count, errors)
    tolerances = {"image mean": 5e-5, "image off": 5e-3, "alpha mean": 5e-5, "depth": 2e-3, "weights": 2e-3}
    tolerances["hits"] = 1e-3
    for name, error in errors.items():
        assert error < tolerances.get(name, 1e-2), f"{name}: {error:.2e}; all: {errors}"

    visible = (found.radii > 0).all(-1) & (expected.radii > 0).all(-1)
    assert (visible.sum() - (expected.radii > 0).all(-1).sum()).abs() <= 1e-4 * visible.sum()
    radii = (found.radii - expected.radii)[visible].abs()
    assert radii.max() <= 1
    assert radii.float().mean() < 1e-3
    torch.testing.assert_close(found.means2d[visible], expected.means2d[visible], rtol=1e-5, atol=5e-3)
    assert not found.means2d[(found.radii == 0).any(-1)].any()


def test_the_near_plane_is_the_cameras(garden) -> None:
    """As on the CPU, where a float64 reference holds it; half of what a camera sees is cut off."""
    splats, camera = garden[0], garden[1][0]
    depths = splats.means @ camera.viewmats[0, 2, :3] + camera.viewmats[0, 2, 3]
    seen = camera.contain(splats.means)[0]
    near = replace(camera, near_plane=depths[seen].median().item())
    expected, found = rasterize(splats, near), rasterize(splats.to("cuda"), near.to("cuda"))
    beyond = depths > near.near_plane * (1 + 1e-5)  # rounding may decide what lies on it
    before = depths < near.near_plane * (1 - 1e-5)
    for rendering in (expected, found):
        drawn = (rendering.radii[0] > 0).all(dim=-1).cpu()
        assert not drawn[before].any()
        assert drawn[beyond & seen & (splats.opacities > 0.01)].any()
    assert ((found.image.cpu() - expected.image).abs() > 2e-3).float().mean() < 5e-3


@pytest.mark.parametrize("antialiased", [False, True])
def test_draws_what_gsplat_does_at_once(garden, antialiased: bool) -> None:
    """``gsplat.rasterization``, which does everything in one call, is the model of both steps."""
    cameras, background = garden[1].to("cuda"), BACKGROUND.cuda()
    leaves = [
        Splats(**{name: getattr(garden[0], name).cuda().detach().requires_grad_() for name in FIELDS})
        for _ in range(2)
    ]
    found = rasterize(leaves[0], cameras, background=background, antialiased=antialiased, outputs=EVERYTHING)
    drawn, alpha, state = gsplat.rasterization(
        *(getattr(leaves[1], name) for name in FIELDS),
        cameras.viewmats,
        cameras.Ks,
        cameras.width,
        cameras.height,
        near_plane=NEAR_PLANE,
        far_plane=FAR_PLANE,
        eps2d=EPS2D,
        sh_degree=3,
        packed=False,
        backgrounds=background,
        render_mode="RGB+ED",
        rasterize_mode="antialiased" if antialiased else "classic",
        absgrad=True,
    )
    for value, expected in (
        (found.image, drawn[..., :3]),
        (found.alpha, alpha),
        (found.depth, drawn[..., 3:]),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.radii, state["radii"])
    noise = torch.randn(found.image.shape, generator=torch.Generator().manual_seed(1)).cuda()
    for image in (found.image, drawn[..., :3]):
        (image * noise).sum().backward()
    for name in FIELDS:
        assert relative(getattr(leaves[0], name).grad, getattr(leaves[1], name).grad) < 1e-3, name
    assert relative(found.absgrad(), state["means2d"].absgrad) < 1e-3


def test_drawing_stops_the_host_once(garden) -> None:
    """gsplat asks how many intersections there are; nothing else waits for the device, there or back."""
    splats = Splats(**{name: getattr(garden[0], name).cuda().requires_grad_() for name in FIELDS})
    cameras, background = garden[1].to("cuda"), BACKGROUND.cuda()
    options = {"background": background, "antialiased": True, "outputs": Outputs(depth=True, absgrad=True)}
    rasterize(splats, cameras, **options).image.sum().backward()  # what is done once, is done
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as stops:
            warnings.simplefilter("always")
            rasterize(splats, cameras, **options).image.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([stop for stop in stops if "synchronizing" in str(stop.message)]) <= 1, stops


def test_hits_do_not_depend_on_how_tiles_are_grouped(garden, monkeypatch: pytest.MonkeyPatch) -> None:
    splats, cameras = garden[0].to("cuda"), garden[1].to("cuda")
    with torch.no_grad():
        expected = rasterize(splats, cameras, outputs=EVERYTHING).hits
        for chunk in (1 << 12, 1 << 30):
            monkeypatch.setattr(gsplat_backend, "INTERSECTIONS_PER_CHUNK", chunk)
            assert torch.equal(rasterize(splats, cameras, outputs=EVERYTHING).hits, expected)


def test_weights_add_up_to_alpha_and_work_in_inference_mode(garden) -> None:
    splats, cameras = garden[0].to("cuda"), garden[1].to("cuda")
    with torch.inference_mode():
        rendering = rasterize(splats, cameras, outputs=EVERYTHING)
    total = rendering.alpha.double().sum(dim=(1, 2, 3))
    torch.testing.assert_close(rendering.weights.double().sum(dim=1), total, rtol=1e-4, atol=0)
    assert (rendering.weights <= rendering.hits * 0.9995 + 1e-3).all()


def test_removal_importance_agrees_with_the_cpu(garden) -> None:
    measured = {}
    for device in ("cpu", "cuda"):
        splats, cameras = garden[0][:5000].to(device), garden[1].to(device)
        generator = torch.Generator(device).manual_seed(0)  # other signs on each device
        measured[device] = removal_importance(splats, cameras, probes=50, generator=generator).cpu()
    seen = measured["cpu"] > measured["cpu"].median()
    ratios = (measured["cuda"][seen] / measured["cpu"][seen]).log()
    assert ratios.median().abs() < 0.05
    assert ratios.std() < 0.6  # twice a standard deviation of sqrt(2 / 50), and their tails


@pytest.mark.parametrize("kind", ["no Gaussians", "behind the camera"])
def test_nothing_to_see_gives_the_background_and_zero_gradients(garden, kind: str) -> None:
    splats, cameras = garden[0], garden[1]
    if kind == "no Gaussians":
        splats = splats[:0]
    else:
        backwards = cameras.viewmats.clone()
        backwards[:, 2, 3] = -1e4
        cameras = Cameras(backwards, cameras.Ks, cameras.width, cameras.height)
    rendering, gradients = render(splats, cameras, "cuda", background=BACKGROUND.cuda())
    assert torch.equal(rendering.image, BACKGROUND[:, None, None].expand_as(rendering.image))
    for value in (rendering.alpha, rendering.depth, rendering.weights, rendering.hits, *gradients.values()):
        assert not value.any()


def test_cpu_tensors_still_work_beside_cuda(garden) -> None:
    splats, cameras = garden[0][:100], garden[1][:1]
    assert rasterize(splats, cameras).image.device.type == "cpu"
    with pytest.raises(ValueError, match="cameras on cpu"):
        rasterize(splats.to("cuda"), cameras)


def test_each_camera_sees_its_own_moment_as_on_the_cpu(garden: tuple[Splats, Cameras]) -> None:
    """A scene that moves: as many Gaussians for each camera, elsewhere in each."""
    splats, cameras = garden
    moments = [replace(splats, means=splats.means + 0.01 * i) for i in range(len(cameras))]
    images = []
    for device in ("cpu", "cuda"):
        means = [own.means.to(device).detach().requires_grad_() for own in moments]
        drawn = rasterize(
            [replace(own.to(device), means=m) for own, m in zip(moments, means, strict=True)],
            cameras.to(device),
        )
        drawn.means2d.retain_grad()
        drawn.image.square().mean().backward()
        assert drawn.means2d.shape == drawn.means2d.grad.shape == (len(cameras), len(splats), 2)
        assert all(m.grad.isfinite().all() and m.grad.any() for m in means)
        images.append(drawn.image.detach().cpu())
    assert (images[0] - images[1]).abs().mean() < 1e-5
