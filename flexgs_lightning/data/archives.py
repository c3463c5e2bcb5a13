"""Unpacking one folder of a zip archive from the internet: safely, and whole or not at all."""

from __future__ import annotations

import io
import itertools
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import plain_size
from flexgs_lightning.zip_archives import ZIP_DAMAGE

CHUNK = 1 << 20
MAX_EXPANSION = 20
"""Photos hardly compress: an archive that claims to expand more than this is not a capture."""
SPARE = 256 << 20
"""Bytes of the disk that stay free."""
_END = struct.Struct("<4s4H2LH")
"""The last record of a zip file; its fifth number is that of the entries."""
_IN_ZIP64 = 0xFFFF
"""Stands for a number of entries that only a record of the format's extension has room for."""


class DamagedArchiveError(Exception):
    """The archive's bytes are not what was packed: a broken structure, or a checksum that fails."""


class _Joined(io.RawIOBase):
    """Files of a split archive as one, without copying them."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._files = [part.open("rb") for part in parts]
        self.sizes = [part.stat().st_size for part in parts]
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: sum(self.sizes)}[whence]
        )
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = sum(self.sizes) - self._place if size < 0 else size
        found, begin = [], 0
        for file, length in zip(self._files, self.sizes, strict=True):
            if left > 0 and begin <= self._place < begin + length:
                file.seek(self._place - begin)
                found.append(file.read(left))
                left -= len(found[-1])
                self._place += len(found[-1])
            begin += length
        return b"".join(found)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def _open_archive(archive: Path, parts: Sequence[Path]) -> zipfile.ZipFile:
    """A zip file; of a split one, entries state where they begin in their own part."""
    if not parts:
        return zipfile.ZipFile(archive)
    joined = _Joined([*parts, archive])
    opened = zipfile.ZipFile(joined)
    begins = list(itertools.accumulate(joined.sizes, initial=0))
    for entry in opened.infolist():  # zipfile took all places to be in the last part
        entry.header_offset += begins[entry.volume] - begins[-2]
    return opened


def extract_folder(archive: Path, member: str, target: Path, parts: Sequence[Path] = ()) -> None:
    """Unpack folder ``member`` of a zip ``archive`` as ``target``, which appears complete or not at all.

    ``parts`` are the files before ``archive`` of one that is split.

    Every name in the archive is checked first: none may be absolute or lead out of its folder, and links
    are refused. Each file's CRC-32 is verified as it is unpacked.

    Raises:
        DamagedArchiveError: not a zip file, or a checksum fails.
        InputError: the archive has no such folder, is hostile, expands beyond reason or beyond the free
            space of the disk, or a file cannot be written.
    """
    plain_size(archive)
    try:
        with _open_archive(archive, parts) as opened:
            entries = opened.infolist()
            for entry in entries:
                _check_entry(archive, entry)
            wanted = [entry for entry in entries if entry.filename.startswith(f"{member}/")]
            _check_directory(archive, opened, wanted)
            packed = sum(path.stat().st_size for path in (*parts, archive))
            _check_total(archive, member, wanted, target, packed)
            with atomic_path(target) as temporary:
                _unpack(opened, wanted, member, temporary)
    except ZIP_DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise DamagedArchiveError(f"{archive}: {error}") from error


def _check_directory(archive: Path, opened: zipfile.ZipFile, wanted: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a damaged list of files: whatever it hides or misnames would be missing without a word.

    It states how many entries it has, and each name stands a second time before the file's bytes, which
    zipfile compares with the list's when it opens the file: those that are wanted are opened later.
    """
    entries = opened.infolist()
    with archive.open("rb") as file:
        file.seek(-min(plain_size(archive), _END.size + 0xFFFF), io.SEEK_END)
        tail = file.read()
    stated: int = _END.unpack_from(tail, tail.rfind(b"PK\5\6"))[4]
    if stated not in (len(entries), _IN_ZIP64):
        raise zipfile.BadZipFile(f"found {len(entries)} entries, expected {stated}")
    unwanted = {entry.header_offset: entry for entry in entries}
    for entry in wanted:
        unwanted.pop(entry.header_offset, None)
    for entry in unwanted.values():
        opened.open(entry).close()


def check_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to begin what cannot end.

    Args:
        folder: where the bytes will go; it need not exist yet.
        needed: bytes.
        purpose: what they are for, for the message.

    Raises:
        InputError: less than ``needed`` bytes are free.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free - SPARE
    if needed > free:
        raise InputError(
            f"{folder}: {purpose} needs {needed / 1e9:.1f} GB, but only {max(free, 0) / 1e9:.1f} GB of the "
            f"disk are free (beyond a reserve of {SPARE / 1e9:.1f} GB)."
        )


def _check_entry(archive: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise InputError(f"{archive}: refused, its entry {name!r} would be written outside its folder.")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{archive}: refused, its entry {name!r} is a link or device, expected plain files.")
    if entry.flag_bits & 0x1:
        raise InputError(f"{archive}: refused, its entry {name!r} is encrypted.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{archive}: its entry {name!r} uses compression method {entry.compress_type}, "
            "expected 0 (stored) or 8 (deflated)."
        )


def _check_total(
    archive: Path, member: str, wanted: Sequence[zipfile.ZipInfo], target: Path, packed: int
) -> None:
    if not any(not entry.is_dir() for entry in wanted):
        raise InputError(f"{archive}: has no files in a folder '{member}'.")
    names = {entry.filename for entry in wanted}
    if len(names) < len(wanted):
        raise InputError(f"{archive}: refused, some entries of '{member}' have the same name.")
    total = sum(entry.file_size for entry in wanted)
    if total > MAX_EXPANSION * packed:
        raise InputError(
            f"{archive}: refused, its folder '{member}' claims to expand to {total / 1e9:.1f} GB, more than "
            f"{MAX_EXPANSION} times the archive."
        )
    check_free_space(target, total, f"unpacking '{member}'")


def _unpack(archive: zipfile.ZipFile, wanted: Sequence[zipfile.ZipInfo], member: str, folder: Path) -> None:
    total = sum(entry.file_size for entry in wanted)
    with tqdm(total=total, desc=f"Unpacking {member}", unit="B", unit_scale=True) as progress:
        for entry in wanted:
            path = folder / PurePosixPath(entry.filename).relative_to(member)
            if entry.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for chunk in _content(archive, entry):
                    file.write(chunk)
                    progress.update(len(chunk))


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """At most the stated size, in pieces; verifies the CRC."""
    try:
        with archive.open(entry) as source:
            while chunk := source.read(CHUNK):
                yield chunk
    except OSError as error:  # a place that no file has
        raise zipfile.BadZipFile(f"{entry.filename!r} cannot be read ({error})") from error
