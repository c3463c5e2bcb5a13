"""Systems: ways to store a scene in bytes, each at several settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flexgs_lightning.evaluation.contenders import Contender
from flexgs_lightning.evaluation.subject import Still, Subject
from flexgs_lightning.splats import Splats


@dataclass(frozen=True)
class Coded:
    """A scene that was written and read back: one point of a curve.

    Attributes:
        label: names the point among those of its setting.
        subject: what was read.
        size: bytes of what was written.
        attributes: bytes by attribute, as far as the file keeps them apart.
        encode_seconds: from splats to the file.
        decode_seconds: from the file to splats.
        facts: what else a report may say, as plain values.
    """

    label: str
    subject: Subject
    size: int
    attributes: dict[str, int]
    encode_seconds: float
    decode_seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


Maker = Callable[[str, Path], Iterable[Coded]]
"""Codes the scene at a setting; the folder is that cell's own."""


@dataclass(frozen=True)
class System(Contender[Maker]):
    """A way to store a scene; its cells are settings.

    Attributes:
        settings: what its rate is set by, from the largest files to the smallest.
        holds_motion: whether it stores scenes that move.
    """

    settings: tuple[str, ...]
    holds_motion: ClassVar[bool] = False


def code(
    label: str,
    path: Path,
    write: Callable[[Path], None],
    read: Callable[[Path], Splats | Subject],
    attributes: Callable[[Path], dict[str, int]] = lambda _: {},
    facts: dict[str, Any] | None = None,
) -> Coded:
    """Write a file, read it back, and take the times of both."""
    started = time.perf_counter()
    write(path)
    written = time.perf_counter()
    found = read(path)
    done = time.perf_counter()
    return Coded(
        label,
        Still(found) if isinstance(found, Splats) else found,
        path.stat().st_size,
        attributes(path),
        written - started,
        done - written,
        facts or {},
    )
