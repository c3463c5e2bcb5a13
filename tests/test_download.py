"""Downloading against a local server that breaks off, forgets ranges, lies and serves hostile archives."""

import base64
import hashlib
import io
import json
import shutil
import stat
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flexgs_lightning.data import transfer
from flexgs_lightning.data.archives import DamagedArchiveError, check_free_space, extract_folder
from flexgs_lightning.data.download import download, download_benchmark
from flexgs_lightning.data.transfer import fetch
from flexgs_lightning.errors import InputError

PAYLOAD = hashlib.shake_256(b"payload").digest(3_000_000)


@dataclass
class Server:
    """What a test wants of the server, and what the server saw.

    Attributes:
        files: content by name.
        ranges: whether Range requests are honoured.
        break_after: bytes after which each of the next connections breaks off.
        statuses: error statuses with which the next requests are answered.
        etag: ETag of every file, or None.
        stated_size: Content-Length to state in place of the true one.
        md5: base64 MD5 to state, or None.
        requests: (method, name, Range header) of every request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    etag: str | None = '"v1"'
    stated_size: int | None = None
    md5: str | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def gets(self) -> list[str | None]:
        return [wanted for method, _, wanted in self.requests if method == "GET"]


def _handler(state: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
            state.requests.append((self.command, name, wanted))
            if body and state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            if name not in state.files:
                self.send_error(404)
                return
            content, start = state.files[name], 0
            fresh = self.headers.get("If-Range") in (None, state.etag)
            if wanted and state.ranges and fresh:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self._send_rest(content[start:], start, body)

        def _send_rest(self, rest: bytes, start: int, body: bool) -> None:
            size = len(rest) if state.stated_size is None else state.stated_size - start
            self.send_header("Content-Length", str(size))
            if state.etag:
                self.send_header("ETag", state.etag)
            if state.md5:
                self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={state.md5}")
            self.end_headers()
            if body:
                self.wfile.write(rest[: state.break_after.pop(0)] if state.break_after else rest)

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def _fetch(server: Server, path: Path, name: str = "file.zip") -> None:
    fetch(f"{server.url}/{name}", path, timeout=5, first_pause=0.01)


def _leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- fetching ----------------------------------------------------------------------------------------


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"] = PAYLOAD
    _fetch(server, tmp_path / "deep" / "file.zip")
    assert (tmp_path / "deep" / "file.zip").read_bytes() == PAYLOAD
    assert _leftovers(tmp_path / "deep") == ["file.zip"]


def test_broken_connections_are_resumed_where_they_broke(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"] = PAYLOAD
    server.break_after = [1_000_000, 500_000]
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == PAYLOAD
    assert server.gets == [None, "bytes=1000000-", "bytes=1500000-"]


def test_another_run_goes_on_from_the_part_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["file.zip"] = PAYLOAD
    server.break_after = [1_000_000]
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    with pytest.raises(InputError, match=r"gave up after 1 attempts.*1,000,000 bytes are kept in .*\.part"):
        _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip.part").stat().st_size == 1_000_000
    assert not (tmp_path / "file.zip").exists()
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == PAYLOAD
    assert server.gets == [None, "bytes=1000000-"]
    assert _leftovers(tmp_path) == ["file.zip"]


def test_a_damaged_note_of_a_part_starts_again(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"] = PAYLOAD
    known = {"url": f"{server.url}/file.zip", "validator": "a\nb: c", "size": len(PAYLOAD), "md5": None}
    (tmp_path / "file.zip.part.json").write_text(json.dumps(known))
    (tmp_path / "file.zip.part").write_bytes(PAYLOAD[:1000])
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == PAYLOAD
    assert server.gets == [None]


def test_resume_works_by_size_alone_where_the_server_has_no_etag(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"], server.etag, server.break_after = PAYLOAD, None, [700_000]
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == PAYLOAD
    assert server.gets == [None, "bytes=700000-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"], server.ranges, server.break_after = PAYLOAD, False, [1_000_000]
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == PAYLOAD


@pytest.mark.parametrize("etag", ['"v2"', None], ids=["new-etag", "no-etag"])
def test_two_versions_of_a_file_are_never_spliced(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str | None
) -> None:
    server.files["file.zip"], server.break_after = PAYLOAD, [1_000_000]
    server.etag = '"v1"' if etag else None
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    with pytest.raises(InputError):
        _fetch(server, tmp_path / "file.zip")
    server.files["file.zip"], server.etag = PAYLOAD[::-1][:-7], etag
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == PAYLOAD[::-1][:-7]


def test_a_part_file_longer_than_the_new_version_is_thrown_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["file.zip"], server.etag, server.break_after = PAYLOAD, None, [1_000_000]
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    with pytest.raises(InputError):
        _fetch(server, tmp_path / "file.zip")
    server.files["file.zip"] = b"short"
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == b"short"


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"], server.statuses = PAYLOAD, [503, 429]
    _fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == PAYLOAD
    assert len(server.gets) == 3


def test_a_server_that_never_recovers_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"], server.statuses = PAYLOAD, [503] * 50
    with pytest.raises(InputError, match=r"gave up after 6 attempts.*503"):
        _fetch(server, tmp_path / "file.zip")
    assert len(server.gets) == transfer.ATTEMPTS


def test_a_missing_file_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/file\.zip: the server answers 404"):
        _fetch(server, tmp_path / "file.zip")
    assert len(server.gets) == 1
    assert _leftovers(tmp_path) == []


def test_an_unreachable_server_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    with pytest.raises(InputError, match=r"gave up after 2 attempts.*refused"):
        fetch("http://127.0.0.1:1/file.zip", tmp_path / "file.zip", first_pause=0.01)


def test_a_file_shorter_than_stated_never_counts_as_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["file.zip"], server.stated_size = PAYLOAD, len(PAYLOAD) + 10
    server.ranges = False
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    with pytest.raises(InputError, match="broke off at 3,000,000 of 3,000,010 bytes"):
        _fetch(server, tmp_path / "file.zip")
    assert not (tmp_path / "file.zip").exists()


def test_a_stated_checksum_is_verified(server: Server, tmp_path: Path) -> None:
    server.files["file.zip"] = PAYLOAD
    server.md5 = base64.b64encode(hashlib.md5(PAYLOAD).digest()).decode()
    _fetch(server, tmp_path / "good.zip")
    assert (tmp_path / "good.zip").read_bytes() == PAYLOAD
    server.files["file.zip"] = PAYLOAD[:-1] + b"?"
    with pytest.raises(InputError, match=r"damaged on its way: its MD5 is .* the server states"):
        _fetch(server, tmp_path / "bad.zip")
    assert _leftovers(tmp_path) == ["good.zip"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file.zip", "file.zip", "http://"])
def test_only_http_is_spoken(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="expected an http or https address"):
        fetch(url, tmp_path / "file.zip")


# --- unpacking ---------------------------------------------------------------------------------------


def _zip(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _scene(name: str) -> dict[str, bytes]:
    return {
        f"{name}/images/0.jpg": hashlib.shake_256(name.encode()).digest(20_000),
        f"{name}/sparse/0/cameras.bin": name.encode() * 10,
    }


def _archive(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "archive.zip"
    path.write_bytes(content)
    return path


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_only_the_wanted_folder_is_unpacked(tmp_path: Path) -> None:
    content = _scene("room") | _scene("roomy") | {"readme.txt": b"hello"}
    extract_folder(_archive(tmp_path, _zip(content)), "room", tmp_path / "out")
    assert _files(tmp_path / "out") == {
        name.removeprefix("room/"): data for name, data in _scene("room").items()
    }


@pytest.mark.parametrize(
    "name", ["room/../../evil.txt", "../evil.txt", "/evil.txt", "room\\..\\evil.txt", "C:/evil.txt"]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    archive = _archive(tmp_path, _zip(_scene("room") | {name: b"evil"}))
    with pytest.raises(InputError, match="would be written outside its folder"):
        extract_folder(archive, "room", tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("evil*"))
    assert _leftovers(tmp_path) == ["archive.zip"]


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("room/images")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(InputError, match="'room/images' is a link or device"):
        extract_folder(_archive(tmp_path, buffer.getvalue()), "room", tmp_path / "out")


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    content = bytearray(_zip(_scene("room")))
    central = content.rindex(b"PK\x01\x02")
    content[central + 8] |= 1
    with pytest.raises(InputError, match="is encrypted"):
        extract_folder(_archive(tmp_path, bytes(content)), "room", tmp_path / "out")


def test_another_compression_method_is_named(tmp_path: Path) -> None:
    archive = _archive(tmp_path, _zip(_scene("room"), zipfile.ZIP_LZMA))
    with pytest.raises(InputError, match="uses compression method 14"):
        extract_folder(archive, "room", tmp_path / "out")


def test_a_zip_bomb_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    archive = _archive(tmp_path, _zip({"room/images/0.jpg": bytes(20_000_000)}))
    with pytest.raises(InputError, match="claims to expand"):
        extract_folder(archive, "room", tmp_path / "out")
    assert _leftovers(tmp_path) == ["archive.zip"]


def test_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("room/a.jpg", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("room/a.jpg", b"two")
    with pytest.raises(InputError, match="have the same name"):
        extract_folder(_archive(tmp_path, buffer.getvalue()), "room", tmp_path / "out")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no files in a folder 'garden'"):
        extract_folder(_archive(tmp_path, _zip(_scene("room"))), "garden", tmp_path / "out")


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "not a zip"])
def test_damage_leaves_nothing_unpacked(tmp_path: Path, damage: str) -> None:
    content = bytearray(_zip(_scene("room"), zipfile.ZIP_STORED))
    if damage == "flipped byte":
        content[10_000] ^= 0xFF
    elif damage == "truncated":
        del content[-30:]
    else:
        content[:] = b"<html>please log in</html>"
    with pytest.raises(DamagedArchiveError):
        extract_folder(_archive(tmp_path, bytes(content)), "room", tmp_path / "out")
    assert _leftovers(tmp_path) == ["archive.zip"]


@pytest.mark.parametrize("damage", ["a comment that swallows the rest", "another name"])
def test_a_damaged_list_of_files_hides_none(tmp_path: Path, damage: str) -> None:
    content = bytearray(_zip(_scene("room")))
    listed = content.index(b"PK\1\2")
    if damage == "another name":
        name = content.index(b"room/", listed)
        content[name : name + 1] = b"R"
    else:
        content[listed + 32 : listed + 34] = b"\xff\x0f"  # length of the first entry's comment
    with pytest.raises(DamagedArchiveError, match=r"expected \d+|differ"):
        extract_folder(_archive(tmp_path, bytes(content)), "room", tmp_path / "out")
    assert _leftovers(tmp_path) == ["archive.zip"]


def test_too_little_disk_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10**9, 10**9))
    with pytest.raises(InputError, match=r"unpacking needs 12\.0 GB, but only 0\.7 GB of the disk are free"):
        check_free_space(tmp_path / "not" / "there", 12 * 10**9, "unpacking")
    check_free_space(tmp_path, 10**8, "unpacking")


# --- the command -------------------------------------------------------------------------------------

MIPNERF360_MAIN = ("bicycle", "bonsai", "counter", "garden", "kitchen", "room", "stump")


def _serve_mipnerf360(server: Server) -> None:
    scenes = [_scene(name) for name in MIPNERF360_MAIN]
    server.files["360_v2.zip"] = _zip({k: v for scene in scenes for k, v in scene.items()})
    server.files["360_extra_scenes.zip"] = _zip(_scene("flowers") | _scene("treehill"))


def _expect_scene(folder: Path, member: str) -> None:
    assert _files(folder) == {name.removeprefix(f"{member}/"): data for name, data in _scene(member).items()}


def test_a_whole_benchmark(server: Server, tmp_path: Path) -> None:
    _serve_mipnerf360(server)
    folders = download_benchmark("mipnerf360", tmp_path, mirror=server.url)
    assert len(folders) == 9
    for folder in folders:
        _expect_scene(folder, folder.name)
    assert _leftovers(tmp_path / "mipnerf360") == sorted([*MIPNERF360_MAIN, "flowers", "treehill"])
    assert sorted(name for method, name, _ in server.requests if method == "GET") == [
        "360_extra_scenes.zip",
        "360_v2.zip",
    ]


def test_finished_scenes_are_skipped_and_a_shared_archive_is_fetched_once(
    server: Server, tmp_path: Path
) -> None:
    _serve_mipnerf360(server)
    download("mipnerf360", ["garden"], tmp_path, mirror=server.url)
    assert _leftovers(tmp_path / "mipnerf360") == ["archives", "garden"]
    download("mipnerf360", ["garden", "room"], tmp_path, mirror=server.url)
    _expect_scene(tmp_path / "mipnerf360" / "room", "room")
    assert len(server.gets) == 1
    marker = tmp_path / "mipnerf360" / "garden" / "mine.txt"
    marker.write_text("kept")
    download("mipnerf360", ["garden"], tmp_path, mirror=server.url)
    assert marker.read_text() == "kept"
    assert len(server.gets) == 1


def test_scenes_in_subfolders_of_an_archive_lie_flat(server: Server, tmp_path: Path) -> None:
    server.files["tandt_db.zip"] = _zip(
        _scene("tandt/train") | _scene("tandt/truck") | _scene("db/drjohnson") | _scene("db/playroom")
    )
    download_benchmark("tanks_and_temples", tmp_path, ["truck", "playroom"], mirror=f"{server.url}/sub/")
    _expect_scene(tmp_path / "tanks_and_temples" / "truck", "tandt/truck")
    _expect_scene(tmp_path / "tanks_and_temples" / "playroom", "db/playroom")


def test_an_interrupted_download_ends_as_an_uninterrupted_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["berlin.zip"] = _zip(_scene("berlin"))
    server.break_after = [9_000]
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    with pytest.raises(InputError, match="gave up"):
        download("zipnerf", ["berlin"], tmp_path, mirror=server.url)
    assert _leftovers(tmp_path / "zipnerf") == ["archives"]
    download("zipnerf", ["berlin"], tmp_path, mirror=server.url)
    assert server.gets == [None, "bytes=9000-"]
    _expect_scene(tmp_path / "zipnerf" / "berlin", "berlin")
    assert _leftovers(tmp_path / "zipnerf") == ["berlin"]


def test_a_damaged_archive_is_removed_so_that_the_next_run_mends_it(server: Server, tmp_path: Path) -> None:
    whole = _zip(_scene("nyc"), zipfile.ZIP_STORED)
    server.files["nyc.zip"] = whole[:5_000] + b"\0" * 100 + whole[5_100:]
    with pytest.raises(InputError, match="damaged archive was removed; run the command again"):
        download("zipnerf", ["nyc"], tmp_path, mirror=server.url)
    assert list((tmp_path / "zipnerf").rglob("*")) == [tmp_path / "zipnerf" / "archives"]
    server.files["nyc.zip"] = whole
    download("zipnerf", ["nyc"], tmp_path, mirror=server.url)
    _expect_scene(tmp_path / "zipnerf" / "nyc", "nyc")


def test_archives_can_be_kept(server: Server, tmp_path: Path) -> None:
    server.files["nyc.zip"] = _zip(_scene("nyc"))
    download("zipnerf", ["nyc"], tmp_path, mirror=server.url, keep_archives=True)
    assert (tmp_path / "zipnerf" / "archives" / "nyc.zip").read_bytes() == server.files["nyc.zip"]


def test_too_little_disk_stops_a_download_before_it_begins(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["nyc.zip"] = _zip(_scene("nyc"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 1_000))
    with pytest.raises(InputError, match=r"downloading nyc\.zip needs"):
        download("zipnerf", ["nyc"], tmp_path, mirror=server.url)
    assert server.gets == []


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown benchmark '360'.*mipnerf360"):
        download("360", root=tmp_path)
    with pytest.raises(InputError, match=r"unknown scene of mipnerf360 'truck'.*bicycle, bonsai"):
        download("mipnerf360", ["garden", "truck"], tmp_path)
    assert list(tmp_path.iterdir()) == []
