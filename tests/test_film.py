"""Filmed captures: several cameras that stand still, every frame a view with its moment."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colmap_folder import write_capture
from film import (
    FOCAL,
    FRAMES,
    NAMES,
    SIZE,
    llff_rows,
    number_in,
    numbered_frame,
    pose_of,
    write_colmap_film,
    write_film,
    write_images,
    write_table,
    write_video,
)
from PIL import Image

from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.data.streaming import ImageCache
from flexgs_lightning.errors import InputError


def at(capture: Capture, name: str) -> View:
    return next(view for view in capture.views if view.name == name)


@pytest.mark.parametrize("video", [False, True], ids=["images", "videos"])
def test_every_frame_is_a_view_with_its_moment(tmp_path: Path, video: bool) -> None:
    capture = read_capture(write_film(tmp_path / "juggler", video=video))
    assert [view.name for view in capture.views] == [f"{c}/{k:04d}" for c in NAMES for k in range(FRAMES)]
    for i, name in enumerate(NAMES):
        for k in (0, 5, FRAMES - 1):
            view = at(capture, f"{name}/{k:04d}")
            assert number_in(view.source.read()) == 16 * i + k
            assert view.time == pytest.approx(k / FRAMES)
            assert (view.filmed_by, view.taken_by) == (name, name)
            np.testing.assert_allclose(view.camera.viewmats[0, :3], pose_of(i), atol=1e-6)
            K = [[FOCAL, 0, SIZE[0] / 2 + 1], [0, FOCAL, SIZE[1] / 2 - 1], [0, 0, 1]]
            np.testing.assert_allclose(view.camera.Ks[0], K)
    assert {view.filmed_by for view in capture.test_views} == {"cam03"}
    assert len(capture.train_views) == 3 * FRAMES
    assert (capture.name, capture.seconds, len(capture.points)) == ("juggler", FRAMES / 30, 50)
    assert capture.moves
    assert capture.split == "all frames of cam03 are held out"
    assert read_capture(tmp_path / "juggler", test_every=0).test_views == ()


def test_a_capture_may_state_its_near_plane(tmp_path: Path) -> None:
    """Of all its cameras, in whatever group of frames; an option takes precedence."""
    write_film(tmp_path)
    table = json.loads((tmp_path / "cameras.json").read_text())
    assert read_capture(tmp_path).near_plane == 0.01
    (tmp_path / "cameras.json").write_text(json.dumps({**table, "near_plane": 0.5}))
    for frames in (None, [2, 5]):
        capture = read_capture(tmp_path, frames=frames, downscale=2)
        assert {view.camera.near_plane for view in capture.views} == {0.5}
        assert len({id(view.camera) for view in capture.views}) == len(NAMES), "frames share their camera"
    data = CaptureDataModule(str(tmp_path))
    data.setup("fit")
    assert data.options()["near_plane"] == 0.5, "checkpoints know it without the capture"
    assert next(iter(data.train_dataloader())).cameras.near_plane == 0.5
    assert read_capture(**{**data.options(), "near_plane": 2.0}).near_plane == 2.0


@pytest.mark.parametrize("wrong", [0, -1.0, "near", True])
def test_near_planes_in_a_capture_are_positive(tmp_path: Path, wrong: object) -> None:
    write_film(tmp_path)
    table = json.loads((tmp_path / "cameras.json").read_text())
    (tmp_path / "cameras.json").write_text(json.dumps({**table, "near_plane": wrong}))
    with pytest.raises(InputError, match="'near_plane' must be a positive number"):
        read_capture(tmp_path)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_near_planes_that_are_asked_for_are_positive(tmp_path: Path, wrong: float) -> None:
    write_film(tmp_path)
    with pytest.raises(InputError, match=r"near_plane of .*: expected a positive number"):
        read_capture(tmp_path, near_plane=wrong)


def test_frames_are_reduced_with_their_cameras(tmp_path: Path) -> None:
    write_film(tmp_path)
    whole, half = (at(read_capture(tmp_path, downscale=d), "cam01/0003") for d in (1, 2))
    assert half.source.read().shape == (SIZE[1] // 2, SIZE[0] // 2, 3)
    torch.testing.assert_close(half.camera.Ks[0, :2], whole.camera.Ks[0, :2] / 2)
    torch.testing.assert_close(half.camera.viewmats, whole.camera.viewmats)


def test_a_range_of_frames_lasts_from_0_to_1(tmp_path: Path) -> None:
    write_film(tmp_path)
    (tmp_path / "points.npy").unlink()
    (tmp_path / "points").mkdir()
    for k in range(FRAMES):
        np.save(tmp_path / "points" / f"{k:04d}.npy", np.full((3, 6), k, np.float32))
    whole = read_capture(tmp_path)
    assert whole.points.times is not None
    torch.testing.assert_close(whole.points.times.unique(), torch.arange(FRAMES) / FRAMES)
    assert whole.points.colors[whole.points.times > 0.9].unique().tolist() == [11]
    part = read_capture(tmp_path, frames=[3, 7])
    assert [view.name for view in part.test_views] == [f"cam03/{k:04d}" for k in (3, 4, 5, 6)]
    assert [view.time for view in part.test_views] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert part.seconds == pytest.approx(4 / 30)
    assert part.points.times is not None
    assert part.points.times.tolist() == pytest.approx(np.repeat([0, 0.25, 0.5, 0.75], 3), abs=1e-6)
    assert part.points.positions[:, 0].tolist() == [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3
    one = read_capture(tmp_path, frames=[11, 12])
    assert [view.time for view in one.views] == [0.0] * 4
    for wrong in ([0, 13], [4, 4], [5, 3], [-1, 3], [3]):
        with pytest.raises(
            InputError, match=r"data.frames: expected a start and a stop within the 12 frames"
        ):
            read_capture(tmp_path, frames=wrong)


def test_frames_of_a_still_capture_are_refused(tmp_path: Path) -> None:
    write_capture(tmp_path / "still")
    with pytest.raises(InputError, match=r"data.frames: still does not move"):
        read_capture(tmp_path / "still", frames=[0, 3])


# Other layouts


def projection(view: View, point: Sequence[float]) -> np.ndarray:
    pixel = view.camera.Ks[0].numpy() @ (view.camera.viewmats[0, :3].numpy() @ [*point, 1.0])
    return pixel[:2] / pixel[2]


def test_neural_3d_video(tmp_path: Path) -> None:
    """LLFF's rows, built from what its authors state: where a point lands tells all."""
    rows = llff_rows()
    for i, name in enumerate(NAMES):
        frames = [numbered_frame(16 * i + k) for k in range(FRAMES)]
        write_video(tmp_path / f"{name}.mp4", frames)
    np.save(tmp_path / "poses_bounds.npy", rows)
    capture = read_capture(tmp_path)
    assert {view.filmed_by for view in capture.test_views} == {"cam00"}
    for i, name in enumerate(NAMES):
        view, pose = at(capture, f"{name}/0007"), pose_of(i)
        assert number_in(view.source.read()) == 16 * i + 7
        seen = pose @ [0.3, -0.2, 0.1, 1.0]
        expected = FOCAL * seen[:2] / seen[2] + np.array(SIZE) / 2
        np.testing.assert_allclose(projection(view, (0.3, -0.2, 0.1)), expected, atol=1e-4)
    np.save(tmp_path / "poses_bounds.npy", rows[1:])
    with pytest.raises(InputError, match=r"poses_bounds.npy: found 3 poses, expected one for each of the 4"):
        read_capture(tmp_path)


def test_colmap_with_a_folder_for_each_camera(tmp_path: Path) -> None:
    write_colmap_film(tmp_path, {"cam00.png": 0, "cam01/0100.png": 1, "cam02.png": 2, "cam03.png": 3})
    capture = read_capture(tmp_path, test_every=3)
    assert {view.filmed_by for view in capture.test_views} == {"cam00", "cam03"}
    view = at(capture, "cam01/0002")
    np.testing.assert_allclose(view.camera.viewmats[0, :3], pose_of(1), atol=1e-6)
    assert number_in(view.source.read()) == 18
    assert len(capture.points) == 3
    assert capture.seconds is None


def test_a_colmap_camera_that_moves_is_refused(tmp_path: Path) -> None:
    names = {"cam00.png": 0, "cam01/0100.png": 1, "cam01/0101.png": 2, "cam02.png": 2, "cam03.png": 3}
    write_colmap_film(tmp_path, names)
    with pytest.raises(InputError, match=r"camera cam01 moves .see cam01/0101.png."):
        read_capture(tmp_path)


# Streaming


def test_the_frames_of_a_video_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for one frame fills the places of its group, so that a pass decodes no frame twice."""
    capture = read_capture(write_film(tmp_path, video=True))
    views = capture.train_views
    cache = ImageCache(views, 10**9)
    for i in np.random.default_rng(1).permutation(len(views)):
        view = views[int(i)]
        assert view.filmed_by is not None
        expected = 16 * NAMES.index(view.filmed_by) + round((view.time or 0) * FRAMES)
        assert number_in(cache.read(view.name, view.source)) == expected
    for name in NAMES:
        (tmp_path / "videos" / f"{name}.mp4").unlink()
    for view in views:
        cache.read(view.name, view.source)


def test_batches_of_films_carry_moments(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = CaptureDataModule(
        str(write_film(tmp_path, video=True)), frames=[2, 6], batch_size=2, cache_megabytes=0
    )
    with caplog.at_level(logging.WARNING):
        data.num_workers = 0
        data.setup("fit")
    assert "data.cache_megabytes: 0 do not hold the 1 MB of the videos' frames" in caplog.text
    views = data.capture.train_views
    batch = next(iter(data.train_dataloader()))
    assert batch.times is not None
    assert batch.times.tolist() == pytest.approx([views[i].time for i in batch.indices.tolist()])
    assert [number_in(image.numpy()) % 16 for image in batch.images] == [
        2 + round(4 * time) for time in batch.times.tolist()
    ]
    assert data.options()["frames"] == [2, 6]


# What can be wrong


def edited(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """Break the table of cameras."""

    def spoil(root: Path) -> None:
        table = json.loads((root / "cameras.json").read_text())
        change(table["cameras"])
        (root / "cameras.json").write_text(json.dumps(table))

    return spoil


def one_left(root: Path) -> None:
    write_table(root, NAMES[:1])


def no_frames(root: Path) -> None:
    (root / "frames" / "cam01").rename(root / "frames" / "other")


def shorter_than_stated(root: Path) -> None:
    write_table(root, frames=FRAMES + 5)


def a_hole(root: Path) -> None:
    (root / "frames" / "cam02" / "0004.png").unlink()


def late_start(root: Path) -> None:
    (root / "frames" / "cam02" / "0000.png").unlink()


def broken_frame(root: Path) -> None:
    (root / "frames" / "cam01" / "0005.png").write_bytes(b"")


def other_size(root: Path) -> None:
    Image.new("RGB", (50, 40)).save(root / "frames" / "cam01" / "0005.png")


def nameless(root: Path) -> None:
    (root / "frames" / "cam01" / "0005.png").rename(root / "frames" / "cam01" / "last.png")


def two_of_one_number(root: Path) -> None:
    Image.new("RGB", SIZE).save(root / "frames" / "cam01" / "again_0005.png")


def other_rate(root: Path) -> None:
    (root / "frames" / "cam01").rename(root / "unused")
    write_video(root / "videos" / "cam01.mp4", [numbered_frame(k) for k in range(FRAMES)], rate=25)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "one camera": (
        one_left,
        "0 of 1 cameras remain for training, expected at least 2: one camera that stands",
    ),
    "no frames": (
        no_frames,
        "camera cam01 has no frames, expected a folder frames/cam01 of images or a video",
    ),
    "too short": (shorter_than_stated, "cam0.: found 12 frames, expected 17 as stated"),
    "a hole": (a_hole, "frames/cam02: 1 frames are missing between 0003.png and 0005.png"),
    "late start": (late_start, "frames/cam02: the first frame is number 1, expected 0 as in .*cam00"),
    "broken frame": (broken_frame, "cam01/0005.png: expected a readable image, found: an empty file"),
    "other size": (other_size, "cam01/0005.png: found 50x40 pixels, expected the 96x64 of 0000.png"),
    "nameless": (nameless, "cam01/last.png: expected a frame's name to end with its number"),
    "twice": (two_of_one_number, "0005.png and again_0005.png have one number"),
    "other rate": (other_rate, "cam01.mp4: found 25.00 frames per second, expected the 30.00"),
    "same name": (edited(lambda cameras: cameras[1].update(name="cam00")), "two cameras named cam00"),
    "no name": (
        edited(lambda cameras: cameras[1].pop("name")),
        "expected a 'name' for each camera, found None",
    ),
    "path": (edited(lambda cameras: cameras[1].update(name="../x")), "expected a 'name' for each camera"),
    "path above": (edited(lambda cameras: cameras[1].update(name="..")), "expected a 'name' for each camera"),
    "long": (edited(lambda cameras: cameras[1].update(name="a" * 250)), "expected a 'name' for each camera"),
    "no focal length": (edited(lambda cameras: cameras[1].pop("fx")), "camera cam01: 'fx' is missing"),
    "no number": (
        edited(lambda cameras: cameras[1].update(cx="wide")),
        "camera cam01: 'cx' is missing or not",
    ),
    "negative": (
        edited(lambda cameras: cameras[1].update(fy=-1)),
        "camera cam01: focal lengths and size must",
    ),
    "no rotation": (
        edited(lambda cameras: cameras[1]["w2c"][0].__setitem__(0, 2.0)),
        "camera cam01: the first three columns of 'w2c' must be a rotation",
    ),
    "lens": (
        edited(lambda cameras: cameras[1].update(distortion=[1, 2])),
        "'distortion' must have 0, 4 or 8",
    ),
    "split": (edited(lambda cameras: cameras[1].update(split="both")), "'split' must be train or test"),
    "shape": (
        edited(lambda cameras: cameras[1].update(width=64)),
        "cam01: found 96x64 pixels, expected the shape",
    ),
    "nothing": (lambda root: (root / "cameras.json").write_text("{"), "cameras.json: not sound JSON"),
    "empty": (lambda root: (root / "cameras.json").write_text("{}"), "expected a list 'cameras'"),
    "points": (lambda root: np.save(root / "points.npy", np.zeros(5)), "points.npy: expected numbers .P, 3."),
    "colours": (
        lambda root: np.save(root / "points_rgb.npy", np.zeros((4, 3))),
        "found 4 colours, expected 50",
    ),
    "infinite": (lambda root: np.save(root / "points.npy", np.full((50, 3), np.inf)), "are not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(write_film(tmp_path))
    with pytest.raises(InputError, match=message):
        read_capture(tmp_path)


def test_longer_films_are_cut_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_film(tmp_path)
    for k in (10, 11):
        (tmp_path / "frames" / "cam02" / f"{k:04d}.png").unlink()
    with caplog.at_level(logging.WARNING):
        capture = read_capture(tmp_path)
    assert len(capture.views) == 4 * 10
    assert "cam02 only 10: the first 10 of every camera are used" in caplog.text


def test_lenses_are_undistorted(tmp_path: Path) -> None:
    """A white dot drawn where OpenCV's model puts a point lands where the pinhole camera sees it."""
    table = write_table(tmp_path)
    k1, k2, p1, p2 = -0.2, 0.05, 0.01, -0.005
    for entry in table["cameras"]:
        entry["distortion"] = [k1, k2, p1, p2]
    (tmp_path / "cameras.json").write_text(json.dumps(table))
    world = np.array([0.7, 0.5, 0.2])
    for i, name in enumerate(NAMES):
        x, y, z = pose_of(i) @ [*world, 1.0]
        x, y = x / z, y / z
        r2 = x * x + y * y
        radial = 1 + k1 * r2 + k2 * r2 * r2
        u = FOCAL * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + SIZE[0] / 2 + 1
        v = FOCAL * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + SIZE[1] / 2 - 1
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
        dot = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 8)
        write_images(tmp_path / "frames" / name, [np.repeat(dot[..., None], 3, axis=2).astype(np.uint8)] * 2)
    for view in read_capture(tmp_path).views:
        image = view.source.read()[..., 0].astype(float)
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
        found = np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()
        np.testing.assert_allclose(found, projection(view, world), atol=0.1)


def test_the_basketball(shared_data: Path) -> None:
    """The ball's known centre, drawn into the frames, is orange: cameras, frames and moments agree."""
    root = shared_data / "panoptic_basketball"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    capture = read_capture(root)
    assert (len(capture.views), len(capture.test_views), len(capture.points)) == (31 * 60, 4 * 60, 1679)
    assert capture.seconds == 2.0
    assert sorted({view.filmed_by for view in capture.test_views}) == ["cam00", "cam10", "cam15", "cam30"]
    centres = np.load(root / "ball_track.npz")["xyz"]
    shares = []
    for view in capture.views[25::60]:
        assert view.time == pytest.approx(25 / 60)
        x, y = projection(view, centres[25])
        if 5 < x < 635 and 5 < y < 355:
            colour = view.source.read()[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean(axis=(0, 1))
            shares.append(colour[0] / colour.sum())
    assert len(shares) > 20
    assert np.median(shares) > 0.45, "red is a third of grey"
