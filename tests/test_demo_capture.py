"""The demo capture reads back as what it claims to be: photos, cameras, points and tracks that agree."""

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.demo import capture as demo_capture
from flexgs_lightning.demo.capture import write_demo_capture
from flexgs_lightning.errors import InputError

VIEWS, WIDTH, HEIGHT = 14, 144, 96


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "capture"
    write_demo_capture(root, views=VIEWS, width=WIDTH, height=HEIGHT)
    return root


@pytest.fixture(scope="module")
def model(demo: Path) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(demo / "sparse" / "0")


def _photo(demo: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(demo / "images" / name)).astype(int)


def _observations(
    demo: Path, model: pycolmap.Reconstruction
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every track element: point number, projection minus keypoint, point's colour, pixel's colour."""
    points, offsets, expected, found = [], [], [], []
    for image in model.images.values():
        photo = _photo(demo, image.name)
        for keypoint in image.points2D:
            point = model.points3D[keypoint.point3D_id]
            x, y = image.project_point(point.xyz)
            column, row = int(np.clip(x, 0, WIDTH - 1)), int(np.clip(y, 0, HEIGHT - 1))
            points.append(keypoint.point3D_id)
            offsets.append((x, y) - keypoint.xy)
            expected.append(point.color)
            found.append(photo[row, column])
    return np.array(points), np.array(offsets), np.array(expected).astype(int), np.array(found)


def test_folder_is_an_ordinary_colmap_capture(demo: Path, model: pycolmap.Reconstruction) -> None:
    assert sorted(path.name for path in demo.iterdir()) == ["images", "sparse"]
    names = sorted(path.name for path in (demo / "images").iterdir())
    assert len(names) == VIEWS
    assert sorted(image.name for image in model.images.values()) == names
    assert {_photo(demo, name).shape for name in names} == {(HEIGHT, WIDTH, 3)}
    (camera,) = model.cameras.values()
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert model.num_points3D() > 500


def test_reads_back_by_the_ordinary_path(demo: Path, model: pycolmap.Reconstruction) -> None:
    capture = read_colmap(demo)
    assert len(capture.views) == VIEWS
    assert len(capture.points) == model.num_points3D()
    view = capture.views[3]
    np.testing.assert_array_equal(view.source.read(), _photo(demo, view.name))
    assert 2.0 < capture.extent < 4.5


def test_points_project_onto_their_keypoints(demo: Path, model: pycolmap.Reconstruction) -> None:
    _, offsets, _, _ = _observations(demo, model)
    assert len(offsets) > 3 * model.num_points3D()
    errors = np.linalg.norm(offsets, axis=1)
    assert 0.2 < np.median(errors) < 1.0
    assert np.quantile(errors, 0.99) < 4.0


def test_points_have_the_colour_of_the_pixels_they_project_to(
    demo: Path, model: pycolmap.Reconstruction
) -> None:
    """A point that were hidden, or a wrong pose, would land on pixels of some other surface."""
    points, _, expected, found = _observations(demo, model)
    error = np.abs(expected - found).mean(axis=1)
    assert np.median(error) < 15
    assert np.quantile(error, 0.9) < 60
    shuffled = np.random.default_rng(0).permutation(len(points))
    assert np.median(np.abs(expected[shuffled] - found).mean(axis=1)) > 2.5 * np.median(error)


def test_points_are_noisy_and_reach_the_far_background(model: pycolmap.Reconstruction) -> None:
    positions = np.array([point.xyz for point in model.points3D.values()])
    distance = np.linalg.norm(positions, axis=1)
    assert (distance < 1.5).mean() > 0.15
    assert (distance > 40).mean() > 0.01
    # y points down: everything near stands on the ground plane y = 0, give or take the noise
    near = positions[distance < 3.0]
    on_ground = near[np.abs(near[:, 1]) < 0.05, 1]
    assert near[:, 1].max() < 0.3
    assert 1e-3 < on_ground.std() < 0.03


def test_tracks_skip_views_in_which_the_point_is_hidden(model: pycolmap.Reconstruction) -> None:
    """Points on the ground under the table are not in the tracks of views whose sight the table top cuts."""
    top, radius = -0.74, 0.86
    cut, seen = 0, 0
    for point in model.points3D.values():
        if abs(point.xyz[1]) > 0.1:
            continue
        for element in point.track.elements:
            center = model.images[element.image_id].projection_center()
            share = (top - center[1]) / (point.xyz[1] - center[1])
            crossing = center + share * (point.xyz - center)
            seen += 1
            cut += np.hypot(crossing[0], crossing[2]) < 0.95 * radius
    assert seen > 500
    assert cut == 0


def test_views_look_at_the_table_from_varying_places(model: pycolmap.Reconstruction) -> None:
    centers = np.array([image.projection_center() for image in model.images.values()])
    assert np.ptp(centers[:, 1]) > 0.5  # heights
    assert np.ptp(np.hypot(centers[:, 0], centers[:, 2])) > 0.5  # distances
    azimuth = np.sort(np.arctan2(centers[:, 2], centers[:, 0]))
    assert np.diff(azimuth).max() < 1.0
    for image in model.images.values():
        x, y = image.project_point(np.array([0.0, -0.72, 0.0]))
        assert 0.3 * WIDTH < x < 0.7 * WIDTH
        assert 0.3 * HEIGHT < y < 0.7 * HEIGHT


def test_photos_are_exposed_and_free_of_aliasing(demo: Path) -> None:
    """No crushed or burnt-out frames; little energy at the finest scale compared with the next."""
    for path in sorted((demo / "images").iterdir())[:4]:
        grey = np.asarray(Image.open(path).convert("L")).astype(float)
        assert 70 < grey.mean() < 170
        assert (grey > 253).mean() < 0.01
        spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(np.hanning(HEIGHT), np.hanning(WIDTH))))
        fy, fx = np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)[None]
        frequency = np.hypot(fx, fy)
        finest = spectrum[(frequency > 0.4) & (frequency < 0.5)].mean()
        middle = spectrum[(frequency > 0.15) & (frequency < 0.25)].mean()
        assert finest < 0.25 * middle


def _content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_same_files_other_seed_other_files(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_demo_capture(tmp_path / name, views=3, width=32, height=24, seed=seed)
    first, second, other = (_content(tmp_path / name) for name in "abc")
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.startswith("images"))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def interrupted(*arguments: object) -> demo_capture.Photo:
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(photograph(*arguments))
        return taken[-1]

    photograph = demo_capture.photograph
    monkeypatch.setattr(demo_capture, "photograph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_demo_capture(tmp_path / "demo", views=4, width=32, height=24)
    assert len(taken) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        write_demo_capture(tmp_path, views=3, width=32, height=24)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("views", "width"), [(2, 64), (5, 8)])
def test_too_few_views_or_pixels_are_refused(tmp_path: Path, views: int, width: int) -> None:
    with pytest.raises(InputError, match="at least 3 views of at least 16x16 pixels"):
        write_demo_capture(tmp_path / "demo", views=views, width=width, height=64)
    assert not (tmp_path / "demo").exists()
