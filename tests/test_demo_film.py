"""The demo film reads back as what it claims to be: cameras in step, points of moments, things that move."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from flexgs_lightning.cli import main
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.demo.command import FLIGHT
from flexgs_lightning.demo.film import POINTS_EVERY, arc, write_demo_film
from flexgs_lightning.demo.garden import GRAVITY, TOSS, playing_garden
from flexgs_lightning.demo.photography import FixedCamera, photograph
from flexgs_lightning.demo.ray_tracer import Solid, World
from flexgs_lightning.errors import InputError
from flexgs_lightning.settings import find_config, read_config

FRAMES, CAMERAS, WIDTH, HEIGHT = 12, 5, 96, 54
FPS = 30.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "film"
    write_demo_film(folder, frames=FRAMES, cameras=CAMERAS, width=WIDTH, height=HEIGHT, points_per_view=80)
    return folder


Garden = tuple[World, Callable[[float], list[Solid]]]


@pytest.fixture(scope="module")
def garden() -> Garden:
    return playing_garden(0)


def test_it_is_an_ordinary_filmed_capture(root: Path) -> None:
    capture = read_capture(root)
    assert capture.seconds == pytest.approx(FRAMES / FPS)
    assert len(capture.views) == FRAMES * CAMERAS
    assert {view.filmed_by for view in capture.test_views} == {"cam00"}
    assert len(capture.test_views) == FRAMES
    points = capture.points
    assert points.times is not None
    assert sorted(set(points.times.tolist())) == pytest.approx([0.0, POINTS_EVERY / FRAMES])
    for view in capture.test_views[:1]:  # places and colours are those of the pictures
        camera, now = view.camera, points.times == 0
        seen = points.positions[now] @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
        x, y, z = (seen @ camera.Ks[0].T).T
        inside = (z > 0) & (x / z > 1) & (x / z < WIDTH - 1) & (y / z > 1) & (y / z < HEIGHT - 1)
        assert inside.float().mean() > 0.5
        photo = torch.from_numpy(view.source.read()).float()
        pixels = photo[(y / z)[inside].int(), (x / z)[inside].int()]
        off = (pixels - points.colors[now][inside].float()).abs().mean(dim=1)
        assert off.median() < 25


def test_what_stays_is_traced_once_and_nobody_can_tell(garden: Garden) -> None:
    """The same bits as a picture of the whole, shadows, reflections and depth included."""
    still, moving = garden
    camera = arc(CAMERAS, WIDTH, HEIGHT)["cam01"]
    filming = FixedCamera(camera, still)
    for seconds in (0.0, 0.4, 7.0):
        found = filming.photograph(moving(seconds))
        whole = replace(still, solids=[*still.solids, *moving(seconds)])
        expected = photograph(whole, camera)
        assert np.array_equal(found.image, expected.image)
        assert np.array_equal(found.depth, expected.depth)
        assert not np.array_equal(found.image, photograph(still, camera).image)


def test_the_held_out_camera_stands_among_the_others(root: Path) -> None:
    table = json.loads((root / "cameras.json").read_text())
    poses = [np.array(camera["w2c"]) for camera in table["cameras"]]
    places = np.array([-pose[:, :3].T @ pose[:, 3] for pose in poses])
    angles = np.arctan2(places[:, 2], places[:, 0])
    assert sorted(angles)[CAMERAS // 2] == pytest.approx(angles[0])


def test_some_of_the_picture_moves_and_most_of_it_does_not(root: Path) -> None:
    frames = [np.asarray(Image.open(path)) for path in sorted((root / "frames" / "cam00").iterdir())]
    assert len(frames) == FRAMES
    for before, after in zip(frames, frames[3:], strict=False):
        changed = np.abs(before.astype(int) - after.astype(int)).max(axis=2) > 12
        assert 0.002 < changed.mean() < 0.2


def test_the_ball_falls_as_things_do_and_the_train_stays_on_the_table(garden: Garden) -> None:
    _, moving = garden
    step = TOSS / 10
    heights = [moving(TOSS + k * step)[0].frame.center[2] for k in range(1, 10)]
    np.testing.assert_allclose(np.diff(heights, 2) / step**2, -GRAVITY, rtol=1e-6)
    near, far = moving(0.0)[0].frame.center, moving(TOSS)[0].frame.center
    assert np.linalg.norm(near - far) > 2
    np.testing.assert_allclose(moving(2 * TOSS)[0].frame.center, near, atol=1e-9)
    for seconds in (0.0, 3.3, 7.1):
        for wagon in moving(seconds)[1:]:
            assert np.hypot(*wagon.frame.center[:2]) + 0.04 < 0.86


def test_the_demo_trains_on_it_and_shows_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    settings = read_config(find_config("demo_moving"))
    settings["model"] |= {"reconstruction_steps": 4, "elastic_training": {"steps": 2}, "sh_degree": 0}
    settings["trainer"] = {"accelerator": "cpu", "val_check_interval": 2, "enable_progress_bar": False}
    config.write_text(json.dumps(settings))
    options = ["--config", str(config), "--root", str(root), "--runs", str(tmp_path / "runs")]
    assert main(["demo", "--moving", "true", *options]) == 0
    folder = tmp_path / "runs" / "film" / "version_0"
    for name, frames in (("held_out.mp4", FRAMES), ("frozen.mp4", FLIGHT)):
        assert imageio_ffmpeg.count_frames_and_secs(str(folder / name))[0] == frames
    text = capsys.readouterr().out
    assert "held-out film" in text
    assert "100 %" in text


def test_bad_options_leave_nothing(tmp_path: Path) -> None:
    for options in ({"cameras": 3}, {"frames": 0}, {"width": 8}, {"fps": 0.0}):
        with pytest.raises(InputError, match="demo film: expected at least 4 cameras"):
            write_demo_film(tmp_path / "film", **options)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        write_demo_film(tmp_path)
