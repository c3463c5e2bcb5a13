"""The viewer talks to its own pages alone, and says in one line what others send."""

from __future__ import annotations

import asyncio
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import viser
import websockets
from browser import eventually
from small_scene import ball
from websockets.datastructures import Headers

from flexgs_lightning.deploy.viewer.guard import refusal
from flexgs_lightning.deploy.viewer.viewer import Viewer
from flexgs_lightning.model.checkpoint import Model


@pytest.mark.parametrize(
    ("asked", "page", "allowed"),
    [
        ("127.0.0.1:8080", None, True),  # no browser
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("localhost:8080", "http://localhost:8080", True),
        ("LOCALHOST:8080", "http://localhost:8080", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("10.0.0.7:8080", "http://10.0.0.7:8080", True),
        ("gpu7:8080", "http://gpu7:8080", True),  # --host gpu7
        ("lab.example.org", "https://lab.example.org", True),  # --origins
        ("localhost:8080", "https://lab.example.org", True),
        ("10.0.0.7", "https://10.0.0.7", True),  # a proxy that encrypts
        ("localhost:8080", "http://evil.example", False),
        ("localhost:8080", "http://localhost:8081", False),  # another program's page
        ("localhost:8080", "http://localhost.evil.example:8080", False),
        ("localhost:8080", "null", False),
        ("localhost:8080", "http://[", False),
        ("evil.example:8080", "http://evil.example:8080", False),  # whose name leads here by now
        ("evil.example:8080", None, False),
        ("", None, False),
    ],
)
def test_own_pages_may_connect_and_no_others(asked: str, page: str | None, allowed: bool) -> None:
    headers = Headers([("Host", asked), *([("Origin", page)] if page is not None else [])])
    assert (refusal(headers, "gpu7", ["https://lab.example.org"]) is None) == allowed


def test_repeated_headers_are_refused() -> None:
    twice = Headers([("Host", "localhost"), ("Origin", "http://localhost"), ("Origin", "http://localhost")])
    assert refusal(twice, "localhost", []) is not None
    assert refusal(Headers(), "localhost", []) is not None


@pytest.fixture(scope="module")
def viewer() -> Iterator[Viewer]:
    opened = Viewer(Model.of_splats(ball(), "ball", False), None, device="cpu", host="127.0.0.1", port=0)
    yield opened
    opened.stop()


def talk(viewer: Viewer, *frames: Any, origin: str | None = None) -> bytes:
    """Send frames to the viewer; what it first answers."""

    async def connect() -> bytes:
        protocol: Any = f"viser-v{viser.__version__}"
        async with websockets.connect(
            f"ws://127.0.0.1:{viewer.port}", origin=origin, subprotocols=[protocol], max_size=None
        ) as connection:
            answer = await asyncio.wait_for(connection.recv(), 20)
            for frame in frames:
                await connection.send(frame)
            await asyncio.sleep(0.1)
            assert isinstance(answer, bytes)
            return answer

    return asyncio.run(connect())


def test_another_sites_page_gets_no_picture(viewer: Viewer, caplog: pytest.LogCaptureFixture) -> None:
    assert talk(viewer)
    assert talk(viewer, origin=viewer.url)
    for origin in ("http://evil.example", "http://localhost:1", "null"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            talk(viewer, origin=origin)
        assert refused.value.response.status_code == 403
        assert f"a page of {origin} may not use the viewer" in caplog.text
    with urllib.request.urlopen(viewer.url) as page:
        assert page.status == 200
    rebound = urllib.request.Request(viewer.url, headers={"Host": f"evil.example:{viewer.port}"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(rebound)


BROKEN = [
    "text",
    b"",
    b"\xc1",
    b"\x93\x01\x02\x03",
    msgspec.msgpack.encode({"type": "NoSuchMessage"}),
    msgspec.msgpack.encode({"type": "ViewerCameraMessage"}),
    msgspec.msgpack.encode({"no": "type\x1b[2J"}),
]


@pytest.mark.parametrize("frame", BROKEN)
def test_a_broken_frame_is_logged_in_one_line_and_the_viewer_lives(
    frame: Any, viewer: Viewer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    talk(viewer, frame)
    eventually(lambda: "closed a connection that sent no sound message" in caplog.text, 20)
    assert all(record.exc_info is None for record in caplog.records), caplog.text
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert talk(viewer)
