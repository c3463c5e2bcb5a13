"""Headless Chromium over its DevTools protocol: enough of a browser driver for the viewer's tests."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from websockets.sync.client import ClientConnection, connect

T = TypeVar("T")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers often have little of it
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU
    "--remote-debugging-port=0",
)


def chromium() -> str | None:
    """The program, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def eventually(condition: Callable[[], T], seconds: float = 30.0) -> T:
    """The first true value of ``condition``; fails with its last value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s; last value: {value!r}"
        time.sleep(0.05)
    return value


class Page:
    """One page of a running browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._calls = 0
        self.patience = 60.0
        """Seconds to wait for an answer."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._calls += 1
        self._connection.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=self.patience))
            if answer.get("id") == self._calls:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """Text of an element; empty if there is none."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        self.drag((x, y), (x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the left button at one point, release it at another."""
        self._mouse("mouseMoved", start, buttons=0)
        self._mouse("mousePressed", start, buttons=1)
        for i in range(1, 6):
            point = tuple(a + (b - a) * i / 5 for a, b in zip(start, end, strict=True))
            self._mouse("mouseMoved", (point[0], point[1]), buttons=1)
        self._mouse("mouseReleased", end, buttons=0)

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """A key such as ArrowLeft."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self) -> bytes:
        """PNG of what the page shows."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def centre(self, script: str) -> tuple[float, float]:
        """Middle of the element that a JavaScript expression gives."""
        box = self.run(
            f"(() => {{ const b = ({script}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return box[0], box[1]

    def _mouse(self, kind: str, point: tuple[float, float], buttons: int) -> None:
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=point[0],
            y=point[1],
            button="none" if kind == "mouseMoved" else "left",
            buttons=buttons,
            clickCount=0 if kind == "mouseMoved" else 1,
        )


@contextlib.contextmanager
def browse(url: str, folder: Path, width: int = 1280, height: int = 800) -> Iterator[Page]:
    """Open ``url``; ``folder`` is for the browser's own files and, under ``downloads``, for what it saves."""
    program = chromium()
    assert program is not None
    profile, downloads = folder / "profile", folder / "downloads"
    profile.mkdir(parents=True)
    downloads.mkdir()
    process = subprocess.Popen(
        [program, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        ready = profile / "DevToolsActivePort"
        eventually(lambda: ready.is_file() and ready.read_text().count("\n") >= 1)
        port, path = ready.read_text().splitlines()[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as whole:
            target = Page(whole).call("Target.createTarget", url="about:blank")["targetId"]
            behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
            Page(whole).call("Browser.setDownloadBehavior", **behaviour)
            with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as connection:
                page = Page(connection)
                page.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=1,
                    mobile=False,
                )
                page.call("Page.navigate", url=url)
                yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)
