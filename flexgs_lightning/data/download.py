"""``flexgs data download``: fetch a benchmark's scenes from where they are published."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from flexgs_lightning.data.archives import DamagedArchiveError, check_free_space, extract_folder
from flexgs_lightning.data.benchmarks import BenchmarkScene, find_benchmark, find_scene
from flexgs_lightning.data.transfer import fetch, remaining_bytes
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import locked
from flexgs_lightning.signals import keeping

logger = logging.getLogger(__name__)


def download(
    benchmark: str,
    scene: list[str] | None = None,
    root: Path = Path("data"),
    mirror: str | None = None,
    keep_archives: bool = False,
) -> None:
    """Fetch a benchmark's scenes into ROOT/BENCHMARK/SCENE.

    Scenes that are there already are skipped, and a download that broke off is resumed.

    Args:
        benchmark: mipnerf360, tanks_and_temples (with Deep Blending), zipnerf or neural_3d_video.
        scene: Scenes to fetch, such as garden bonsai; all by default.
        root: Folder for all benchmarks.
        mirror: Address of a folder that holds the same archives, to fetch them from there.
        keep_archives: Keep archives all of whose scenes are unpacked. An archive that holds other scenes
            still to be fetched is always kept.
    """
    with keeping(f"What has arrived is kept in {root / benchmark}; the same command goes on there."):
        download_benchmark(benchmark, root, scene, mirror=mirror, keep_archives=keep_archives)


def download_benchmark(
    benchmark: str,
    root: Path,
    scenes: Sequence[str] | None = None,
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
) -> list[Path]:
    """Fetch ``scenes`` of ``benchmark`` (all by default) into ``root/benchmark/scene``.

    A scene's folder appears when it is complete. Archives lie in ``root/benchmark/archives`` meanwhile.

    Args:
        benchmark: a name of ``benchmarks.BENCHMARKS``.
        root: folder for all benchmarks.
        scenes: names of its scenes.
        mirror: folder address to use in place of the published one.
        keep_archives: keep archives of which every scene is unpacked.

    Returns:
        The scenes' folders.

    Raises:
        InputError: unknown benchmark or scene, too little disk, an address that cannot be fetched, or an
            archive that is damaged or hostile.
    """
    published = find_benchmark(benchmark)
    names = [scene.name for scene in published.scenes] if scenes is None else scenes
    wanted = [find_scene(name, benchmark) for name in dict.fromkeys(names)]
    folder = root / benchmark
    missing = [scene for scene in wanted if not _is_there(folder, scene)]
    for scene in wanted:
        if scene not in missing:
            logger.info("%s is there already.", folder / scene.name)
    with locked(folder):
        for url, before in dict.fromkeys((scene.archive, scene.parts) for scene in missing):
            *parts, archive = (folder / "archives" / part.rpartition("/")[2] for part in (*before, url))
            for address, path in zip((*before, url), (*parts, archive), strict=True):
                _fetch(address if mirror is None else f"{mirror.rstrip('/')}/{path.name}", path)
            for scene in missing:
                if scene.archive == url:
                    _unpack(archive, scene, folder, parts)
            siblings = [scene for scene in published.scenes if scene.archive == url]
            if not keep_archives:
                still_inside = [scene.name for scene in siblings if not _is_there(folder, scene)]
                for path in (*parts, archive):
                    _tidy(path, still_inside)
    return [folder / scene.name for scene in wanted]


def _is_there(folder: Path, scene: BenchmarkScene) -> bool:
    """Scenes are renamed into place when complete, so that existence is enough."""
    return (folder / scene.name).is_dir() and any((folder / scene.name).iterdir())


def _fetch(url: str, archive: Path) -> None:
    if archive.is_file():
        logger.info("%s is there already.", archive)
        return
    remaining = remaining_bytes(url, archive)
    if remaining is not None:
        check_free_space(archive.parent, remaining, f"downloading {archive.name}")
    fetch(url, archive)


def _unpack(archive: Path, scene: BenchmarkScene, folder: Path, parts: Sequence[Path]) -> None:
    target = folder / scene.name
    try:
        extract_folder(archive, scene.member, target, parts)
    except DamagedArchiveError as error:
        for path in (*parts, archive):
            path.unlink(missing_ok=True)
        raise InputError(f"{error}. The damaged archive was removed; run the command again.") from error
    logger.info("%s is complete.", target)


def _tidy(archive: Path, still_inside: Iterable[str]) -> None:
    """Remove an archive that holds nothing more; keep one that saves another download."""
    others = ", ".join(still_inside)
    if others:
        size = archive.stat().st_size / 1e9
        logger.info("%s (%.1f GB) is kept for %s; delete it if you do not need them.", archive, size, others)
        return
    archive.unlink()
    if not any(archive.parent.iterdir()):
        archive.parent.rmdir()
