"""The benchmarks' tables say what the papers say, and wrong names get the right ones in return."""

import pytest

from flexgs_lightning.data import benchmarks
from flexgs_lightning.data.benchmarks import find_benchmark, find_protocol, find_scene, scene_protocol
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
    assert len(benchmarks.SCENES) == sum(len(b.scenes) for b in benchmarks.BENCHMARKS.values()) == 17


@pytest.mark.parametrize("name", sorted(benchmarks.PROTOCOLS))
def test_protocols_are_for_known_benchmarks(name: str) -> None:
    assert find_protocol(name).benchmark in benchmarks.BENCHMARKS


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"unknown benchmark 'nerf360'.*mipnerf360, tanks_and_temples, zipnerf"
    ):
        find_benchmark("nerf360")
    with pytest.raises(InputError, match=r"unknown scene 'gardn'.*garden.*truck.*berlin"):
        find_scene("gardn")
    with pytest.raises(InputError, match=r"unknown protocol 'half'.*tanks_and_temples_quarter"):
        scene_protocol("truck", "half")
    with pytest.raises(InputError, match=r"unknown scene of zipnerf 'truck'.*alameda, berlin, london, nyc"):
        scene_protocol("truck", "zipnerf")
