"""Features of every photo, and their matches between pairs of photos that may show the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.files import atomic_path

Matching = Literal["exhaustive", "sequential", "neighbours"]
Pair = tuple[int, int]
"""Ids of two photos, the smaller first."""

T = TypeVar("T")

_PHOTOS_AT_ONCE = 8
_PAIRS_AT_ONCE = 200
"""Between two calls there is time for the progress bar and for Ctrl-C, and nothing of them is lost."""
_OVERLAP = 10
"""Photos before and after in a sequence that may show the same."""
_LOOP_EVERY = 5
"""Every so many photos of a sequence, places seen before are looked for."""
_LOOP_CANDIDATES = 15
_NEIGHBOURS = 30
_TRAINING_DESCRIPTORS = 200_000
_DESCRIPTORS_PER_WORD = 40
_EMBEDDING = 64
"""Dimensions of the binary code that tells apart descriptors of one visual word."""


def extract(
    database: Path, photos: Path, names: Sequence[str], *, model: str, side: int, threads: int
) -> None:
    """SIFT features of every photo that has none yet, and a camera for each kind of photo.

    Photos of one size, camera and focal length (by their EXIF data) share a camera.

    Args:
        database: COLMAP's, made if it is not there.
        photos: folder.
        names: of the photos in it.
        model: COLMAP's name of the camera model.
        side: longest side in pixels at which features are looked for.
        threads: to use.
    """
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads, options.max_image_size, options.use_gpu = threads, side, False
    with pycolmap.Database.open(database) as opened:
        cameras = {image.name: image.camera_id for image in opened.read_all_images()}
        done = {i.name for i in opened.read_all_images() if opened.exists_descriptors(i.image_id)}
    with tqdm(total=len(names), initial=len(done), desc="Features", unit="photo") as progress:
        for group in _kinds(photos, names):
            camera = next((cameras[name] for name in group if name in cameras), None)
            for chunk in _chunks([name for name in group if name not in done], _PHOTOS_AT_ONCE):
                reader = pycolmap.ImageReaderOptions(camera_model=model)
                if camera is not None:
                    reader.existing_camera_id = camera
                pycolmap.extract_features(
                    database,
                    photos,
                    chunk,
                    pycolmap.CameraMode.SINGLE,
                    reader,
                    options,
                    pycolmap.Device.cpu,
                )
                if camera is None:
                    camera = _camera_of(database, chunk[0])
                progress.update(len(chunk))


def _camera_of(database: Path, name: str) -> int | None:
    with pycolmap.Database.open(database) as opened:
        image = opened.read_image_with_name(name)
    return None if image is None else image.camera_id


def _kinds(photos: Path, names: Sequence[str]) -> list[list[str]]:
    """Names of photos that one camera took, group by group."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        with Image.open(photos / name) as image:
            exif = image.getexif()
            focal_length = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLength)
            kind = (image.size, exif.get(ExifTags.Base.Make), exif.get(ExifTags.Base.Model), focal_length)
        groups.setdefault(kind, []).append(name)
    return list(groups.values())


def choose_pairs(database: Path, matching: Matching, threads: int) -> list[Pair]:
    """Pairs of photos to compare, by their order of names or by how alike they look.

    Args:
        database: with the features of all photos.
        matching: "exhaustive" takes all pairs; "sequential" those that are near in the order of names, and
            for every fifth photo those that look most like it, which closes loops; "neighbours" for every
            photo those that look most like it. Looks are compared by a vocabulary of visual words that is
            made from the photos' own features.
        threads: to use.
    """
    with pycolmap.Database.open(database) as opened:
        ids = [image.image_id for image in sorted(opened.read_all_images(), key=lambda image: image.name)]
    if matching == "exhaustive":
        return sorted(_ordered(a, b) for a, b in itertools.combinations(ids, 2))
    near = {_ordered(ids[i], ids[i + step]) for step in _steps(matching) for i in range(len(ids) - step)}
    queries = ids[::_LOOP_EVERY] if matching == "sequential" else ids
    count = _LOOP_CANDIDATES + 2 * _OVERLAP if matching == "sequential" else _NEIGHBOURS
    return sorted(near | _look_alikes(database, queries, count, threads))


def _steps(matching: Matching) -> list[int]:
    """Distances in the order of names that are compared: the near ones, and doubling ones beyond."""
    if matching == "neighbours":
        return [1, 2]
    return [*range(1, _OVERLAP + 1), *(2**power for power in range(4, 8))]


def _look_alikes(database: Path, queries: Sequence[int], count: int, threads: int) -> set[Pair]:
    """For each of some photos, the ``count`` that share most visual words with it."""
    with pycolmap.Database.open(database) as opened:
        ids = [image.image_id for image in opened.read_all_images()]
        most = max(1, _TRAINING_DESCRIPTORS // len(ids))
        samples = [_spread(opened.read_descriptors(i).data, most) for i in ids]
        descriptors = np.concatenate([sample for sample in samples if len(sample)]).astype(np.float32)
        tree = database.with_name("vocabulary.bin")
        build = pycolmap.VisualIndex.BuildOptions()
        build.num_visual_words = int(np.clip(len(descriptors) // _DESCRIPTORS_PER_WORD, 16, 4096))
        build.num_iterations, build.num_rounds, build.num_threads = 10, 1, threads
        index = pycolmap.VisualIndex.create(descriptors.shape[1], _EMBEDDING)
        kind = pycolmap.FeatureExtractorType.SIFT
        index.build(build, pycolmap.FeatureDescriptorsFloat(type=kind, data=descriptors))
        index.write(tree)
        options = pycolmap.VocabTreePairingOptions(vocab_tree_path=tree, num_images=count + 1)
        options.num_threads = threads
        pairs = pycolmap.VocabTreePairGenerator(options, opened, list(queries)).all_pairs()
    return {_ordered(a, b) for a, b in pairs if a != b}


def _spread(descriptors: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` rows, evenly over all."""
    return descriptors[:: max(1, -(-len(descriptors) // most))]


def match(database: Path, pairs: Sequence[Pair], threads: int) -> None:
    """Match and verify the features of pairs that were not compared yet.

    Raises:
        InputError: the list of pairs cannot be written beside the database.
    """
    options = pycolmap.FeatureMatchingOptions()
    options.num_threads, options.use_gpu = threads, False
    listed = database.with_name("pairs.txt")
    with pycolmap.Database.open(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        left = [pair for pair in pairs if not opened.exists_two_view_geometry(*pair)]
    with tqdm(total=len(pairs), initial=len(pairs) - len(left), desc="Matches", unit="pair") as progress:
        for chunk in _chunks(left, _PAIRS_AT_ONCE):
            with atomic_path(listed) as temporary:
                temporary.write_text("".join(f"{names[a]} {names[b]}\n" for a, b in chunk))
            pairing = pycolmap.ImportedPairingOptions(match_list_path=listed)
            pycolmap.match_image_pairs(database, options, pairing, device=pycolmap.Device.cpu)
            progress.update(len(chunk))


def _ordered(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)


def _chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
