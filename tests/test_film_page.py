"""The player of films in headless Chromium: what is drawn at a time, playing, and loading group by group."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browse, chromium, eventually
from moving_arrays import three_groups, write_moving
from player_site import LOADED_DEVICE, Line, Tab, troubled

from flexgs_lightning.codec.conversion import model_of
from flexgs_lightning.codec.film import Film, open_film, read_film
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.viewer.motion_picture import with_motion_lit
from flexgs_lightning.deploy.web.publish import publish
from flexgs_lightning.model.sequence import place_in
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import SH_C0, Splats

WIDTH, HEIGHT = 240, 160
SECONDS, FRAMES = 2.5, 75
DECIBELS = 35


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of three groups: polynomials, rigid bases and free ones."""
    folder = tmp_path_factory.mktemp("film_player")
    write_moving(folder / "scene.egs", three_groups())
    publish(folder / "site", ckpt=folder / "scene.egs", title="Throw")
    return folder / "site"


@pytest.fixture(scope="module")
def film(site: Path) -> Film:
    return read_film(site / "scene.egs")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if chromium() is None:
        pytest.skip("no chromium: install it (apt-get install chromium) to test the player")
    with browse("about:blank", tmp_path_factory.mktemp("browser") / "b", WIDTH, HEIGHT) as page:
        yield Tab(page)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with troubled(site, Line()) as found:
        yield found


@pytest.fixture
def opened(tab: Tab, address: str) -> Tab:
    """The page, with everything loaded, nearer to the scene, and the panel open."""
    tab.open(address)
    tab.settle()
    tab.get("(player.camera.approach(0.3), player.moved())")
    tab.page.run("document.getElementById('panel').open = true")
    return tab


def seek(tab: Tab, moment: float) -> None:
    tab.get(f"player.turn((playhead) => playhead.seek({moment}))")


def decibels(tab: Tab, expected: torch.Tensor) -> float:
    assert expected.std() > 0.03  # there is something to see
    error = np.square(tab.picture() - expected.clamp(0, 1).numpy()).mean()
    return float(-10 * np.log10(error))


# -- what is drawn ---------------------------------------------------------------------------------------


def test_the_canvas_shows_what_our_rasterizer_draws_at_a_time(opened: Tab, film: Film) -> None:
    """Times of each group, two cameras, and two sizes, of which one lies between levels."""
    for turn in (0.0, 0.4):
        opened.get(f"(player.camera.turn({turn}, 0.1, false), player.moved())")
        for moment, share in ((0.11, 0.17), (0.11, 1.0), (0.55, 0.17), (0.55, 1.0), (0.93, 0.17)):
            seek(opened, moment)
            opened.get(f"player.setShare({share})")
            opened.settle()
            group, within = place_in(film.bounds, moment)
            arrays, count = film.groups[group], opened.get("player.drawn.count")
            assert count == int(share * arrays.total)
            splats = arrays.at(count / arrays.total, within)
            assert (
                opened.get("player.drawn.visible") <= len(splats) + 2
            )  # who does not live is not even sorted
            expected = draw(splats, opened.camera(), torch.tensor(arrays.background), arrays.antialiased)
            assert decibels(opened, expected) > DECIBELS


def test_depth_and_what_moves_are_drawn_as_colours(opened: Tab, film: Film) -> None:
    seek(opened, 0.5)
    opened.page.run("show.value = 'depth'; show.dispatchEvent(new Event('change'))")
    opened.settle()
    group, within = place_in(film.bounds, 0.5)
    arrays, camera = film.groups[group], opened.camera()
    splats = arrays.at(1.0, within)
    low, high = opened.get("player.renderer.groups[player.shown].nearness")
    depths = (splats.means @ camera.viewmats[0, 2, :3]) + camera.viewmats[0, 2, 3]
    shade = ((1 / depths.clamp_min(0.01) - low) / (high - low)).clamp(0, 1)
    assert 0.02 < (shade > 0.5).float().mean() < 0.98
    sh = ((shade[:, None, None].expand(-1, 1, 3) - 0.5) / SH_C0).contiguous()
    plain = Splats(splats.means, splats.quats, splats.scales, splats.opacities, sh)
    black = torch.zeros(3)
    assert decibels(opened, draw(plain, camera, black, arrays.antialiased)) > DECIBELS

    opened.page.run("show.value = 'motion'; show.dispatchEvent(new Event('change'))")
    opened.settle()
    lasts = SECONDS * (film.bounds[group + 1] - film.bounds[group])
    model = model_of(arrays, seconds=lasts)
    lit = with_motion_lit(model, len(model), within, opened.get("player.description.unit"))
    image = rasterize(
        lit, camera, antialiased=arrays.antialiased, background=torch.tensor(arrays.background)
    ).image
    assert decibels(opened, image[0]) > DECIBELS
    eventually(lambda: "show=motion" in opened.page.run("location.hash"))


# -- time ------------------------------------------------------------------------------------------------


def test_it_plays_steps_and_loops(opened: Tab) -> None:
    assert not opened.page.run("document.getElementById('timeline').hidden")
    assert opened.text("moment") == "0.00 / 2.50 s"
    opened.page.run("speed.value = '2'; speed.dispatchEvent(new Event('change'))")
    opened.page.run(
        "window.times = []; window.shown = new Set();"
        "flexgs.player.addEventListener('time', () => times.push(flexgs.player.playhead.time));"
        "flexgs.player.addEventListener('time', () => shown.add(flexgs.player.shown))"
    )
    opened.click("play")
    eventually(lambda: opened.page.run("times.some((time, i) => i > 0 && time < times[i - 1])"))
    eventually(lambda: opened.page.run("shown.size") == 3)  # all groups have been on the canvas
    assert opened.page.run("play.ariaLabel") == "Pause"
    opened.page.run("loop.checked = false; loop.dispatchEvent(new Event('change'))")
    eventually(lambda: not opened.get("player.playhead.playing"))
    assert opened.get("player.playhead.time") == 1
    opened.click("frame-back")
    assert opened.get("player.playhead.time * player.playhead.frames") == pytest.approx(FRAMES - 2)
    eventually(
        lambda: opened.page.run("document.getElementById('time').ariaValueText ?? ''").endswith(
            "frame 74 of 75"
        )
    )


def test_keys_play_and_step_and_the_camera_moves_meanwhile(opened: Tab) -> None:
    opened.page.run("document.getElementById('canvas').focus()")
    opened.page.press(" ")
    eventually(lambda: opened.get("player.playhead.time") > 0.02)
    start = opened.get("player.camera.position")
    opened.get("(player.camera.turn(0.5, 0, false), player.moved())")
    moment = opened.get("player.playhead.time")
    eventually(lambda: opened.get("player.playhead.time") != moment)
    assert opened.get("player.camera.position") != start
    opened.page.press(" ")
    assert not opened.get("player.playhead.playing")
    frame = opened.get("player.playhead.frame")
    opened.page.press(".")
    opened.page.press(".")
    opened.page.press(",")
    assert opened.get("player.playhead.frame") == (frame + 1) % FRAMES
    opened.page.run("document.getElementById('time').focus()")
    opened.page.press("ArrowRight")
    assert opened.get("player.playhead.frame") == (frame + 2) % FRAMES
    opened.page.run("document.getElementById('amount').focus()")
    opened.page.press(" ")
    assert not opened.get("player.playhead.playing")  # there it is typed


def test_a_link_holds_the_time(opened: Tab, address: str) -> None:
    seek(opened, 0.8)
    eventually(lambda: "time=2" in opened.page.run("location.hash"))
    opened.open(f"{address}#share=0.5&time=1.25&show=depth")
    opened.settle()
    assert opened.get("[player.playhead.time, player.mode, player.shown]") == [0.5, "depth", 1]
    assert opened.page.run("document.getElementById('show').value") == "depth"


def test_counts_give_way_where_sorting_does_not_keep_up(opened: Tab) -> None:
    opened.get("(player.pace.most = 90)")
    opened.click("play")
    eventually(lambda: opened.get("player.drawn.count") < 260)
    eventually(lambda: "what can be sorted while it plays" in opened.text("drawn"))
    opened.click("play")
    opened.settle()
    assert opened.get("player.drawn.count") == opened.get("player.film.groups[player.shown].total")


def test_automatic_quality_holds_the_frame_rate_while_it_plays(tab: Tab, address: str) -> None:
    with tab.prepared(LOADED_DEVICE.replace("0.1", "1.2")):
        tab.open(f"{address}#fps=15")
        eventually(lambda: tab.get("player.drawn.visible"))
        tab.click("play")
        eventually(lambda: tab.get("player.playhead.playing && player.automatic.settled"), 60)
        count = tab.get("player.automatic.count")
        assert 0 < 1.2 * count < 2.5 * 1000 / 15  # some do not live at the moment
        moment = tab.get("player.playhead.time")
        eventually(lambda: tab.get("player.playhead.time") != moment)


# -- loading ---------------------------------------------------------------------------------------------


def test_every_group_comes_coarse_first_and_then_those_at_the_playhead(tab: Tab, site: Path) -> None:
    size = (site / "scene.egs").stat().st_size
    line = Line(rate=size / 4)
    film = open_film(site / "scene.egs").front
    totals = [max(e.chunk.stop for e in film.entries if e.group == group) for group in range(3)]
    with troubled(site, line) as found:
        tab.open(f"{found}#time={0.9 * SECONDS}")
        loaded: list[list[int]] = []
        while not tab.get("player?.finished"):
            now = tab.get("player.film?.groups.map((group) => group.loaded)")
            if now and (not loaded or now != loaded[-1]):
                loaded.append(now)
        tab.settle()
        loaded.append(tab.get("player.film.groups.map((group) => group.loaded)"))
    assert len(loaded) >= 4
    for before, after in itertools.pairwise(loaded):
        assert all(a <= b for a, b in zip(before, after, strict=True))
    assert any(min(now) > 0 and now[2] <= now[0] and sum(now) < sum(totals) for now in loaded)
    first = {
        group: next(i for i, now in enumerate(loaded) if now[group] == totals[group]) for group in range(3)
    }
    assert first[2] == min(first.values())  # the playhead stands in the last group
    assert tab.get("player.received") == pytest.approx(size, rel=0.02)


def test_playing_waits_for_a_group_that_has_not_come(tab: Tab, site: Path) -> None:
    line = Line(rate=400.0)  # all of it would take a minute, which no slow page outlasts
    with troubled(site, line) as found:
        tab.open(found)
        eventually(lambda: tab.get("player.drawn.count"))
        tab.get(
            "player.turn((playhead) => { playhead.speed = 20; playhead.loop = false; playhead.toggle(); })"
        )
        eventually(lambda: tab.text("moment") == "Loading …")
        assert tab.get("player.playhead.time") < 1
        line.rate = None
        eventually(lambda: tab.get("player.playhead.time") == 1)


def test_a_film_cut_within_its_first_chunks_shows_what_is_there(tab: Tab, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    ends = open_film(site / "scene.egs").front.indexed_lengths()
    (tmp_path / "site" / "scene.egs").write_bytes((site / "scene.egs").read_bytes()[: ends[0]])
    with troubled(tmp_path / "site", Line()) as found:
        tab.open(found)
        tab.settle()
        assert tab.get("player.drawn.visible") > 0
        seek(tab, 0.9)
        tab.settle()
        assert tab.get("player.shown") == 0


def test_a_broken_head_is_said_in_words(tab: Tab, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    data = bytearray((site / "scene.egs").read_bytes())
    data[open_film(site / "scene.egs").front.entries[1].chunk.offset + 60] ^= 1
    (tmp_path / "site" / "scene.egs").write_bytes(bytes(data))
    with troubled(tmp_path / "site", Line()) as found:
        tab.open(found)
        eventually(lambda: "chunk 1 does not match its checksum" in tab.text("message"))


def test_controls_of_time_have_names(opened: Tab) -> None:
    tree = opened.page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("slider", "button", "combobox", "checkbox")
    found = [node for node in tree if node.get("role", {}).get("value") in roles and not node["ignored"]]
    names = {node["name"]["value"] for node in found}
    assert {"Time", "Play", "Frame back", "Frame on", "Loop", "Speed", "What is shown"} <= names


def test_what_is_published_says_how_long_the_film_lasts(site: Path) -> None:
    description = json.loads((site / "scene.json").read_text())
    facts = {"seconds": SECONDS, "frames": FRAMES, "frames_per_second": FRAMES / SECONDS, "groups": 3}
    assert description["film"] == facts
