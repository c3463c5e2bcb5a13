"""ZIP archives from outside: what zipfile raises at damage becomes one message."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import plain_size

ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
)
"""What zipfile raises, depending on where the damage is; the last also at encrypted members and at packings
that it does not know. ``InputError`` is a ``ValueError``."""


def open_archive(path: Path, kind: str) -> zipfile.ZipFile:
    """A plain file as an archive, for a ``with`` statement; ``kind`` says what it should be, for the message.

    Raises:
        InputError: no such file, or no sound archive.
    """
    plain_size(path)
    with _refused(path, f"not {kind}: no sound ZIP archive"):
        return zipfile.ZipFile(path)


def read_member(archive: zipfile.ZipFile, path: Path, member: str | zipfile.ZipInfo) -> bytes:
    """A member of an archive, whole, its checksum verified; ``path`` is the archive's.

    Raises:
        InputError: there is none of this name, or it cannot be unpacked.
    """
    name = member if isinstance(member, str) else member.filename
    with _refused(path, f"'{name}' in the archive is damaged"):
        try:
            return archive.read(member)
        except KeyError as error:
            raise InputError(f"{path}: no '{name}' in the archive.") from error


@contextmanager
def _refused(path: Path, damage: str) -> Iterator[None]:
    """Say in one message what zipfile raises."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror or error}).") from error
    except ZIP_DAMAGE as error:
        raise InputError(f"{path}: {damage} ({error}).") from error
