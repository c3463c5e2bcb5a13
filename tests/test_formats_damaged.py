"""Files that lie or are damaged, in every format: one message or a sound scene, in bounded memory.

Two hundred mutations a format, from a seed: bits flipped, bytes replaced, pieces cut, doubled and swapped,
numbers made huge. Formats without checksums cannot tell every flipped bit from another scene, so what is
asked for is what a user needs: never a traceback, never a scene that cannot be drawn, never much memory.
"""

import gzip
import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from mutations import broken_bytes
from PIL import Image
from splat_files import SINGLE_FILES, scene

from flexgs_lightning.deploy.formats.registry import FORMATS, read_splats, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.errors import InputError

MUTATIONS = 200
MEMORY = 64 << 20
"""Bytes that reading a mutated file of some kilobytes may take: four times what any file may unpack to."""


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_mutated_files_give_one_message_or_a_scene_that_can_be_drawn(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"scene{FORMATS[name].suffix}"
    write_splats(SplatFile(scene(60, 1)), path, name)
    sound = path.read_bytes()
    assert len(read_splats(path).splats) == 60
    rng = np.random.default_rng(0)
    messages, most = [], 0
    tracemalloc.start()
    for i in range(MUTATIONS):
        content = broken_bytes(sound, rng)
        path.write_bytes(content)
        tracemalloc.reset_peak()
        try:
            splats = read_splats(path).splats
        except InputError as error:
            messages.append(str(error))
        else:
            for field in ("means", "quats", "scales", "opacities", "sh"):
                assert getattr(splats, field).isfinite().all(), f"mutation {i}: {field}"
            assert ((splats.opacities > 0) & (splats.opacities < 1)).all()
            assert (splats.scales > 0).all()
            assert (splats.quats.norm(dim=-1) > 0).all()
        most = max(most, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert most < MEMORY
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)
    assert len(messages) > MUTATIONS / 10  # .splat has nothing to check but lengths and numbers


# -- lies that fill the memory -------------------------------------------------------------------------


def spz_header(count: int, version: int = 3, degree: int = 0, streams: int = 0) -> bytes:
    return struct.pack("<IIIBBBB", 0x5053474E, version, count, degree, 12, 0, streams)


def test_spz_of_two_billion_gaussians(tmp_path: Path) -> None:
    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_header(2**31) + bytes(1000)))
    with pytest.raises(InputError, match=r"a\.spz: states .* bytes of content, far more than its"):
        read_splats(tmp_path / "a.spz")


def test_spz_whose_stream_goes_on_without_end(tmp_path: Path) -> None:
    """A hundred megabytes of zeros behind a header that states ten Gaussians."""
    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_header(10) + bytes(100 << 20), 1))
    peak = _peak_of_refusing(tmp_path / "a.spz", "10 Gaussians need 200 bytes, the stream holds more")
    assert peak < MEMORY


def test_spz_of_version_4_whose_streams_are_bombs(tmp_path: Path) -> None:
    bomb = zstandard.compress(bytes(100 << 20))
    table = struct.pack("<QQ", len(bomb), 90) + struct.pack("<QQ", 1, 10) * 4
    header = spz_header(10, 4, 0, 5) + struct.pack("<I12x", 32)
    (tmp_path / "a.spz").write_bytes(header + table + bomb)
    assert _peak_of_refusing(tmp_path / "a.spz", "stream 'positions' holds 91 bytes; expected 90") < MEMORY


def test_sog_that_is_a_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.sog", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", b" " * (100 << 20))
    assert _peak_of_refusing(tmp_path / "a.sog", "far more than its") < MEMORY


def test_sog_whose_image_is_huge(tmp_path: Path) -> None:
    """16,000 x 16,000 black pixels take 33 kB as WebP and a gigabyte in memory."""
    write_splats(SplatFile(scene(60, 0)), tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stream = io.BytesIO()
    Image.new("RGB", (4_000, 4_000)).save(stream, "WEBP", lossless=True)
    with zipfile.ZipFile(tmp_path / "a.sog", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, stream.getvalue() if name == "scales.webp" else content)
    peak = _peak_of_refusing(tmp_path / "a.sog", r"'scales.webp' is 4000x4000 pixels; expected at most")
    assert peak < MEMORY


def test_sog_labels_beyond_the_palette(tmp_path: Path) -> None:
    write_splats(SplatFile(scene(60, 1)), tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members["meta.json"])
    meta["shN"]["count"] = 40
    members["meta.json"] = json.dumps(meta).encode()
    with zipfile.ZipFile(tmp_path / "a.sog", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"a\.sog: SH label 59 of a palette of 40 entries"):
        read_splats(tmp_path / "a.sog")


def _peak_of_refusing(path: Path, message: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            read_splats(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_infinite_opacity_logits_are_opacities_of_0_and_1(tmp_path: Path) -> None:
    """As a converter writes SPZ's opacities of 0 and 255; anywhere else infinity is refused."""
    path = tmp_path / "a.ply"
    write_splats(SplatFile(scene(4)), path)
    data = bytearray(path.read_bytes())
    records = np.frombuffer(data, "<f4", offset=len(data) - 4 * 248).reshape(4, 62)
    column = 9 + 45  # after position, normal, f_dc and f_rest
    records[:2, column] = [np.inf, -np.inf]
    path.write_bytes(data)
    read = read_splats(path).splats
    assert read.opacities[0] == 1 - 2**-24
    assert read.opacities[1] == 2**-126
    torch.testing.assert_close(read.opacities[2:], scene(4).opacities[2:])
    records[2, column] = np.nan
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"opacity: 1 values are NaN"):
        read_splats(path)
