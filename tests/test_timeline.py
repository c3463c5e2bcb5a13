"""Times to draw a moving scene at: --time, camera paths with times, and going through time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from film import FRAMES, NAMES, write_film
from moving_model import moving_model
from PIL import Image
from small_scene import around

from flexgs_lightning.cli import main
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy import render_command
from flexgs_lightning.deploy.path_file import read_path, read_timed_path, write_path
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.shots import Shots, shots
from flexgs_lightning.deploy.timeline import Playhead, Span, parse_time
from flexgs_lightning.errors import InputError
from flexgs_lightning.images import to_uint8

# What --time says


@pytest.mark.parametrize(
    ("text", "seconds", "span"),
    [
        ("1", 2.0, Span(0.5, 0.5)),
        ("0:2", 2.0, Span(0, 1)),
        ("2:0.5", 2.0, Span(1, 0.25)),
        (":", 2.0, Span(0, 1)),
        ("1:", 2.0, Span(0.5, 1)),
        (":1.5", 2.0, Span(0, 0.75)),
        ("0.25", None, Span(0.25, 0.25)),
        ("0:1", None, Span(0, 1)),
    ],
)
def test_times_are_read(text: str, seconds: float | None, span: Span) -> None:
    assert parse_time(text, seconds) == span


@pytest.mark.parametrize("text", ["", "soon", "1:2:3", "0:3", "-1", "nan", "2.01", "inf:1"])
def test_times_outside_the_scene_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--time"):
        parse_time(text, 2.0)
    with pytest.raises(InputError, match=r"--time 1.5: expected moments within .0, 1."):
        parse_time("1.5", None)


def test_a_stretch_is_spread_over_frames() -> None:
    assert Span(0, 1).moments(4) == [0, 0.25, 0.5, 0.75]
    assert Span(0.5, 0.5).moments(3) == [0.5] * 3
    assert Span(1, 0).moments(2) == [1, 0.5]


# Going through time


def test_playing_goes_at_its_speed_and_around() -> None:
    head = Playhead(seconds=2.0, frames=60, playing=True)
    head.advance(0.5)
    assert head.time == pytest.approx(0.25)
    head.speed = 2.0
    head.advance(1.0)
    assert head.time == pytest.approx(0.25)
    head.speed = -1.0
    head.advance(1.0)
    assert head.time == pytest.approx(0.75)
    head.loop = False
    head.advance(5.0)
    assert (head.time, head.playing) == (0.0, False)
    head.advance(1.0)
    assert head.time == 0.0, "it stands"


def test_steps_go_from_frame_to_frame() -> None:
    head = Playhead(seconds=2.0, frames=10, time=0.31, playing=True)
    head.step(1)
    assert (head.time, head.playing) == (pytest.approx(0.4), False)
    head.step(-5)
    assert head.time == pytest.approx(0.9), "around"
    head.loop = False
    head.step(1)
    assert head.time == pytest.approx(0.9)


# Camera paths with times


def test_paths_keep_times(tmp_path: Path) -> None:
    cameras = around(3, 40, 30)
    write_path(cameras, tmp_path / "path.json", [0.0, 0.5, 1.0])
    read, times = read_timed_path(tmp_path / "path.json")
    assert times == [0.0, 0.5, 1.0]
    torch.testing.assert_close(read.viewmats, cameras.viewmats)
    flight = shots(tmp_path / "path.json", {}, frames=5)
    assert flight.times == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert flight.timed(Span(0.2, 0.2)).times == [0.2] * 5, "--time wins"
    write_path(cameras, tmp_path / "still.json")
    assert read_timed_path(tmp_path / "still.json")[1] is None
    assert len(read_path(tmp_path / "still.json")) == 3


@pytest.mark.parametrize("wrong", [None, "now", 1.5, -0.1, True])
def test_times_of_a_path_are_checked(tmp_path: Path, wrong: object) -> None:
    path = tmp_path / "path.json"
    write_path(around(2, 40, 30), path, [0.0, 0.5])
    content = json.loads(path.read_text())
    content["frames"][1]["time"] = wrong
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"path.json: frame 1: 'time' must be a number from 0 to 1"):
        read_timed_path(path)


# What is drawn


@pytest.fixture
def film(tmp_path: Path) -> Capture:
    return read_capture(write_film(tmp_path / "film"))


def test_views_have_their_own_times(film: Capture) -> None:
    shown = Shots.of_views(film.test_views).timed(None)
    assert shown.times == pytest.approx([k / FRAMES for k in range(FRAMES)])


def test_a_moment_shows_each_camera_once(film: Capture) -> None:
    shown = Shots.of_views(film.views).timed(Span(0.5, 0.5))
    assert shown.views is not None
    assert [view.name for view in shown.views] == [f"{name}/0006" for name in NAMES]
    assert shown.times == [0.5] * 4


def test_a_stretch_shows_its_views(film: Capture) -> None:
    shown = Shots.of_views(film.test_views).timed(Span(0.25, 0.5))
    assert shown.views is not None
    assert [view.name for view in shown.views] == [f"cam03/{k:04d}" for k in (3, 4, 5, 6)]
    with pytest.raises(InputError, match=r"--time: no view was taken between"):
        Shots.of_views(film.test_views).timed(Span(0.26, 0.27))


def test_paths_do_not_stop_at_every_frame_of_a_camera(film: Capture, tmp_path: Path) -> None:
    """A flight through the training cameras has one stop for each, and an orbit is that of the cameras."""
    data = {"root": str(tmp_path / "film")}
    flight = shots("train", data, frames=3)
    centres = torch.cat([view.camera.positions for view in film.train_views[::FRAMES]])
    torch.testing.assert_close(flight.cameras[0].positions, centres, atol=1e-4, rtol=1e-4)
    assert len(shots("orbit", data, None, 7)) == 7


def test_paths_have_the_near_plane_of_the_scene(film: Capture, tmp_path: Path) -> None:
    """Camera path files too, which know nothing of it."""
    data = {"root": str(tmp_path / "film"), "near_plane": 0.7}
    write_path(film.views[0].camera, tmp_path / "path.json")
    for path, frames in (("test", None), ("train", 3), ("orbit", 2), (tmp_path / "path.json", None)):
        assert {camera.near_plane for camera in shots(path, data, frames).cameras} == {0.7}, path


# The command


def rendered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> list[np.ndarray]:
    model = moving_model()
    data = {"root": str(tmp_path / "film")}
    monkeypatch.setattr(render_command, "open_model", lambda ckpt, ply: replace(model, data=data))
    output = tmp_path / "out"
    assert main(["render", "--ckpt", "x.ckpt", "--output", str(output), *options]) == 0
    return [np.asarray(Image.open(path)) for path in sorted(output.glob("*.png"))]


def test_views_are_drawn_at_their_times(
    film: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, model = rendered(monkeypatch, tmp_path), moving_model()
    assert len(frames) == FRAMES
    for k in (0, 5, 11):
        expected = draw(model.splats(k / FRAMES), film.test_views[k].camera)
        np.testing.assert_array_equal(frames[k], to_uint8(expected))
    assert any((frame != frames[0]).any() for frame in frames[1:])


def test_bullet_time_and_films(film: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = rendered(monkeypatch, tmp_path, "--path", "orbit", "--frames", "4", "--time", "1")
    cameras = shots("orbit", {"root": str(tmp_path / "film")}, 4).cameras[0]
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, to_uint8(draw(moving_model().splats(0.5), cameras[i])))
    film_of = rendered(
        monkeypatch, tmp_path, "--path", "orbit", "--time", "0:1", "--fps", "6", "--overwrite", "true"
    )
    assert len(film_of) == 6, "a second of six frames"


def test_a_scene_that_stands_still_has_no_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from small_scene import ball

    from flexgs_lightning.model.checkpoint import Model

    write_film(tmp_path / "film")
    monkeypatch.setattr(render_command, "open_model", lambda ckpt, ply: Model.of_splats(ball(), "rock"))
    assert main(["render", "--ckpt", "x", "--output", str(tmp_path / "out"), "--time", "1"]) == 1
    assert "--time 1: rock does not move, expected none" in capsys.readouterr().err
