"""flexgs publish and serve: a folder of static files, and a server that stays in it."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from elastic_arrays import encoded, random_arrays
from film import FRAMES, number_in, write_film
from PIL import Image

from flexgs_lightning.cli import main
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.formats.ply import write_ply
from flexgs_lightning.deploy.web.publish import PLAYER, publish
from flexgs_lightning.deploy.web.serve import part_of, static_server
from flexgs_lightning.errors import InputError

MOST_PLAYER_BYTES = 60_000


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("publish") / "garden.egs"
    encoded(random_arrays(500)).write(path)
    return path


@pytest.fixture(scope="module")
def site(scene: Path, small_capture: Path) -> Path:
    folder = scene.with_name("site")
    publish(folder, ckpt=scene, data_root=small_capture, photos=True, title="<b>Garden</b>")
    return folder


def test_a_site_is_the_scene_and_all_that_shows_it(site: Path, scene: Path, small_capture: Path) -> None:
    assert (site / "scene.egs").read_bytes() == scene.read_bytes()
    shipped = [path.relative_to(PLAYER) for path in PLAYER.rglob("*") if path.suffix in (".js", ".css")]
    assert sorted(shipped) == sorted(p.relative_to(site / "player") for p in (site / "player").rglob("*.*"))
    description = json.loads((site / "scene.json").read_text())
    assert description["title"] == "<b>Garden</b>"  # shown as text
    views = read_capture(small_capture).test_views
    assert [view["name"] for view in description["views"]] == [view.name for view in views]
    for view, entry in zip(views, description["views"], strict=True):
        np.testing.assert_allclose(np.reshape(entry["viewmat"], (3, 4)), view.camera.viewmats[0, :3])
        photo = np.asarray(Image.open(site / entry["photo"])).astype(float)
        assert np.abs(photo - view.source.read()[..., :3]).mean() < 5  # JPEG
    assert description["start"] == {k: description["views"][0][k] for k in description["start"]}


def test_photos_are_published_only_when_asked_for(scene: Path, small_capture: Path, tmp_path: Path) -> None:
    publish(tmp_path / "site", ckpt=scene, data_root=small_capture)
    assert not (tmp_path / "site" / "photos").exists()
    assert "photo" not in (tmp_path / "site" / "scene.json").read_text()


def test_a_film_has_its_test_views_at_a_few_moments(tmp_path: Path) -> None:
    known = Path(__file__).parent / "known_answers" / "film.egs"
    publish(tmp_path / "site", ckpt=known, data_root=write_film(tmp_path / "filmed"), photos=True)
    description = json.loads((tmp_path / "site" / "scene.json").read_text())
    frames = [round(FRAMES * view["time"]) for view in description["views"]]
    assert frames == [1, 3, 6, 8, 10]
    for frame, view in zip(frames, description["views"], strict=True):
        assert view["name"] == f"cam03, {frame / 30:.2f} s"
        photo = np.asarray(Image.open(tmp_path / "site" / view["photo"]))
        assert number_in(photo) == 16 * 3 + frame
    assert description["film"]["groups"] == 3


def test_a_scene_without_a_capture_has_a_first_view(scene: Path, tmp_path: Path) -> None:
    publish(tmp_path / "site", ckpt=scene)
    description = json.loads((tmp_path / "site" / "scene.json").read_text())
    assert description["views"] == []
    assert description["unit"] > 0


def test_a_splat_file_is_compressed_first(scene: Path, small_capture: Path, tmp_path: Path) -> None:
    from flexgs_lightning.codec.decoder import open_file, read_elastic

    write_ply(read_elastic(scene).splats()[:200], tmp_path / "scene.ply")
    words = ["--ply", str(tmp_path / "scene.ply"), "--output", str(tmp_path / "site")]
    words += ["--data-root", str(small_capture), "--max-megabytes", "0.006", "--device", "cpu"]
    assert main(["publish", *words]) == 0
    assert open_file(tmp_path / "site" / "scene.egs").gaussians == 200
    assert (tmp_path / "site" / "scene.egs").stat().st_size <= 6000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photos": True}, "--data-root"),
        ({"max_megabytes": 1.0}, "published as it is"),
        ({"output": "taken"}, "exists already"),
        ({"output": "taken", "overwrite": True}, "no folder that flexgs publish wrote"),
    ],
)
def test_bad_publishing_is_refused(
    scene: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    output = tmp_path / str(options.pop("output", "site"))
    with pytest.raises(InputError, match=message):
        publish(output, ckpt=scene, **options)  # type: ignore[arg-type]
    assert (tmp_path / "taken" / "letter.txt").read_text() == "mine"
    assert not (tmp_path / "site").exists()


def test_a_site_replaces_a_site(scene: Path, tmp_path: Path) -> None:
    publish(tmp_path / "site", ckpt=scene, title="one")
    publish(tmp_path / "site", ckpt=scene, title="two", overwrite=True)
    assert json.loads((tmp_path / "site" / "scene.json").read_text())["title"] == "two"


def test_the_player_is_small_and_loads_nothing_from_elsewhere() -> None:
    import gzip

    files = [path for path in PLAYER.rglob("*") if path.suffix in (".js", ".css", ".html")]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < MOST_PLAYER_BYTES
    for path in files:
        assert "://" not in path.read_text(), f"{path}: an address"
    page = (PLAYER / "index.html").read_text()
    assert "default-src 'none'" in page
    for kind in ("script", "worker", "style", "connect"):
        assert f"{kind}-src 'self'" in page
    assert "unsafe" not in page


# -- the server ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port(site: Path) -> Iterator[int]:
    (site.parent / "secret.txt").write_text("secret")
    (site / "link").symlink_to(site.parent / "secret.txt")
    with static_server(site, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(
    port: int, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def test_files_come_whole_and_in_parts(port: int, site: Path) -> None:
    data = (site / "scene.egs").read_bytes()
    status, headers, body = ask(port, "/scene.egs")
    assert (status, body) == (200, data)
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Content-Encoding"] is None
    for asked, part in {"0-99": data[:100], "100-": data[100:], "-7": data[-7:], "5-5": data[5:6]}.items():
        status, headers, body = ask(port, "/scene.egs", Range=f"bytes={asked}")
        assert (status, body) == (206, part)
        assert headers["Content-Range"].endswith(f"/{len(data)}")
        assert int(headers["Content-Length"]) == len(part)
    status, headers, body = ask(port, "/scene.egs", Range=f"bytes={len(data)}-")
    assert (status, headers["Content-Range"], body) == (416, f"bytes */{len(data)}", b"")
    assert ask(port, "/scene.egs", Range="bytes=0-9", If_Range='"another"')[0] == 200
    status, headers, body = ask(port, "/scene.egs", method="HEAD")
    assert (status, int(headers["Content-Length"]), body) == (200, len(data), b"")


def test_types_are_those_that_browsers_insist_on(port: int) -> None:
    types = {"/": "text/html", "/player/main.js": "text/javascript", "/player/player.css": "text/css"}
    for path, expected in types.items():
        status, headers, _ = ask(port, path)
        assert status == 200
        assert headers["Content-Type"].startswith(expected)
        assert headers["X-Content-Type-Options"] == "nosniff"


OUTSIDE = ("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/player/../../secret.txt", "/link")
ABSENT = ("//etc/passwd", "/nothing", "/player", "/a%00b", "/" + "x" * 5000)


@pytest.mark.parametrize("path", [*OUTSIDE, *ABSENT])
def test_nothing_outside_the_folder_is_served(port: int, path: str) -> None:
    status, _, body = ask(port, path)
    assert status == 404
    assert b"secret" not in body


@pytest.mark.parametrize("asked", [None, "bytes=-", "bytes=9-3", "bytes=0-1,4-5", "items=0-1", "bytes=a-b"])
def test_ranges_of_another_form_ask_for_everything(asked: str | None) -> None:
    assert part_of(asked, 100) is None


@pytest.mark.parametrize(
    ("asked", "part"), [("bytes=-0", 0), ("bytes=100-", 0), ("bytes=-500", 100), ("bytes=90-999", 10)]
)
def test_ranges_keep_within_the_file(asked: str, part: int) -> None:
    found = part_of(asked, 100)
    assert found is not None
    assert len(found) == part
    assert not found or found.stop == 100


def test_what_cannot_be_served_is_refused(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path)]) == 1
    assert "no index.html in it" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", str(site), "--port", str(other.getsockname()[1])]) == 1
    assert "in use by another program" in capsys.readouterr().err
    assert main(["serve", str(site), "--port", "70000"]) == 1
    assert main(["serve", str(site), "--host", "203.0.113.7"]) == 1
    assert "cannot listen there" in capsys.readouterr().err
