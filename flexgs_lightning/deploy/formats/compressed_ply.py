"""PlayCanvas's compressed PLY: 16 bytes a Gaussian, and a byte for each further SH coefficient.

Element ``chunk`` holds the bounds of each 256 Gaussians (position, log-scale, colour); ``vertex`` four
integers of 32 bits: position and log-scale 11, 10 and 11 bits within those bounds, rotation as its
smallest three components of 10 bits, colour and opacity of 8; ``sh`` the coefficients after the first,
all of red before green before blue, within [-4, 4]. Layout: PlayCanvas, "Compressed PLY", and its engine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flexgs_lightning.deploy.formats.bits import from_smallest_three, morton_order, smallest_three
from flexgs_lightning.deploy.formats.ply import ANTIALIASED
from flexgs_lightning.deploy.formats.splat_file import SplatFile, arrays, assemble, require_drawable
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.ply_container import Header, read_element, read_header
from flexgs_lightning.records import opened
from flexgs_lightning.splats import SH_C0, Splats

CHUNK = 256
"""Gaussians that share bounds."""
_AXES = (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
_CHUNK_PROPERTIES = [f"{end}_{name}" for names in _AXES for end in ("min", "max") for name in names]
_VERTEX_PROPERTIES = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_VECTOR_BITS = (11, 10, 11)
_COLOR_BITS = (8, 8, 8)
_LARGEST_LOG_SCALE = 20.0
_SH_RANGE = 8.0
"""Further SH coefficients lie within plus and minus half of this."""

_SH_LEVELS = (((np.arange(256) + 0.5) / 256 - 0.5) * _SH_RANGE).astype(np.float32)
_SH_LEVELS[[0, 255]] = -_SH_RANGE / 2, _SH_RANGE / 2
"""What each byte stands for: the middle of its interval, and at both ends the end of the range."""


def write_compressed_ply(file: SplatFile, path: Path) -> None:
    """Write along a Z-order curve, so that the 256 Gaussians of a chunk lie close together.

    Errors: position, log-scale and colour within half of 1/2047 (1/1023 for y, 1/255 for colour) of their
    chunk's extent; opacity 1/510; rotation's smallest components 1/1446; further SH coefficients 1/64.

    Raises:
        InputError: see ``require_drawable``; the file cannot be written.
    """
    splats = file.splats.detach()
    require_drawable(path, splats)
    order = morton_order(splats.means.cpu().numpy())
    chunks, vertices, sh = [], [], []
    for start in range(0, len(order), 256 * CHUNK):
        rows = order[start : start + 256 * CHUNK]
        padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % CHUNK)])
        bounds, packed, rest = _encode(splats[torch.from_numpy(padded)])
        chunks.append(bounds)
        vertices.append(packed[: len(rows)])
        sh.append(rest[: len(rows)])
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        out.write(_header(len(splats), splats.sh_degree, file.antialiased))
        for part in [*chunks, *vertices, *sh]:
            out.write(part.tobytes())


def compressed_ply_bytes(count: int, sh_degree: int, antialiased: bool = False) -> int:
    """Exact size of the file."""
    chunks, rest = -(-count // CHUNK), 3 * ((sh_degree + 1) ** 2 - 1)
    header = len(_header(count, sh_degree, antialiased))
    return header + chunks * 4 * len(_CHUNK_PROPERTIES) + count * (4 * len(_VERTEX_PROPERTIES) + rest)


def read_compressed_ply(path: Path) -> SplatFile:
    """Read what ``write_compressed_ply`` and other programs write; also files without colour bounds.

    Raises:
        InputError: not such a file; elements or properties missing (named); counts that are not what the file
            holds; bounds that are NaN or infinite.
    """
    with opened(path) as file:
        header = read_header(path, file)
        names = [element.name for element in header.elements]
        tables = {name: read_element(path, file, header, name) for name in names if name != "sh"}
        rest = read_element(path, file, header, "sh") if "sh" in names else None
    colored = "chunk" in tables and set(_CHUNK_PROPERTIES[12:]) & set(tables["chunk"].dtype.names or ())
    chunk = _CHUNK_PROPERTIES if colored else _CHUNK_PROPERTIES[:12]
    for name, properties, kind in (("chunk", chunk, "f4"), ("vertex", _VERTEX_PROPERTIES, "u4")):
        kinds = tables[name].dtype.fields if name in tables else None
        sound = [each for each in kinds or () if kinds and kinds[each][0].str[1:] == kind]
        missing = [each for each in properties if each not in sound]
        if missing:
            raise InputError(
                f"{path}: no compressed PLY: element '{name}' lacks {', '.join(missing)} of type {kind}."
            )
    return SplatFile(_decode(path, tables["chunk"], tables["vertex"], rest), ANTIALIASED in header.comments)


def is_compressed(header: Header) -> bool:
    """Whether a PLY file is of this kind."""
    return any("packed_position" in element.properties for element in header.elements)


def _header(count: int, sh_degree: int, antialiased: bool) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", *[f"comment {ANTIALIASED}"] * antialiased]
    lines += [
        f"element chunk {-(-count // CHUNK)}",
        *(f"property float {name}" for name in _CHUNK_PROPERTIES),
    ]
    lines += [f"element vertex {count}", *(f"property uint {name}" for name in _VERTEX_PROPERTIES)]
    if sh_degree:
        rest = 3 * ((sh_degree + 1) ** 2 - 1)
        lines += [f"element sh {count}", *(f"property uchar f_rest_{i}" for i in range(rest))]
    return "\n".join([*lines, "end_header", ""]).encode()


def _encode(splats: Splats) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds [c, 18] float32, integers [256 c, 4] and coefficients [256 c, 3 (K - 1)] of whole chunks."""
    values = arrays(splats)
    log_scales = np.clip(values.log_scales, -_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)
    colors = values.sh[:, 0] * np.float32(SH_C0) + np.float32(0.5)
    bounds, packed = [], []
    for columns, bits in ((values.means, _VECTOR_BITS), (log_scales, _VECTOR_BITS), (colors, _COLOR_BITS)):
        by_chunk = columns.reshape(-1, CHUNK, 3)
        low, high = by_chunk.min(axis=1), by_chunk.max(axis=1)
        extent = np.maximum(high.astype(np.float64) - low, np.finfo(np.float64).tiny)
        packed.append(_pack(((by_chunk - low[:, None]) / extent[:, None]).reshape(-1, 3), bits))
        bounds += [low, high]
    largest, three = smallest_three(values.quats)
    rotation = largest.astype(np.uint32) << 30 | _pack(three * np.sqrt(0.5) + 0.5, (10, 10, 10))
    color = packed[2] << 8 | _pack(values.opacities[:, None], (8,))
    rest = values.sh[:, 1:].transpose(0, 2, 1).reshape(len(splats), -1)
    levels = np.clip((rest / _SH_RANGE + 0.5) * 256, 0, 255).astype(np.uint8)
    vertices = np.stack([packed[0], rotation, packed[1], color], axis=1).astype("<u4")
    return np.concatenate(bounds, axis=1).astype("<f4"), vertices, levels


def _decode(path: Path, chunks: np.ndarray, vertices: np.ndarray, rest: np.ndarray | None) -> Splats:
    count = len(vertices)
    if len(chunks) != -(-count // CHUNK):
        raise InputError(
            f"{path}: {len(chunks):,} chunks for {count:,} Gaussians; expected one for each {CHUNK}."
        )
    chunk = np.arange(count) // CHUNK
    position, rotation, scale, color = (
        np.asarray(vertices[name]).astype(np.uint32) for name in _VERTEX_PROPERTIES
    )
    means = _within(path, chunks, _AXES[0], chunk, _unpack(position, _VECTOR_BITS))
    log_scales = _within(path, chunks, _AXES[1], chunk, _unpack(scale, _VECTOR_BITS))
    colors = _unpack(color >> np.uint32(8), _COLOR_BITS)
    if "min_r" in (chunks.dtype.names or ()):
        colors = _within(path, chunks, _AXES[2], chunk, colors)
    three = (_unpack(rotation & np.uint32(2**30 - 1), (10, 10, 10)) - 0.5) * np.sqrt(2.0)
    sh = np.empty((count, _bases(path, count, rest), 3), np.float32)
    sh[:, 0] = (colors - 0.5) / SH_C0
    if rest is not None:
        for i in range(3 * (sh.shape[1] - 1)):
            channel, basis = divmod(i, sh.shape[1] - 1)
            sh[:, basis + 1, channel] = _SH_LEVELS[rest[f"f_rest_{i}"]]
    return assemble(
        path,
        means=means,
        quats=from_smallest_three((rotation >> np.uint32(30)).astype(np.intp), three),
        log_scales=log_scales,
        opacities=_unpack(color & np.uint32(255), (8,))[:, 0],
        sh=sh,
    )


def _bases(path: Path, count: int, rest: np.ndarray | None) -> int:
    """Number of SH coefficients a channel."""
    if rest is None:
        return 1
    names = rest.dtype.names or ()
    expected = np.dtype([(f"f_rest_{i}", "u1") for i in range(len(names))])
    if len(names) not in (9, 24, 45) or rest.dtype != expected:
        raise InputError(
            f"{path}: element 'sh' has {len(names)} properties, {', '.join(names[:3])}, …; "
            "expected 9, 24 or 45 of type uchar: f_rest_0, f_rest_1, …"
        )
    if len(rest) != count:
        raise InputError(f"{path}: {len(rest):,} records of 'sh' for {count:,} Gaussians; expected as many.")
    return 1 + len(names) // 3


def _within(
    path: Path, chunks: np.ndarray, names: tuple[str, ...], chunk: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Shares [n, 3] of the extent between a chunk's bounds, as values."""
    low, high = (
        np.stack([chunks[f"{end}_{name}"].astype(np.float32) for name in names], axis=1)
        for end in ("min", "max")
    )
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InputError(f"{path}: bounds of {', '.join(names)} are NaN or infinite; expected numbers.")
    return low[chunk] * (1 - shares) + high[chunk] * shares


def _pack(shares: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Shares [n, c] in [0, 1], rounded, one after the other from the highest bits: [n] uint32."""
    packed = np.zeros(len(shares), np.uint32)
    for column, width in zip(shares.T, bits, strict=True):
        most = (1 << width) - 1
        packed = packed << np.uint32(width) | np.clip(np.rint(column * most), 0, most).astype(np.uint32)
    return packed


def _unpack(packed: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """[n, c] float32: the inverse of ``_pack``."""
    columns = []
    for width in reversed(bits):
        most = (1 << width) - 1
        columns.append((packed & np.uint32(most)).astype(np.float32) / np.float32(most))
        packed = packed >> np.uint32(width)
    return np.stack(columns[::-1], axis=1)
