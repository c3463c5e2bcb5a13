"""The player in headless Chromium: what it draws, how it loads, and what it says when something is wrong."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browse, chromium, eventually
from elastic_arrays import encoded, random_arrays
from player_site import LOADED_DEVICE, Line, Tab, troubled

from flexgs_lightning.codec.decoder import open_file, read_elastic
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.web.publish import publish
from flexgs_lightning.model.profile import read_profile

TOTAL = 3000
WIDTH, HEIGHT = 240, 160


@pytest.fixture(scope="module")
def site(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("player")
    encoded(random_arrays(TOTAL, sh_degree=3)).write(folder / "scene.egs")
    publish(
        folder / "site", ckpt=folder / "scene.egs", data_root=small_capture, photos=True, title="Two <clouds>"
    )
    return folder / "site"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser's own."""
    return tmp_path_factory.mktemp("browser") / "b"


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Tab]:
    if chromium() is None:
        pytest.skip("no chromium: install it (apt-get install chromium) to test the player")
    with browse("about:blank", folder, WIDTH, HEIGHT) as page:
        yield Tab(page)


@pytest.fixture(scope="module")
def downloads(folder: Path) -> Path:
    return folder / "downloads"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with troubled(site, Line()) as found:
        yield found


def broken(site: Path, folder: Path, place: int) -> Path:
    """A copy of a site with one byte of its scene changed."""
    shutil.copytree(site, folder)
    data = bytearray((site / "scene.egs").read_bytes())
    data[place] ^= 1
    (folder / "scene.egs").write_bytes(bytes(data))
    return folder


# -- what is drawn ---------------------------------------------------------------------------------------


def test_the_canvas_shows_what_our_rasterizer_draws(tab: Tab, address: str, site: Path) -> None:
    """Three ratios, of which one lies between levels, and two cameras."""
    arrays = read_elastic(site / "scene.egs")
    tab.open(address)
    tab.settle()
    for view in (0, 1):
        tab.get(f"window.flexgs.places.visit({view})")
        for share in (0.02, 0.17, 1.0):
            tab.get(f"player.setShare({share})")
            tab.settle()
            count = tab.get("player.drawn.count")
            assert count == int(share * TOTAL)
            background = torch.tensor(arrays.background)
            expected = draw(arrays.at(count / TOTAL), tab.camera(), background, arrays.antialiased)
            error = np.square(tab.picture() - expected.clamp(0, 1).numpy()).mean()
            assert -10 * np.log10(error) > 35
            assert expected.std() > 0.05  # there is something to see


def test_a_file_without_harmonics_is_drawn_alike(tab: Tab, tmp_path: Path) -> None:
    """SH degree 0, one level, no antialiasing filter; and no capture, so no test views."""
    import dataclasses

    from elastic_arrays import one_size

    arrays = dataclasses.replace(one_size(random_arrays(800, sh_degree=0)), antialiased=False)
    encoded(arrays).write(tmp_path / "scene.egs")
    publish(tmp_path / "site", ckpt=tmp_path / "scene.egs")
    decoded = read_elastic(tmp_path / "scene.egs")
    with troubled(tmp_path / "site", Line()) as found:
        tab.open(found)
        tab.settle()
        expected = draw(decoded.splats(), tab.camera(), torch.tensor(decoded.background)).clamp(0, 1).numpy()
        assert -10 * np.log10(np.square(tab.picture() - expected).mean()) > 35
        assert tab.page.run("document.getElementById('view-controls').hidden")


# -- loading ---------------------------------------------------------------------------------------------


def test_it_grows_while_it_loads_and_loads_nothing_twice(tab: Tab, site: Path) -> None:
    size = (site / "scene.egs").stat().st_size
    line = Line(rate=size / 3)
    with troubled(site, line) as found:
        tab.open(found)
        eventually(lambda: tab.get("player.drawn.visible"))
        shown = [(tab.get("player.drawn.count"), line.sent)]
        while not tab.get("player.finished"):
            shown.append((tab.get("player.drawn.count"), line.sent))
        tab.settle()
    counts = [count for count, _ in shown]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 3
    assert tab.get("player.drawn.count") == TOTAL
    assert tab.get("player.received") == size
    places = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in line.asked if asked]
    assert places == sorted(set(places))


def test_a_dropped_connection_keeps_what_is_there_and_goes_on(tab: Tab, site: Path) -> None:
    size = (site / "scene.egs").stat().st_size
    line = Line(drops=(size // 3, size // 3))
    with troubled(site, line) as found:
        tab.open(found)
        eventually(lambda: "Connection lost" in tab.text("connection"))
        eventually(lambda: tab.get("player.drawn.count"))
        tab.settle()
        eventually(lambda: tab.text("connection") == "")
    assert tab.get("player.drawn.count") == TOTAL
    assert tab.get("player.received") == size
    assert not line.drops


def test_a_server_without_range_sends_the_whole(tab: Tab, site: Path) -> None:
    line = Line(ranged=False)
    with troubled(site, line) as found:
        tab.open(found)
        tab.settle()
    assert tab.get("player.drawn.count") == TOTAL
    assert len(line.asked) == 1


def test_only_what_is_wanted_is_loaded(tab: Tab, site: Path) -> None:
    """A link to a small share loads that share, and the slider the rest."""
    line = Line()
    with troubled(site, line) as found:
        tab.open(f"{found}#share=0.05")
        tab.settle()
        assert tab.get("player.drawn.count") == 150
        few = tab.get("player.received")
        tab.get("player.setShare(1)")
        tab.settle()
    entries = open_file(site / "scene.egs").header.entries
    assert few <= max(1 << 16, entries[2].offset)
    assert tab.get("player.drawn.count") == TOTAL
    assert tab.get("player.received") == (site / "scene.egs").stat().st_size


# -- controls --------------------------------------------------------------------------------------------


def test_slider_and_amount_choose_the_count(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.settle()
    assert tab.text("title") == "Two <clouds>"
    tab.page.run("document.getElementById('panel').open = true; document.getElementById('quality').focus()")
    tab.page.press("Home")
    eventually(lambda: tab.get("player.drawn.count") == TOTAL * 0.001)
    assert tab.text("drawn") == "3 of 3,000"
    assert "3 Gaussians" in tab.page.run("document.getElementById('quality').ariaValueText ?? ''")
    for unit, amount, count in (("percent", 7.3, 219), ("Gaussians", 1234, 1234)):
        tab.page.run(
            f"unit.value = '{unit}'; unit.dispatchEvent(new Event('change')); amount.value = {amount};"
            "amount.dispatchEvent(new Event('change'))"
        )
        eventually(lambda count=count: tab.get("player.drawn.count") == count)
    tab.page.run("unit.value = 'megabytes'; amount.value = 0.001; amount.dispatchEvent(new Event('change'))")
    eventually(lambda: tab.get("player.drawn.count") == tab.get("player.header.ends[0][0]"))


def test_keys_move_the_camera_and_a_link_holds_it(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.settle()
    before = tab.picture()
    tab.page.run("document.getElementById('canvas').focus()")
    start = tab.get("player.camera.position")
    tab.page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
    eventually(lambda: np.abs(np.subtract(tab.get("player.camera.position"), start)).max() > 0.1)
    tab.page.call("Input.dispatchKeyEvent", type="keyUp", key="ArrowLeft", code="ArrowLeft")
    tab.get("player.setShare(0.5)")
    tab.settle()
    assert np.abs(tab.picture() - before).mean() > 0.01
    eventually(
        lambda: "turn=" in tab.page.run("location.hash") and "share=0.5" in tab.page.run("location.hash")
    )
    camera = {name: tab.get(f"player.camera.{name}") for name in ("rotation", "position", "reach")}
    link = tab.page.run("location.href")
    tab.open(link)
    tab.settle()
    assert tab.get("player.drawn.count") == TOTAL // 2
    for name, value in camera.items():
        np.testing.assert_allclose(tab.get(f"player.camera.{name}"), value, atol=1e-4)


def test_test_views_have_their_photo(tab: Tab, address: str, site: Path) -> None:
    description = json.loads((site / "scene.json").read_text())
    tab.open(address)
    tab.settle()
    tab.click("next")
    tab.click("next")
    eventually(lambda: tab.page.run("document.getElementById('view').value") == "1")
    np.testing.assert_allclose(
        tab.get("player.camera.position"),
        -np.reshape(description["views"][1]["viewmat"], (3, 4))[:, :3].T
        @ np.reshape(description["views"][1]["viewmat"], (3, 4))[:, 3],
        atol=1e-6,
    )
    tab.page.run("wipe.value = 50; wipe.dispatchEvent(new Event('input'))")
    eventually(lambda: tab.page.run("document.getElementById('photo').naturalWidth"))
    assert (
        tab.page.run("getComputedStyle(document.getElementById('photo')).clipPath")
        == "inset(0px 50% 0px 0px)"
    )
    tab.get("(player.camera.turn(0.1, 0, false), player.moved())")
    eventually(lambda: tab.page.run("document.getElementById('photo').hidden"))
    assert tab.page.run("document.getElementById('view').value") == "-1"


def test_automatic_quality_holds_the_frame_rate_on_a_slow_device(tab: Tab, address: str) -> None:
    with tab.prepared(LOADED_DEVICE):
        tab.open(f"{address}#fps=15")
        eventually(lambda: tab.get("player.automatic?.settled"), 60)
        count = tab.get("player.automatic.count")
        assert 0 < 0.1 * count < 1.2 * 1000 / 15
        eventually(lambda: "Gaussians hold 15 frames a second" in tab.text("choice"))
        eventually(lambda: tab.get("player.drawn.count") == count)
        assert "fps=15" in tab.page.run("location.hash")


def test_measuring_the_device_downloads_a_profile(tab: Tab, address: str, downloads: Path) -> None:
    with tab.prepared(LOADED_DEVICE.replace("0.1", "0.01")):
        tab.open(address)
        tab.settle()
        tab.click("measure")
        file = downloads / "Two_clouds__profile.json"
        eventually(file.is_file)
        profile = json.loads(file.read_text())
        tab.settle()
    assert read_profile(file).cost.milliseconds(3000) > 10
    assert [count for count, _ in profile["points"]] == [30, 60, 150, 300, 600, 1500, 3000]
    assert all(milliseconds > 0 for _, milliseconds in profile["points"])
    assert profile["points"][-1][1] > 10  # of the 30 that all take, some of them behind the camera
    assert profile["width"] == WIDTH
    assert "SwiftShader" in profile["device"]
    assert tab.get("player.drawn.count") == TOTAL  # as before


# -- what it says when something is wrong ------------------------------------------------------------------


def test_a_broken_chunk_is_named_and_what_stands_before_it_is_shown(
    tab: Tab, site: Path, tmp_path: Path
) -> None:
    entry = open_file(site / "scene.egs").header.entries[2]
    with troubled(broken(site, tmp_path / "site", entry.offset + 40), Line()) as found:
        tab.open(found)
        eventually(lambda: "chunk 2 does not match its checksum" in tab.text("message"))
        eventually(lambda: tab.get("player.drawn.count") == tab.get("player.header.ends[1][0]"))


@pytest.mark.parametrize("place", [0, 8, 30])
def test_a_broken_header_is_said_in_words(tab: Tab, site: Path, tmp_path: Path, place: int) -> None:
    with troubled(broken(site, tmp_path / "site", place), Line()) as found:
        tab.open(found)
        eventually(lambda: "lastic file" in tab.text("message"))
        assert tab.get("player.loaded") == 0


@pytest.mark.parametrize("beyond", [0, 100])
def test_a_file_that_ends_early_shows_what_is_there(
    tab: Tab, site: Path, tmp_path: Path, beyond: int
) -> None:
    """At a chunk's end it is a smaller file; anywhere else it is said that something is missing."""
    shutil.copytree(site, tmp_path / "site")
    entry = open_file(site / "scene.egs").header.entries[3]
    (tmp_path / "site" / "scene.egs").write_bytes((site / "scene.egs").read_bytes()[: entry.offset + beyond])
    with troubled(tmp_path / "site", Line()) as found:
        tab.open(found)
        tab.settle()
        count = tab.get("player.header.ends[2][0]")
        assert tab.get("player.drawn.count") == count
        missing = f"The scene's file ends early on the server: {count:,} Gaussians are there."
        eventually(lambda: tab.text("message") == (missing if beyond else ""))


def test_a_device_of_small_textures_shows_what_it_can_hold(tab: Tab, address: str) -> None:
    small = """
    const real = WebGL2RenderingContext.prototype.getParameter;
    WebGL2RenderingContext.prototype.getParameter = function (name) {
      return name === this.MAX_TEXTURE_SIZE ? 64 : real.call(this, name);
    };
    """
    with tab.prepared(small):
        tab.open(address)
        tab.settle()
        count = tab.get("player.drawn.count")
        assert 500 < count < TOTAL  # 64 x 64 texels, of which each of a Gaussian's rows takes 2
        assert f"graphics hold {count:,} of the scene's" in tab.text("message")
        assert tab.picture().std() > 0.05


def test_fingers_pinch_and_a_phone_begins_with_automatic_quality(tab: Tab, address: str) -> None:
    tab.page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    try:
        tab.open(address)
        eventually(lambda: tab.get("player.automatic?.goal"))
        eventually(lambda: tab.page.run("document.getElementById('automatic').checked"))
        reach = tab.get("player.camera.reach")
        for kind, apart in (("touchStart", 20), ("touchMove", 25), ("touchMove", 40), ("touchEnd", None)):
            points = (
                [] if apart is None else [{"x": 100 + side * apart, "y": 60, "id": side} for side in (0, 1)]
            )
            tab.page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        eventually(lambda: tab.get("player.camera.reach") == pytest.approx(reach / 2, rel=0.01))
    finally:
        tab.page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_a_missing_scene_is_said_in_words(tab: Tab, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    (tmp_path / "site" / "scene.egs").unlink()
    with troubled(tmp_path / "site", Line()) as found:
        tab.open(found)
        eventually(lambda: "the server answers 404" in tab.text("message"))


def test_without_webgl2_the_page_says_so(tab: Tab, address: str) -> None:
    with tab.prepared("HTMLCanvasElement.prototype.getContext = () => null"):
        tab.open(address)
        eventually(lambda: "no WebGL 2" in tab.text("message"))


def test_controls_have_names_and_the_page_allows_nothing_from_elsewhere(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.settle()
    tree = tab.page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("slider", "button", "combobox", "spinbutton", "checkbox", "radio", "application", "progressbar")
    found = [node for node in tree if node.get("role", {}).get("value") in roles and not node["ignored"]]
    assert len(found) >= 1
    assert all(node["name"]["value"] for node in found)
    assert (
        tab.page.run(
            """(async () => {
            const refused = [];
            addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'window.injected = true';
            document.body.append(script);
            await fetch('http://127.0.0.2:9/').catch(() => 0);
            await new Promise((done) => setTimeout(done));
            return !window.injected && refused.sort().join();
        })()"""
        )
        == "connect-src,script-src-elem"
    )
