"""Damaged elastic files: one clear message, never a wrong model, and what came before can be opened."""

import dataclasses
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from elastic_arrays import encoded, random_arrays

from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.container import MAGIC, START_BYTES, pack_header
from flexgs_lightning.codec.decoder import MEMORY_FACTOR, open_file, read_elastic
from flexgs_lightning.errors import InputError

MUTATIONS = 500


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("damage") / "scene.egs"
    encoded(random_arrays()).write(path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scene.egs"


def test_500_mutated_files(data: bytes, path: Path) -> None:
    """Bits flipped, bytes overwritten, put in, taken out, swapped: refused, and recovered as a prefix."""
    path.write_bytes(data)
    whole = read_elastic(path)
    rng = np.random.default_rng(0)
    recovered = 0
    for _ in range(MUTATIONS):
        changed = _mutated(data, rng)
        if changed == data:
            continue
        path.write_bytes(changed)
        with pytest.raises(InputError) as caught:
            read_elastic(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        assert any(word in message for word in ("chunk", "header", "not an elastic file", "version"))
        try:
            part = read_elastic(path, recover=True)
        except InputError:
            continue
        recovered += 1
        _require_prefix(part, whole)
    assert recovered > MUTATIONS // 4


def _mutated(data: bytes, rng: np.random.Generator) -> bytes:
    place, other = sorted(rng.integers(0, len(data), 2).tolist())
    kind = rng.integers(0, 5)
    if kind == 0:
        flipped = data[place] ^ (1 << int(rng.integers(0, 8)))
        return data[:place] + bytes([flipped]) + data[place + 1 :]
    if kind == 1:
        noise = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        return data[:place] + noise + data[place + 16 :]
    if kind == 2:
        return data[:place] + bytes(int(rng.integers(1, 50))) + data[place:]
    if kind == 3:
        return data[:place] + data[place + int(rng.integers(1, 50)) :]
    return (
        data[:place]
        + data[other : other + 1]
        + data[place + 1 : other]
        + data[place : place + 1]
        + data[other + 1 :]
    )


def _require_prefix(part: ElasticModelArrays, whole: ElasticModelArrays) -> None:
    assert len(part) <= len(whole)
    ratio = len(part) / whole.total
    assert np.array_equal(part.values_at(ratio), whole.values_at(ratio))
    assert np.array_equal(part.sh_rest, whole.sh_rest[: len(part)])


def test_truncated_at_any_byte(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    header = open_file(path).header
    good = set(header.indexed_lengths())
    first = min(good)
    for length in [*range(0, len(data), 37), *(end + d for end in good for d in (-1, 0, 1))]:
        path.write_bytes((data + b"\0")[:length])
        if length in good:
            open_file(path)
            continue
        with pytest.raises(InputError, match=r"cut off|not an elastic file|behind the last chunk"):
            open_file(path)
        if length >= first:
            assert open_file(path, recover=True).gaussians == max(
                entry.stop
                for entry, end in zip(header.entries, header.indexed_lengths(), strict=True)
                if end <= length
            )


def test_message_names_the_chunk_and_recover_opens_what_is_before(
    data: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(data)
    header = open_file(path).header
    damaged = bytearray(data)
    damaged[header.entries[2].offset + 20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(
        InputError, match=r"chunk 2 of \d+ is damaged: its checksum .*--recover opens the 2 chunks"
    ):
        read_elastic(path)
    part = read_elastic(path, recover=True)
    assert len(part) == header.entries[1].stop
    assert "chunk 2" in caplog.text


@pytest.mark.parametrize("level", [False, True])
def test_streams_that_lie_under_a_right_checksum(data: bytes, path: Path, level: bool) -> None:
    """What no encoder writes is found out by the coder itself: streams end where encoders start."""
    path.write_bytes(data)
    header = open_file(path).header
    chunks = [data[entry.offset : entry.offset + entry.length] for entry in header.entries]
    rng = np.random.default_rng(3)
    index = next(i for i, e in enumerate(header.entries) if e.stop > header.counts[0]) if level else 1
    refused = 0
    for _ in range(40):
        changed = bytearray(chunks[index])
        changed[int(rng.integers(0, len(changed)))] ^= 1 << int(rng.integers(0, 8))
        forged = [*chunks[:index], bytes(changed), *chunks[index + 1 :]]
        stops = [entry.stop for entry in header.entries]
        path.write_bytes(pack_header(header, list(zip(stops, forged, strict=True))) + b"".join(forged))
        try:
            read_elastic(path)
        except InputError as error:
            refused += 1
            named = int(re.search(r"chunk (\d+) of", str(error)).group(1))  # type: ignore[union-attr]
            assert named >= index  # a wrong offset is found out where the streams behind it do not fit
            assert len(read_elastic(path, recover=True)) == header.entries[named - 1].stop
    assert refused >= 30


def test_other_versions_and_files(data: bytes, path: Path) -> None:
    for changed, message in {
        data[:8] + struct.pack("<H", 3) + data[10:]: "version 3, this release reads versions 1 and 2",
        data[:8] + struct.pack("<H", 2) + data[10:]: "version 2, expected version 1",
        data[:10] + struct.pack("<H", 4) + data[12:]: "flags",
        b"ply\nformat ascii 1.0\n" + data: "not an elastic file",
        b"": "not an elastic file",
        MAGIC.replace(b"\r\n", b"\n") + data[8:]: "not an elastic file",
    }.items():
        path.write_bytes(changed)
        with pytest.raises(InputError, match=message):
            read_elastic(path)
    with pytest.raises(InputError, match="could not be read"):
        read_elastic(path.with_name("missing.egs"))


def _with_body(data: bytes, place: int, new: bytes) -> bytes:
    """The file with bytes of the header's body replaced and its checksum made right."""
    length = struct.unpack_from("<I", data, 12)[0]
    body = bytearray(data[START_BYTES : START_BYTES + length])
    body[place : place + len(new)] = new
    return data[:16] + struct.pack("<I", zlib.crc32(bytes(body))) + bytes(body) + data[START_BYTES + length :]


def test_counts_that_lie(data: bytes, path: Path) -> None:
    """Gaussians beyond memory, in the header or the index, are refused before anything is allocated."""
    path.write_bytes(data)
    header = open_file(path).header
    length = struct.unpack_from("<I", data, 12)[0]
    last = length - 12
    cases = {
        "Gaussians": _with_body(data, 0, struct.pack("<I", 0xFFFFFFFF)),
        "SH degree": _with_body(data, 4, bytes([9])),
        "levels": _with_body(data, 6, bytes([200])),
        "chunk": _with_body(data, last, struct.pack("<I", 0xFFFFFFF0)),
        "cut off": _with_body(data, last + 4, struct.pack("<I", 0x7FFFFFFF)),
    }
    assert header.total == 2000
    for message, changed in cases.items():
        path.write_bytes(changed)
        tracemalloc.start()
        with pytest.raises(InputError, match=message):
            read_elastic(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_FACTOR * len(data)
        tracemalloc.stop()


def test_memory_is_bounded_by_the_files_size(path: Path) -> None:
    """The smallest file that so many Gaussians may take: all alike, coded coarsely."""
    arrays = random_arrays(4000, sh_degree=3, elastic=False)
    level = dataclasses.replace(arrays.levels[0], values=np.repeat(arrays.levels[0].values[:1], 4000, axis=0))
    encoded(dataclasses.replace(arrays, levels=(level,), sh_rest=arrays.sh_rest * 0), harm=1.0).write(path)
    read_elastic(path)
    tracemalloc.start()
    read_elastic(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size >= 4000
    assert peak < MEMORY_FACTOR * path.stat().st_size
