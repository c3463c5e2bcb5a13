"""What a new scene starts from, when it may hold only so many Gaussians."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flexgs_lightning.data.capture import Capture, Points
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.training.initialization import Initialization, initial_scene, random_bounds


@pytest.fixture(scope="module")
def capture(small_capture: Path) -> Capture:
    return read_colmap(small_capture)


def start(capture: Capture, options: Initialization, seed: int = 0) -> Gaussians:
    torch.manual_seed(seed)
    return initial_scene(capture, options, sh_degree=1, start=None, parts={}).gaussians


def means(capture: Capture, most: int | None, seed: int = 0) -> torch.Tensor:
    return start(capture, Initialization(max_gaussians=most), seed).params["means"].detach()


def test_of_more_points_the_seed_draws_as_many_as_are_allowed(capture: Capture) -> None:
    points = capture.points.positions
    some = means(capture, 100)
    rows = [(points == mean).all(dim=1).nonzero().item() for mean in some]
    assert len(set(rows)) == 100
    assert rows == sorted(rows)
    assert rows[-1] > len(points) // 2, "from all of them, not the first ones"
    assert torch.equal(some, means(capture, 100))
    assert not torch.equal(some, means(capture, 100, seed=1))


@pytest.mark.parametrize("more", [0, 1])
def test_as_many_points_as_are_allowed_are_all_taken(capture: Capture, more: int) -> None:
    assert torch.equal(means(capture, len(capture.points) + more), capture.points.positions)
    assert torch.equal(means(capture, None), capture.points.positions)


def test_fewer_gaussians_begin_larger(capture: Capture) -> None:
    """Their size is the distance to the neighbours that are left: together they still fill the space."""
    sizes = [
        start(capture, Initialization(max_gaussians=most)).params["scales"].mean() for most in (None, 100)
    ]
    assert sizes[1] > sizes[0] + 0.5  # logarithms


def test_a_random_start_is_limited_too(capture: Capture) -> None:
    without = replace(capture, points=Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8)))
    assert len(means(without, 50)) == 50
    assert len(start(without, Initialization(random_gaussians=40, max_gaussians=50))) == 40


class Silhouette:
    """A photo that is never read."""

    has_alpha = True

    def read(self) -> np.ndarray:
        raise AssertionError


def test_an_object_alone_starts_between_it_and_the_cameras(capture: Capture) -> None:
    """Without points: in a cube that reaches halfway; photos without alpha have surroundings, too."""
    centre = torch.tensor([1.0, 2.0, 3.0])
    views = []
    for angle in torch.arange(8) * math.pi / 4:
        viewmat = torch.eye(4)
        viewmat[0, [0, 2]], viewmat[2, [0, 2]] = (
            torch.stack([angle.cos(), -angle.sin()]),
            torch.stack([angle.sin(), angle.cos()]),
        )
        viewmat[:3, 3] = torch.tensor([0.0, 0.0, 4.0]) - viewmat[:3, :3] @ centre
        camera = replace(capture.views[0].camera, viewmats=viewmat[None])
        views.append(replace(capture.views[0], camera=camera, source=Silhouette()))
    ring = replace(capture, views=tuple(views))
    low, high = random_bounds(ring)
    torch.testing.assert_close(low, centre - 2)
    torch.testing.assert_close(high, centre + 2)
    opaque = replace(ring, views=tuple(replace(v, source=capture.views[0].source) for v in views))
    low, high = random_bounds(opaque)
    assert (low < centre - 4 - 4).any()
    assert (high > centre + 4 + 4).any()


def test_no_gaussian_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"model.initialization.max_gaussians: .* found 0"):
        Initialization(max_gaussians=0)


def test_points_that_no_view_sees_are_refused(capture: Capture) -> None:
    camera = capture.views[1].camera  # the first is held out
    behind = camera.positions - 3.0 * camera.viewmats[:, 2, :3]
    points = replace(capture.points, positions=behind.expand(len(capture.points), 3))
    with pytest.raises(InputError, match=r"data.root: none of the .* SfM points of .* lies in a training"):
        start(replace(capture, views=capture.views[:2], points=points), Initialization())
