"""A published site in headless Chromium, from a server that can be slow, break off or know no Range."""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from browser import Page, eventually
from PIL import Image

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.web.serve import StaticHandler, static_server

_BLOCK = 2048
LOADED_DEVICE = """
const device = WebGL2RenderingContext.prototype;
const range = device.uniform2i, draw = device.drawElementsInstanced;
let drawn = 0;
device.uniform2i = function (place, visible, batch) {
  drawn = visible;
  range.call(this, place, visible, batch);
};
device.drawElementsInstanced = function (...words) {
  const end = performance.now() + 0.1 * drawn;
  draw.apply(this, words);
  while (performance.now() < end);
};
"""
"""A device that takes 0.1 ms a Gaussian, on top of what drawing takes."""


class Line:
    """What lies between a server and the page, for files that end in .egs.

    Attributes:
        rate: bytes a second; None for as fast as it goes.
        drops: bytes after which each of the next connections breaks.
        ranged: whether the server answers Range.
        asked: Range headers so far.
        sent: bytes of bodies so far.
    """

    def __init__(self, rate: float | None = None, drops: tuple[int, ...] = (), ranged: bool = True) -> None:
        self.rate, self.drops, self.ranged = rate, list(drops), ranged
        self.asked: list[str | None] = []
        self.sent = 0


@contextlib.contextmanager
def troubled(site: Path, line: Line) -> Iterator[str]:
    """Serve a site over a line; gives its address."""

    class Handler(StaticHandler):
        def do_GET(self) -> None:  # noqa: N802 (http.server's name)
            if self.path.endswith(".egs"):
                line.asked.append(self.headers["Range"])
                if not line.ranged:
                    del self.headers["Range"]
            super().do_GET()

        def copy(self, file: BinaryIO, length: int) -> None:
            if not self.path.endswith(".egs"):
                super().copy(file, length)
                return
            most = line.drops.pop(0) if line.drops else length
            while length > 0 and most > 0:
                block = file.read(min(_BLOCK, length, most))
                self.wfile.write(block)
                line.sent += len(block)
                length, most = length - len(block), most - len(block)
                if line.rate:
                    time.sleep(len(block) / line.rate)
            self.close_connection = self.close_connection or length > 0

    with static_server(site, "127.0.0.1", 0, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class Tab:
    """The player's page, as a user and as a script of the page sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.call("Page.enable")  # without which scripts are not added to documents

    def open(self, address: str) -> None:
        """Load the page anew."""
        self.page.call("Page.navigate", url="about:blank")
        self.page.call("Page.navigate", url=address)

    def get(self, expression: str) -> Any:
        """Value of an expression in which ``player`` is the page's player; None before there is one."""
        script = f"JSON.stringify((player => player && ({expression}))(window.flexgs?.player) ?? null)"
        return json.loads(self.page.run(script))

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until everything wanted is loaded, sorted and drawn."""
        eventually(lambda: self.get("player.settled"), seconds)

    def text(self, key: str) -> str:
        return " ".join(self.page.text(f"#{key}").split())

    def picture(self) -> np.ndarray:
        """[H, W, 3] the canvas, in [0, 1]."""
        data = self.get("player.picture()").partition(",")[2]
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        return np.asarray(image).astype(np.float64) / 255

    def camera(self) -> Cameras:
        """The camera that the canvas is drawn through."""
        rotation, position = (
            np.array(self.get(f"player.camera.{name}")) for name in ("rotation", "position")
        )
        width, height = self.get("[player.canvas.width, player.canvas.height]")
        fx, fy, cx, cy = self.get(f"player.camera.lensFor({width}, {height})")
        viewmat = np.eye(4)
        viewmat[:3, :3] = rotation.reshape(3, 3)
        viewmat[:3, 3] = -viewmat[:3, :3] @ position
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        matrices = (torch.from_numpy(matrix).float()[None] for matrix in (viewmat, K))
        return Cameras(*matrices, width, height)

    @contextlib.contextmanager
    def prepared(self, script: str) -> Iterator[None]:
        """Run a script in every document before its own."""
        added = self.page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        try:
            yield
        finally:
            self.page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])

    def click(self, key: str) -> None:
        """A control, wherever it has been scrolled to."""
        self.page.run(f"document.getElementById('{key}').click()")
