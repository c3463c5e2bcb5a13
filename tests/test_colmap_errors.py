"""Each kind of bad capture gives one message that names the file, what was found and what was expected."""

from __future__ import annotations

import contextlib
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from colmap_folder import Folder, write_capture
from PIL import Image

from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_capture(tmp_path)


def refusal(root: Path, **options: object) -> str:
    """The message with which a capture is refused: a single line."""
    with pytest.raises(InputError) as caught:
        read_colmap(root, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "nowhere" in message
    assert "no such folder" in message


def test_empty_folder(tmp_path: Path) -> None:
    assert "empty" in refusal(tmp_path)


def test_no_sparse_model(folder: Folder) -> None:
    shutil.rmtree(folder.root / "sparse")
    message = refusal(folder.root)
    assert "no COLMAP model" in message
    assert "sparse/0" in message


def test_incomplete_model(folder: Folder) -> None:
    (folder.sparse / "points3D.bin").unlink()
    assert "points3D.bin" in refusal(folder.root)


def test_no_photo_folder(folder: Folder) -> None:
    shutil.rmtree(folder.root / "images")
    message = refusal(folder.root)
    assert message.startswith(str(folder.root / "images"))


BINARIES = ["cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"]


@pytest.mark.parametrize("name", BINARIES)
@pytest.mark.parametrize("cut", ["empty", "half", "last 3 bytes"])
def test_truncated_binary(folder: Folder, name: str, cut: str) -> None:
    data = (folder.sparse / name).read_bytes()
    keep = {"empty": 0, "half": len(data) // 2, "last 3 bytes": len(data) - 3}[cut]
    (folder.sparse / name).write_bytes(data[:keep])
    message = refusal(folder.root)
    assert str(folder.sparse / name) in message
    assert f"{keep} bytes" in message


@pytest.mark.parametrize("name", BINARIES)
def test_binary_with_more_than_its_records(folder: Folder, name: str) -> None:
    path = folder.sparse / name
    path.write_bytes(path.read_bytes() + b"more")
    assert name in refusal(folder.root)


@pytest.mark.parametrize("name", BINARIES)
def test_count_beyond_the_file_allocates_nothing(folder: Folder, name: str) -> None:
    path = folder.sparse / name
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    message = refusal(folder.root)
    assert name in message
    assert str(2**60) in message


@pytest.mark.parametrize("name", BINARIES)
def test_damage_is_refused_or_hits_only_numbers(folder: Folder, name: str) -> None:
    """Neither a shortened file nor a flipped byte crashes the process or gives another exception."""
    path = folder.sparse / name
    data = path.read_bytes()
    for keep in range(0, len(data), 7):
        path.write_bytes(data[:keep])
        assert name in refusal(folder.root)
    random = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert len(read_colmap(folder.root).views) >= 3


def test_unknown_camera_model_in_binary(folder: Folder) -> None:
    path = folder.sparse / "cameras.bin"
    data = bytearray(path.read_bytes())
    data[12:16] = struct.pack("<i", 77)
    path.write_bytes(data)
    message = refusal(folder.root)
    assert "cameras.bin" in message
    assert "77" in message
    assert "PINHOLE" in message


def test_unknown_camera_model_in_text(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, binary=False)
    edit(folder.sparse / "cameras.txt", lambda text: text.replace("PINHOLE", "PERISCOPE"))
    message = refusal(folder.root)
    assert "cameras.txt, line" in message
    assert "'PERISCOPE'" in message


def test_wrong_number_of_camera_parameters_in_text(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, binary=False)
    edit(folder.sparse / "cameras.txt", lambda text: text.rstrip().rsplit(" ", 1)[0] + "\n")
    message = refusal(folder.root)
    assert "found 3 parameters, expected 4" in message


@pytest.mark.parametrize("name", ["images.txt", "points3D.txt"])
def test_truncated_text(tmp_path: Path, name: str) -> None:
    folder = write_capture(tmp_path, binary=False)
    edit(folder.sparse / name, lambda text: "".join(text.splitlines(keepends=True)[:-2]))
    assert name in refusal(folder.root)


def test_text_that_is_binary(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, binary=False)
    (folder.sparse / "cameras.txt").write_bytes(bytes(range(128, 256)))
    assert "cameras.txt" in refusal(folder.root)


def test_photo_missing_on_disk(folder: Folder) -> None:
    folder.image("photo_02.png").unlink()
    message = refusal(folder.root)
    assert str(folder.image("photo_02.png")) in message
    assert "sparse model" in message


def test_photo_missing_in_the_reduced_folder(folder: Folder) -> None:
    (folder.root / "images_2").mkdir()
    assert str(folder.root / "images_2" / "photo_00.png") in refusal(folder.root, downscale=2)


def test_ambiguous_reduced_photo(folder: Folder) -> None:
    (folder.root / "images_2").mkdir()
    for suffix in ("jpg", "tif"):
        Image.new("RGB", (80, 60)).save(folder.root / "images_2" / f"photo_00.{suffix}")
    message = refusal(folder.root, downscale=2)
    assert "photo_00.jpg, photo_00.tif" in message


def test_photo_of_zero_bytes(folder: Folder) -> None:
    folder.image("photo_01.png").write_bytes(b"")
    message = refusal(folder.root)
    assert "photo_01.png" in message
    assert "empty file" in message


def test_photo_that_is_no_image(folder: Folder) -> None:
    folder.image("photo_01.png").write_bytes(b"<html>404 not found</html>")
    assert "photo_01.png" in refusal(folder.root)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_truncated_photo(folder: Folder, format: str) -> None:
    """A header may survive; then reading the pixels gives the message."""
    path = folder.image("photo_01.png")
    noise = np.random.default_rng(0).integers(0, 256, (121, 161, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"photo_01\.png") as caught:
        read_colmap(folder.root).views[1].source.read()
    assert "\n" not in str(caught.value)


def test_photo_replaced_after_the_check(folder: Folder) -> None:
    source = read_colmap(folder.root).views[1].source
    Image.new("RGB", (40, 40)).save(folder.image("photo_01.png"))
    with pytest.raises(InputError, match=r"photo_01\.png: found 40x40 pixels, expected 161x121"):
        source.read()


def test_photo_of_undefined_brightness(folder: Folder) -> None:
    Image.fromarray(np.zeros((121, 161), np.float32)).save(folder.image("photo_01.png"), format="TIFF")
    message = refusal(folder.root)
    assert "photo_01.png" in message
    assert "type F" in message


def test_photo_of_another_shape_than_its_camera(folder: Folder) -> None:
    Image.new("RGB", (121, 161)).save(folder.image("photo_03.png"))
    message = refusal(folder.root)
    assert "photo_03.png: found 121x161" in message
    assert "161x121" in message


def test_photo_too_small_to_reduce(folder: Folder) -> None:
    Image.new("RGB", (5, 4)).save(folder.image("photo_03.png"))
    message = refusal(folder.root, downscale=8)
    assert "photo_03.png: found 5x4 pixels, too few to reduce by 8" in message


@pytest.mark.parametrize("size", [(80, 60), (81, 61), (80, 61), (322, 242), (20, 15)])
def test_rounded_sizes_are_the_same_shape(folder: Folder, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(folder.image("photo_03.png"))
    camera = read_colmap(folder.root).views[3].camera
    assert (camera.width, camera.height) == size


def test_mask_of_another_shape(folder: Folder) -> None:
    (folder.root / "masks").mkdir()
    Image.new("L", (50, 50)).save(folder.root / "masks" / "photo_00.png")
    assert str(folder.root / "masks" / "photo_00.png") in refusal(folder.root)


def test_fewer_than_three_images(tmp_path: Path) -> None:
    write_capture(tmp_path, count=2)
    assert "found 2 registered images, expected at least 3" in refusal(tmp_path)


def test_no_points_is_a_capture_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_capture(tmp_path, points=False)
    with caplog.at_level(logging.WARNING, logger="flexgs_lightning"):
        capture = read_colmap(tmp_path)
    assert capture.points.positions.shape == (0, 3)
    assert "no points" in caplog.text


def test_nan_in_points(folder: Folder) -> None:
    path = folder.sparse / "points3D.bin"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack("<d", float("nan"))
    path.write_bytes(data)
    message = refusal(folder.root)
    assert "points3D" in message
    assert "1 of 9 points" in message


def test_nan_in_a_pose(folder: Folder) -> None:
    path = folder.sparse / "frames.bin"
    data = bytearray(path.read_bytes())
    data[48:56] = struct.pack("<d", float("nan"))  # the first translation
    path.write_bytes(data)
    assert "finite" in refusal(folder.root)


def test_negative_focal_length(folder: Folder) -> None:
    path = folder.sparse / "cameras.bin"
    data = bytearray(path.read_bytes())
    data[32:40] = struct.pack("<d", -100.0)
    path.write_bytes(data)
    assert "positive focal length" in refusal(folder.root)


def test_panorama(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, binary=False)
    edit(
        folder.sparse / "cameras.txt",
        lambda text: text.split("1 PINHOLE")[0] + "1 EQUIRECTANGULAR 161 121 161 121\n",
    )
    assert "EQUIRECTANGULAR" in refusal(folder.root)


@pytest.mark.parametrize(
    ("options", "named"), [({"downscale": 0}, "downscale"), ({"test_every": 1}, "test_every")]
)
def test_options_out_of_range(folder: Folder, options: dict[str, int], named: str) -> None:
    assert refusal(folder.root, **options).startswith(f"{named}: found {options[named]}")


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))
