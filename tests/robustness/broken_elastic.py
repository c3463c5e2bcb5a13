"""Broken elastic files of both versions; see ``kinds``.

They carry checksums, so that a changed file is refused; one that is forged, with checksums that fit, may be
another scene, but one that can be drawn.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

from kinds import accepted, break_file, kind
from mutations import Rng, broken_bytes
from outcomes import Outcome, run
from samples import MOMENT, Samples

from flexgs_lightning.codec.container import START_BYTES, header_bytes, packed, version_of
from flexgs_lightning.codec.decoder import open_file
from flexgs_lightning.codec.film import is_film, open_film
from flexgs_lightning.deploy.formats.registry import read_splats


@kind(5)
def elastic_file(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    path = Path(shutil.copy(samples.elastic, folder / "scene.egs"))
    break_file(path, rng)
    if rng.random() < 0.3:
        return run(["info", str(path)], (path.name,))
    output = folder / "out.ply"
    outcome = run(["decompress", str(path), "--output", str(output)], (path.name,))
    return accepted(outcome, lambda: output.read_bytes() == samples.decompressed.read_bytes())


@kind(5)
def moving_file(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """A film of groups of frames."""
    path = Path(shutil.copy(samples.film_file, folder / "film.egs"))
    break_file(path, rng)
    if rng.random() < 0.3:
        return run(["info", str(path)], (path.name,))
    output = folder / "out.ply"
    outcome = run(["decompress", str(path), "--output", str(output), "--time", MOMENT], (path.name,))
    return accepted(outcome, lambda: output.read_bytes() == samples.moment.read_bytes())


@kind(8)
def elastic_forged(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """Header, facts or a chunk changed, and all lengths and checksums made to fit again."""
    moves = bool(rng.random() < 0.5)
    path = Path(shutil.copy(samples.film_file if moves else samples.elastic, folder / "scene.egs"))
    (_forge_chunk if rng.random() < 0.6 else _forge_header)(path, rng)
    match int(rng.integers(6)):
        case 0:
            return run(["info", str(path)], (path.name,))
        case 1:
            output = folder / "site"
            outcome = run(["publish", "--output", str(output), "--ckpt", str(path)], (path.name,))
            return accepted(outcome, lambda: "views" in json.loads((output / "scene.json").read_text()))
        case _:
            output = folder / "out.ply"
            time = ["--time", MOMENT] if moves else []
            outcome = run(["decompress", str(path), "--output", str(output), *time], (path.name, "--time"))
            return accepted(outcome, lambda: len(read_splats(output).splats) > 0)


def _forge_header(path: Path, rng: Rng) -> None:
    data = path.read_bytes()
    end = header_bytes(path, data)
    path.write_bytes(packed(version_of(path, data), broken_bytes(data[START_BYTES:end], rng)) + data[end:])


def _forge_chunk(path: Path, rng: Rng) -> None:
    entries = (
        [e.chunk for e in open_film(path).front.entries] if is_film(path) else open_file(path).header.entries
    )
    data = path.read_bytes()
    end = header_bytes(path, data)
    index = int(rng.integers(len(entries)))
    stop = entries[index].offset + entries[index].length
    chunk = broken_bytes(data[entries[index].offset : stop], rng)
    size = 16 if is_film(path) else 12  # of an entry; its two last numbers are length and checksum
    body = bytearray(data[START_BYTES:end])
    after = len(body) - size * (len(entries) - index - 1)
    body[after - 8 : after] = len(chunk).to_bytes(4, "little") + zlib.crc32(chunk).to_bytes(4, "little")
    front = packed(version_of(path, data), bytes(body))
    path.write_bytes(front + data[end : entries[index].offset] + chunk + data[stop:])
