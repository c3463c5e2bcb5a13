"""Writing files so that a failure leaves nothing half-written."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from flexgs_lightning.errors import InputError

PARTIAL = ".partial"
"""In the name of a file that is still being written, before its suffix."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name (same folder, same suffix) that becomes ``path`` on success.

    The block may write a file or create a folder under the temporary name. On any exception it is
    removed and ``path`` stays as it was.

    Raises:
        InputError: the folder cannot be created, or the write failed (a full disk, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{PARTIAL}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error.strerror or error}).") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """Make the content durable before the rename, or a power cut can leave an empty file."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
