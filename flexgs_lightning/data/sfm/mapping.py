"""Cameras and points from matches, and undistorted photos with a pinhole camera."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path

_SMALLEST_MODEL = 3
"""Photos; fewer are no capture."""
_EASIER_START = {"init_min_tri_angle": 4.0, "init_min_num_inliers": 40, "abs_pose_min_num_inliers": 15}
"""Tried where no two photos meet COLMAP's own demands on the first pair."""
_JPEG_QUALITY = 95
_AT_ONCE = 16
_LEAST_SIDE = 64
"""Pixels; smaller copies serve nobody."""


def map_photos(database: Path, photos: Path, models: Path, count: int, threads: int) -> None:
    """Incremental mapping: every model that is found goes to ``models/0``, ``models/1``, …; largest first.

    Args:
        database: with features and matches.
        photos: folder.
        models: to be made, whole or not at all.
        count: number of photos, for progress.
        threads: to use.

    Raises:
        InputError: no photos fit together.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = threads, 0
    options.min_model_size = min(10, max(_SMALLEST_MODEL, count // 4))
    found = _run(database, photos, models, count, options)
    if not found:
        for name, value in _EASIER_START.items():
            setattr(options.mapper, name, value)
        found = _run(database, photos, models, count, options)
    if not found:
        shutil.rmtree(models)  # or the same command would take it for a result
        raise InputError(
            f"{photos}: no {options.min_model_size} photos fit together; expected sharp photos of one scene "
            "at rest, each overlapping the next by two thirds, taken from different places."
        )


def _run(
    database: Path, photos: Path, models: Path, count: int, options: pycolmap.IncrementalPipelineOptions
) -> bool:
    with (
        atomic_path(models) as temporary,
        tqdm(total=count, desc="Mapping", unit="photo") as progress,
    ):
        temporary.mkdir(parents=True)

        def placed() -> None:
            progress.update(min(1, count - progress.n))

        found = pycolmap.incremental_mapping(
            database,
            photos,
            temporary,
            options,
            initial_image_pair_callback=placed,
            next_image_callback=placed,
        )
        ordered = sorted(found.values(), key=lambda model: model.num_reg_images(), reverse=True)
        shutil.rmtree(temporary)
        for i, model in enumerate(ordered):
            (temporary / str(i)).mkdir(parents=True)
            model.write(temporary / str(i))
        if not ordered:
            temporary.mkdir(parents=True)
    return bool(found)


def undistort(photos: Path, model: Path, output: Path, threads: int) -> None:
    """Write ``images/`` and ``sparse/0``: photos as a pinhole camera sees them, and the model of that.

    Args:
        photos: folder of the photos as taken.
        model: of them.
        output: folder of the capture; ``images`` and ``sparse`` in it appear whole or not at all.
        threads: to use.
    """
    names = sorted(image.name for image in pycolmap.Reconstruction(model).images.values() if image.has_pose)
    with atomic_path(output / "undistorted") as temporary:
        for start in tqdm(range(0, len(names), _AT_ONCE), desc="Undistorting", unit=f"{_AT_ONCE} photos"):
            pycolmap.undistort_images(
                temporary,
                model,
                photos,
                names[start : start + _AT_ONCE],
                jpeg_quality=_JPEG_QUALITY,
                num_threads=threads,
            )
    _settle(output)


def _settle(output: Path) -> None:
    """Move what COLMAP's undistorter wrote to where captures have it; the model comes last."""
    undistorted = output / "undistorted"
    if (undistorted / "images").is_dir():
        shutil.rmtree(output / "images", ignore_errors=True)
        (undistorted / "images").replace(output / "images")
    shutil.rmtree(output / "sparse", ignore_errors=True)
    with atomic_path(output / "sparse") as temporary:
        temporary.mkdir()
        shutil.copytree(undistorted / "sparse", temporary / "0")
    shutil.rmtree(undistorted)


def reduce(output: Path, factors: Sequence[int]) -> None:
    """Write ``images_2`` and so on: each side divided and rounded half up, by an area filter.

    Raises:
        InputError: a photo cannot be read any more.
    """
    images = sorted(path for path in (output / "images").rglob("*") if path.is_file())
    for factor in factors:
        folder = output / f"images_{factor}"
        if folder.is_dir():
            continue
        with atomic_path(folder) as temporary:
            for path in tqdm(images, desc=f"images_{factor}", unit="photo"):
                _reduce(path, temporary / path.relative_to(output / "images"), factor)


def useful_factors(output: Path, factors: Sequence[int]) -> list[int]:
    """Those that leave photos of some use."""
    with Image.open(next(path for path in (output / "images").rglob("*") if path.is_file())) as image:
        return [factor for factor in factors if min(image.size) // factor >= _LEAST_SIDE]


def _reduce(path: Path, target: Path, factor: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as image:
        size = ((image.width + factor // 2) // factor, (image.height + factor // 2) // factor)
        small = image.resize(size, Image.Resampling.BOX)
        small.save(target, **({"quality": _JPEG_QUALITY} if path.suffix.lower() in (".jpg", ".jpeg") else {}))
