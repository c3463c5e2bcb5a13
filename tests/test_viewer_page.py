"""The viewer's page in headless Chromium: what a user does, and what is seen then."""

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Page, browse, chromium, eventually
from moving_model import moving_model
from PIL import Image
from small_scene import ball, pixels
from viewer_scene import Prefixes, big_ball

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.formats.ply import ply_bytes
from flexgs_lightning.deploy.opening import grey
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.viewer.canvas import compose
from flexgs_lightning.deploy.viewer.viewer import Viewer
from flexgs_lightning.images import to_uint8
from flexgs_lightning.model.checkpoint import Model

CANVAS = "[...document.querySelectorAll('canvas')].find(c => c.width > 0)"
THUMB = "document.querySelector('[role=slider]')"
PERCENT = "[...document.querySelectorAll('.mantine-NumberInput-input')].at(-1)"
VIEW = (
    "[...document.querySelectorAll('input')].find(e => e.value == 'Free camera' || e.value.endsWith('.png'))"
)
BUTTON = "[...document.querySelectorAll('button')].find(b => b.textContent.trim() == '{}')"
PHOTO = "[...document.querySelectorAll('input[type=checkbox]')].findLast(e => e.offsetWidth > 0)"
LOCAL: Any = {"device": "cpu", "host": "127.0.0.1", "port": 0}
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
        self.page.run(f"({BUTTON.format(label)}).scrollIntoView({{ block: 'center' }})")
        self.page.click(*self.still(BUTTON.format(label)))

    def still(self, script: str) -> tuple[float, float]:
        """Middle of an element that has come to rest: a panel grows while its parts arrive."""
        before, place = (-1.0, -1.0), self.page.centre(script)
        while place != before:
            time.sleep(0.2)
            before, place = place, self.page.centre(script)
        return place

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
    scene = Prefixes(big_ball(), antialiased=False, background=grey(0.2))
    capture = read_colmap(small_capture)
    viewer = Viewer(scene, capture, **LOCAL)
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

    tab.page.click(*tab.page.centre(PHOTO))
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


def check(tab: Tab, label: str) -> None:
    """Click a checkbox by its label."""
    found = f"[...document.querySelectorAll('label')].find(e => e.textContent.trim() == '{label}')"
    tab.page.run(f"document.getElementById({found}.htmlFor).click()")


def test_depth_mode_shows_depths(tab: Tab) -> None:
    before = tab.picture()
    check(tab, "Show depth")
    eventually(lambda: np.abs(tab.picture() - before).mean() > 5)
    tab.rest()
    assert tab.figure("psnr") == "–"


def test_automatic_size_draws_what_a_time_allows(tab: Tab) -> None:
    tab.page.click(*tab.page.centre("[...document.querySelectorAll('input')].find(e => e.value == 'Off')"))
    option = "[...document.querySelectorAll('[role=option]')].find(e => e.textContent.startsWith('2 ms'))"
    eventually(lambda: tab.page.run(f"{option} !== undefined"))
    tab.page.run(f"{option}.click()")
    eventually(lambda: tab.count() < 4_000)  # 5,000 take longer than that on any processor
    eventually(lambda: tab.percent() == pytest.approx(100 * tab.count() / 5_000, abs=0.1))


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
    viewer = Viewer(Model.of_splats(ball(), "plain"), None, **LOCAL)
    try:
        with browse(viewer.url, tmp_path) as page:
            eventually(lambda: page.text("#flexgs-gaussians") == "400 of 400", 60)
            assert page.run(f"{THUMB}.closest('[data-disabled]') !== null")
            assert page.run(f"{PERCENT}.disabled")
            assert "This scene has one size" in page.text("body")
            assert "Test views" not in page.text("body")
            assert "PSNR" not in page.text("body")
    finally:
        viewer.stop()


@pytest.fixture(scope="module")
def film_tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A page of a scene that moves."""
    if chromium() is None:
        pytest.skip("no chromium: install it (apt-get install chromium) to test the page")
    viewer = Viewer(moving_model(), None, **LOCAL)
    folder = tmp_path_factory.mktemp("film")
    try:
        with browse(f"{viewer.url}/?fixedDpr=1", folder) as page:
            tab = Tab(page, viewer.url, None, folder / "downloads")  # type: ignore[arg-type]
            eventually(lambda: tab.figure("gaussians"), 60)
            yield tab
    finally:
        viewer.stop()


def test_a_scene_that_moves_is_played(film_tab: Tab) -> None:
    """Time goes on by itself while it plays, and frame by frame while it does not."""

    def seconds() -> float:
        return float(film_tab.figure("moment").removesuffix(" s"))

    film_tab.rest()
    before = film_tab.figure("gaussians")
    film_tab.button("Play")
    eventually(lambda: seconds() > 0.2)
    eventually(lambda: film_tab.figure("gaussians") != before)  # others live
    film_tab.button("Pause")
    eventually(lambda: film_tab.page.run(f"!!({BUTTON.format('Play')})"))
    film_tab.rest()
    stood, picture = seconds(), film_tab.picture()
    time.sleep(0.5)
    assert seconds() == stood
    film_tab.button("Frame on")
    eventually(lambda: seconds() != stood)
    film_tab.rest()
    assert np.abs(film_tab.picture() - picture).max() > 10
