"""Fetching a large file over HTTP: resumed where it broke off, checked when it is whole."""

from __future__ import annotations

import binascii
import hashlib
import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from tqdm import tqdm

from flexgs_lightning.errors import InputError, printable
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import read_json

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
ATTEMPTS = 6
"""Connections in a row that bring nothing, after which a download is given up."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may pass if one waits."""
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "flexgs-lightning"}


def fetch(url: str, path: Path, *, timeout: float = 30.0, first_pause: float = 1.0) -> None:
    """Download ``url`` to ``path``.

    What has arrived stays in ``<path>.part`` until the file is whole, and the next call, also of another
    process, goes on from there if the server still has the same version and allows it. Broken connections
    and busy servers are tried again after a pause that doubles each time.

    Args:
        url: http or https address.
        path: file to write; its folder is created.
        timeout: seconds without a byte after which a connection counts as broken.
        first_pause: seconds before the second attempt.

    Raises:
        InputError: not an http address, the server refuses or cannot be reached, the file is not of the
            stated size or checksum, or it cannot be written.
    """
    _expect_http(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download = _Download(url, path, timeout)
        download.finish(first_pause)
        download.check()
        download.part.replace(path)
        download.note.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error.strerror or error}).") from error


def remaining_bytes(url: str, path: Path, *, timeout: float = 30.0) -> int | None:
    """Bytes that ``fetch`` has still to bring, or None where the server does not say."""
    _expect_http(url)
    if path.is_file():
        return 0
    request = urllib.request.Request(url, method="HEAD", headers=HEADERS)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            size = _length(response.headers)
    except (OSError, http.client.HTTPException):
        return None  # fetch will say what is wrong
    return None if size is None else max(0, size - _size(_part(path)))


def _expect_http(url: str) -> None:
    if not re.match(r"https?://[^/]", url):
        raise InputError(f"{url}: expected an http or https address.")


class _BrokenError(Exception):
    """The connection failed or the server is busy: worth another attempt."""


@dataclass(frozen=True)
class _Version:
    """Which remote file a ``.part`` file is the beginning of, so that two versions are never spliced.

    Attributes:
        url: address.
        validator: strong ETag or Last-Modified date, the two that If-Range understands; or None.
        size: bytes in all, where stated.
        md5: base64 MD5 of the whole, where stated.
    """

    url: str
    validator: Annotated[str, Meta(pattern=r"^[ -~]*$")] | None
    size: int | None
    md5: str | None


class _Download:
    """One file on its way: the connections that it takes, and what is kept between them."""

    def __init__(self, url: str, path: Path, timeout: float) -> None:
        self.url, self.path, self.timeout = url, path, timeout
        self.part = _part(path)
        self.note = path.with_name(f"{path.name}.part.json")
        self.version = self._read_note()
        if self.version is None:
            self.part.unlink(missing_ok=True)

    def finish(self, first_pause: float) -> None:
        """Connect until the file is whole."""
        failures = 0
        while True:
            before = _size(self.part)
            try:
                return self._connect()
            except _BrokenError as error:
                failures = 1 if _size(self.part) > before else failures + 1
                if failures >= ATTEMPTS:
                    raise InputError(
                        f"{self.url}: gave up after {failures} attempts ({error}). "
                        f"{_size(self.part):,} bytes are kept in {self.part}; the same command goes on there."
                    ) from error
                pause = first_pause * 2 ** (failures - 1)
                logger.warning("%s: %s; trying again in %g s.", self.url, error, pause)
                time.sleep(pause)

    def check(self) -> None:
        """Compare what arrived with the size and checksum that the server stated.

        Raises:
            InputError: they differ; the bytes are thrown away.
        """
        assert self.version is not None
        found, expected = _size(self.part), self.version.size
        if expected is not None and found != expected:
            self._discard(f"{found:,} bytes arrived, expected {expected:,}")
        if self.version.md5 is not None and (found_md5 := _md5(self.part)) != self.version.md5:
            self._discard(f"its MD5 is {found_md5}, the server states {self.version.md5}")

    def _connect(self) -> None:
        """Append to the ``.part`` file what one connection brings."""
        start = _size(self.part)
        if self.version is not None and start and start == self.version.size:
            return
        with self._open(start) as response:
            start = self._agree(response, start)
            assert self.version is not None
            with self.part.open("r+b" if start else "wb") as file:
                file.seek(start)
                for chunk in _chunks(response, self.version, start):
                    file.write(chunk)
        arrived, expected = _size(self.part), self.version.size
        if expected is not None and arrived < expected:
            raise _BrokenError(f"the connection broke off at {arrived:,} of {expected:,} bytes")

    def _open(self, start: int) -> http.client.HTTPResponse:
        headers = dict(HEADERS)
        if start and self.version is not None:
            headers["Range"] = f"bytes={start}-"
            if self.version.validator:
                headers["If-Range"] = self.version.validator
        request = urllib.request.Request(self.url, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing there beyond what is here, so it is another file
                self._forget()
            elif error.code not in TRANSIENT:
                raise InputError(f"{self.url}: the server answers {error.code} {error.reason}.") from error
            raise _BrokenError(f"the server answers {error.code} {printable(str(error.reason))}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(_reason(error)) from error

    def _agree(self, response: http.client.HTTPResponse, start: int) -> int:
        """Where the response begins; from the first byte unless it continues what is here.

        A server that knows no ranges, or whose file has changed (If-Range), sends the whole with status 200.
        """
        if response.status == 206:
            span = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            offered = _version(self.url, response.headers, int(span[2]) if span else None)
            if self.version is not None and span and int(span[1]) == start and _same(offered, self.version):
                return start
            self._forget()
            raise _BrokenError("the file on the server has changed; starting again")
        self.version = _version(self.url, response.headers, _length(response.headers))
        self.part.unlink(missing_ok=True)  # first: a kill between must not leave old bytes with a new note
        with atomic_path(self.note) as temporary:
            temporary.write_text(json.dumps(asdict(self.version)))
        return 0

    def _read_note(self) -> _Version | None:
        try:
            version = read_json(self.note, _Version)
        except InputError:  # none, or damaged: from the beginning then
            return None
        return version if version.url == self.url else None

    def _forget(self) -> None:
        self.version = None
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _discard(self, reason: str) -> None:
        self._forget()
        raise InputError(
            f"{self.url}: damaged on its way: {reason}. It was thrown away; run the command again."
        )


def _chunks(response: http.client.HTTPResponse, version: _Version, start: int) -> Iterator[bytes]:
    """Pieces of the response as they arrive, with a progress bar."""
    name = version.url.rpartition("/")[2]
    with tqdm(
        total=version.size, initial=start, desc=f"Downloading {name}", unit="B", unit_scale=True
    ) as progress:
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(_reason(error)) from error
            if not chunk:
                return
            progress.update(len(chunk))
            yield chunk


def _version(url: str, headers: Message, size: int | None) -> _Version:
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified")
    return _Version(url, validator, size, _stated_md5(headers))


def _same(offered: _Version, known: _Version) -> bool:
    """Size and validator agree; a partial answer need not repeat the validator."""
    return offered.size == known.size and offered.validator in (None, known.validator)


def _stated_md5(headers: Message) -> str | None:
    """Base64 MD5 of the whole file, as Google's storage states it."""
    for line in headers.get_all("x-goog-hash", []):
        for entry in line.split(","):
            kind, _, value = entry.strip().partition("=")
            if kind == "md5":
                return value
    return None


def _length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(total=_size(path), desc=f"Checking {path.stem}", unit="B", unit_scale=True) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return binascii.b2a_base64(digest.digest(), newline=False).decode()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(error: Exception) -> str:
    return printable(str(getattr(error, "reason", None) or error)) or type(error).__name__
