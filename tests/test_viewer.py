"""The viewer: its state without a browser, the command, and the page in headless Chromium."""

import io
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Page, browse, chromium, eventually
from PIL import Image
from scipy.spatial.transform import Rotation
from small_scene import around, ball, pixels

from flexgs_lightning.cli import main
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.ply import ply_bytes, write_ply
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.scene import OneSize, Scene, grey
from flexgs_lightning.deploy.vantage import vantage_of_capture, vantage_of_splats
from flexgs_lightning.deploy.view_canvas import BrowserCamera, compose, framing_fov, reduced, tiles
from flexgs_lightning.deploy.view_state import Detail, RatioScale, SplatsCache, megabytes
from flexgs_lightning.deploy.viewer import Viewer
from flexgs_lightning.errors import InputError
from flexgs_lightning.images import to_uint8
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.splats import Splats


@dataclass
class Prefixes:
    """A model whose every ratio is a prefix; it notes what it was asked for."""

    splats: Splats
    asked: list[float] = field(default_factory=list)
    elastic = True

    def __len__(self) -> int:
        return len(self.splats)

    def at(self, ratio: float) -> Splats:
        self.asked.append(ratio)
        return self.splats[: count_at(ratio, len(self))]


def big_ball(count: int = 5_000) -> Splats:
    """Coloured Gaussians near the origin."""
    g = torch.Generator().manual_seed(1)
    return Splats(
        means=torch.randn(count, 3, generator=g) * 0.6,
        quats=torch.randn(count, 4, generator=g),
        scales=torch.full((count, 3), 0.05),
        opacities=torch.full((count,), 0.7),
        sh=torch.randn(count, 1, 3, generator=g),
    )


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
    scene = OneSize(ball())
    assert (len(scene), scene.elastic, len(scene.at(1.0))) == (400, False, 400)
    with pytest.raises(InputError, match=r"expected 1, found 0\.5: the scene is not an elastic model"):
        scene.at(0.5)


# Resolution.


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


def test_ctrl_c_ends_the_command_cleanly(tmp_path: Path) -> None:
    write_ply(ball(), tmp_path / "scene.ply")
    command = [sys.executable, "-m", "flexgs_lightning.cli", "view", "--port", "0"]
    command += ["--device", "cpu", "--ply", str(tmp_path / "scene.ply")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            eventually(lambda: "Ctrl-C ends" in (tmp_path / "log").read_text() or process.poll(), 120)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    lines = (tmp_path / "log").read_text().splitlines()
    assert "scene: 400 Gaussians at http://127.0.0.1:" in lines[-2]
    assert lines[-1] == "viewer: stopped"


# The page.

CANVAS = "[...document.querySelectorAll('canvas')].find(c => c.width > 0)"
THUMB = "document.querySelector('[role=slider]')"
PERCENT = "[...document.querySelectorAll('.mantine-NumberInput-input')].at(-1)"
VIEW = (
    "[...document.querySelectorAll('input')].find(e => e.value == 'Free camera' || e.value.endsWith('.png'))"
)
NO_NOTIFICATIONS = "<style>.mantine-Notifications-root { display: none }</style>"


@dataclass
class Tab:
    """A page of the viewer, and what it should show."""

    page: Page
    url: str
    capture: Capture
    downloads: Path

    def figure(self, key: str) -> str:
        return self.page.text(f"#flexgs-{key}")

    def count(self) -> int:
        return int(self.figure("gaussians").split(" of ")[0].replace(",", ""))

    def percent(self) -> float:
        return float(self.page.run(f"{PERCENT}.value"))

    def canvas(self) -> tuple[int, int]:
        """Pixels of the canvas, (width, height)."""
        width, height = self.page.run(f"[{CANVAS}.width, {CANVAS}.height]")
        return width, height

    def rest(self, *, size: tuple[int, int] | None = None) -> None:
        """Wait until the picture is refined."""
        eventually(lambda: self.figure("resolution") == "{} × {}".format(*(size or self.canvas())))
        time.sleep(0.5)  # until the browser has drawn it

    def picture(self) -> np.ndarray:
        """The canvas as it is seen."""
        shown = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        return np.asarray(shown.crop((0, 0, *self.canvas()))).astype(int)

    def button(self, label: str) -> None:
        script = f"[...document.querySelectorAll('button')].find(b => b.textContent.trim() == '{label}')"
        self.page.click(*self.page.centre(script))

    def slide(self, fraction: float) -> None:
        """Drag the slider's thumb to a fraction of its track."""
        track = f"{THUMB}.closest('.mantine-Slider-root')"
        left, width = self.page.run(f"(b => [b.x, b.width])({track}.getBoundingClientRect())")
        start = self.page.centre(THUMB)
        self.page.drag(start, (left + fraction * width, start[1]))


@pytest.fixture(scope="module")
def browser(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if chromium() is None:
        pytest.skip("no chromium: install it (apt-get install chromium) to test the page")
    scene, capture = Scene("ball", Prefixes(big_ball()), grey(0.2), False, {}), read_colmap(small_capture)
    viewer = Viewer(scene, capture, port=0)
    folder = tmp_path_factory.mktemp("browser")
    try:
        url = f"{viewer.url}/?fixedDpr=1"  # viser lowers the resolution where WebGL is slow
        with browse("about:blank", folder) as page:
            yield Tab(page, url, capture, folder / "downloads")
    finally:
        viewer.stop()


@pytest.fixture
def tab(browser: Tab) -> Tab:
    """A fresh page: every load starts from the same state."""
    browser.page.call("Page.navigate", url=browser.url)
    eventually(lambda: browser.figure("gaussians"), 60)
    browser.page.run(f"document.head.insertAdjacentHTML('beforeend', `{NO_NOTIFICATIONS}`)")
    browser.rest()
    return browser


def test_page_shows_the_whole_model(tab: Tab) -> None:
    assert tab.figure("gaussians") == "5,000 of 5,000"
    assert tab.figure("megabytes") == f"{ply_bytes(5_000, 0) / 1e6:.2f} MB"
    assert float(tab.figure("time").removesuffix(" ms").replace(",", "")) > 0
    assert tab.percent() == 100.0
    assert tab.picture().std() > 10  # not one colour


def test_slider_changes_count_and_picture(tab: Tab) -> None:
    before = tab.picture()
    counts = [tab.count()]
    for fraction in (0.7, 0.4, 0.1):
        tab.slide(fraction)
        eventually(lambda: tab.count() < counts[-1])
        tab.rest()
        counts.append(tab.count())
        ratio = round(tab.percent() * 100) / 10_000
        assert counts[-1] == math.floor(ratio * 5_000 + 1e-9)
        assert ratio == pytest.approx(1e-3 ** (1 - fraction), rel=0.2)
        assert tab.figure("megabytes") == f"{ply_bytes(counts[-1], 0) / 1e6:.2f} MB"
    assert np.abs(tab.picture() - before).mean() > 5


def test_slider_answers_to_the_keyboard(tab: Tab) -> None:
    tab.page.run(f"{THUMB}.focus()")
    tab.page.press("Home")
    eventually(lambda: tab.count() == 5)
    assert tab.percent() == 0.1


def test_ratio_can_be_typed(tab: Tab) -> None:
    tab.page.run(f"{PERCENT}.focus(); {PERCENT}.select()")
    tab.page.type("7.3")
    eventually(lambda: tab.count() == 365)
    position = float(tab.page.run(f"{THUMB}.getAttribute('aria-valuenow')"))
    assert 1e-3 ** (1 - position) == pytest.approx(0.073, rel=0.01)


def test_test_view_with_its_photo(tab: Tab) -> None:
    view = tab.capture.test_views[0]
    size = (view.camera.width, view.camera.height)
    tab.button("Next")
    eventually(lambda: tab.figure("psnr").endswith(" dB"))
    tab.rest(size=size)
    assert tab.page.run(f"{VIEW}.value") == view.name
    image, photo = draw(big_ball(), view.camera, grey(0.2)), torch.from_numpy(view.source.read())
    expected = compose(tab.canvas(), [to_uint8(image), photo.numpy()], size)
    assert np.abs(tab.picture() - expected).mean() < 4  # JPEG
    error = (image.clamp(0, 1) - photo / 255).square().mean()
    assert float(tab.figure("psnr").removesuffix(" dB")) == pytest.approx(
        -10 * error.log10().item(), abs=0.01
    )

    tab.page.click(*tab.page.centre("document.querySelector('input[type=checkbox]')"))
    alone = compose(tab.canvas(), [to_uint8(image)], size)
    eventually(lambda: np.abs(tab.picture() - alone).mean() < 4)


def test_next_and_previous_go_round(tab: Tab) -> None:
    names = [view.name for view in tab.capture.test_views]
    assert len(names) == 2
    for label, name in (("Previous", names[1]), ("Next", names[0]), ("Next", names[1]), ("Next", names[0])):
        tab.button(label)
        eventually(lambda name=name: tab.page.run(f"{VIEW}.value") == name)


def test_moving_the_camera_leaves_the_view(tab: Tab) -> None:
    tab.button("Next")
    eventually(lambda: tab.figure("psnr").endswith(" dB"))
    time.sleep(1.0)
    assert tab.page.run(f"{VIEW}.value") != "Free camera"  # it stays while nobody moves
    width, height = tab.canvas()
    tab.page.drag((width / 2, height / 2), (width / 2 + 100, height / 2))
    eventually(lambda: tab.page.run(f"{VIEW}.value") == "Free camera")
    tab.rest()
    assert tab.figure("psnr") == "–"


def test_screenshot_is_the_picture_at_full_resolution(tab: Tab) -> None:
    tab.button("Next")
    eventually(lambda: tab.figure("psnr").endswith(" dB"))
    tab.button("Save screenshot")
    view = tab.capture.test_views[0]
    file = tab.downloads / f"ball_{Path(view.name).stem}_5000_gaussians.png"
    eventually(file.is_file)
    expected = to_uint8(draw(big_ball(), view.camera, grey(0.2)))
    assert np.abs(pixels(file).astype(int) - expected).max() <= 1
    file.unlink()


def test_one_size_explains_why_there_is_no_slider(tmp_path: Path) -> None:
    if chromium() is None:
        pytest.skip("no chromium: install it (apt-get install chromium) to test the page")
    viewer = Viewer(Scene("plain", OneSize(ball()), grey(0), False, {}), port=0)
    try:
        with browse(viewer.url, tmp_path) as page:
            eventually(lambda: page.text("#flexgs-gaussians") == "400 of 400", 60)
            assert page.run(f"{THUMB}.closest('[data-disabled]') !== null")
            assert page.run(f"{PERCENT}.disabled")
            assert "This scene has one size" in page.text("body")
            assert "Test views" not in page.text("body")
    finally:
        viewer.stop()
