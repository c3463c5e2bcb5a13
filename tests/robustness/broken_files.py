"""Broken files of every kind, and what the commands that read them make of them.

Checkpoints and elastic files carry digests, so that a changed one is refused or gives the very
same scene. Formats of others do not: what is asked for there is a scene that can be drawn.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import torch
from kinds import DEEP, accepted, break_file, choose, dumped, judged_call, kind
from mutations import LINES, Rng, broken_bytes, broken_record, broken_tensor, no_plain_file
from outcomes import Outcome, run
from PIL import Image
from samples import TRAINING, Samples

from flexgs_lightning.data.archives import DamagedArchiveError, extract_folder
from flexgs_lightning.deploy.formats.registry import read_splats
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.model.checkpoint_record import CHECKPOINT_KEY, DIGESTS, sealed

# -- checkpoints ---------------------------------------------------------------------------------------


def _export(samples: Samples, path: Path, exact: bool, *options: str) -> Outcome:
    output = path.with_name("out.ply")
    outcome = run(["export", "--ckpt", str(path), "--output", str(output), *options], (path.name,))
    if exact:
        return accepted(outcome, lambda: output.read_bytes() == samples.exported.read_bytes())
    return accepted(outcome, lambda: len(read_splats(output).splats) > 0)


@kind(8)
def checkpoint_bytes(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    path = Path(shutil.copy(samples.checkpoints["last"], folder / "model.ckpt"))
    break_file(path, rng)
    return _export(samples, path, exact=True)


@kind(4)
def checkpoint_flipped_bit(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    content = bytearray(samples.checkpoints["last"].read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path = folder / "model.ckpt"
    path.write_bytes(content)
    return _export(samples, path, exact=True)


def _broken_checkpoint(source: Path, path: Path, rng: Rng, seal: str, only: str | None = None) -> None:
    content = torch.load(source, weights_only=True)
    if only is None:
        content = broken_record(content, rng, broken_tensor)
    else:
        content[only] = broken_record(content[only], rng, broken_tensor)
    facts = content.get(CHECKPOINT_KEY) if isinstance(content, dict) else None
    if isinstance(facts, dict) and seal == "none":
        facts.pop(DIGESTS, None)
    if isinstance(facts, dict) and seal == "anew":
        with contextlib.suppress(InputError, RuntimeError):  # far too deep or large: with those that it had
            content = sealed(content)
    torch.save(content, path)


@kind(6)
def checkpoint_content(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    path = folder / "model.ckpt"
    _broken_checkpoint(samples.checkpoints["last"], path, rng, "kept", choose(rng, (None, "state_dict")))
    return _export(samples, path, exact=True)


@kind(12)
def checkpoint_forged(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """With digests that fit, or none: what is accepted is another scene, but one that can be drawn."""
    path = folder / "model.ckpt"
    only = choose(rng, (None, CHECKPOINT_KEY, "state_dict", CHECKPOINT_KEY))
    source = choose(rng, (*samples.checkpoints.values(), samples.moving, *samples.parts.values()))
    _broken_checkpoint(source, path, rng, choose(rng, ("none", "anew")), only)
    ratio = ["--ratio=0.3"] if source in samples.parts.values() else []
    outcome = _export(samples, path, False, *ratio)
    if "expected --time" in outcome.message:  # sound so far
        return _export(samples, path, False, "--time=0")
    return outcome


@kind(2)
def checkpoint_resumed(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """Moments, loops, callbacks and facts that only a resume reads."""
    path = folder / "model.ckpt"
    only = choose(rng, ("optimizer_states", "optimizer_states", "loops", CHECKPOINT_KEY, "callbacks", None))
    _broken_checkpoint(samples.checkpoints["first"], path, rng, choose(rng, ("none", "anew", "kept")), only)
    options = [f"--data.root={samples.binary}", "--name=x", f"--runs={folder / 'runs'}", *TRAINING]
    keep = ["--checkpoint.keep=true", "--checkpoint.every_n_steps=4"]
    outcome = run(["fit", *options, *keep, f"--ckpt_path={path}"], (path.name,))
    if outcome.status != 0 and (folder / "runs").exists():
        return replace(outcome, fault=outcome.fault or "a run folder after a refusal")
    last = folder / "runs" / "x" / "version_0" / "checkpoints" / "last.ckpt"
    return accepted(outcome, lambda: len(load(last)) > 0)


# -- splat files ---------------------------------------------------------------------------------------


def _convert(source: Path, named: tuple[str, ...]) -> Outcome:
    output = source.with_name("out.ply")
    outcome = run(["convert", str(source), str(output)], named)
    return accepted(outcome, lambda: len(read_splats(output).splats) > 0)


@kind(16)
def splat_file_bytes(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    source = samples.splats[choose(rng, samples.splats)]
    shutil.copytree(source.parent, folder / "splats")
    broken = choose(rng, sorted(path for path in (folder / "splats").rglob("*") if path.is_file()))
    break_file(broken, rng)
    return _convert(folder / "splats" / source.name, (source.name, broken.name, "meta.json"))


@kind(6)
def splat_file_json(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    name = choose(rng, ("glb", "sog", "sog-folder", "streamed-sog"))
    path = folder / "splats" / samples.splats[name].name
    shutil.copytree(samples.splats[name].parent, path.parent)
    if name == "glb":
        data = path.read_bytes()
        length = struct.unpack_from("<I", data, 12)[0]
        text = dumped(broken_record(json.loads(data[20 : 20 + length]), rng, depths=DEEP))
        text += b" " * (-len(text) % 4)
        rest = data[20 + length :]
        head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
        path.write_bytes(head + text + rest)
    elif name == "sog":
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        members["meta.json"] = dumped(broken_record(json.loads(members["meta.json"]), rng, depths=DEEP))
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    else:
        path.write_bytes(dumped(broken_record(json.loads(path.read_bytes()), rng, depths=DEEP)))
    return _convert(path, (path.name, "meta.json"))


@kind(3)
def ply_header(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """A word of the header replaced."""
    source = samples.splats[choose(rng, ("ply", "ascii", "compressed-ply"))]
    head, end, body = source.read_bytes().partition(b"end_header\n")
    lines = head.split(b"\n")
    line = int(rng.integers(1, len(lines)))
    words = lines[line].split(b" ")
    words[int(rng.integers(len(words)))] = choose(
        rng, (*LINES, b"list", b"double", b"uchar", b"vertex", b"x")
    )
    lines[line] = b" ".join(words)
    path = folder / "scene.ply"
    path.write_bytes(b"\n".join(lines) + end + body)
    return _convert(path, (path.name,))


# -- captures ------------------------------------------------------------------------------------------


def _read_capture(samples: Samples, root: Path, named: tuple[str, ...], rng: Rng) -> Outcome:
    """Draw a scene beside every photo, which reads all of a capture; now and then train on it."""
    output = root.parent / "frames"
    if rng.random() < 0.05:
        options = [f"--data.root={root}", f"--runs={root.parent / 'runs'}", *TRAINING]
        outcome = run(["fit", *options], (*named, "data.root"))
        if outcome.status != 0 and (root.parent / "runs").exists():
            return replace(outcome, fault=outcome.fault or "a run folder after a refusal")
        return outcome
    ply = samples.splats["ply"]
    options = ["--ply", str(ply), "--path", "train", "--photos", "true", "--data_root", str(root)]
    outcome = run(["render", *options, "--test_every", "0", "--output", str(output)], named)
    return accepted(outcome, lambda: len(list(output.rglob("*.png"))) >= 3)


def _copied(samples: Samples, folder: Path, rng: Rng) -> Path:
    return Path(shutil.copytree(choose(rng, (samples.capture, samples.binary)), folder / "capture"))


@kind(8)
def colmap_bytes(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    root = _copied(samples, folder, rng)
    break_file(choose(rng, sorted((root / "sparse" / "0").iterdir())), rng)
    return _read_capture(samples, root, (str(root),), rng)


@kind(5)
def colmap_words(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """A word of a text file replaced."""
    root = Path(shutil.copytree(samples.capture, folder / "capture"))
    path = root / "sparse" / "0" / choose(rng, ("cameras.txt", "images.txt", "points3D.txt"))
    lines = path.read_text().split("\n")
    numbers = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    line = choose(rng, numbers)
    words = lines[line].split(" ")
    words[int(rng.integers(len(words)))] = choose(rng, WORDS)
    lines[line] = " ".join(words)
    path.write_text("\n".join(lines))
    return _read_capture(samples, root, (str(root),), rng)


WORDS = ("nan", "inf", "-1", "0", "1e300", "2147483648", "9" * 400, "", ".", "..", "../../x.png")
WORDS += ("/etc/passwd", "b" * 5000, "\x1b[31m", "PINHOLE", "EQUIRECTANGULAR", "0.0", "1e-300", "é")
NAMES = (
    "",
    ".",
    "..",
    "../b.png",
    "/etc/hostname",
    "a/../../b.png",
    "n" * 300,
    "a/" * 2000 + "b.png",
    "a",
    "\x07.png",
)
SIZES = (0, 1, 2**16, 2**20, 2**31 - 1, 2**31, 2**32, 2**40)
VALUES = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e-300, 1e300, 1e30, 1e10, 1e6)


@kind(8)
def colmap_model(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """A sound file of a model that makes no sense."""
    root = _copied(samples, folder, rng)
    sparse = root / "sparse" / "0"
    model = pycolmap.Reconstruction(str(sparse))
    camera, image = next(iter(model.cameras.values())), model.images[choose(rng, model.images)]
    match int(rng.integers(7)):
        case 0:
            image.name = choose(rng, NAMES)
        case 1:
            camera.width = choose(rng, SIZES)
        case 2:
            camera.height = choose(rng, SIZES)
        case 3 | 4:
            parameters = np.array(camera.params)
            parameters[int(rng.integers(len(parameters)))] = choose(rng, VALUES)
            camera.params = parameters
        case 5:
            xyz = np.array([0.1, 0.2, 0.3])
            xyz[int(rng.integers(3))] = choose(rng, VALUES)
            model.points3D[choose(rng, model.points3D)].xyz = xyz
        case _:
            keep = int(rng.integers(0, 3))
            for number in sorted(model.points3D)[keep:]:
                model.delete_point3D(number)
    binary = (sparse / "cameras.bin").exists()
    for path in sparse.iterdir():
        path.unlink()
    (model.write_binary if binary else model.write_text)(str(sparse))
    return _read_capture(samples, root, (str(root),), rng)


@kind(3)
def colmap_pose(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """Doubles of images.bin or frames.bin: rotations of length 0, places that are no numbers."""
    root = Path(shutil.copytree(samples.binary, folder / "capture"))
    path = root / "sparse" / "0" / choose(rng, ("images.bin", "frames.bin"))
    content = bytearray(path.read_bytes())
    start = 12 if path.name == "images.bin" else 16
    count = int(rng.integers(1, 8))
    content[start : start + 8 * count] = struct.pack(f"<{count}d", *([choose(rng, VALUES)] * count))
    path.write_bytes(content)
    return _read_capture(samples, root, (str(root),), rng)


@kind(6)
def photos(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    root = _copied(samples, folder, rng)
    path = choose(rng, sorted(path for path in root.rglob("*.png") if path.is_file()))
    match int(rng.integers(4)):
        case 0:
            no_plain_file(path, rng)
        case 1:
            size = choose(rng, ((1, 1), (1, 36), (47, 36), (48, 37), (96, 72), (480, 360)))
            mode = choose(rng, ("RGB", "L", "RGBA", "I;16", "1", "P"))
            Image.new(mode, size).save(path)
        case _:
            path.write_bytes(broken_bytes(path.read_bytes(), rng))
    return _read_capture(samples, root, (str(root),), rng)


# -- archives ------------------------------------------------------------------------------------------


@kind(3)
def archive(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    path = folder / "scenes.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for number in range(3):
            opened.writestr(f"garden/images/{number}.jpg", bytes(range(200)) * (number + 1))
    break_file(path, rng)

    def extract() -> None:
        try:
            extract_folder(path, "garden", folder / "garden")
        except DamagedArchiveError as error:
            raise InputError(str(error)) from error

    outcome = judged_call(extract, (path.name,))
    return accepted(outcome, lambda: len(list((folder / "garden").rglob("*.jpg"))) == 3)
