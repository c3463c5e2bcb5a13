"""COLMAP folders become captures whose cameras and pixels agree."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from colmap_folder import MODELS, POINTS, Folder, blob_centre, draw, write_capture
from PIL import Image

from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.colmap import read_colmap

PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")


def project(view: View, points: np.ndarray) -> np.ndarray:
    """Pixels (x, y) of world points by the view's own camera."""
    viewmat, K = view.camera.viewmats[0].double().numpy(), view.camera.Ks[0].double().numpy()
    pixels = (points @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.T
    return pixels[:, :2] / pixels[:, 2:]


def largest_miss(capture: Capture, radius: float = 6.0) -> float:
    """Largest distance in pixels between a drawn blob and where the camera expects it."""
    misses = []
    for view in capture.views:
        image = view.source.read()
        assert image.shape[:2] == (view.camera.height, view.camera.width)
        expected = project(view, POINTS)
        inside = (expected > radius) & (expected < np.array([view.camera.width, view.camera.height]) - radius)
        visible = expected[inside.all(axis=1)]
        assert len(visible) >= 5
        misses += [np.linalg.norm(blob_centre(image, pixel, radius) - pixel) for pixel in visible]
    return max(misses)


def same(a: Capture, b: Capture) -> bool:
    return (
        [view.name for view in a.views] == [view.name for view in b.views]
        and all(
            torch.equal(x.camera.viewmats, y.camera.viewmats) and torch.equal(x.camera.Ks, y.camera.Ks)
            for x, y in zip(a.views, b.views, strict=True)
        )
        and torch.equal(a.points.positions, b.points.positions)
        and torch.equal(a.points.colors, b.points.colors)
    )


@pytest.mark.parametrize("model", MODELS)
def test_points_land_where_they_were_drawn(tmp_path: Path, model: str) -> None:
    write_capture(tmp_path, model)
    capture = read_colmap(tmp_path)
    assert largest_miss(capture) < 0.12
    assert ("undistorted from" in capture.protocol) == (model not in PINHOLES)


@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_RADIAL", "OPENCV_FISHEYE"])
def test_shipped_reduced_images_of_rounded_size(tmp_path: Path, model: str) -> None:
    folder = write_capture(tmp_path, model)
    shrink(folder, 2, (81, 61))  # 161x121 rounded up: 80.5x60.5
    view = read_colmap(tmp_path, downscale=2).views[0]
    if model == "PINHOLE":
        fx, fy, cx, cy = MODELS["PINHOLE"]
        expected = [fx * 81 / 161, fy * 61 / 121, cx * 81 / 161, cy * 61 / 121]
        found = view.camera.Ks[0, [0, 1, 0, 1], [0, 1, 2, 2]]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert (view.camera.width, view.camera.height) == (81, 61)
    capture = read_colmap(tmp_path, downscale=2)
    assert largest_miss(capture, radius=4) < 0.12
    assert capture.protocol.startswith("images_2/ as shipped")


def test_without_distortion_nothing_is_resampled(tmp_path: Path) -> None:
    folder = write_capture(tmp_path)
    folder.model.cameras[1].model = "OPENCV"
    folder.model.cameras[1].params = [*MODELS["PINHOLE"], 0, 0, 0, 0]
    folder.model.write_binary(str(folder.sparse))
    view = read_colmap(tmp_path).views[0]
    np.testing.assert_array_equal(view.source.read(), np.array(Image.open(folder.image(view.name))))


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "FOV"])
def test_reduced_by_area(tmp_path: Path, model: str) -> None:
    write_capture(tmp_path, model)
    capture = read_colmap(tmp_path, downscale=2)
    assert largest_miss(capture, radius=4) < 0.12
    assert capture.protocol.startswith("images/ reduced by 2 (area filter)")


def test_reduction_is_the_area_mean(tmp_path: Path) -> None:
    folder = write_capture(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (121, 161, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder.image("photo_00.png"))
    view = read_colmap(tmp_path, downscale=4).views[0]
    exact = noise[:120, :160].reshape(30, 4, 40, 4, 3).mean(axis=(1, 3))
    assert np.abs(view.source.read() - exact).max() <= 0.51
    np.testing.assert_allclose(view.camera.Ks[0, :2], read_colmap(tmp_path).views[0].camera.Ks[0, :2] / 4)


def test_every_layout_of_the_model_reads_the_same(tmp_path: Path) -> None:
    reference = read_colmap(write_capture(tmp_path / "binary").root)
    text = write_capture(tmp_path / "text", binary=False)
    old = write_capture(tmp_path / "old")
    flat = write_capture(tmp_path / "flat")
    for name in ("rigs.bin", "frames.bin"):
        (old.sparse / name).unlink()
    for path in list(flat.sparse.iterdir()):
        path.rename(flat.root / "sparse" / path.name)
    flat.sparse.rmdir()
    for folder in (text, old, flat):
        assert same(read_colmap(folder.root), reference), folder.root


def test_points_and_poses_stay_in_the_world_of_the_model(tmp_path: Path) -> None:
    folder = write_capture(tmp_path)
    capture = read_colmap(tmp_path)
    np.testing.assert_allclose(capture.points.positions, POINTS, atol=1e-6)
    assert capture.points.colors[:, 0].tolist() == [10 * i for i in range(9)]
    for view in capture.views:
        centre = folder.model.find_image_with_name(view.name).projection_center()
        np.testing.assert_allclose(view.camera.positions[0], centre, atol=1e-5)


def test_names_are_sorted_and_every_eighth_is_held_out(tmp_path: Path) -> None:
    names = [f"{camera}/{i}.png" for i in (3, 1, 2, 0, 4) for camera in ("right", "left")]
    write_capture(tmp_path, names=names)
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "not_registered.png")
    capture = read_colmap(tmp_path)
    assert [view.name for view in capture.views] == sorted(names)
    assert [view.name for view in capture.test_views] == ["left/0.png", "right/3.png"]
    assert len(capture.train_views) == 8
    assert read_colmap(tmp_path, test_every=0).test_views == ()


def test_reduced_copies_of_another_extension(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, names=["a/1.JPG", "a/2.JPG", "b/1.JPG"])
    shrink(folder, 4, (40, 30), ".png")
    view = read_colmap(tmp_path, downscale=4).views[2]
    expected = np.array(Image.open(tmp_path / "images_4" / "b" / "1.png"))
    np.testing.assert_array_equal(view.source.read(), expected)


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    folder = write_capture(tmp_path)
    exif = Image.Exif()
    exif[274] = 6  # orientation: rotate by 90 degrees to look at it
    photo = np.array(Image.open(folder.image("photo_00.png")))
    Image.fromarray(photo).save(folder.image("photo_00.png"), exif=exif)
    assert Image.open(folder.image("photo_00.png")).getexif()[274] == 6
    np.testing.assert_array_equal(read_colmap(tmp_path).views[0].source.read(), photo)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16", "RGBA", "LA"])
def test_pixel_types(tmp_path: Path, mode: str) -> None:
    folder = write_capture(tmp_path, names=["a.tif", "b.tif", "c.tif"])
    photo = np.array(Image.open(folder.image("a.tif")))
    if mode == "I;16":
        image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(photo).convert("L" if mode == "LA" else "RGB").convert(mode)
    assert image.mode == mode
    image.save(folder.image("a.tif"))
    source = read_colmap(tmp_path).views[0].source
    pixels = source.read()
    assert pixels.dtype == np.uint8
    assert pixels.shape == (121, 161, 4 if mode.endswith("A") else 3)
    assert source.has_alpha == mode.endswith("A")
    tolerance = {"P": 51, "1": 255}.get(mode, 1)  # a palette of 6 levels; black and white
    assert np.abs(pixels[..., :3].astype(int) - photo).max() <= tolerance
    assert np.abs(pixels[..., :3].astype(int) - photo).mean() < 30


@pytest.mark.parametrize("mask_name", ["photo_01.png.png", "photo_01.png"])
@pytest.mark.parametrize("downscale", [1, 3])
def test_mask_becomes_alpha(tmp_path: Path, mask_name: str, downscale: int) -> None:
    write_capture(tmp_path)
    mask = np.zeros((121, 161), np.uint8)
    mask[:, 80:] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / mask_name)
    capture = read_colmap(tmp_path, downscale=downscale)
    pixels = capture.views[1].source.read()
    width = capture.views[1].camera.width
    assert pixels.shape[2] == 4
    assert (pixels[:, : width // 2 - 1, 3] == 0).all()
    assert (pixels[:, width // 2 + 1 :, 3] == 255).all()
    assert not capture.views[0].source.has_alpha
    assert "alpha from masks/" in capture.protocol


def test_hidden_colours_do_not_bleed_through_undistortion(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, "SIMPLE_RADIAL")
    pixels = np.zeros((121, 161, 4), np.uint8)
    pixels[:, :80] = (255, 0, 0, 0)  # transparent red beside opaque green
    pixels[:, 80:] = (0, 255, 0, 255)
    Image.fromarray(pixels).save(folder.image("photo_00.png"))
    read = read_colmap(tmp_path).views[0].source.read()
    visible = read[read[..., 3] > 8]
    assert len(np.unique(visible[:, 3])) > 2  # there is an edge of half-covered pixels
    assert (visible[:, 0] <= 1).all()
    assert (visible[:, 1] >= 254).all()


def test_undistorted_pixels_agree_with_colmap(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, "OPENCV")
    view = read_colmap(tmp_path).views[0]
    bitmap = pycolmap.Bitmap.from_array(np.array(Image.open(folder.image(view.name))))
    expected, camera = pycolmap.undistort_image(
        pycolmap.UndistortCameraOptions(), bitmap, folder.model.cameras[1]
    )
    found = view.source.read()
    assert (view.camera.width, view.camera.height) == (camera.width, camera.height)
    np.testing.assert_allclose(view.camera.Ks[0], camera.calibration_matrix(), rtol=1e-6)
    assert np.abs(found.astype(int) - expected.to_array()).max() <= 2


def test_a_lens_too_wide_for_a_pinhole_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_capture(tmp_path, "FOV")
    folder.model.cameras[1].params = [40, 40, 82, 58, 0.9]
    folder.model.write_binary(str(folder.sparse))
    read_colmap(tmp_path)
    assert "undistorting FOV: only 32x24 of 161x121 pixels are kept" in caplog.text


def test_focal_lengths_of_single_photos(tmp_path: Path) -> None:
    folder = write_capture(tmp_path)
    second = pycolmap.Camera(camera_id=2, model="FOV", width=161, height=121, params=MODELS["FOV"])
    folder.model.add_camera_with_trivial_rig(second)
    image = pycolmap.Image(name="other.png", camera_id=2, image_id=99)
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.zeros(3)), np.zeros(3))
    folder.model.add_image_with_trivial_frame(image, pose)
    Image.fromarray(draw(second, pose.matrix(), 0)).save(folder.image("other.png"))
    folder.model.write_binary(str(folder.sparse))
    capture = read_colmap(tmp_path)
    assert len({(view.camera.width, view.camera.height) for view in capture.views}) == 2
    assert largest_miss(capture) < 0.12


@pytest.mark.parametrize(
    ("scene", "downscale", "size", "count", "points", "error"),
    [
        ("fox", 1, (1080, 1920), 50, 13676, 0.88),
        ("fox", 8, (135, 240), 50, 13676, 0.88 / 8),
        ("bonsai", 4, (200, 133), 292, 88784, 0.41 / 4),
    ],
)
def test_real_captures_reproject(
    shared_data: Path,
    scene: str,
    downscale: int,
    size: tuple[int, int],
    count: int,
    points: int,
    error: float,
) -> None:
    """The SfM points land on their observations as closely as COLMAP itself says."""
    capture = read_colmap(shared_data / scene, downscale=downscale)
    assert {(view.camera.width, view.camera.height) for view in capture.views} == {size}
    assert (len(capture.views), len(capture.points)) == (count, points)
    assert capture.views[0].source.read().shape == (size[1], size[0], 3)
    model = pycolmap.Reconstruction(str(shared_data / scene / "sparse" / "0"))
    rows = {point_id: row for row, point_id in enumerate(sorted(model.points3D))}
    total, seen = np.zeros(points), np.zeros(points)
    for view in capture.views:
        image = model.find_image_with_name(view.name)
        observations = image.get_observation_points2D()
        row = [rows[observation.point3D_id] for observation in observations]
        observed = np.array([observation.xy for observation in observations]) * np.array(size)
        observed /= (model.cameras[image.camera_id].width, model.cameras[image.camera_id].height)
        errors = np.linalg.norm(
            project(view, capture.points.positions.double().numpy()[row]) - observed, axis=1
        )
        np.add.at(total, row, errors)
        np.add.at(seen, row, 1)
    assert (total / seen).mean() == pytest.approx(error, rel=0.02)


def shrink(folder: Folder, factor: int, size: tuple[int, int], suffix: str | None = None) -> None:
    """Write ``images_N`` and take ``images`` away, so that a test cannot read the wrong one."""
    for name in folder.names:
        target = folder.root / f"images_{factor}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(folder.image(name)) as image:
            small = image.resize(size, Image.Resampling.LANCZOS)
        small.save(target.with_suffix(suffix) if suffix else target)
    shutil.rmtree(folder.root / "images")
