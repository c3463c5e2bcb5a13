"""``flexgs serve``: a small local server of static files that answers HTTP Range requests."""

import contextlib
import errno
import logging
import re
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from flexgs_lightning.errors import InputError
from flexgs_lightning.signals import keeping

log = logging.getLogger(__name__)

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}
"""By ending; anything else is bytes."""
_PAGE = "index.html"
_BLOCK = 1 << 16
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def serve(folder: Path, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Show a folder that "flexgs publish" wrote in a browser on this machine, until Ctrl-C.

    Nothing outside the folder is served. To publish it for others, put the folder on any web server.

    Args:
        folder: The folder.
        port: Port to listen at; 0 takes any free one.
        host: Address to listen at; 0.0.0.0 also lets other machines in, such as a phone in the same network.
    """
    with (
        keeping("A server keeps nothing; the same command opens it again."),
        static_server(folder, host, port) as server,
    ):
        log.info(f"{folder}: http://{_reachable(host)}:{server.server_address[1]} (Ctrl-C ends the server)")
        server.serve_forever()


@contextlib.contextmanager
def static_server(
    folder: Path, host: str, port: int, handler: type[BaseHTTPRequestHandler] | None = None
) -> Iterator[ThreadingHTTPServer]:
    """A server of ``folder`` that listens, and is closed at the end; the caller runs it.

    Args:
        folder: what is served.
        host: address to listen at.
        port: port to listen at; 0 takes any free one.
        handler: answers requests; a ``StaticHandler`` by default.

    Raises:
        InputError: the folder holds no page, or it cannot listen there.
    """
    if not (folder / _PAGE).is_file():
        raise InputError(f"{folder}: expected a folder that flexgs publish wrote, found no {_PAGE} in it.")
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: expected 0 to 65535.")
    try:
        server = _Server((host, port), handler or StaticHandler)
    except OSError as error:
        taken = "in use by another program; choose another, or 0 for any free one"
        reason = taken if error.errno == errno.EADDRINUSE else f"cannot listen there ({error.strerror})"
        raise InputError(f"--host {host} --port {port}: {reason}.") from error
    server.folder = folder.resolve()
    with server:
        yield server


def _reachable(host: str) -> str:
    return "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    folder = Path()


class StaticHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD with files of the server's folder, whole or the one range that is asked for."""

    protocol_version = "HTTP/1.1"
    server_version = "flexgs"
    sys_version = ""

    def do_GET(self) -> None:
        """Send a file or a part of it."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send what GET would, without the file."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self._path()
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            length = path.stat().st_size
            tag = f'"{path.stat().st_mtime_ns:x}-{length:x}"'
            asked = self.headers.get("Range") if self.headers.get("If-Range", tag) == tag else None
            part = part_of(asked, length)
            if part is not None and not part:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{length}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT)
            if part is None:
                part = range(length)
            else:
                self.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{length}")
            self.send_header("Content-Type", TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if with_body:
                file.seek(part.start)
                with contextlib.suppress(ConnectionError):  # the browser has closed the page
                    self.copy(file, len(part))

    def copy(self, file: BinaryIO, length: int) -> None:
        """Send ``length`` bytes of a file from where it stands."""
        while length > 0 and (block := file.read(min(_BLOCK, length))):
            self.wfile.write(block)
            length -= len(block)

    def _path(self) -> Path | None:
        """The file that is asked for; None if there is none, or it lies elsewhere."""
        folder: Path = self.server.folder  # type: ignore[attr-defined]
        asked = unquote(urlsplit(self.path).path).lstrip("/")
        try:
            path = (folder / asked).resolve()
            path = (path / _PAGE).resolve() if path.is_dir() else path
            return path if path.is_relative_to(folder) and path.is_file() else None
        except (OSError, ValueError):  # names that no file can have
            return None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def part_of(asked: str | None, length: int) -> range | None:
    """The bytes that a Range header asks for of a file: none of them if it has none, None for the whole file.

    Headers of another form, such as several ranges, ask for the whole file (RFC 9110, section 14.2).
    """
    found = _RANGE.fullmatch(asked or "")
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        return range(max(0, length - int(last)), length)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, length) if last else length)
