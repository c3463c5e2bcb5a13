"""L1 and SSIM together: shared photos, the training loss, and the kernels of every backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_metrics import SIZES, images, ssim_by_definition
from torch import Tensor

from flexgs_lightning.metrics import ssim as ssim_module
from flexgs_lightning.metrics.ssim import SSIMReference, l1_and_ssim, ssim, ssim_by_convolution
from flexgs_lightning.training.losses import photometric_loss

WEIGHTS = {"l1_weight": 0.8, "ssim_weight": -0.2}


def pair(*size: int) -> tuple[Tensor, Tensor]:
    """A render and a photo that agree exactly in their first row, where |x - y| has no slope."""
    render, photo = images(*size)
    if size[1] > 1:
        render[:, 0] = photo[:, 0]
    return render, photo


def by_definition(render: Tensor, photo: Tensor) -> Tensor:
    distance = (render.double() - photo.double()).abs().mean(dim=(1, 2, 3))
    return 0.8 * distance - 0.2 * ssim_by_definition(render, photo)


def with_gradient(function, render: Tensor) -> tuple[Tensor, Tensor]:
    """Values [C], and the gradient of their sum weighted 1, 2, 3, ..."""
    render = render.detach().clone().requires_grad_()
    values = function(render)
    weighted = values * torch.arange(1.0, len(values) + 1, device=values.device)
    return values.detach(), torch.autograd.grad(weighted.sum(), render)[0]


def assert_equal_to_definition(values: Tensor, gradient: Tensor, render: Tensor, photo: Tensor) -> None:
    expected, slope = with_gradient(lambda image: by_definition(image, photo), render.double())
    torch.testing.assert_close(values.double(), expected, atol=3e-6, rtol=0)
    assert (gradient - slope).norm() <= 3e-5 * slope.norm()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_l1_and_ssim_and_their_gradient_match_the_definition(
    size: tuple[int, int, int], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(ssim_module, "_kernels", lambda image: None)
    render, photo = pair(*size)
    for target in (photo, SSIMReference.of(photo)):
        found = with_gradient(lambda image, to=target: l1_and_ssim(image, to, **WEIGHTS), render)
        assert_equal_to_definition(*found, render, photo)


@pytest.mark.parametrize("function", [ssim, ssim_by_convolution])
def test_a_shared_photo_changes_no_bit(function) -> None:
    render, photo = pair(2, 37, 90)
    values, gradient = with_gradient(lambda image: ssim(image, photo), render)
    shared = SSIMReference.of(photo)
    for _ in range(2):
        again = with_gradient(lambda image: ssim(image, shared), render)
        assert torch.equal(again[0], values)
        assert torch.equal(again[1], gradient)


def test_a_shared_photo_takes_gradients_of_its_own_without_kernels() -> None:
    render, photo = (image.double() for image in pair(1, 9, 7))
    photo.requires_grad_()
    plain = torch.autograd.grad(ssim(render, photo).sum(), photo)[0]
    shared = torch.autograd.grad(ssim(render, SSIMReference.of(photo)).sum(), photo)[0]
    torch.testing.assert_close(shared, plain)


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_the_photometric_loss_is_that_of_its_parts(weight: float) -> None:
    render, photo = pair(2, 33, 17)

    def parts(image: Tensor) -> Tensor:
        distance = (image - photo.double()).abs().mean()
        return (1 - weight) * distance + weight * (1 - ssim_by_definition(image, photo).mean())

    expected, slope = with_gradient(lambda image: parts(image)[None], render.double())
    for target in (photo, SSIMReference.of(photo)):
        loss, gradient = with_gradient(
            lambda image, to=target: photometric_loss(image, to, weight)[None], render
        )
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        assert (gradient - slope).norm() <= 3e-5 * slope.norm()


def test_the_photometric_loss_has_the_bits_of_l1_and_ssim_added_up() -> None:
    """For one image: fusing changed no training."""
    render, photo = pair(1, 45, 100)

    def added(image: Tensor) -> Tensor:
        return 0.8 * (image - photo).abs().mean() + 0.2 * (1 - ssim(image, photo).mean())

    expected = with_gradient(lambda image: added(image)[None], render)[1]
    found = with_gradient(lambda image: photometric_loss(image, photo, 0.2)[None], render)[1]
    assert torch.equal(found, expected)


def test_convolutions_keep_clear_of_cudnn_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN may take TF32 for float32, and the setting holds when the backward pass runs, not before."""
    enabled = []
    convolve = torch.nn.functional.conv2d

    def watched(*args: Tensor, **kwargs: object) -> Tensor:
        enabled.append(torch.backends.cudnn.enabled)
        return convolve(*args, **kwargs)

    monkeypatch.setattr(ssim_module, "conv2d", watched)
    render, photo = pair(1, 12, 12)
    with_gradient(lambda image: ssim_by_convolution(image, photo), render)
    assert enabled == [False] * 4
    assert torch.backends.cudnn.enabled


INTERPRETED = """
import sys, torch, flexgs_lightning
from flexgs_lightning.metrics import ssim_triton
from flexgs_lightning.metrics.ssim import SSIMReference
ssim_triton.ROWS, ssim_triton.LANES = 4, 32
results = []
for render, photo, upstream in torch.load(sys.argv[1]):
    reference = SSIMReference(photo, ssim_triton.photo_moments(photo))
    values, partials = ssim_triton.compare(render, reference, (0.8, -0.2), True)
    alone, _ = ssim_triton.compare(render, reference, (0.8, -0.2), False)
    assert torch.equal(alone, values)
    results.append((values, ssim_triton.gradient(render, photo, partials, upstream, (0.8, -0.2))))
torch.save(results, sys.argv[2])
"""

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
def test_triton_kernels_match_the_definition_in_the_interpreter(tmp_path: Path) -> None:
    """Two images in one program each; and one cut into two strips of two bands, with odd sizes."""
    cases = [(*pair(*size), torch.arange(1.0, size[0] + 1)) for size in [(2, 3, 5), (1, 7, 11)]]
    torch.save(cases, tmp_path / "cases")
    command = [sys.executable, "-c", INTERPRETED, str(tmp_path / "cases"), str(tmp_path / "results")]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    results = torch.load(tmp_path / "results")
    for (render, photo, _), (values, gradient) in zip(cases, results, strict=True):
        assert_equal_to_definition(values, gradient, render, photo)


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux only")
def test_triton_kernels_compile_for_a_gpu_in_plain_float32() -> None:
    """Without a device at hand: no tensor cores, which would round to TF32, and no spilled registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from flexgs_lightning.metrics import ssim_triton

    options = {"rows": ssim_triton.ROWS, "lanes": ssim_triton.LANES, "with_partials": True}
    types = {"height": "i32", "width": "i32", "l1_weight": "fp32", "ssim_weight": "fp32"}
    for kernel in (ssim_triton._blur_photo, ssim_triton._compare, ssim_triton._differentiate):
        constants = {name: value for name, value in options.items() if name in kernel.arg_names}
        signature = {
            name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constexprs=constants)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", 80, 32), options={"num_warps": ssim_triton.WARPS}
        )
        assert "fma.rn.f32" in compiled.asm["ptx"]
        assert "tf32" not in compiled.asm["ptx"]
        assert "mma" not in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (1, 270, 480)])
def test_cuda_agrees_with_the_cpu_and_never_waits(size: tuple[int, int, int]) -> None:
    render, photo = pair(*size)
    expected = with_gradient(lambda image: l1_and_ssim(image, photo, **WEIGHTS), render)
    on_device, shared = render.cuda().requires_grad_(), photo.cuda()
    upstream = torch.arange(1.0, size[0] + 1, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        values = l1_and_ssim(on_device, SSIMReference.of(shared), **WEIGHTS)
        return values.detach(), torch.autograd.grad(values, on_device, upstream)[0]

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        values, gradient = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(values.cpu(), expected[0], atol=1e-5, rtol=0)
    assert (gradient.cpu() - expected[1]).norm() <= 1e-5 * expected[1].norm()


@pytest.mark.gpu
def test_convolutions_on_cuda_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton is missing, with TF32 allowed."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    render, photo = pair(1, 120, 160)
    expected = with_gradient(lambda image: ssim(image, photo), render)
    values, gradient = with_gradient(lambda image: ssim_by_convolution(image, photo.cuda()), render.cuda())
    torch.testing.assert_close(values.cpu(), expected[0], atol=1e-5, rtol=0)
    assert (gradient.cpu() - expected[1]).norm() <= 1e-4 * expected[1].norm()
