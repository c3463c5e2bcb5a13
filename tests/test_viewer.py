"""The viewer without a browser: sizes, cache, resolution, cameras, pictures, and the command."""

import math
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import eventually
from film import write_film
from moving_model import moving_model
from scipy.spatial.transform import Rotation
from small_scene import around, ball
from viewer_scene import Prefixes, big_ball

from flexgs_lightning.cli import main
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.formats.ply import ply_bytes, write_ply
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.vantage import vantage_of_capture, vantage_of_splats
from flexgs_lightning.deploy.viewer.canvas import (
    BrowserCamera,
    compose,
    depth_picture,
    framing_fov,
    reduced,
    tiles,
)
from flexgs_lightning.deploy.viewer.motion_picture import with_motion_lit
from flexgs_lightning.deploy.viewer.session import Stage
from flexgs_lightning.deploy.viewer.state import AutomaticCount, Detail, RatioScale, SplatsCache, megabytes
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame

# The slider.


@pytest.mark.parametrize(("position", "ratio"), [(0, 0.001), (1 / 3, 0.01), (2 / 3, 0.1), (1, 1.0), (2, 1.0)])
def test_slider_is_logarithmic(position: float, ratio: float) -> None:
    assert RatioScale(100_000).ratio(position) == pytest.approx(ratio)


def test_slider_positions_and_ratios_are_inverse() -> None:
    scale = RatioScale(5_000)
    for position in np.linspace(0, 1, 41):
        assert scale.position(scale.ratio(position)) == pytest.approx(position, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 300, 999, 1_000, 1_001, 123_457])
def test_slider_never_asks_for_less_than_one_gaussian(total: int) -> None:
    scale = RatioScale(total)
    counts = [scale.count(scale.ratio(position)) for position in np.linspace(0, 1, 101)]
    assert counts[0] == max(1, total // 1_000)
    assert counts[-1] == total
    assert counts == sorted(counts)
    assert scale.position(1.0) == 1.0


@pytest.mark.parametrize("percent", [0.1, 0.29, 1.0, 7.3, 29.0, 57.0, 99.99, 100.0])
def test_count_is_the_floor(percent: float) -> None:
    thousandths = round(percent * 100)
    assert RatioScale(5_432).count(percent / 100) == 5_432 * thousandths // 10_000


def test_typed_ratios_beyond_the_ends_are_the_ends() -> None:
    scale = RatioScale(5_000)
    assert [scale.count(ratio) for ratio in (-1.0, 0.0, 1e-9, 1.5)] == [5, 5, 5, 5_000]


def test_empty_scene_is_refused() -> None:
    with pytest.raises(InputError, match="holds no Gaussians"):
        RatioScale(0)


# Splats at hand.


def test_a_trained_model_gives_exactly_the_count() -> None:
    units = dict.fromkeys(residual_columns(), 1.0)
    gaussians, frame = Gaussians.from_splats(ball()), SceneFrame(torch.zeros(3), 1.0)
    model = Model(elastic_scene(gaussians, frame, ElasticOptions(), units), 1, False, torch.zeros(3), {}, 10)
    cache = SplatsCache(model, "cpu")
    assert [len(cache.at(count)) for count in (1, 4, 29, 133, 399, 400)] == [1, 4, 29, 133, 399, 400]
    assert cache.at(29).sh_degree == 1


def test_cache_holds_exactly_the_prefix_and_asks_once() -> None:
    model = Prefixes(ball())
    cache = SplatsCache(model, "cpu")
    for _ in range(2):
        for count in (1, 7, 29, 133):
            torch.testing.assert_close(cache.at(count).means, model.splats.means[:count], rtol=0, atol=0)
    assert len(model.asked) == 4


def test_every_count_is_reached() -> None:
    cache = SplatsCache(Prefixes(ball()), "cpu")
    assert [len(cache.at(count)) for count in range(1, 401)] == list(range(1, 401))


def test_cache_forgets_the_size_that_was_not_used_for_longest() -> None:
    model = Prefixes(ball())
    cache = SplatsCache(model, "cpu", entries=2)
    for count in (10, 20, 10, 30, 10, 20):
        cache.at(count)
    assert [round(ratio * 400) for ratio in model.asked] == [10, 20, 30, 20]


def test_cache_is_bounded_in_gaussians() -> None:
    model = Prefixes(ball())
    cache = SplatsCache(model, "cpu", entries=100)
    for count in (400, 300, 350, 350, 400):
        cache.at(count)
    assert [round(ratio * 400) for ratio in model.asked] == [400, 300, 350, 400]


def test_megabytes_are_those_of_the_exported_file(tmp_path: Path) -> None:
    for splats in (ball()[:123], big_ball(77)):
        write_ply(splats, tmp_path / "scene.ply")
        assert megabytes(splats) == (tmp_path / "scene.ply").stat().st_size / 1e6
        assert megabytes(splats) == ply_bytes(len(splats), splats.sh_degree) / 1e6


def test_one_size_has_one_size() -> None:
    scene = Model.of_splats(ball(), "ball")
    assert (len(scene), scene.elastic, len(scene.at(1.0))) == (400, False, 400)
    with pytest.raises(InputError, match=r"expected 1, found 0\.5: the scene is not an elastic model"):
        scene.at(0.5)


# Resolution.


@pytest.mark.parametrize(("each", "fixed"), [(1e-6, 0.0), (1e-7, 0.005), (1e-5, 0.01)])
def test_automatic_size_holds_the_time_of_a_frame(each: float, fixed: float) -> None:
    goal, total = 0.03, 1_000_000
    automatic, count = AutomaticCount(goal, total), 500_000
    for _ in range(60):
        count = automatic.next(count, fixed + each * count)
    best = min((goal - fixed) / each, total)
    assert 0.6 * best <= count <= 1.2 * best
    assert automatic.next(count, fixed + each * count) == count  # it rests


def test_depth_is_brighter_where_it_is_nearer() -> None:
    depth = torch.linspace(1, 9, 100).reshape(10, 10, 1)
    alpha = torch.ones(10, 10, 1)
    alpha[0, 0] = 0
    picture = depth_picture(depth, alpha)
    assert picture.shape == (10, 10, 3)
    assert (picture[0, 0] == 0).all()
    brightness = picture.sum(dim=-1).flatten()[4:-4]
    assert (brightness.diff() <= 1e-6).all()
    assert (depth_picture(depth, torch.zeros(10, 10, 1)) == 0).all()


def test_a_quick_machine_draws_at_full_resolution_while_moving() -> None:
    detail = Detail(target=0.05)
    assert detail.moving == 8  # nothing is known yet
    detail.drawn(8, 0.0005)
    assert detail.moving == 1


def test_a_slow_machine_draws_coarsely_and_never_too_slowly_for_long() -> None:
    detail, per_pixel = Detail(target=0.05), 0.5  # seconds at full resolution
    for _ in range(5):
        divisor = detail.moving
        detail.drawn(divisor, 0.004 + per_pixel / divisor**2)
    assert 0.004 + per_pixel / detail.moving**2 <= 0.05
    detail.drawn(1, 100.0)
    assert detail.moving == 8


@pytest.mark.gpu
def test_stage_draws_the_same_on_the_gpu() -> None:
    model, camera = Prefixes(big_ball()), around(1, 200, 150)
    vantage, devices = vantage_of_splats(ball()), ("cuda", "cpu")
    stages = [Stage(model, (), vantage, SplatsCache(model, device), len(model)) for device in devices]
    images = [stage.draw(500, camera) for stage in stages]
    assert images[0].device.type == "cpu"
    assert (images[0] - images[1]).abs().mean() < 1e-4


# Cameras and pictures.


def test_browser_camera_is_the_packages_camera() -> None:
    for camera in around(5, 90, 70):
        rotation = Rotation.from_matrix(camera.viewmats[0, :3, :3].T.numpy()).as_quat()
        browser = BrowserCamera(
            wxyz=tuple(np.roll(rotation, 1)),
            position=tuple(camera.positions[0].tolist()),
            fov=2 * math.atan(35 / 90),
            width=90,
            height=70,
        )
        found = browser.cameras()
        torch.testing.assert_close(found.viewmats, camera.viewmats, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.Ks, camera.Ks, rtol=0, atol=1e-4)
        torch.testing.assert_close(draw(ball(), found), draw(ball(), camera), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("moved", "turned", "near"), [(0, 0, True), (0.01, 0, False), (0, 0.5, False)])
def test_leaving_a_view_is_noticed(moved: float, turned: float, near: bool) -> None:
    rotation = np.roll(Rotation.from_euler("y", turned, degrees=True).as_quat(), 1)
    camera = BrowserCamera(tuple(rotation), (moved, 0, 0), 1.0, 64, 48)
    assert camera.near(np.zeros(3), np.array([0, 0, 1.0]), unit=2.0) == near


def test_reduced_sees_the_same() -> None:
    camera = around(1, 91, 67)[0]
    small = reduced(camera, 4)
    assert (small.width, small.height) == (23, 17)
    torch.testing.assert_close(small.Ks[0, 0] / 23, camera.Ks[0, 0] / 91)
    assert reduced(camera, 1) is camera
    assert reduced(around(1, 3, 2)[0], 8).width == 1


@pytest.mark.parametrize(("aspect", "fov"), [(2.0, 2 * math.atan(0.375)), (1.0, 2 * math.atan(0.5))])
def test_framing_contains_the_photo(aspect: float, fov: float) -> None:
    assert framing_fov(around(1, 400, 300)[0], aspect) == pytest.approx(fov)


@pytest.mark.parametrize(
    ("canvas", "picture", "row"), [((960, 800), (270, 480), True), ((960, 800), (480, 270), False)]
)
def test_two_pictures_lie_as_large_as_possible_beside_each_other(
    canvas: tuple[int, int], picture: tuple[int, int], row: bool
) -> None:
    ((x0, y0), size), ((x1, y1), other) = tiles(canvas, picture, 2)
    assert size == other
    assert size[0] / size[1] == pytest.approx(picture[0] / picture[1], rel=0.01)
    assert (x1 - x0 > size[0] and y0 == y1) if row else (y1 - y0 > size[1] and x0 == x1)
    assert min(x0, y0) >= 8
    assert max(x1 + size[0] - canvas[0], y1 + size[1] - canvas[1]) <= -8
    assert min(x0, y0) <= 9  # as large as that allows


def test_composition_shows_both_pictures() -> None:
    red, blue = np.full((30, 40, 3), (200, 0, 0), np.uint8), np.full((60, 80, 3), (0, 0, 200), np.uint8)
    sheet = compose((400, 150), [red, blue], (80, 60))
    assert sheet.shape == (150, 400, 3)
    (first, size), (second, _) = tiles((400, 150), (80, 60), 2)
    for colour, (x, y) in ((red[0, 0], first), (blue[0, 0], second)):
        assert (sheet[y : y + size[1], x : x + size[0]] == colour).all()
    assert compose((3, 2), [red], (40, 30)).shape == (2, 3, 3)  # a canvas smaller than its margins


# Where to stand.


def test_vantage_of_a_capture_is_its_first_test_view(small_capture: Path) -> None:
    capture = read_colmap(small_capture)
    vantage = vantage_of_capture(capture)
    assert vantage.camera is capture.test_views[0].camera
    ahead = vantage.turning_point(vantage.camera) - vantage.camera.positions[0]
    torch.testing.assert_close(ahead / ahead.norm(), vantage.camera.viewmats[0, 2, :3], rtol=0, atol=1e-5)
    assert (vantage.up @ -vantage.camera.viewmats[0, 1, :3]).item() > 0.8
    orbit = vantage_of_capture(read_colmap(small_capture, test_every=0))
    assert orbit.camera.viewmats.shape == (1, 4, 4)


def test_vantage_without_a_capture_sees_the_scene() -> None:
    splats = ball()
    vantage = vantage_of_splats(splats)
    alpha = draw(splats, reduced(vantage.camera, 8), background=None)
    assert (alpha.sum(dim=-1) > 0.05).float().mean() > 0.05
    middle = alpha[30:60, 60:100].sum(dim=-1)
    assert (middle > 0.05).float().mean() > 0.5


# The command.


def test_no_such_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "--ckpt", str(tmp_path / "none.ckpt")]) == 1
    assert capsys.readouterr().err.endswith("none.ckpt: no such checkpoint.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected either --ckpt or --ply, found neither"),
        ({"port": "99999"}, "--port 99999: expected 0 to 65535"),
        ({"host": "192.0.2.1"}, "--host 192.0.2.1 --port 8080: cannot listen there"),
        ({"data_root": "nowhere"}, "nowhere"),
    ],
)
def test_view_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], message: str
) -> None:
    write_ply(ball(), tmp_path / "scene.ply")
    arguments = [f"--{name}={value}" for name, value in options.items()]
    if options:
        arguments.append(f"--ply={tmp_path / 'scene.ply'}")
    assert main(["view", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_port_in_use_is_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ply(ball(), tmp_path / "scene.ply")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["view", "--ply", str(tmp_path / "scene.ply"), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"flexgs: error: --port {port}: in use by another program")
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_command_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    write_ply(ball(), tmp_path / "scene.ply")
    command = [sys.executable, "-m", "flexgs_lightning.cli", "view", "--port", "0"]
    command += ["--device", "cpu", "--ply", str(tmp_path / "scene.ply")]
    with (tmp_path / "log").open("w") as log:
        # Where tests run in the background, Ctrl-C is ignored, and a child inherits that.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=heed)
        try:
            eventually(lambda: "Ctrl-C ends" in (tmp_path / "log").read_text() or process.poll(), 120)
            process.send_signal(number)
            assert process.wait(timeout=30) == 128 + number
        finally:
            process.kill()
    lines = (tmp_path / "log").read_text().splitlines()
    assert "scene: 400 Gaussians at http://127.0.0.1:" in lines[-2]
    assert lines[-1].startswith(f"flexgs: stopped by {number.name}. A viewer keeps nothing")


# Scenes that move.


def moving_stage() -> Stage:
    model = moving_model()
    vantage = vantage_of_splats(model.splats(0.0))
    return Stage(model, (), vantage, SplatsCache(model, "cpu"), len(model), frames=12)


def test_a_moving_scene_is_drawn_at_its_time() -> None:
    stage, model = moving_stage(), moving_model()
    for moment in (0.0, 0.4):
        found = stage.draw(60, reduced(stage.vantage.camera, 16), time=moment)
        torch.testing.assert_close(found, draw(model.splats(moment), reduced(stage.vantage.camera, 16)))
    head = stage.playhead()
    assert (head.seconds, head.frames, head.time, head.playing) == (2.0, 12, 0.0, False)


def test_the_near_plane_of_training_holds_in_the_viewer() -> None:
    """Wherever its camera stands: half of the scene's Gaussians are nearer here."""
    stage = moving_stage()
    camera = reduced(stage.vantage.camera, 16)
    splats = stage.model.splats(0.0)
    depths = splats.means @ camera.viewmats[0, 2, :3] + camera.viewmats[0, 2, 3]
    near = depths.median().item() + 1e-4
    stage = replace(stage, model=replace(stage.model, data={"near_plane": near}))
    found = stage.draw(60, camera, time=0.0)
    torch.testing.assert_close(found, draw(splats[depths >= near], camera))
    assert not torch.allclose(found, draw(splats, camera))


def test_what_moves_is_lit() -> None:
    """Of two halves of a ball one stands still; the other shines, the more the faster it is."""
    model = moving_model()
    with torch.no_grad():
        model.scene.gaussians.params["motion"].zero_()
        model.scene.gaussians.params["motion"][30:, 0, 0] = 2.0
        model.scene.gaussians.params["time_scales"].fill_(5.0)
    slow, fast = (with_motion_lit(model, 60, 0.3, unit).sh[:, 0].mean(dim=1) for unit in (4.0, 1.0))
    assert slow[:30].max() < slow[30:].min()
    assert torch.equal(slow[:30], fast[:30])
    assert (slow[30:] < fast[30:]).all()


def test_the_photo_beside_the_picture_is_of_the_moment(tmp_path: Path) -> None:
    capture = read_capture(write_film(tmp_path))
    stage = replace(moving_stage(), views=capture.test_views)
    assert [view.name for view in stage.stops] == ["cam03/0000"]
    assert stage.view_at(stage.stops[0], 0.5).name == "cam03/0006"
