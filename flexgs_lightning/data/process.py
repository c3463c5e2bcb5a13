"""``flexgs data process``: from photos or a video to a capture, resumable step by step."""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from PIL import UnidentifiedImageError

from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.data.photos import MIN_VIEWS
from flexgs_lightning.data.sfm.mapping import map_photos, reduce, undistort, useful_factors
from flexgs_lightning.data.sfm.matching import Matching, choose_pairs, extract, match
from flexgs_lightning.data.sfm.sources import Source, gather
from flexgs_lightning.data.sfm.verdict import Verdict, judge
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import LOCK, atomic_path, locked
from flexgs_lightning.records import read_json, shown
from flexgs_lightning.signals import keeping

logger = logging.getLogger(__name__)

WORK = "process"
"""Folder of unfinished work inside the capture."""
REPORT = "process.json"
_ERRORS = 2
"""Of glog's levels, the least to be shown."""
_ALL_PAIRS_UP_TO = 100
"""Photos whose pairs are all compared: 4,950."""
_FACTORS = (2, 4, 8)


class _Settings(msgspec.Struct):
    """What the steps depend on: another run may go on only with the same."""

    source: str
    frames: int
    matching: str
    camera_model: str
    feature_side: int


class _Report(msgspec.Struct):
    settings: _Settings
    verdict: Verdict


def process(
    source: Path,
    output: Path | None = None,
    frames: int = 150,
    matching: Literal["auto", "exhaustive", "sequential", "neighbours"] = "auto",
    camera_model: Literal["SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "PINHOLE"] = "OPENCV",
    feature_side: int = 1600,
    threads: int | None = None,
) -> None:
    """Make a capture of photos or a video: cameras, points, undistorted photos and reduced copies.

    Structure from motion by COLMAP (pycolmap) on the CPU. Interrupted, the same command goes on where it
    was. It ends with a verdict: how many photos were placed, how well, and why others were not.

    Args:
        source: Folder of photos, or a video.
        output: Folder of the capture; by default beside the source, with "_capture" after its name.
        frames: Number of frames to take from a video: the sharpest of as many equal windows.
        matching: Which pairs of photos are compared. "auto": all of up to 100 photos; of more photos those
            that look alike; in a video those that are near in time, and places seen before.
        camera_model: COLMAP's name of the lens model.
        feature_side: Longest side in pixels at which features are looked for.
        threads: Threads to use; by default one per core.

    Raises:
        InputError: no photos, unreadable files, settings other than those it began with, or photos that do
            not fit together.
    """
    pycolmap.logging.minloglevel = _ERRORS  # it logs each photo
    least = {"frames": (frames, MIN_VIEWS), "feature_side": (feature_side, 100), "threads": (threads or 1, 1)}
    for option, (value, minimum) in least.items():
        if value < minimum:
            raise InputError(f"{option}: found {value}, expected {minimum} or more.")
    given = Source.find(source)
    capture = output or source.with_name(f"{source.stem}_capture")
    settings = _Settings(str(source.resolve()), frames, matching, camera_model, feature_side)
    with locked(capture), keeping(f"What is done is kept in {capture}; the same command goes on."):
        report = _finished(capture, settings)
        if report is None:
            with _damage_told(capture):
                verdict = _process(given, source, capture, settings, threads or os.cpu_count() or 1)
            report = _Report(settings, verdict)
            _write(capture / REPORT, report)
            shutil.rmtree(capture / WORK)
    for line in report.verdict.lines():
        logger.info("%s", line)
    logger.info("Train on it: flexgs fit --config flexgs --data.root %s", capture)


def _finished(capture: Path, settings: _Settings) -> _Report | None:
    """The report if all is done; makes sure that nothing else lies in the folder."""
    if (capture / REPORT).is_file():
        report = read_json(capture / REPORT, _Report)
        _require_same(capture, report.settings, settings)
        return report
    begun = capture / WORK / "settings.json"
    if begun.is_file():
        _require_same(capture, read_json(begun, _Settings), settings)
    elif capture.exists() and (not capture.is_dir() or any(path.name != LOCK for path in capture.iterdir())):
        raise InputError(f"{capture}: holds other files, expected a new or empty folder for the capture.")
    else:
        _write(begun, settings)
    return None


def _require_same(capture: Path, then: _Settings, now: _Settings) -> None:
    for name in _Settings.__struct_fields__:
        if getattr(then, name) != getattr(now, name):
            raise InputError(
                f"{capture}: was begun with {name} {getattr(then, name)}, found {getattr(now, name)}; "
                "expected the same, or another --output."
            )


@contextlib.contextmanager
def _damage_told(capture: Path) -> Iterator[None]:
    """COLMAP and Pillow raise all kinds at damaged photos and at state that something else has changed.

    Raises:
        InputError: with what they say.
    """
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, LookupError, UnidentifiedImageError) as error:
        reason = shown(str(error).strip() or type(error).__name__, 300)
        raise InputError(
            f"{capture / WORK}: cannot go on from there ({reason}). If something else has changed it, remove "
            f"{capture}, and the same command begins anew."
        ) from error


def _process(given: Source, source: Path, capture: Path, settings: _Settings, threads: int) -> Verdict:
    """All steps, those left out whose result is there."""
    work = capture / WORK
    photos, database, models = work / "photos", work / "database.db", work / "models"
    if not photos.is_dir():
        gather(given, source, photos, settings.frames)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*") if path.is_file())
    if len(names) < MIN_VIEWS:
        raise InputError(f"{source}: found {len(names)} photos, expected at least {MIN_VIEWS}.")
    if not models.is_dir():
        extract(
            database,
            photos,
            names,
            model=settings.camera_model,
            side=settings.feature_side,
            threads=threads,
        )
        pairs = choose_pairs(database, _matching(settings, given, len(names)), threads)
        match(database, pairs, threads)
        map_photos(database, photos, models, len(names), threads)
    unread = {path.name: "not a kind that is read here" for path in given.unreadable}
    verdict = judge(database, models, unread)
    if not (capture / "sparse").is_dir():
        undistort(photos, models / "0", capture, threads)
    reduce(capture, useful_factors(capture, _FACTORS))
    return verdict


def _matching(settings: _Settings, given: Source, count: int) -> Matching:
    if settings.matching != "auto":
        return settings.matching  # type: ignore[return-value]
    if count <= _ALL_PAIRS_UP_TO:
        return "exhaustive"
    return "sequential" if given.video is not None else "neighbours"


def _write(path: Path, record: msgspec.Struct) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
