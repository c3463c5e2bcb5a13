"""``transforms.json`` captures: the same cameras, pixels and points as their producers mean."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colmap_folder import MODELS, POINTS, blob_centre, write_capture
from PIL import Image
from transforms_folder import DISTORTION, WORLD, as_nerfstudio, camera_fields, frames, save, write_blender

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.errors import InputError
from flexgs_lightning.training.initialization import random_bounds


def largest_miss(capture: Capture, world: np.ndarray, radius: float = 6.0) -> float:
    """Largest distance in pixels between a drawn blob and where the camera expects it."""
    misses = []
    places = torch.from_numpy(POINTS @ world[:3, :3].T + world[:3, 3]).float()
    for view in capture.views:
        image, camera = view.source.read(), view.camera
        pixels = (places @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]) @ camera.Ks[0].T
        expected = (pixels[:, :2] / pixels[:, 2:]).numpy()
        size = np.array([camera.width, camera.height])
        visible = expected[((expected > radius) & (expected < size - radius)).all(axis=1)]
        assert len(visible) >= 5
        misses += [np.linalg.norm(blob_centre(image, pixel, radius) - pixel) for pixel in visible]
    return max(misses)


@pytest.mark.parametrize("model", DISTORTION)
@pytest.mark.parametrize("downscale", [1, 2])
def test_nerfstudio_points_land_where_they_were_drawn(
    tmp_path: Path, model: str, downscale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "FULL_OPENCV", [150, 155, 82, 58, -0.1, 0.02, 0.004, -0.003, 0.01, 0, 0, 0])
    folder = write_capture(tmp_path, model)
    before = read_colmap(tmp_path, downscale=downscale)
    as_nerfstudio(folder)
    capture = read_capture(tmp_path, downscale=downscale)
    assert largest_miss(capture, WORLD, radius=6 / downscale + 1) < 0.12
    assert ("undistorted from" in capture.protocol) == (model != "PINHOLE")
    for old, new in zip(before.views, capture.views, strict=True):
        torch.testing.assert_close(old.camera.Ks, new.camera.Ks)
        np.testing.assert_array_equal(old.source.read(), new.source.read())
    np.testing.assert_allclose(capture.points.positions, POINTS @ WORLD[:3, :3].T, atol=1e-6)
    assert torch.equal(capture.points.colors, before.points.colors)
    assert capture.split == "every 8th image by sorted name is held out"


def test_instant_ngp_says_it_with_angles(tmp_path: Path) -> None:
    """Radians or degrees, fisheye by a flag, sizes as floats, a frame's own numbers before the file's."""
    folder = write_capture(tmp_path, "OPENCV_FISHEYE")
    expected = read_colmap(tmp_path)
    shutil.rmtree(tmp_path / "sparse")
    fields = camera_fields(folder.model.cameras[1])
    angles = {f"fl_{a}": 2 * math.atan(fields[side] / (2 * fields[f"fl_{a}"])) for a, side in ("xw", "yh")}
    del fields["camera_model"], fields["fl_x"], fields["fl_y"]
    fields |= {"w": 161.0, "is_fisheye": True, "aabb_scale": 16, "camera_angle_x": angles["fl_x"]}
    content = fields | {"y_fov": math.degrees(angles["fl_y"]), "frames": frames(folder, np.eye(4))}
    content["frames"][0]["cx"] = fields["cx"] + 5
    save(tmp_path, content)
    capture = read_capture(tmp_path)
    for old, new in list(zip(expected.views, capture.views, strict=True))[1:]:
        torch.testing.assert_close(old.camera.Ks, new.camera.Ks)
        torch.testing.assert_close(old.camera.viewmats, new.camera.viewmats)
        np.testing.assert_array_equal(old.source.read(), new.source.read())
    assert not torch.equal(capture.views[0].camera.Ks, expected.views[0].camera.Ks)
    assert len(capture.points) == 0


def test_blender_scenes_have_alpha_and_their_own_test_set(tmp_path: Path) -> None:
    write_blender(tmp_path, {"train": 5, "val": 2, "test": 3})
    capture = read_capture(tmp_path)
    assert [view.name for view in capture.test_views] == [f"test/r_00{i}.png" for i in range(3)]
    assert [view.name for view in capture.train_views] == [f"train/r_00{i}.png" for i in range(5)]
    assert capture.split == "the capture's own test images are held out"
    camera = capture.views[0].camera
    torch.testing.assert_close(camera.Ks[0, [0, 1, 0, 1], [0, 1, 2, 2]], torch.tensor([150, 150, 80.5, 60.5]))
    assert capture.views[0].source.read().shape == (121, 161, 4)
    assert {view.time for view in capture.views} == {None}
    assert len(read_capture(tmp_path, test_every=0).train_views) == 8
    (tmp_path / "transforms_test.json").unlink()
    assert {view.name for view in read_capture(tmp_path).test_views} == {"val/r_000.png", "val/r_001.png"}


def test_moments_lie_below_one(tmp_path: Path) -> None:
    write_blender(tmp_path, {"train": 5, "test": 2}, times=True)
    times = [view.time for view in read_capture(tmp_path).train_views]
    assert times == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert all(time is not None and np.float32(time) < 1 for time in times)


def test_photos_are_found_however_their_paths_are_written(tmp_path: Path) -> None:
    """As nerfstudio writes them for Project Aria, and as Windows does; a folder of photos may be a link."""
    root = tmp_path / "capture"
    content = as_nerfstudio(write_capture(root, count=4))
    expected = [view.name for view in read_capture(root).views]
    written = [str(root.absolute() / name) for name in expected]
    written[1:] = [expected[1].replace("/", "\\"), f"./images/../{expected[2]}", expected[3]]
    for listed, path in zip(content["frames"], written, strict=True):
        listed["file_path"] = path
    save(root, content | {"test_filenames": written[:2]})
    shutil.move(root / "images", tmp_path / "photos")
    (root / "images").symlink_to(tmp_path / "photos")
    capture = read_capture(root)
    assert [view.name for view in capture.views] == expected
    assert [view.name for view in capture.test_views] == expected[:2]


@pytest.mark.parametrize("lists", [("train", "test"), ("test",), ("train", "val")])
def test_nerfstudio_names_its_splits(tmp_path: Path, lists: tuple[str, ...]) -> None:
    content = as_nerfstudio(write_capture(tmp_path, count=6))
    held_out = ["images/photo_01.png", "./images/photo_04.png"]
    named = {"train": [f"images/photo_0{i}.png" for i in (0, 2, 3)], "test": held_out, "val": held_out}
    save(tmp_path, content | {f"{split}_filenames": named[split] for split in lists})
    capture = read_capture(tmp_path)
    assert [view.name for view in capture.test_views] == ["images/photo_01.png", "images/photo_04.png"]
    assert len(capture.train_views) == (3 if "train" in lists else 4)


def test_reduced_copies_and_masks(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, names=["a.jpg", "b.jpg", "c.jpg"])
    content = as_nerfstudio(folder)
    (tmp_path / "images_2").mkdir()
    (tmp_path / "masks").mkdir()
    for name in folder.names:
        Image.open(folder.image(name)).resize((81, 61)).save(tmp_path / "images_2" / f"{name[0]}.jpg")
    Image.new("L", (161, 121), 0).save(tmp_path / "masks" / "b.jpg.png")
    Image.new("L", (81, 61), 99).save(tmp_path / "hidden.png")
    content["frames"][2]["mask_path"] = "hidden.png"
    save(tmp_path, content)
    shutil.rmtree(tmp_path / "images")
    views = read_capture(tmp_path, downscale=2).views
    assert [view.source.read().shape for view in views] == [(61, 81, 3), (61, 81, 4), (61, 81, 4)]
    assert [np.unique(view.source.read()[..., 3]).tolist() for view in views[1:]] == [[0], [99]]
    found = views[0].camera.Ks[0, [0, 1, 0, 1], [0, 1, 2, 2]]
    assert found.tolist() == pytest.approx([150 * 81 / 161, 155 * 61 / 121, 82 * 81 / 161, 58 * 61 / 121])


def test_points_of_an_older_nerfstudio(tmp_path: Path) -> None:
    """COLMAP's model lies beside, in COLMAP's world."""
    folder = write_capture(tmp_path)
    content = as_nerfstudio(folder)
    del content["ply_file_path"]
    (tmp_path / "colmap" / "sparse" / "0").mkdir(parents=True)
    folder.model.write_binary(str(tmp_path / "colmap" / "sparse" / "0"))
    save(tmp_path, content | {"applied_scale": 0.5})
    points = read_capture(tmp_path).points
    np.testing.assert_allclose(points.positions, 0.5 * POINTS @ WORLD[:3, :3].T, atol=1e-6)
    assert points.colors[:, 0].tolist() == [10 * i for i in range(9)]


def test_a_real_capture_that_moves(shared_data: Path) -> None:
    capture = read_capture(shared_data / "dnerf_mutant", downscale=4)
    assert (len(capture.train_views), len(capture.test_views)) == (150, 20)
    assert [view.time for view in capture.train_views] == pytest.approx([i / 149 for i in range(150)])
    view = capture.views[0]
    assert view.source.read().shape == (100, 100, 4)
    low, high = random_bounds(capture)
    inside = view.camera.contain(((low + high) / 2)[None])
    assert inside.all()
    # the silhouette fills the middle of every photo: camera axes that pointed elsewhere would miss it
    centres = [np.argwhere(v.source.read()[..., 3] > 128).mean(axis=0) for v in capture.test_views]
    assert np.abs(np.array(centres) - 50).max() < 20


Content = dict[str, Any]
BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no json": ("{", ("not sound JSON",)),
    "deep": ('{"frames": [], "x": ' + "[" * 100_000 + "]" * 100_000 + "}", ("transforms.json",)),
    "array": ([], ("expected object, found array",)),
    "no frames": ({"w": 3}, ("there is no field frames",)),
    "text for a number": (lambda c: c | {"fl_x": "150"}, ("fl_x: expected float", "found str")),
    "matrix": (lambda c: matrix(c, [[1, 2], [3]]), ("transform_matrix", "photo_00", "found 2 rows")),
    "mirrored": (lambda c: matrix(c, np.diag([1.0, 1, -1, 1]).tolist()), ("expected a rotation",)),
    "zeros": (lambda c: matrix(c, np.zeros((4, 4)).tolist()), ("expected a rotation",)),
    "huge": (lambda c: matrix(c, np.full((4, 4), 1e308).tolist()), ("expected a rotation",)),
    "far away": (lambda c: matrix(c, [*np.eye(4)[:2].tolist(), [0, 0, 1, 1e300]]), ("finite",)),
    "no focal length": (lambda c: drop(c, "fl_x", "fl_y"), ("states no focal length", "camera_angle_x")),
    "negative": (lambda c: c | {"fl_x": -150.0}, ("found focal length -150", "expected positive")),
    "size": (lambda c: c | {"w": 1e200}, ("found w 1e+200", "expected 1 to")),
    "shape": (lambda c: c | {"w": 300}, ("photo_00.png", "found 161x121", "300x121")),
    "model": (lambda c: c | {"camera_model": "VR180_L"}, ("camera_model", "VR180_L", "OPENCV_FISHEYE")),
    "k4": (lambda c: c | {"k4": 0.1}, ("k4 0.1", "PINHOLE")),
    "missing photo": (lambda c: frame(c, file_path="images/none"), ("images/none", "no such file")),
    "null byte": (lambda c: frame(c, file_path="a\0b"), ("no such file",)),
    "long name": (lambda c: frame(c, file_path="a" * 5000), ("frames[0].file_path", "<= 1024")),
    "above": (
        lambda c: frame(c, file_path="../x.png"),
        ("frames[0].file_path", "'../x.png'", "Move or link"),
    ),
    "elsewhere": (lambda c: frame(c, file_path="/etc/x.png"), ("'/etc/x.png'", "expected a file below")),
    "beside": (lambda c: frame(c, file_path="images/../../b.png"), ("expected a file below",)),
    "above on Windows": (lambda c: frame(c, file_path="..\\x.png"), ("expected a file below",)),
    "the folder": (lambda c: frame(c, file_path="."), ("frames[0].file_path", "expected a file below")),
    "no name": (lambda c: frame(c, file_path=""), ("frames[0].file_path", "expected a file below")),
    "mask elsewhere": (lambda c: frame(c, mask_path="../m.png"), ("frames[0].mask_path", "'../m.png'")),
    "points elsewhere": (lambda c: c | {"ply_file_path": "/p.ply"}, ("ply_file_path", "'/p.ply'")),
    "twice": (lambda c: frame(c, file_path="images/photo_01"), ("photo_01.png", "twice")),
    "time": (lambda c: frame(c, time=7), ("time of images/photo_00.png", "found 7", "0 to 1")),
    "one time": (lambda c: frame(c, time=0.5), ("1 of 4 frames state a time",)),
    "mask": (lambda c: frame(c, mask_path="nowhere.png"), ("nowhere.png", "no such file")),
    "split": (lambda c: c | {"test_filenames": ["x.png"]}, ("test_filenames", "x.png", "its frames")),
    "few": (lambda c: c | {"frames": c["frames"][:2]}, ("found 2 photos", "at least 3")),
    "no points": (lambda c: c | {"ply_file_path": "none.ply"}, ("none.ply", "could not be read")),
    "points": (lambda c: c | {"ply_file_path": "transforms.json"}, ("not a PLY file",)),
}


def frame(content: Content, **fields: Any) -> Content:
    content["frames"][0] |= fields
    return content


def matrix(content: Content, rows: Any) -> Content:
    return frame(content, transform_matrix=rows)


def drop(content: Content, *names: str) -> Content:
    return {name: value for name, value in content.items() if name not in names}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_give_one_message(tmp_path: Path, kind: str) -> None:
    damage, parts = BAD[kind]
    content = as_nerfstudio(write_capture(tmp_path))
    written = damage(content) if callable(damage) else damage
    (tmp_path / "transforms.json").write_text(written if isinstance(written, str) else json.dumps(written))
    with pytest.raises(InputError) as caught:
        read_capture(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message or "\\x00" in repr(message)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_points_that_are_not_finite(tmp_path: Path) -> None:
    as_nerfstudio(write_capture(tmp_path))
    path = tmp_path / "sparse_pc.ply"
    path.write_text(
        path.read_text().replace("end_header\n", "end_header\nnan 0 0 1 2 3\n", 1).replace("9", "10", 1)
    )
    with pytest.raises(InputError, match="1 of 10 points are not finite"):
        read_capture(tmp_path)
