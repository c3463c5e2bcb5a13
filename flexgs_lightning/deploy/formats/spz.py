"""Niantic's SPZ, versions 1 to 4: quantised columns, compressed.

Columns in this order: positions (3 x 24 bits of signed fixed point; version 1: half floats), opacities
(a byte), colours (byte = 127.5 + 0.15 * 255 * f_dc), log-scales (byte = 16 * (value + 10)), rotations
(version 2: x, y, z in a byte each; from 3: index of the largest component, and sign and 9 bits of the
others), further SH coefficients (byte = 128 + 128 * value, red, green and blue of one after the other).
Versions 1 to 3 are one gzip stream with a header of 16 bytes; version 4 has a header of 32 bytes, a table of
lengths, and a Zstandard stream for each column. The frame is y up, z backward. Layout: nianticlabs/spz.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zstandard

from flexgs_lightning.deploy.formats.bits import from_smallest_three, morton_order, smallest_three, to_bytes
from flexgs_lightning.deploy.formats.frames import half_turn
from flexgs_lightning.deploy.formats.splat_file import (
    SplatFile,
    assemble,
    blocks,
    require_drawable,
    require_plausible,
)
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.records import read_bytes
from flexgs_lightning.splats import MAX_SH_DEGREE, Splats

_MAGIC = 0x5053474E
_HEADER = struct.Struct("<IIIBBBB")
"""Magic, version, points, SH degree, fractional bits, flags, and (version 4) the number of streams."""
_TABLE_OFFSET = struct.Struct("<I12x")
"""What follows in version 4."""
_LENGTHS = struct.Struct("<QQ")
_ANTIALIASED, _EXTENSIONS = 1, 2
_FRACTIONAL_BITS = 12
_HIGHEST_DEGREE = 4
_ZSTD_LEVEL = 19
_SH_BITS = (5, 4, 4)
"""Bits of a coefficient of degree 1, 2 and 3; the others of its byte are zero, which compresses."""
_QUATS = np.sqrt(0.5) / 511


@dataclass(frozen=True)
class _Header:
    version: int
    count: int
    sh_degree: int
    fractional_bits: int
    flags: int

    def columns(self) -> dict[str, int]:
        """Bytes a Gaussian of each column, in the file's order."""
        return {
            "positions": 6 if self.version == 1 else 9,
            "alphas": 1,
            "colors": 3,
            "scales": 3,
            "rotations": 4 if self.version >= 3 else 3,
            "sh": 3 * ((self.sh_degree + 1) ** 2 - 1),
        }


def write_spz(file: SplatFile, path: Path, version: int = 4) -> None:
    """Write version 3 or 4, along a Z-order curve, which compresses better than any other order at hand.

    Errors: positions half of 2^-12 units (finer where Gaussians are small, coarser where the scene reaches
    beyond 2,047 units); log-scales 1/32 within [-10, 5.94]; opacities 1/510; f_dc 1/76.5 within +-3.33;
    rotation's smallest components 1/1445; further SH coefficients 1/32 (degree 1) or 1/16, within [-1, 1].

    Raises:
        InputError: see ``require_drawable``; positions beyond 8,388,607 units; the file cannot be written.
    """
    splats = file.splats.detach()
    require_drawable(path, splats)
    bits = _fractional_bits(path, splats)
    flags = _ANTIALIASED * file.antialiased
    header = _Header(version, len(splats), splats.sh_degree, bits, flags)
    columns = _encode(splats, header)
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        if version == 4:
            _write_streams(out, header, columns)
        else:
            packer = zlib.compressobj(9, wbits=31)
            out.write(packer.compress(_packed_header(header, 0)))
            for column in columns.values():
                out.write(packer.compress(column.tobytes()))
            out.write(packer.flush())


def read_spz(path: Path) -> SplatFile:
    """Read any version; SH coefficients of degree 4 are left out.

    Raises:
        InputError: not SPZ; a version or degree that there is not; lengths that are not what the header
            states; a damaged stream; content far larger than the file can hold.
    """
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        header, columns = _read_gzip(path, data)
    elif len(data) >= 4 and struct.unpack_from("<I", data)[0] == _MAGIC:
        header, columns = _read_streams(path, data)
    else:
        raise InputError(f"{path}: not an SPZ file (neither gzip nor the letters NGSP at its start).")
    return SplatFile(_decode(path, header, columns), bool(header.flags & _ANTIALIASED))


# -- columns -------------------------------------------------------------------------------------------


def _fractional_bits(path: Path, splats: Splats) -> int:
    """As many as others use, or more for a scene of small Gaussians, or as few as its extent needs."""
    largest = float(splats.means.abs().max())
    size = float(splats.scales.amax(dim=1).median())
    wanted = max(_FRACTIONAL_BITS, int(np.ceil(np.log2(8.0 / max(size, 1e-30)))))
    bits = min(wanted, 24, int(np.floor(np.log2((2**23 - 1) / max(largest, 1e-30)))))
    if bits < 0:
        raise InputError(f"{path}: positions reach {largest:g} units; SPZ holds at most 8,388,607.")
    return bits


def _encode(splats: Splats, header: _Header) -> dict[str, np.ndarray]:
    """uint8 columns [N, bytes]."""
    splats = half_turn(splats.to("cpu"), "x")
    splats = splats[torch.from_numpy(morton_order(splats.means.numpy()))]
    columns = {name: np.empty((header.count, size), np.uint8) for name, size in header.columns().items()}
    for rows, values in blocks(splats):
        fixed = np.rint(values.means.astype(np.float64) * 2.0**header.fractional_bits).astype("<i4")
        columns["positions"][rows] = fixed.view(np.uint8).reshape(-1, 3, 4)[:, :, :3].reshape(-1, 9)
        columns["alphas"][rows] = to_bytes(255 * values.opacities)[:, None]
        columns["colors"][rows] = to_bytes(0.15 * 255 * values.sh[:, 0] + 127.5)
        columns["scales"][rows] = to_bytes(16 * (values.log_scales + 10))
        columns["rotations"][rows] = _pack_rotations(values.quats)
        columns["sh"][rows] = _pack_sh(values.sh[:, 1:])
    return columns


def _pack_rotations(quats: np.ndarray) -> np.ndarray:
    largest, three = smallest_three(quats[:, [1, 2, 3, 0]])
    magnitudes = np.minimum(np.rint(np.abs(three) / _QUATS), 511).astype(np.uint32)
    signed = magnitudes | ((three < 0).astype(np.uint32) << 9)
    packed = largest.astype(np.uint32) << 30 | signed[:, 0] << 20 | signed[:, 1] << 10 | signed[:, 2]
    return packed.astype("<u4").view(np.uint8).reshape(-1, 4)


def _pack_sh(coefficients: np.ndarray) -> np.ndarray:
    """[n, K - 1, 3] to bytes [n, 3 (K - 1)], rounded to the bits of their degree."""
    levels = np.rint(coefficients * 128) + 128
    for degree, bits in enumerate(_SH_BITS, start=1):
        step = 256 >> bits
        columns = slice(degree**2 - 1, (degree + 1) ** 2 - 1)
        levels[:, columns] = np.floor((levels[:, columns] + step // 2) / step) * step
    return np.clip(levels, 0, 255).astype(np.uint8).reshape(len(coefficients), -1)


def _decode(path: Path, header: _Header, columns: dict[str, np.ndarray]) -> Splats:
    count = header.count
    if header.version == 1:
        means = columns["positions"].copy().view("<f2").astype(np.float32)
    else:
        fixed = np.zeros((count, 3, 4), np.uint8)
        fixed[:, :, 1:] = columns["positions"].reshape(count, 3, 3)
        means = (fixed.view("<i4")[:, :, 0] >> 8) * np.float32(2.0**-header.fractional_bits)
    bases = min((header.sh_degree + 1) ** 2, (MAX_SH_DEGREE + 1) ** 2)
    sh = np.empty((count, bases, 3), np.float32)
    sh[:, 0] = (columns["colors"].astype(np.float32) / 255 - 0.5) / np.float32(0.15)
    sh[:, 1:] = (columns["sh"].reshape(count, -1, 3)[:, : bases - 1].astype(np.float32) - 128) / 128
    splats = assemble(
        path,
        means=means,
        quats=_unpack_rotations(columns["rotations"]),
        log_scales=columns["scales"].astype(np.float32) / 16 - 10,
        opacities=columns["alphas"][:, 0].astype(np.float32) / 255,
        sh=sh,
    )
    return half_turn(splats, "x")


def _unpack_rotations(column: np.ndarray) -> np.ndarray:
    """[n, 4] as (w, x, y, z)."""
    if column.shape[1] == 3:
        xyz = column.astype(np.float32) / 127.5 - 1
        return from_smallest_three(np.zeros(len(xyz), np.intp), xyz)
    packed = column.copy().view("<u4")[:, 0]
    signed = np.stack([packed >> np.uint32(shift) & np.uint32(1023) for shift in (20, 10, 0)], axis=1)
    three = (signed & np.uint32(511)) * np.where(signed >> np.uint32(9), -_QUATS, _QUATS)
    return from_smallest_three((packed >> np.uint32(30)).astype(np.intp), three)[:, [3, 0, 1, 2]]


# -- containers ----------------------------------------------------------------------------------------


def _packed_header(header: _Header, streams: int) -> bytes:
    facts = (header.version, header.count, header.sh_degree, header.fractional_bits, header.flags)
    return _HEADER.pack(_MAGIC, *facts, streams)


def _write_streams(out: io.BufferedIOBase, header: _Header, columns: dict[str, np.ndarray]) -> None:
    packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    columns = {name: column for name, column in columns.items() if column.size}
    streams = [packer.compress(column.tobytes()) for column in columns.values()]
    start = _HEADER.size + _TABLE_OFFSET.size
    out.write(_packed_header(header, len(streams)) + _TABLE_OFFSET.pack(start))
    for stream, column in zip(streams, columns.values(), strict=True):
        out.write(_LENGTHS.pack(len(stream), column.nbytes))
    for stream in streams:
        out.write(stream)


def _parsed_header(path: Path, data: bytes, versions: range) -> tuple[_Header, int]:
    """The header, and the number of streams that it states."""
    if len(data) < _HEADER.size:
        raise InputError(f"{path}: ends within the SPZ header; the file is truncated.")
    magic, version, count, degree, bits, flags, streams = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise InputError(f"{path}: not an SPZ file (no letters NGSP at the start of its content).")
    if version not in versions:
        expected = " or ".join(str(each) for each in versions)
        raise InputError(f"{path}: SPZ version {version}; expected {expected} in a file of this kind.")
    if degree > _HIGHEST_DEGREE or bits > 24 or count == 0:
        raise InputError(
            f"{path}: {count:,} Gaussians, SH degree {degree} and {bits} fractional bits; expected at least "
            f"one, at most {_HIGHEST_DEGREE} and at most 24."
        )
    return _Header(version, count, degree, bits, flags), streams


def _read_gzip(path: Path, data: bytes) -> tuple[_Header, dict[str, np.ndarray]]:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        header, _ = _parsed_header(path, unpacker.decompress(data, _HEADER.size), range(1, 4))
        sizes = header.columns()
        expected = header.count * sum(sizes.values())
        require_plausible(path, expected, len(data))
        content = unpacker.decompress(unpacker.unconsumed_tail, expected + 1)
        if len(content) == expected and not unpacker.eof:  # the checksum stands behind the last byte
            content += unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as error:
        raise InputError(f"{path}: the gzip stream is damaged ({error}).") from error
    if len(content) != expected or not unpacker.eof:
        found = "more" if len(content) > expected else f"{len(content):,}"
        raise InputError(
            f"{path}: {header.count:,} Gaussians need {expected:,} bytes, the stream holds {found}."
        )
    starts = np.cumsum([0, *(header.count * size for size in sizes.values())])
    flat = np.frombuffer(content, np.uint8)
    columns = {
        name: flat[start : start + header.count * size].reshape(header.count, size)
        for (name, size), start in zip(sizes.items(), starts[:-1], strict=True)
    }
    return header, columns


def _read_streams(path: Path, data: bytes) -> tuple[_Header, dict[str, np.ndarray]]:
    header, streams = _parsed_header(path, data, range(4, 5))
    sizes = {name: size for name, size in header.columns().items() if size}
    if streams < len(sizes) or len(data) < _HEADER.size + _TABLE_OFFSET.size:
        raise InputError(f"{path}: {streams} streams in the SPZ header; expected {len(sizes)}.")
    table = _TABLE_OFFSET.unpack_from(data, _HEADER.size)[0]
    start = table + streams * _LENGTHS.size
    if start > len(data):
        raise InputError(f"{path}: the table of streams ends beyond the file; it is truncated or damaged.")
    require_plausible(path, header.count * sum(sizes.values()), len(data))
    columns = {name: np.empty((header.count, size), np.uint8) for name, size in header.columns().items()}
    for i, (name, size) in enumerate(sizes.items()):
        packed, unpacked = _LENGTHS.unpack_from(data, table + i * _LENGTHS.size)
        if unpacked != header.count * size or packed > len(data) - start:
            raise InputError(
                f"{path}: stream '{name}' states {packed:,} bytes for {unpacked:,}; expected "
                f"{header.count * size:,}, and at most {len(data) - start:,} are left in the file."
            )
        columns[name] = _unpacked(path, name, data[start : start + packed], header.count, size)
        start += packed
    return header, columns


def _unpacked(path: Path, name: str, stream: bytes, count: int, size: int) -> np.ndarray:
    """One column, never more than it should be."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        content = unpacker.stream_reader(stream).read(count * size + 1)
    except zstandard.ZstdError as error:
        raise InputError(f"{path}: stream '{name}' is damaged ({error}).") from error
    if len(content) != count * size:
        raise InputError(f"{path}: stream '{name}' holds {len(content):,} bytes; expected {count * size:,}.")
    return np.frombuffer(content, np.uint8).reshape(count, size)
