"""The browser viewer: a viser server and a ``Session`` for each tab.

viser alone draws the controls and carries the pictures. nerfview was left out: its release 0.1.3 does not
import without packages that it does not ask for, traces every Python line of a render in order to interrupt
it, and ends the whole process at the first exception.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Iterator, Sequence

import rich
import torch
import viser

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.deploy.vantage import Vantage, vantage_of_capture, vantage_of_splats
from flexgs_lightning.deploy.viewer.canvas import framing_fov, reduced
from flexgs_lightning.deploy.viewer.guard import guarded_server
from flexgs_lightning.deploy.viewer.session import Session, Stage
from flexgs_lightning.deploy.viewer.state import RatioScale, SplatsCache
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.signals import keeping

log = logging.getLogger(__name__)

_TYPICAL_ASPECT = 1.5
_BRAND = (59, 130, 246)


class Viewer:
    """A running viewer: ``wait`` for Ctrl-C, or ``stop`` it.

    Args:
        model: what to draw.
        capture: the capture whose test views can be visited; None if it is not at hand.
        device: where to draw.
        host: address to listen at; "0.0.0.0" also lets other machines in.
        port: port to listen at; 0 takes any free one.
        count: Gaussians that every tab begins with; by default all.
        origins: pages that may connect beside the viewer's own, such as https://lab.example.org.

    Raises:
        InputError: the scene is empty, the port is in use, or the host is not this machine's.
    """

    def __init__(
        self,
        model: Model,
        capture: Capture | None,
        *,
        device: torch.device | str,
        host: str,
        port: int,
        count: int | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        RatioScale(len(model))  # refuses an empty scene
        _require_free_port(host, port)
        cache = SplatsCache(model, device)
        begin = 0.0 if model.moves else None
        vantage = vantage_of_capture(capture) if capture else vantage_of_splats(cache.at(len(model), begin))
        views = capture.test_views if capture else ()
        frames = len({view.time for view in views}) if model.moves and views else 30
        self._stage = Stage(model, views, vantage, cache, count or len(model), frames)
        # The first frame compiles kernels, or tells that they cannot be: before anyone waits for it.
        self._stage.draw(len(model), reduced(vantage.camera, 8), time=begin)
        self._sessions: dict[int, Session] = {}
        with _quiet(), guarded_server(host, origins):
            self._server = viser.ViserServer(host, port, verbose=False)
        self._dress(model.name)
        _place(self._server.initial_camera, vantage)
        self._server.on_client_connect(self._open)
        self._server.on_client_disconnect(self._close)

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return self._server.get_port()

    @property
    def url(self) -> str:
        """Address for a browser on this machine."""
        host = self._server.get_host()
        return f"http://{'localhost' if host in ('0.0.0.0', '::') else host}:{self.port}"

    def wait(self) -> None:
        """Say where it is, and stop at Ctrl-C."""
        model = self._stage.model
        with keeping("A viewer keeps nothing; the same command opens it again."):
            try:
                log.info(f"{model.name}: {len(model):,} Gaussians at {self.url} (Ctrl-C ends the viewer)")
                threading.Event().wait()
            finally:
                self.stop()

    def stop(self) -> None:
        """Close all tabs' sessions and the server."""
        for session in list(self._sessions.values()):
            session.stop()
        with _quiet():
            self._server.stop()

    async def _open(self, client: viser.ClientHandle) -> None:
        session = self._sessions[client.client_id] = Session(self._stage, client)
        session.start()

    async def _close(self, client: viser.ClientHandle) -> None:
        if session := self._sessions.pop(client.client_id, None):
            session.stop()

    def _dress(self, name: str) -> None:
        gui = self._server.gui
        gui.set_panel_label(f"FlexGS · {name}")
        gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, brand_color=_BRAND)
        gui.main_panel.dock_right()
        self._server.scene.set_up_direction(tuple(self._stage.vantage.up.tolist()))


def _place(camera: viser.InitialCameraConfig, vantage: Vantage) -> None:
    """Let new tabs start at the vantage."""
    camera.position = vantage.camera.positions[0].numpy()
    camera.look_at = vantage.turning_point(vantage.camera).numpy()
    camera.up = vantage.up.numpy()
    camera.fov = framing_fov(vantage.camera, _TYPICAL_ASPECT)


def _require_free_port(host: str, port: int) -> None:
    """viser would take another port without a word, and wait for ever where the host is wrong."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: expected 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"--port {port}: in use by another program; choose another, or 0 for any free one."
            ) from error
        reason = error.strerror or error
        raise InputError(f"--host {host} --port {port}: cannot listen there ({reason}).") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without viser's own banners."""
    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
