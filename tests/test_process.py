"""From photos or a video to a capture: what is placed is right, what is not is explained, nothing is lost."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from film import write_video
from PIL import Image
from scipy import ndimage

from flexgs_lightning.cli import main
from flexgs_lightning.data.process import process
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.data.sfm import mapping, matching
from flexgs_lightning.data.sfm.sources import Source, gather
from flexgs_lightning.errors import InputError


@pytest.fixture(scope="module")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of the fox at 135x240, one that stands on its side, and one that shows nothing."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted((shared_data / "fox" / "images_8").iterdir())[:10]:
        shutil.copy(path, folder)
    sideways = folder / sorted(path.name for path in folder.iterdir())[3]
    with Image.open(sideways) as image:
        exif = Image.Exif()
        exif[274] = 6  # to be turned by 90 degrees clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(sideways, exif=exif, quality=95)
    Image.new("RGB", (135, 240), (90, 90, 90)).save(folder / "wall 1.jpg")
    (folder / "raw.heic").touch()
    return folder


@pytest.fixture(scope="module")
def capture(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interrupted before its last but one step, and gone on with."""
    root = tmp_path_factory.mktemp("captures") / "fox"
    arguments = ["data", "process", str(photos), "--output", str(root), "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flexgs_lightning.data.process.map_photos", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
    assert not (root / "sparse").exists()
    with pytest.MonkeyPatch.context() as patch:
        for done in ("extract_features", "match_image_pairs"):
            patch.setattr(pycolmap, done, lambda *_, **__: pytest.fail("done twice"))
        assert main(arguments) == 0
    return root


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_cameras_stand_where_they_stood(capture: Path, shared_data: Path) -> None:
    """Up to the similarity that photos cannot tell."""
    found = read_capture(capture)
    known = {view.name: view.camera for view in read_capture(shared_data / "fox", downscale=8).views}
    assert len(found.views) == 10
    ours = np.concatenate([view.camera.positions.numpy() for view in found.views])
    theirs = np.concatenate([known[view.name].positions.numpy() for view in found.views])
    similarity = pycolmap.estimate_sim3d(ours, theirs)
    errors = np.linalg.norm([similarity * place for place in ours] - theirs, axis=1)
    assert errors.max() < 0.05 * np.ptp(theirs, axis=0).max()


def test_it_is_a_capture_of_pinhole_photos(capture: Path) -> None:
    model = pycolmap.Reconstruction(capture / "sparse" / "0")
    assert {camera.model_name for camera in model.cameras.values()} == {"PINHOLE"}
    assert len(model.cameras) == 1, "one phone, one camera"
    photo, small = (Image.open(next((capture / name).iterdir())) for name in ("images", "images_2"))
    assert small.size == tuple((side + 1) // 2 for side in photo.size)
    assert photo.height > photo.width
    assert not (capture / "images_4").exists(), "33 pixels wide"
    assert sorted(path.name for path in capture.iterdir()) == ["images", "images_2", "process.json", "sparse"]


def test_the_verdict_names_what_is_missing(
    capture: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked again, it says the same and does nothing."""
    before = {path: path.stat().st_mtime_ns for path in capture.rglob("*")}
    with caplog.at_level("INFO"):
        process(photos, capture)
    assert {path: path.stat().st_mtime_ns for path in capture.rglob("*")} == before
    assert "10 of 12 photos are placed" in caplog.text
    assert "left out: wall_1.jpg: only 0 features" in caplog.text
    assert "left out: raw.heic: not a kind that is read here" in caplog.text
    error = float(caplog.text.split("reprojection error ")[1].split()[0])
    assert 0.05 < error < 1


def test_other_settings_and_other_files_are_refused(capture: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was begun with camera_model OPENCV, found PINHOLE"):
        process(photos, capture, camera_model="PINHOLE")
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds other files"):
        process(photos, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_pairs_are_near_or_look_alike(tmp_path: Path, photos: Path) -> None:
    """A place that is seen again looks like the first time."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(photos.glob("0*.jpg"))[:6]:
        shutil.copy(path, folder)
    names = sorted(path.name for path in folder.iterdir())
    Image.open(folder / names[4]).crop((5, 5, 135, 240)).save(folder / "again.jpg", quality=95)
    names.append("again.jpg")
    database = tmp_path / "database.db"
    matching.extract(database, folder, names, model="PINHOLE", side=240, threads=1)
    with pycolmap.Database.open(database) as opened:
        ids = {image.name: image.image_id for image in opened.read_all_images()}
    order = [ids[name] for name in names]
    everything = matching.choose_pairs(database, "exhaustive", 1)
    assert len(everything) == len(set(everything)) == 21
    for kind in ("sequential", "neighbours"):
        pairs = matching.choose_pairs(database, kind, 1)  # type: ignore[arg-type]
        assert set(pairs) <= set(everything)
        assert {tuple(sorted(pair)) for pair in itertools.pairwise(order)} <= set(pairs)
    alike = matching._look_alikes(database, [ids["again.jpg"]], 2, 1)
    assert tuple(sorted((ids["again.jpg"], ids[names[4]]))) in alike


def test_of_a_video_the_sharp_frames_are_taken(tmp_path: Path) -> None:
    """One sharp frame in each window of six, at another place each time."""
    random = np.random.default_rng(0)
    sharp = [2, 9, 15, 21]
    frames = []
    for i in range(24):
        frame = random.integers(0, 256, (16, 24, 3)).repeat(6, axis=0).repeat(6, axis=1).astype(np.uint8)
        frame[:18] = 10 * i
        frames.append(frame if i in sharp else ndimage.gaussian_filter(frame, (4, 4, 0)))
    video = write_video(tmp_path / "walk.mp4", frames)
    gather(Source.find(video), video, tmp_path / "photos", 4)
    taken = sorted((tmp_path / "photos").iterdir())
    levels = [np.asarray(Image.open(path))[:6].mean() / 10 for path in taken]
    assert [round(level) for level in levels] == sharp


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ({}, "found 0 videos and no photos"),
        ({"a.heic": b"", "b.heic": b""}, "found 2 photos of kind .heic; convert them"),
        ({"a.jpg": b"no photo"}, "expected a readable image"),
        ({"a.mp4": b""}, "expected a readable video, found: an empty file"),
        ({"a.mp4": b"no video" * 99}, "expected a readable video"),
    ],
)
def test_bad_sources(tmp_path: Path, content: dict[str, bytes] | None, message: str) -> None:
    source = tmp_path / "given"
    if content is not None:
        source.mkdir()
        for name, data in content.items():
            (source / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        process(source, tmp_path / "capture")
    assert not (tmp_path / "capture" / "process" / "photos").exists()


def test_photos_of_nothing_in_common(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        noise = ndimage.zoom(random.integers(0, 256, (20, 20, 3)), (5, 5, 1), order=1).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
    for _ in range(2):  # the second goes on where the first ended
        with pytest.raises(InputError, match="no 3 photos fit together"):
            process(tmp_path / "photos", tmp_path / "capture", threads=1)
    assert not (tmp_path / "capture" / "sparse").exists()
    (tmp_path / "capture" / "process" / "database.db").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"process: cannot go on from there \("):
        process(tmp_path / "photos", tmp_path / "capture", threads=1)


@pytest.mark.parametrize("option", ["frames", "feature_side", "threads"])
def test_options_in_range(tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=f"{option}: found -1"):
        process(tmp_path, **{option: -1})


def test_reduced_copies_round_half_up(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (133, 201)).save(tmp_path / "images" / "a.png")
    mapping.reduce(tmp_path, [2, 4])
    sizes = [Image.open(tmp_path / f"images_{n}" / "a.png").size for n in (2, 4)]
    assert sizes == [(67, 101), (33, 50)]
