"""Gaussians: initial values, activation, resizing."""

import pytest
import torch

from flexgs_lightning.cameras import Cameras, scene_extent
from flexgs_lightning.model.gaussians import Gaussians, neighbour_distances
from flexgs_lightning.splats import SH_C0, Splats
from flexgs_lightning.training.optimization import exponential_decay


def grid_points(n: int = 4, spacing: float = 0.5) -> torch.Tensor:
    axis = torch.arange(n) * spacing
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)


def test_scales_of_a_grid_are_its_spacing() -> None:
    assert torch.allclose(neighbour_distances(grid_points(spacing=0.5)), torch.tensor(0.5))


def test_coincident_points_get_a_drawable_scale() -> None:
    points = torch.cat([torch.zeros(5, 3), grid_points()])
    distances = neighbour_distances(points)
    assert (distances > 0).all()
    assert torch.isfinite(distances.log()).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_points_suffice(count: int) -> None:
    assert neighbour_distances(torch.rand(count, 3)).shape == (count,)


def test_from_points_reproduces_colours_and_opacity() -> None:
    points = grid_points()
    colors = torch.randint(0, 256, (len(points), 3), dtype=torch.uint8)
    splats = Gaussians.from_points(points, colors, sh_degree=2, opacity=0.1).splats()
    assert splats.sh.shape == (64, 9, 3)
    assert torch.allclose(0.5 + SH_C0 * splats.sh[:, 0], colors / 255.0, atol=1e-6)
    assert torch.allclose(splats.opacities, torch.tensor(0.1))
    assert torch.equal(splats.means, points)


def test_from_splats_is_the_inverse_of_splats() -> None:
    splats = Splats(
        torch.randn(50, 3),
        torch.randn(50, 4),
        torch.rand(50, 3) + 0.01,
        torch.rand(50),
        torch.randn(50, 16, 3),
    )
    back = Gaussians.from_splats(splats).splats()
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.allclose(getattr(back, name), getattr(splats, name), rtol=1e-4, atol=1e-6), name


def test_extreme_splats_stay_finite() -> None:
    splats = Splats(
        torch.zeros(2, 3),
        torch.ones(2, 4),
        torch.zeros(2, 3),
        torch.tensor([0.0, 1.0]),
        torch.zeros(2, 1, 3),
    )
    assert Gaussians.from_splats(splats).first_non_finite() is None


def test_random_fills_the_box() -> None:
    low, high = torch.tensor([-1.0, -1, -1]), torch.tensor([3.0, 5, 1])
    gaussians = Gaussians.random(low, high, count=500, sh_degree=1)
    means = gaussians.params["means"]
    assert len(gaussians) == 500
    assert (means >= low).all()
    assert (means <= high).all()
    assert means[:, 1].max() > 4


def test_load_state_dict_takes_over_the_number_of_gaussians() -> None:
    trained = Gaussians.random(torch.zeros(3), torch.ones(3), count=37)
    other = Gaussians.empty(3)
    other.load_state_dict(trained.state_dict())
    assert len(other) == 37
    assert torch.equal(other.params["sh"], trained.params["sh"])
    assert other.params["means"].requires_grad


def test_first_non_finite_names_the_attribute() -> None:
    gaussians = Gaussians.random(torch.zeros(3), torch.ones(3), count=10)
    assert gaussians.first_non_finite() is None
    gaussians.params["scales"].data[3, 1] = float("nan")
    assert gaussians.first_non_finite() == "scales"


def test_exponential_decay_hits_both_ends() -> None:
    values = [exponential_decay(1.6e-4, 1.6e-6, step, 1000) for step in (0, 500, 1000, 2000)]
    assert values == pytest.approx([1.6e-4, 1.6e-5, 1.6e-6, 1.6e-6])


def test_camera_positions_invert_the_pose() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    centre = torch.tensor([1.0, -2.0, 3.0])
    viewmat = torch.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ centre
    cameras = Cameras(viewmat[None], torch.eye(3)[None], 8, 6)
    assert torch.allclose(cameras.positions[0], centre, atol=1e-5)
    assert torch.allclose((viewmat @ torch.tensor([*centre, 1.0]))[:3], torch.zeros(3), atol=1e-5)


def test_resizing_scales_each_axis() -> None:
    intrinsics = torch.tensor([[[100.0, 0, 50], [0, 90, 40], [0, 0, 1]]])
    cameras = Cameras(torch.eye(4)[None], intrinsics, 100, 80).resized(50, 20)
    assert torch.allclose(cameras.Ks[0], torch.tensor([[50.0, 0, 25], [0, 22.5, 10], [0, 0, 1]]))
    assert (cameras.width, cameras.height) == (50, 20)


def test_cameras_iterate_and_refuse_mixed_sizes() -> None:
    cameras = Cameras(torch.eye(4).repeat(3, 1, 1), torch.eye(3).repeat(3, 1, 1), 8, 6)
    assert len(list(cameras)) == 3
    assert len(Cameras.stack(list(cameras))) == 3
    with pytest.raises(ValueError, match="one image size"):
        Cameras.stack([cameras, cameras.resized(4, 3)])


def test_scene_extent_is_the_radius_with_margin() -> None:
    assert scene_extent(torch.tensor([[1.0, 0, 0], [-1, 0, 0]])) == pytest.approx(1.1)
    assert scene_extent(torch.zeros(1, 3)) == 1.0


def test_splats_refuse_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"quats must have shape \(2, 4\), found \(2, 3\)"):
        Splats(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2), torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="sh must have shape"):
        Splats(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3), torch.ones(2), torch.zeros(2, 5, 3))
