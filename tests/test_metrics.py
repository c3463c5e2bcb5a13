"""PSNR, SSIM and LPIPS against independent references; their means; missing and broken weights."""

import logging
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from flexgs_lightning.data.ordering import HeldOutOrder
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics import lpips
from flexgs_lightning.metrics.lpips import LPIPS
from flexgs_lightning.metrics.protocol import ImageMetrics, worst_view
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.metrics.ssim import ssim, ssim_by_convolution

SIZES = [(1, 1, 1), (1, 5, 7), (2, 33, 17), (1, 64, 48), (3, 40, 61)]


def images(count: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(count, height, width, 3, generator=generator)
    noise = 0.2 * torch.randn(count, height, width, 3, generator=generator)
    return target + noise, target


def ssim_by_definition(prediction: Tensor, target: Tensor) -> Tensor:
    """Window sums written out, in float64: each tap shifts the zero-padded images."""
    x, y = prediction.double(), target.double()
    taps = torch.exp(-0.5 * ((torch.arange(11, dtype=torch.float64) - 5) / 1.5) ** 2)
    taps = taps / taps.sum()
    height, width = x.shape[1:3]

    def blur(image: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(image, (0, 0, 5, 5, 5, 5))
        return sum(
            taps[i] * taps[j] * padded[:, i : i + height, j : j + width] for i in range(11) for j in range(11)
        )

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 1e-4, 9e-4
    values = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return values.mean(dim=(1, 2, 3))


def test_psnr_is_per_image_and_clamps_predictions() -> None:
    target = torch.full((2, 4, 5, 3), 0.5)
    prediction = target + torch.tensor([0.1, 0.01])[:, None, None, None]
    torch.testing.assert_close(psnr(prediction, target), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)
    white = torch.ones(1, 4, 5, 3)
    assert psnr(white * 3, white * 0.9).item() == pytest.approx(20.0, abs=1e-3)
    assert psnr(white, white).item() == float("inf")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", [ssim, ssim_by_convolution])
def test_ssim_and_its_gradient_match_the_definition_in_float64(function, size: tuple[int, int, int]) -> None:
    prediction, target = images(*size)
    upstream = torch.arange(1.0, size[0] + 1)
    prediction.requires_grad_()
    values = function(prediction, target)
    (gradient,) = torch.autograd.grad((values * upstream).sum(), prediction)
    reference = prediction.detach().double().requires_grad_()
    expected = ssim_by_definition(reference, target)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), reference)
    torch.testing.assert_close(values.double(), expected, atol=3e-6, rtol=0)
    assert (gradient - expected_gradient).norm() < 3e-5 * expected_gradient.norm()


def test_ssim_gradient_matches_finite_differences() -> None:
    prediction, target = images(1, 6, 5)
    prediction, target = prediction.double().requires_grad_(), target.double()
    assert torch.autograd.gradcheck(ssim, (prediction, target))


def test_ssim_agrees_with_torchmetrics_but_for_its_reflected_borders() -> None:
    """Around zero-padded images reflection does not matter; their inner windows are all of ours."""
    prediction, target = images(2, 30, 40)
    padded = [torch.nn.functional.pad(image, (0, 0, 5, 5, 5, 5)) for image in (prediction, target)]
    _, values = structural_similarity_index_measure(
        *(image.permute(0, 3, 1, 2).double() for image in padded),
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    theirs = values[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(prediction, target).double(), theirs, atol=3e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_ssim_of_equal_images_is_one_and_its_gradient_vanishes(value: float) -> None:
    image = torch.full((1, 40, 40, 3), value).requires_grad_()
    result = ssim(image, image.detach())
    assert result.item() == pytest.approx(1.0, abs=1e-6)
    (gradient,) = torch.autograd.grad(result.sum(), image)
    assert gradient.abs().max() < 1e-6


def test_ssim_of_nearly_flat_images_keeps_its_precision() -> None:
    """Variances far below the squared mean: the difference of two nearly equal float32 numbers."""
    generator = torch.Generator().manual_seed(3)
    target = 0.9 + 1e-3 * torch.rand(1, 60, 60, 3, generator=generator)
    prediction = target + 1e-3 * torch.randn(1, 60, 60, 3, generator=generator)
    expected = ssim_by_definition(prediction, target).item()
    for function in (ssim, ssim_by_convolution):
        assert function(prediction, target).item() == pytest.approx(expected, abs=1e-4)


def test_ssim_is_bit_identical_for_any_number_of_threads() -> None:
    prediction, target = images(2, 70, 90)
    prediction.requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values = ssim(prediction, target)
            results.append((values.detach(), torch.autograd.grad(values.sum(), prediction)[0]))
    finally:
        torch.set_num_threads(before)
    for values, gradient in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_ssim_takes_gradients_of_the_target_and_non_contiguous_images() -> None:
    prediction, target = images(1, 20, 24)
    target.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim(prediction, target).sum(), target)
    (mirrored,) = torch.autograd.grad(ssim(target, prediction).sum(), target)
    assert torch.allclose(gradient, mirrored, atol=1e-7)
    turned = [image.detach().transpose(1, 2) for image in (prediction, target)]
    assert ssim(*turned).item() == pytest.approx(ssim(prediction, target).item(), abs=1e-6)


def test_ssim_refuses_images_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"two \[C, H, W, 3\]"):
        ssim(torch.rand(1, 4, 4, 3), torch.rand(1, 4, 5, 3))


def lpips_inputs(count: int, seeded: torch.Generator | None) -> list[Tensor]:
    signed = [torch.rand(count, 3, 100, 100, generator=seeded) * 2 - 1 for _ in range(2)]
    return [(image.permute(0, 2, 3, 1) + 1) / 2 for image in signed]


def test_lpips_gives_the_published_values(shared_data: Path) -> None:
    metric = LPIPS("squeeze", weights=shared_data / "lpips_squeeze")
    torch.manual_seed(42)
    values = metric(*lpips_inputs(10, None))
    assert values is not None
    assert values.shape == (10,)
    assert values.mean().item() == pytest.approx(0.1005, abs=5e-5)
    pair = metric(*lpips_inputs(2, torch.Generator().manual_seed(42)))
    assert pair.tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)
    assert "squeeze" in metric.protocol()
    assert "[-1, 1]" in metric.protocol()


def test_lpips_input_range_is_an_option_and_reported(shared_data: Path) -> None:
    folder = shared_data / "lpips_squeeze"
    x, y = lpips_inputs(1, torch.Generator().manual_seed(1))
    unit = LPIPS("squeeze", "unit", folder)
    signed = LPIPS("squeeze", "signed", folder)
    half = (image / 2 + 0.5 for image in (x, y))  # what signed makes of these, unit gets of x and y
    assert unit(x, y).item() == pytest.approx(signed(*half).item(), rel=1e-4)
    assert "[0, 1]" in unit.protocol()
    assert "[0, 1]" in LPIPS("vgg").protocol()
    assert "[-1, 1]" in LPIPS("alex").protocol()


def test_lpips_reads_a_full_torchvision_checkpoint(shared_data: Path, tmp_path: Path) -> None:
    features = torch.load(shared_data / "lpips_squeeze" / "squeezenet1_1_features.pth", weights_only=True)
    full = {f"features.{key}": value for key, value in features.items()}
    full["classifier.1.bias"] = torch.zeros(1000)
    torch.save(full, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    pair = lpips_inputs(2, torch.Generator().manual_seed(42))
    assert LPIPS("squeeze", weights=tmp_path)(*pair).tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)


@pytest.fixture
def fresh_warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(lpips, "_warned", set())
    caplog.set_level(logging.WARNING, logger="flexgs_lightning")
    return caplog


def test_without_weights_one_warning_and_the_other_metrics_go_on(fresh_warnings, tmp_path: Path) -> None:
    prediction, target = images(2, 16, 16)
    for _ in range(2):
        metrics = ImageMetrics(lpips="vgg", lpips_weights=tmp_path)
        for _ in range(2):
            assert set(metrics.update(prediction, target)) == {"psnr", "ssim"}
        assert set(metrics.compute()) == {"psnr", "ssim"}
        assert "no weights" in metrics.protocol()["lpips"]
    (record,) = fresh_warnings.records
    for part in (
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/",
        str(tmp_path),
        "lpips_weights",
    ):
        assert part in record.getMessage()


def test_offline_without_cache_one_warning(
    fresh_warnings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(url: str, *args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert LPIPS("alex")(*images(1, 64, 64)) is None
    (record,) = fresh_warnings.records
    assert "no network" in record.getMessage()
    assert str(tmp_path / "checkpoints") in record.getMessage()


def test_a_download_is_cached_and_then_found(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.load(shared_data / "lpips_squeeze" / "squeezenet1_1_features.pth", weights_only=True)
    calls = []

    def download(url: str, destination: str, hash_prefix: str) -> None:
        calls.append((url, hash_prefix))
        torch.save({f"features.{key}": value for key, value in features.items()}, destination)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pair = lpips_inputs(2, torch.Generator().manual_seed(42))
    for _ in range(2):
        assert LPIPS("squeeze")(*pair).tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)
    assert calls == [("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]


class Trap:
    def __reduce__(self):
        return (Path("trapped").touch, ())


@pytest.mark.parametrize("kind", ["truncated", "text", "code", "other network", "no state dict"])
def test_broken_weights_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "alexnet_features.pth"
    content = {"code": {"0.weight": Trap()}, "no state dict": [1, 2]}.get(kind, {"0.weight": torch.zeros(3)})
    torch.save(content, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    if kind == "text":
        path.write_text("<html>not found</html>")
    with pytest.raises(InputError, match="alex"):
        LPIPS("alex", weights=tmp_path)(*images(1, 64, 64))
    assert not (tmp_path / "trapped").exists()


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InputError, match="vgg, alex or squeeze"):
        LPIPS("resnet")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unit or signed"):
        LPIPS("vgg", "[0, 1]")  # type: ignore[arg-type]


def test_means_are_over_images_not_batches_and_reset_forgets(shared_data: Path) -> None:
    metrics = ImageMetrics("squeeze", shared_data / "lpips_squeeze")
    prediction, target = images(3, 64, 64)
    one = metrics.update(prediction[:1], target[:1])
    two = metrics.update(prediction[1:], target[1:])
    means = metrics.compute()
    assert set(means) == {"psnr", "ssim", "lpips"}
    for name, mean in means.items():
        assert mean.item() == pytest.approx(torch.cat([one[name], two[name]]).mean().item(), rel=1e-6)
    assert not list(metrics.state_dict())  # nothing for checkpoints
    assert not list(metrics.parameters())
    metrics.reset()
    metrics.update(prediction[:1], target[:1])
    assert metrics.compute()["psnr"].item() == pytest.approx(one["psnr"].item())


def test_photos_are_prepared_once_for_all_renders(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = ImageMetrics("squeeze", shared_data / "lpips_squeeze")
    prediction, target = images(2, 64, 64)
    renders = [prediction, prediction * 0.9, prediction * 0.8]
    expected = [metrics.update(render, target) for render in renders]
    calls = []
    features = LPIPS.features

    def counted(self: LPIPS, shown: Tensor):
        calls.append(shown)
        return features(self, shown)

    monkeypatch.setattr(LPIPS, "features", counted)
    photo = metrics.photo(target)
    for render, values in zip(renders, expected, strict=True):
        found = metrics.like().update(render, photo)
        assert set(found) == {"psnr", "ssim", "lpips"}
        assert all(torch.equal(found[name], values[name]) for name in values)
    assert len(calls) == 1 + len(renders)


def test_photos_may_be_prepared_without_lpips(shared_data: Path) -> None:
    metrics = ImageMetrics("squeeze", shared_data / "lpips_squeeze")
    prediction, target = images(1, 64, 64)
    assert set(metrics.update(prediction, metrics.photo(target, lpips=False))) == {"psnr", "ssim"}
    assert set(metrics.compute()) == {"psnr", "ssim"}


def test_lpips_is_what_the_lpips_package_computes(shared_data: Path) -> None:
    metric = LPIPS("squeeze", weights=shared_data / "lpips_squeeze")
    pair = lpips_inputs(2, torch.Generator().manual_seed(7))
    found = metric(*pair)
    assert metric._model is not None
    theirs = metric._model(*(image.permute(0, 3, 1, 2) for image in pair), normalize=True).flatten()
    torch.testing.assert_close(found, theirs)


def test_the_worst_view_is_that_of_the_lowest_psnr() -> None:
    psnr = {"a": 30.0, "b": 7.4, "c": float("inf")}
    views = [{"name": name, "psnr": value, "ssim": 0.5} for name, value in psnr.items()]
    assert worst_view(views) == {"name": "b", "psnr": 7.4}
    assert worst_view([*views, {"name": "broken", "psnr": float("nan")}])["name"] == "broken"
    assert worst_view([]) is None


def _measure_on_rank(rank: int, world_size: int, counts: tuple[int, ...], store: str, results: str) -> None:
    """Measure each process's share of the held-out images, for several numbers of them."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
    )
    means, shares = {}, {}
    metrics = ImageMetrics("none").like()
    for count in counts:
        prediction, target = images(count, 24, 24)
        mine = enumerate(HeldOutOrder(count, rank, world_size))
        shares[count] = [
            i for batch, (i,) in mine if not HeldOutOrder.repeats(count, batch, rank, world_size)
        ]
        for i in shares[count]:
            metrics.update(prediction[i : i + 1], target[i : i + 1])
        means[count] = metrics.compute()
        metrics.reset()
    torch.save((means, shares), f"{results}{rank}")
    torch.distributed.destroy_process_group()


def test_means_over_processes_are_exactly_those_of_one(tmp_path: Path) -> None:
    """Also where shares differ, and where there are fewer images than processes; none is counted twice."""
    counts, world_size = (8, 7, 1), 2
    arguments = (world_size, counts, str(tmp_path / "store"), str(tmp_path / "means"))
    multiprocessing.start_processes(_measure_on_rank, arguments, nprocs=world_size, start_method="spawn")
    found = [torch.load(f"{arguments[3]}{rank}", weights_only=True) for rank in range(world_size)]
    for count in counts:
        shares = [index for _, of_rank in found for index in of_rank[count]]
        assert sorted(shares) == list(range(count))
        single = ImageMetrics("none")
        values = single.update(*images(count, 24, 24))
        for name, value in single.compute().items():
            assert value.item() == pytest.approx(values[name].double().mean().item(), rel=1e-6)
            assert all(torch.equal(means[count][name], value) for means, _ in found), (count, name)
