"""Splats to and from the standard 3DGS PLY file, which SuperSplat and other viewers open.

Layout (Kerbl et al. 2023): one element ``vertex`` of float32 in the capture's own world frame: position
x y z; unused normals nx ny nz; spherical harmonics f_dc_0..2 and f_rest_*, all of red before green before
blue; opacity as a logit; scale_0..2 as natural logarithms; rotation rot_0..3 as w x y z. A line ``comment
antialiased`` says that the scene is meant for the antialiased rasterizer; files without it have no comments.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flexgs_lightning.deploy.formats.splat_file import (
    ALMOST_ONE,
    LARGEST_LOG_SCALE,
    TINY,
    refuse,
    refuse_unrotated,
    require_drawable,
)
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.ply_container import Header, read_element, read_header
from flexgs_lightning.records import opened
from flexgs_lightning.splats import MAX_SH_DEGREE, Splats

_F_REST_COUNTS = {3 * ((degree + 1) ** 2 - 1): degree for degree in range(MAX_SH_DEGREE + 1)}

_CHUNK = 1 << 13
"""Gaussians converted at a time, so that a chunk stays in the processor's cache."""

ANTIALIASED = "antialiased"
"""The comment that says so."""


def write_ply(splats: Splats, path: str | Path, antialiased: bool = False) -> None:
    """Write ``splats`` so that ``read_ply`` gives them back and every viewer draws the same.

    Means, quaternions and spherical harmonics come back bit for bit. Opacities and scales pass through
    a float32 logit or logarithm. Those that are activations of float32 parameters, as a trained model's
    are, come back within 2.5e-7 of their value; any others within 6e-7 (opacities of at least 1/255,
    scales of 1e-6 to 1e6).

    Raises:
        InputError: there are no Gaussians; values are NaN, infinite or out of range (named and counted);
            the file cannot be written. Nothing is left at ``path`` then.
    """
    path = Path(path)
    splats = splats.detach()
    require_drawable(path, splats)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(len(splats), splats.sh_degree, antialiased))
        for start in range(0, len(splats), _CHUNK):
            file.write(_encode(splats[start : start + _CHUNK]))


def read_ply(path: str | Path) -> Splats:
    """Read a 3DGS PLY file: the inverse of ``write_ply``, on the CPU.

    Accepts binary files of either byte order and text files, any numeric types and order of properties,
    0, 9, 24 or 45 f_rest (SH degree 0 to 3) and files without normals; further properties are ignored.

    Raises:
        InputError: not a PLY file; missing fields (named); a count that is not what the file holds; no
            vertices; a number of f_rest that is no SH degree; NaN or infinite values (named and counted);
            rotations that cannot be normalised.
    """
    path = Path(path)
    with opened(path) as file:
        records = read_element(path, file, read_header(path, file), "vertex")
    means, quats, log_scales, logits, sh = _decode(path, records, _sh_degree(path, records))
    refuse(path, "scale_*", "beyond exp(88.7)", (log_scales > LARGEST_LOG_SCALE).sum(), log_scales)
    refuse_unrotated(path, "rot_*", quats)
    # float32 as in a model's activations: parameters that survive the file give the same bits again.
    scales, opacities = log_scales.exp_().clamp_min_(TINY), logits.sigmoid_().clamp_(TINY, ALMOST_ONE)
    return Splats(means, quats, scales, opacities, sh)


def read_ply_header(path: Path) -> Header:
    """The header alone, which says what kind of PLY it is.

    Raises:
        InputError: it cannot be read, or is no PLY header.
    """
    with opened(path) as file:
        return read_header(path, file)


def ply_bytes(count: int, sh_degree: int = MAX_SH_DEGREE, antialiased: bool = False) -> int:
    """Exact size in bytes of the file that ``write_ply`` makes of ``count`` Gaussians, header included.

    A Gaussian takes 68, 104, 164 or 248 bytes for SH degree 0, 1, 2 or 3.
    """
    return len(_header(count, sh_degree, antialiased)) + count * 4 * len(_properties(sh_degree))


def _properties(sh_degree: int) -> list[str]:
    """Names of the properties in the order of the reference implementation's files."""
    first = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    rest = [f"f_rest_{i}" for i in range(3 * ((sh_degree + 1) ** 2 - 1))]
    last = ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return first + rest + last


def _header(count: int, sh_degree: int, antialiased: bool) -> bytes:
    """The header, without comments where it can be, which some viewers' parsers stumble over."""
    lines = ["ply", "format binary_little_endian 1.0", *[f"comment {ANTIALIASED}"] * antialiased]
    lines += [f"element vertex {count}", *(f"property float {name}" for name in _properties(sh_degree))]
    return "\n".join([*lines, "end_header", ""]).encode()


def _columns(
    means: np.ndarray, quats: np.ndarray, log_scales: np.ndarray, logits: np.ndarray, sh: np.ndarray
) -> dict[str, np.ndarray]:
    """Which property is which column: a view [N] into the arrays for each name but the normals."""
    bases = sh.shape[1]
    columns = dict(zip("xyz", means.T, strict=True))
    columns |= {"opacity": logits}
    columns |= {f"scale_{i}": column for i, column in enumerate(log_scales.T)}
    columns |= {f"rot_{i}": column for i, column in enumerate(quats.T)}
    for channel in range(3):
        columns[f"f_dc_{channel}"] = sh[:, 0, channel]
        for basis in range(1, bases):
            columns[f"f_rest_{channel * (bases - 1) + basis - 1}"] = sh[:, basis, channel]
    return columns


def _encode(splats: Splats) -> bytes:
    """One chunk of records."""
    logits = splats.opacities.double().clamp(TINY, ALMOST_ONE).logit()
    log_scales = splats.scales.double().clamp_min(TINY).log()
    arrays = (splats.means, splats.quats, log_scales, logits, splats.sh)
    columns = _columns(*(array.float().cpu().numpy() for array in arrays))
    names = _properties(splats.sh_degree)
    table = np.zeros((len(splats), len(names)), "<f4")
    for i, name in enumerate(names):
        if name in columns:
            table[:, i] = columns[name]
    return table.tobytes()


def _decode(path: Path, records: np.ndarray, sh_degree: int) -> tuple[Tensor, ...]:
    """means [N, 3], quats [N, 4], log-scales [N, 3], logits [N], sh [N, K, 3] of finite float32.

    Logits alone may be infinite: converters write an opacity of 0 or 1 so.
    """
    count = len(records)
    shapes = ((count, 3), (count, 4), (count, 3), (count,), (count, (sh_degree + 1) ** 2, 3))
    arrays = [np.empty(shape, np.float32) for shape in shapes]
    columns = _columns(*arrays)
    not_finite = dict.fromkeys(columns, 0)
    for start in range(0, count, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        for name, column in columns.items():
            with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is counted
                column[chunk] = records[name][chunk]
            unusable = np.isnan if name == "opacity" else _not_finite
            not_finite[name] += np.count_nonzero(unusable(column[chunk]))
    for name, amount in not_finite.items():
        refuse(path, name, "NaN" if name == "opacity" else "NaN or infinite", amount, records)
    return tuple(torch.from_numpy(array) for array in arrays)


def _not_finite(values: np.ndarray) -> np.ndarray:
    return ~np.isfinite(values)


def _sh_degree(path: Path, records: np.ndarray) -> int:
    """The degree that the number of f_rest states, once every property of that degree is there."""
    names = set(records.dtype.names or ())
    if "packed_position" in names:
        raise InputError(f"{path}: a compressed PLY file; expected a standard 3DGS one (uncompressed).")
    rest_count = sum(name.startswith("f_rest_") for name in names)
    degree = _F_REST_COUNTS.get(rest_count)
    needed = [name for name in _properties(degree or 0) if name not in ("nx", "ny", "nz")]
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(f"{path}: not a 3DGS file: missing properties {', '.join(missing)}.")
    if degree is None:
        raise InputError(
            f"{path}: {rest_count} properties f_rest_*; expected 0, 9, 24 or 45 (SH degree 0 to 3)."
        )
    return degree
