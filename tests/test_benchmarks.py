"""The benchmarks' tables say what the papers say, and wrong names get the right ones in return."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from film import write_film

from flexgs_lightning.data import benchmarks
from flexgs_lightning.data.archives import extract_folder
from flexgs_lightning.data.benchmarks import find_benchmark, find_protocol, find_scene, scene_protocol
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.errors import InputError

OUTDOOR = ("bicycle", "flowers", "garden", "stump", "treehill")
INDOOR = ("bonsai", "counter", "kitchen", "room")


def test_mipnerf360_has_nine_scenes_at_the_published_scales() -> None:
    scales = {scene.name: scene.downscale for scene in find_benchmark("mipnerf360").scenes}
    assert scales == dict.fromkeys(OUTDOOR, 4) | dict.fromkeys(INDOOR, 2)


def test_flowers_and_treehill_come_from_the_second_archive() -> None:
    archives = {scene.name: scene.archive.rpartition("/")[2] for scene in find_benchmark("mipnerf360").scenes}
    assert archives.pop("flowers") == archives.pop("treehill") == "360_extra_scenes.zip"
    assert set(archives.values()) == {"360_v2.zip"}


def test_tanks_and_temples_includes_deep_blending() -> None:
    members = {scene.name: scene.member for scene in find_benchmark("tanks_and_temples").scenes}
    assert members == {
        "train": "tandt/train",
        "truck": "tandt/truck",
        "drjohnson": "db/drjohnson",
        "playroom": "db/playroom",
    }


def test_zipnerf_takes_the_undistorted_photos() -> None:
    scenes = find_benchmark("zipnerf").scenes
    assert [scene.name for scene in scenes] == ["alameda", "berlin", "london", "nyc"]
    assert all(f"/zipnerf-undistorted/{scene.name}.zip" in scene.archive for scene in scenes)


def test_both_tanks_and_temples_protocols_can_be_named() -> None:
    native, quarter = scene_protocol("truck"), scene_protocol("truck", "tanks_and_temples_quarter")
    assert (native.downscale, native.background) == (1, "black")
    assert (quarter.downscale, quarter.background) == (4, "white")


@pytest.mark.parametrize("name", sorted(benchmarks.SCENES))
def test_every_scene_has_a_default_protocol_that_holds_out_every_8th_image(name: str) -> None:
    default = scene_protocol(name)
    assert default.protocol.name == default.scene.benchmark
    assert default.test_every == 8
    assert default.downscale == find_scene(name).downscale


def test_scene_names_are_unique_over_benchmarks() -> None:
    assert len(benchmarks.SCENES) == sum(len(b.scenes) for b in benchmarks.BENCHMARKS.values()) == 23


@pytest.mark.parametrize("name", sorted(benchmarks.PROTOCOLS))
def test_protocols_are_for_known_benchmarks(name: str) -> None:
    assert find_protocol(name).benchmark in benchmarks.BENCHMARKS


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(
        InputError,
        match=r"unknown benchmark 'nerf360'.*mipnerf360, .*, neural_3d_video",
    ):
        find_benchmark("nerf360")
    with pytest.raises(InputError, match=r"unknown scene 'gardn'.*garden.*truck.*berlin"):
        find_scene("gardn")
    with pytest.raises(InputError, match=r"unknown protocol 'half'.*tanks_and_temples_quarter"):
        scene_protocol("truck", "half")
    with pytest.raises(InputError, match=r"unknown scene of zipnerf 'truck'.*alameda, berlin, london, nyc"):
        scene_protocol("truck", "zipnerf")


def test_neural_3d_video_is_the_published_protocol() -> None:
    scenes = find_benchmark("neural_3d_video").scenes
    assert len(scenes) == 6
    assert {scene_protocol(scene.name).protocol.frames for scene in scenes} == {300}
    assert {scene.name for scene in scenes if scene.parts} == {"flame_salmon_1"}
    assert find_scene("flame_salmon_1").parts[-1].endswith("/flame_salmon_1_split.z03")


def test_protocols_take_the_beginning_of_longer_films(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(write_film(tmp_path / "flame_steak"))
    short = replace(find_protocol("neural_3d_video"), frames=5)
    monkeypatch.setitem(benchmarks.PROTOCOLS, "neural_3d_video", short)
    data = CaptureDataModule(root, protocol="neural_3d_video")
    data.setup("test")
    assert (len(data.capture.test_views), data.options()["frames"]) == (5, [0, 5])
    assert data.capture.test_views[0].camera.width == 48


def test_split_archives_are_read_across_their_parts(tmp_path: Path) -> None:
    """A zip cut anywhere, entries stating their part and their place in it, as zip -s writes them."""
    contents = {f"scene/{i}.bin": bytes([i]) * 5000 for i in range(4)}
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        directory, offsets = archive.start_dir, [entry.header_offset for entry in archive.infolist()]
    content, cuts = bytearray(whole.read_bytes()), [0, 7000, 12000]
    at = directory
    for offset in offsets:
        part = max(i for i, cut in enumerate(cuts) if cut <= offset)
        content[at + 34 : at + 36] = part.to_bytes(2, "little")
        content[at + 42 : at + 46] = (offset - cuts[part]).to_bytes(4, "little")
        at += 46 + int.from_bytes(content[at + 28 : at + 30], "little")
    end = content.rindex(b"PK\5\6")
    content[end + 4 : end + 8] = (2).to_bytes(2, "little") * 2
    content[end + 16 : end + 20] = (directory - cuts[2]).to_bytes(4, "little")
    paths = [tmp_path / name for name in ("split.z01", "split.z02", "split.zip")]
    for path, begin, stop in zip(paths, cuts, [*cuts[1:], len(content)], strict=True):
        path.write_bytes(content[begin:stop])
    extract_folder(paths[2], "scene", tmp_path / "scene", paths[:2])
    assert {f"scene/{p.name}": p.read_bytes() for p in (tmp_path / "scene").iterdir()} == contents
