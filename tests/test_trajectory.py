"""Camera paths: orbits look at what the photos look at, interpolation is smooth, files come back."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from flexgs_lightning.cameras import Cameras, focus_point
from flexgs_lightning.deploy.path_file import read_path, write_path
from flexgs_lightning.deploy.trajectory import interpolate, orbit
from flexgs_lightning.errors import InputError

FOCUS = torch.tensor([3.0, -2.0, 10.0])
UP = torch.nn.functional.normalize(torch.tensor([0.2, -1.0, 0.1]), dim=0)


def looking_at(positions: torch.Tensor, target: torch.Tensor, up: torch.Tensor = UP) -> Cameras:
    """Cameras at ``positions`` that look at ``target``, built row by row."""
    viewmats, Ks = [], []
    for i, position in enumerate(positions):
        forward = (target - position) / (target - position).norm()
        down = -(up - (up @ forward) * forward)
        down = down / down.norm()
        viewmat = torch.eye(4)
        viewmat[:3, :3] = torch.stack([torch.linalg.cross(down, forward), down, forward])
        viewmat[:3, 3] = -viewmat[:3, :3] @ position
        viewmats.append(viewmat)
        Ks.append(torch.tensor([[500.0 + i, 0, 322], [0, 510.0 + i, 238], [0, 0, 1]]))
    return Cameras(torch.stack(viewmats), torch.stack(Ks), 640, 480)


def ring(count: int = 12, radius: float = 4.0, height: float = 1.5, arc: float = 2 * math.pi) -> Cameras:
    """Cameras on a circle (or an arc of it) about FOCUS that look at FOCUS."""
    east = torch.linalg.cross(UP, torch.tensor([0.0, 0.0, 1.0]))
    east = east / east.norm()
    north = torch.linalg.cross(UP, east)
    steps = count if arc > 6.28 else count - 1
    angles = torch.arange(count) * (arc / steps)
    around = angles.cos()[:, None] * east + angles.sin()[:, None] * north
    return looking_at(FOCUS + radius * around + height * UP, FOCUS)


def forward_axes(cameras: Cameras) -> torch.Tensor:
    return cameras.viewmats[:, 2, :3]


def assert_rigid(cameras: Cameras) -> None:
    rotations = cameras.viewmats[:, :3, :3].double()
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, identity, rtol=0, atol=1e-6)
    assert (torch.linalg.det(rotations) > 0).all()


# -- orbit ---------------------------------------------------------------------------------------------


def test_focus_is_the_point_that_all_cameras_look_at() -> None:
    torch.testing.assert_close(focus_point(ring()), FOCUS, rtol=0, atol=1e-4)


def test_focus_minimises_the_distance_to_the_axes() -> None:
    g = torch.Generator().manual_seed(0)
    targets = FOCUS + torch.randn(20, 3, generator=g) * 0.5
    positions = FOCUS + torch.nn.functional.normalize(torch.randn(20, 3, generator=g), dim=-1) * 5
    cameras = Cameras.stack([looking_at(p[None], t) for p, t in zip(positions, targets, strict=True)])

    def squared_distance(point: torch.Tensor) -> float:
        offset = (point - cameras.positions).double()
        axes = forward_axes(cameras).double()
        return torch.linalg.cross(offset, axes).square().sum().item()

    best = focus_point(cameras)
    for step in 0.05 * torch.cat([torch.eye(3), -torch.eye(3)]):
        assert squared_distance(best) < squared_distance(best + step)


def test_orbit_keeps_looking_at_the_focus_upright() -> None:
    path = orbit(ring(), frames=37)
    assert len(path) == 37
    assert_rigid(path)
    to_focus = FOCUS - path.positions
    axes = forward_axes(path)
    torch.testing.assert_close(axes, to_focus / to_focus.norm(dim=-1, keepdim=True), rtol=0, atol=1e-4)
    assert (path.viewmats[:, 0, :3] @ UP).abs().max() < 1e-4  # the horizon is level
    assert (path.viewmats[:, 1, :3] @ UP < 0).all()  # and the right way up
    offsets = path.positions - FOCUS
    heights = offsets @ UP
    torch.testing.assert_close(heights, torch.full_like(heights, 1.5), rtol=0, atol=1e-3)
    distances = (offsets - heights[:, None] * UP).norm(dim=-1)
    torch.testing.assert_close(distances, torch.full_like(distances, 4.0), rtol=0, atol=1e-3)


def test_orbit_takes_size_and_intrinsics_of_the_median_camera() -> None:
    path = orbit(ring(count=13), frames=5)
    assert (path.width, path.height) == (640, 480)
    assert path.Ks[2].tolist() == [[506.0, 0, 322], [0, 516.0, 238], [0, 0, 1]]


def test_orbit_follows_an_elongated_path() -> None:
    """As around a dinner table: 6 by 3, and higher at one end."""
    angles = torch.arange(40) * (2 * math.pi / 40)
    heights = -1.0 - 0.3 * angles.cos()  # y is down
    positions = torch.stack([6 * angles.cos(), heights, 3 * angles.sin()], dim=1)
    path = orbit(looking_at(positions, torch.zeros(3), torch.tensor([0.0, -1, 0])), 60).positions
    off_course = (path[:, 0] / 6).square() + (path[:, 2] / 3).square() - 1
    assert off_course.abs().max() < 0.35  # a circle would be off by 1 or more
    assert path[:, 1].min() == pytest.approx(-1.25, abs=0.06)
    assert path[:, 1].max() == pytest.approx(-0.75, abs=0.06)


def test_full_orbit_is_a_closed_loop_of_equal_steps() -> None:
    positions = orbit(ring(), frames=24).positions
    steps = (torch.roll(positions, -1, dims=0) - positions).norm(dim=-1)
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-3, atol=0)


def test_orbit_of_a_half_photographed_scene_stays_where_the_photos_are() -> None:
    capture = ring(arc=math.pi)
    path = orbit(capture, frames=50)
    apart = torch.cdist(path.positions, capture.positions).min(dim=1).values
    assert apart.max() < 0.65  # photos stand 1.14 apart
    steps = (path.positions[1:] - path.positions[:-1]).norm(dim=-1)
    assert steps[0] < 0.1 * steps.max()  # it starts gently
    assert steps.max() < 0.8  # and has no jump
    for end in (0, -1):  # and reaches both ends of the arc
        assert (path.positions - capture.positions[end]).norm(dim=-1).min() < 0.05


def test_orbit_of_real_captures_sees_the_scene(shared_data: Path) -> None:
    from flexgs_lightning.data.colmap import read_colmap

    for name, downscale in (("fox", 8), ("bonsai", 4)):
        capture = read_colmap(shared_data / name, downscale=downscale)
        path = orbit(Cameras.stack([view.camera for view in capture.views]), frames=16)
        points = capture.points.positions
        for i in range(len(path)):
            homogeneous = torch.cat([points, torch.ones(len(points), 1)], dim=1)
            seen = (homogeneous @ path.viewmats[i].T)[:, :3]
            pixels = (seen @ path.Ks[i].T)[:, :2] / seen[:, 2:]
            size = torch.tensor([path.width, path.height])
            inside = (seen[:, 2] > 0.1) & ((pixels > 0) & (pixels < size)).all(dim=1)
            assert inside.float().mean() > 0.2, (name, i)


def test_orbit_needs_cameras_that_look_in_different_directions() -> None:
    parallel = looking_at(torch.randn(5, 3), torch.tensor([0.0, 0.0, 1e7]))
    with pytest.raises(InputError, match="all look in one direction"):
        orbit(parallel)
    with pytest.raises(InputError, match="all look in one direction"):
        orbit(ring()[0])


def test_orbit_of_cameras_in_one_place() -> None:
    cameras = Cameras.stack([looking_at(torch.zeros(1, 3), t) for t in 2.0**20 * torch.randn(6, 3).abs()])
    cameras.viewmats[:, :3, 3] = 0
    with pytest.raises(InputError, match="straight above the focus"):
        orbit(cameras)


@pytest.mark.parametrize("frames", [0, -3])
def test_paths_need_frames(frames: int) -> None:
    with pytest.raises(InputError, match=f"frames: expected at least 1, found {frames}"):
        orbit(ring(), frames)
    with pytest.raises(InputError, match=f"frames: expected at least 1, found {frames}"):
        interpolate(ring(), frames)


# -- interpolation -------------------------------------------------------------------------------------


def test_interpolation_passes_through_the_keyframes() -> None:
    keys = ring(count=5)
    path = interpolate(keys, 4 * 10 + 1)
    assert_rigid(path)
    torch.testing.assert_close(path.viewmats[::10], keys.viewmats, rtol=0, atol=2e-5)
    torch.testing.assert_close(path.Ks[::10], keys.Ks)
    assert path.Ks[5, 0, 0].item() == pytest.approx(500.5)


def test_interpolation_is_smooth() -> None:
    """Velocity is continuous: no jump at a keyframe, as straight lines would have."""
    path = interpolate(ring(count=9), 8 * 50 + 1)
    velocity = path.positions.double().diff(dim=0)
    assert velocity.diff(dim=0).norm(dim=-1).max() < 0.05 * velocity.norm(dim=-1).mean()


def test_straight_flight_at_even_speed_stays_so() -> None:
    positions = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    path = interpolate(looking_at(positions, torch.tensor([1.5, 0, 20])), 13)
    expected = torch.stack([torch.arange(13) * 0.25, torch.zeros(13), torch.zeros(13)], dim=1)
    torch.testing.assert_close(path.positions, expected, rtol=0, atol=1e-5)


def test_rotation_turns_evenly_the_short_way() -> None:
    keys = looking_at(torch.zeros(2, 3), torch.tensor([0.0, 0, 1]))
    rotations = Rotation.from_euler("y", [[10], [350]], degrees=True).as_matrix()
    keys.viewmats[:, :3, :3] = torch.from_numpy(rotations).float()
    path = interpolate(keys, 5)
    angles = Rotation.from_matrix(path.viewmats[:, :3, :3].double().numpy()).as_euler("yxz", degrees=True)[
        :, 0
    ]
    assert angles.tolist() == pytest.approx([10, 5, 0, -5, -10], abs=1e-4)


def test_interpolating_one_or_no_camera() -> None:
    still = interpolate(ring()[3], 4)
    torch.testing.assert_close(still.viewmats, ring()[3].viewmats.expand(4, 4, 4), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="no cameras"):
        interpolate(ring()[:0], 4)


# -- files ---------------------------------------------------------------------------------------------


def test_path_file_round_trip_is_exact(tmp_path: Path) -> None:
    cameras = orbit(ring(), 7)
    write_path(cameras, tmp_path / "path.json")
    read = read_path(tmp_path / "path.json")
    assert torch.equal(read.viewmats, cameras.viewmats)
    assert torch.equal(read.Ks, cameras.Ks)
    assert (read.width, read.height) == (640, 480)


def path_file(folder: Path, frame: Any = None, **fields: Any) -> Path:
    content = {"width": 200, "height": 100, "frames": [frame]} | fields
    path = folder / "path.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_camera_to_world_and_field_of_view(tmp_path: Path) -> None:
    """A camera at (1, 2, 3) turned to look along world x."""
    pose = [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]
    cameras = read_path(path_file(tmp_path, {"camera_to_world": pose, "fov": 90}))
    assert cameras.positions[0].tolist() == [1, 2, 3]
    assert forward_axes(cameras)[0].tolist() == [1, 0, 0]
    torch.testing.assert_close(cameras.Ks[0], torch.tensor([[50.0, 0, 100], [0, 50, 50], [0, 0, 1]]))


def test_nerfstudio_path_is_converted_from_opengl(tmp_path: Path) -> None:
    """A camera at (0, 0, 5) that looks at the origin: in OpenGL's convention an identity rotation."""
    pose = np.eye(4)
    pose[2, 3] = 5.0
    frame = {"camera_to_world": pose.flatten().tolist(), "fov": 60.0, "aspect": 16 / 9}
    content = {"camera_type": "perspective", "render_width": 1920.0, "render_height": 1080}
    content |= {"fps": 24, "camera_path": [frame, frame]}
    (tmp_path / "camera_path.json").write_text(json.dumps(content))
    cameras = read_path(tmp_path / "camera_path.json")
    assert (len(cameras), cameras.width, cameras.height) == (2, 1920, 1080)
    assert cameras.positions[0].tolist() == [0, 0, 5]
    assert forward_axes(cameras)[0].tolist() == [0, 0, -1]
    assert cameras.viewmats[0, 1, :3].tolist() == [0, -1, 0]  # y down
    assert cameras.Ks[0, 0, 0].item() == pytest.approx(540 / math.tan(math.radians(30)))


IDENTITY = np.eye(4).tolist()
FLIPPED = np.diag([1, 1, -1, 1]).tolist()
STRETCHED = np.diag([2, 2, 2, 1]).tolist()


@pytest.mark.parametrize(
    ("frame", "fields", "message"),
    [
        ({"viewmat": IDENTITY, "fov": 50}, {"width": 0}, "'width' must be a positive whole number.*found 0"),
        ({"viewmat": IDENTITY, "fov": 50}, {"height": 1.5}, "'height' must be"),
        ({"viewmat": IDENTITY, "fov": 50}, {"width": "big"}, "'width' must be.*'big'"),
        (None, {"frames": []}, "at least one frame"),
        (None, {"frames": "all"}, "list 'frames'"),
        (7, {}, "frame 0: expected a JSON object, found 7"),
        ({"fov": 50}, {}, r"frame 0: 'camera_to_world' is missing \(found: fov\)"),
        ({"viewmat": IDENTITY}, {}, "frame 0: expected 'K' or a 'fov'.*found fov None"),
        ({"viewmat": IDENTITY, "fov": 180}, {}, "between 0 and 180 degrees, found fov 180"),
        ({"viewmat": IDENTITY[:3], "fov": 50}, {}, "'viewmat' must be a 4x4 matrix"),
        ({"viewmat": [["a"] * 4] * 4, "fov": 50}, {}, "4x4 matrix of finite numbers"),
        ({"viewmat": [[1, 2], [3]], "fov": 50}, {}, "4x4 matrix of finite numbers"),
        ({"viewmat": [[math.nan] * 4] * 4, "fov": 50}, {}, "not sound JSON"),
        ({"viewmat": [[1e300] * 4] * 4, "fov": 50}, {}, "4x4 matrix of finite numbers"),
        ({"viewmat": FLIPPED, "fov": 50}, {}, "must be a rotation"),
        ({"camera_to_world": STRETCHED, "fov": 50}, {}, "'camera_to_world' must be a rotation"),
        ({"viewmat": [*IDENTITY[:3], [0, 0, 1, 1]], "fov": 50}, {}, "above a row 0 0 0 1"),
        ({"viewmat": IDENTITY, "K": np.eye(2).tolist()}, {}, "'K' must be a 3x3 matrix"),
        ({"viewmat": IDENTITY, "K": np.diag([0, 1, 1]).tolist()}, {}, "positive focal lengths"),
        (None, {"camera_path": [{}], "camera_type": "fisheye"}, "camera_type is 'fisheye'"),
        (None, {"camera_path": [{}]}, "'render_width' must be"),
    ],
)
def test_bad_path_files(tmp_path: Path, frame: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"path\.json.*{message}"):
        read_path(path_file(tmp_path, frame, **fields))


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"', "\x00\xff"])
def test_not_a_path_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "path.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"path\.json: (not sound JSON|expected (object|text))"):
        read_path(tmp_path / "path.json")


def test_missing_path_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: could not be read"):
        read_path(tmp_path / "none.json")
