"""Who may talk to the viewer: its own pages; and what it says about those who send it nonsense.

A browser lets any page open a WebSocket to any address, this machine's own included, and says only where the
page came from. viser takes every connection, and leaves errors to loggers that print tracebacks. While its
server is started, ``guarded_server`` puts a check before the handshake and a guard around each connection.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

log = logging.getLogger(__name__)

_LONGEST = 200
_PORTS = {"http": 80, "https": 443}


def refusal(headers: Headers, host: str, origins: Collection[str]) -> str | None:
    """Why a request is refused; None if it is not.

    Args:
        headers: of the request.
        host: address or name that the server listens at.
        origins: pages that may connect beside the server's own, such as ``https://lab.example.org``.
    """
    asked, pages = headers.get_all("Host"), headers.get_all("Origin")
    if len(asked) != 1 or len(pages) > 1:
        return "expected one Host and at most one Origin"
    known = {place for place in map(_place, origins) if place is not None}
    here = _place(f"http://{asked[0]}")
    # A name that leads here may be another site's, whose page has changed its address meanwhile.
    if here is None or not (_is_ours(here[0], host) or here[0] in {name for name, _ in known}):
        return f"asked for as {_printable(asked[0])}, which is not the viewer's address"
    if not pages:
        return None  # not a browser
    page = _place(pages[0])
    if page is None or not (page == here or page in known or _same_behind_proxy(page, here, asked[0])):
        return f"a page of {_printable(pages[0])} may not use the viewer"
    return None


@contextlib.contextmanager
def guarded_server(host: str, origins: Collection[str]) -> Iterator[None]:
    """Guard the WebSocket server that is started in this block; viser has no option for it."""
    serve = websockets.asyncio.server.serve

    def guarded(handler: Callable[[ServerConnection], Awaitable[None]], *args: Any, **options: Any) -> Any:
        answer = options.pop("process_request")

        def check(connection: ServerConnection, request: Request) -> Response | None:
            reason = refusal(request.headers, host, origins)
            if reason is None:
                return answer(connection, request)
            log.warning("viewer: refused a connection: %s", reason)
            return connection.respond(HTTPStatus.FORBIDDEN, f"Refused: {reason}.\n")

        async def handle(connection: ServerConnection) -> None:
            try:
                await handler(connection)
            except Exception as error:
                log.warning("viewer: closed a connection that sent no sound message (%s)", _summary(error))
                await connection.close(1007, "not a message of the viewer")

        return serve(handle, *args, process_request=check, logger=_one_line_logger(), **options)

    websockets.asyncio.server.serve = guarded  # type: ignore[assignment]
    try:
        yield
    finally:
        websockets.asyncio.server.serve = serve


def one_line(record: logging.LogRecord) -> bool:
    """A logging filter that leaves of an error's traceback what happened."""
    if record.exc_info and record.exc_info[1] is not None:
        text = f"viewer: {record.getMessage().splitlines()[0][:_LONGEST]} ({_summary(record.exc_info[1])})"
        record.msg, record.args, record.exc_info, record.exc_text = text, (), None, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _one_line_logger() -> logging.Logger:
    logger = logging.getLogger(f"{__name__}.websockets")
    logger.setLevel(logging.WARNING)  # it reports every tab
    if one_line not in logger.filters:
        logger.addFilter(one_line)
        logging.getLogger("asyncio").addFilter(one_line)  # of tasks that viser starts for messages
    return logger


def _place(address: str) -> tuple[str, int] | None:
    """(name, port) of an address; None if it is none."""
    try:
        parts = urlsplit(address)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.hostname.rstrip("."), port) if parts.hostname else None


def _same_behind_proxy(page: tuple[str, int], here: tuple[str, int], asked: str) -> bool:
    """An encrypting proxy in front states its own name without a port, which means 443 to the page."""
    return ":" not in asked.rpartition("]")[2] and page == (here[0], _PORTS["https"])


def _is_ours(name: str, host: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in (host.lower(), "localhost", socket.gethostname().lower()) or name.endswith(
            ".localhost"
        )
    return True


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {_printable(str(error))}" if str(error) else type(error).__name__


def _printable(text: str) -> str:
    """The beginning of what a stranger has sent, for a terminal."""
    return text[:_LONGEST].encode("unicode_escape").decode()
