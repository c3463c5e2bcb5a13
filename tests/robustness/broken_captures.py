"""Broken captures that are not COLMAP's, videos, files of codec recipes and profiles; see ``kinds``."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
from kinds import DEEP, accepted, break_file, break_json, choose, dumped, judged_call, kind
from mutations import Rng, broken_record
from outcomes import Outcome, run
from samples import Samples

from flexgs_lightning.codec.recipes.halves import read_halves
from flexgs_lightning.codec.recipes.images import read_images
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.data.sfm.sources import Source, gather

VALUES = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e-300, 1e300, 1e30, 1e10, 0.5)


def _read_whole(root: Path) -> Outcome:
    """Read a capture and every picture of it; what is accepted can be drawn beside."""

    def read() -> None:
        capture = read_capture(root)
        assert capture.points.positions.isfinite().all()
        for view in capture.views:
            shape = view.source.read().shape
            assert shape == (view.camera.height, view.camera.width, 3 + view.source.has_alpha), shape
            assert view.camera.viewmats.isfinite().all()
            assert view.camera.Ks.isfinite().all()

    return judged_call(read, (str(root), "data."))


def _break_array(path: Path, rng: Rng) -> None:
    """Bytes, a value, or an array of another shape or kind."""
    values = np.load(path).astype(np.float64)
    match int(rng.integers(6)):
        case 0:
            values[tuple(rng.integers(values.shape))] = choose(rng, VALUES)
        case 1:
            np.savez(path.with_suffix(""), values)
            path.with_suffix(".npz").replace(path)
            return
        case 2:
            values = choose(rng, (values[0], values.T, values[None], values[:0], values[:1], values[:, :2]))
        case 3:
            values = values.astype(choose(rng, ("f2", "i8", "?", "U9", "c8", "M8[s]")))
        case 4:
            _write_lying_header(path, int(choose(rng, (10**3, 10**10, 2**62, 10**30))))
            return
        case _:
            break_file(path, rng)
            return
    np.save(path, values)


def _write_lying_header(path: Path, rows: int) -> None:
    """More rows than the file holds."""
    columns = np.load(path).shape[1]
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, {columns}), }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 64)


@kind(6)
def transforms(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """Of one file with points, or of one for each split (Blender)."""
    root = Path(shutil.copytree(choose(rng, (samples.transforms, samples.blender)), folder / "capture"))
    if rng.random() < 0.2 and (root / "sparse_pc.ply").exists():
        break_file(root / "sparse_pc.ply", rng)
    else:
        break_json(choose(rng, sorted(root.glob("transforms*.json"))), rng)
    return _read_whole(root)


@kind(6)
def film_table(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    root = Path(shutil.copytree(samples.films["frames"], folder / "film"))
    match int(rng.integers(5)):
        case 0:
            _break_array(root / choose(rng, ("points.npy", "points_rgb.npy")), rng)
        case 1:
            break_file(choose(rng, sorted(root.rglob("*.png"))), rng)
        case _:
            break_json(root / "cameras.json", rng)
    return _read_whole(root)


@kind(3)
def film_model(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """A COLMAP model of a folder of frames for each camera."""
    root = Path(shutil.copytree(samples.films["colmap"], folder / "film"))
    break_file(choose(rng, sorted(path for path in root.rglob("*") if path.is_file())), rng)
    return _read_whole(root)


@kind(4)
def film_poses(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    root = Path(shutil.copytree(samples.films["llff"], folder / "film"))
    _break_array(root / "poses_bounds.npy", rng)
    return _read_whole(root)


@kind(4)
def video(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """In a filmed capture, or as what photos are taken from."""
    if rng.random() < 0.5:
        root = Path(shutil.copytree(samples.films["videos"], folder / "film"))
        break_file(root / "videos" / "cam01.mp4", rng)
        return _read_whole(root)
    path = Path(shutil.copy(samples.video, folder / "film.mp4"))
    break_file(path, rng)

    def take() -> None:
        gather(Source.find(path), folder, folder / "photos", 3)

    outcome = judged_call(take, (path.name,))
    return accepted(outcome, lambda: bool(list((folder / "photos").iterdir())))


@kind(4)
def codec_recipe(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    name = choose(rng, samples.recipes)
    path = Path(shutil.copy(samples.recipes[name], folder / "scene.zip"))
    if rng.random() < 0.5:
        break_file(path, rng)
    else:
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        chosen = choose(rng, members)
        if chosen.endswith(".json"):
            members[chosen] = dumped(broken_record(json.loads(members[chosen]), rng, depths=DEEP))
        else:
            members[chosen] = members[choose(rng, members)][: int(rng.integers(len(members[chosen]) + 1))]
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(zipfile.ZipInfo(member), content)
    read = read_halves if name == "halves" else read_images

    def check() -> None:
        splats = read(path)
        assert len(splats) > 0
        assert all(value.isfinite().all() for value in (splats.means, splats.scales, splats.sh))

    return judged_call(check, (path.name,))


@kind(3)
def profile(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    path = Path(shutil.copy(samples.profile, folder / "profile.json"))
    break_json(path, rng)
    output = folder / "out.ply"
    options = ["--ckpt", str(samples.checkpoints["last"]), "--max-milliseconds", "2", "--profile", str(path)]
    outcome = run(["export", *options, "--output", str(output)], (path.name, "milliseconds"))
    return accepted(outcome, lambda: output.stat().st_size > 0)
