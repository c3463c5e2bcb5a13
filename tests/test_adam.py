"""Adam for Gaussians, against its definition in float64 and against torch's."""

import pytest
import torch

from flexgs_lightning.training.adam import GaussianAdam


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1500,), (16, 3)])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_it_steps_as_adam_is_defined(count: int, shape: tuple[int, ...], two_threads: None) -> None:
    """Kingma & Ba's algorithm 1. Threads, and how a gradient lies in memory, change nothing."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(count, *shape))
    other = torch.nn.Parameter(parameter.detach().clone())
    expected, mean, square = (parameter.detach().double() * factor for factor in (1, 0, 0))
    optimizers = [GaussianAdam([{"params": [p], "lr": 1e-2}]) for p in (parameter, other)]
    for step in range(1, 6):
        gradient = torch.randn(parameter.shape) * 10.0 ** -(3 * step % 7)
        parameter.grad = gradient.clone()
        other.grad = gradient.clone().movedim(0, -1).contiguous().movedim(-1, 0)
        optimizers[0].step()
        torch.set_num_threads(1)
        optimizers[1].step()
        torch.set_num_threads(2)
        mean = 0.9 * mean + 0.1 * gradient.double()
        square = 0.999 * square + 0.001 * gradient.double().square()
        root = (square / (1 - 0.999**step)).sqrt()
        expected = expected - 1e-2 * mean / (1 - 0.9**step) / (root + 1e-15)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(parameter, other)


def test_one_tensor_with_two_rates_learns_as_two_tensors_do() -> None:
    torch.manual_seed(0)
    start, target = torch.randn(200, 16, 3), torch.randn(200, 16, 3)
    whole = torch.nn.Parameter(start.clone())
    parts = [torch.nn.Parameter(start[:, :1].clone()), torch.nn.Parameter(start[:, 1:].clone())]
    one = GaussianAdam([{"params": [whole], "lr": 2.5e-3, "rest": 1 / 20}])
    two = [torch.optim.Adam([p], lr=lr, eps=1e-15) for p, lr in zip(parts, (2.5e-3, 1.25e-4), strict=True)]
    for _ in range(50):
        for optimizer in (one, *two):
            optimizer.zero_grad()
        (whole - target).square().sum().backward()
        (torch.cat(parts, dim=1) - target).square().sum().backward()
        for optimizer in (one, *two):
            optimizer.step()
    torch.testing.assert_close(whole[:, 1:], parts[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(whole[:, :1], parts[0], rtol=0, atol=1e-6)
    assert one.param_groups[0]["lr"] == 2.5e-3


def test_its_moments_are_those_of_torch() -> None:
    """Each goes on where the other stopped."""
    torch.manual_seed(0)
    start, gradients = torch.randn(300, 4), torch.randn(6, 300, 4)
    ends = []
    for first, second in ((0, 1), (1, 0), (1, 1)):
        parameter = torch.nn.Parameter(start.clone())
        group = {"params": [parameter], "lr": 1e-2}
        optimizers = [GaussianAdam([group]), torch.optim.Adam([group], eps=1e-15, fused=True)]
        for step, gradient in enumerate(gradients):
            if step == 3:
                optimizers[second].load_state_dict(optimizers[first].state_dict())
            parameter.grad = gradient
            optimizers[first if step < 3 else second].step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ends[1], ends[2], rtol=1e-5, atol=1e-6)


def test_parameters_elsewhere_take_two_rates_too() -> None:
    """What is not float32 on the CPU is torch's: here float64, on other machines a GPU's."""
    torch.manual_seed(0)
    start, gradient = torch.randn(50, 4, 3), torch.randn(50, 4, 3)
    found = []
    for dtype in (torch.float32, torch.float64):
        parameter = torch.nn.Parameter(start.to(dtype, copy=True))
        optimizer = GaussianAdam([{"params": [parameter], "lr": 1e-2, "rest": 0.1}])
        for factor in (1.0, 0.5, -2.0):
            parameter.grad = factor * gradient.to(dtype)
            optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 1e-2
        found.append(parameter.detach().double())
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
