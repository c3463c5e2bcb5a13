"""Splats to and from the standard 3DGS PLY file, which SuperSplat and other viewers open.

Layout (Kerbl et al. 2023): one element ``vertex`` of float32 in the capture's own world frame: position
x y z; unused normals nx ny nz; spherical harmonics f_dc_0..2 and f_rest_*, all of red before green before
blue; opacity as a logit; scale_0..2 as natural logarithms; rotation rot_0..3 as w x y z.
"""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.deploy.ply_format import read_element, read_header
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.splats import MAX_SH_DEGREE, Splats

_F_REST_COUNTS = {3 * ((degree + 1) ** 2 - 1): degree for degree in range(MAX_SH_DEGREE + 1)}

_CHUNK = 1 << 13
"""Gaussians converted at a time, so that a chunk stays in the processor's cache."""

_TINY = 2.0**-126
"""The smallest normal float32, stored in place of an opacity or scale of 0."""
_ALMOST_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1, stored in place of an opacity of 1: its logit is 16.6."""
_LARGEST_LOG_SCALE = 88.72
"""exp of more than 88.722 is infinite in float32."""


def write_ply(splats: Splats, path: str | Path) -> None:
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
    _require_drawable(path, splats)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(len(splats), splats.sh_degree))
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
    try:
        with path.open("rb") as file:
            records = read_element(path, file, read_header(path, file), "vertex")
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror or error}).") from error
    means, quats, log_scales, logits, sh = _decode(path, records, _sh_degree(path, records))
    _refuse(path, "scale_*", "beyond exp(88.7)", (log_scales > _LARGEST_LOG_SCALE).sum(), log_scales)
    _refuse_unrotated(path, "rot_*", quats)
    # float32 as in a model's activations: parameters that survive the file give the same bits again.
    scales, opacities = log_scales.exp_().clamp_min_(_TINY), logits.sigmoid_().clamp_(_TINY, _ALMOST_ONE)
    return Splats(means, quats, scales, opacities, sh)


def ply_bytes(count: int, sh_degree: int = MAX_SH_DEGREE) -> int:
    """Exact size in bytes of the file that ``write_ply`` makes of ``count`` Gaussians, header included.

    A Gaussian takes 68, 104, 164 or 248 bytes for SH degree 0, 1, 2 or 3.
    """
    return len(_header(count, sh_degree)) + count * 4 * len(_properties(sh_degree))


def _properties(sh_degree: int) -> list[str]:
    """Names of the properties in the order of the reference implementation's files."""
    first = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    rest = [f"f_rest_{i}" for i in range(3 * ((sh_degree + 1) ** 2 - 1))]
    last = ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return first + rest + last


def _header(count: int, sh_degree: int) -> bytes:
    """The header without comments, which some viewers' parsers stumble over."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property float {name}" for name in _properties(sh_degree)]
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
    logits = splats.opacities.double().clamp(_TINY, _ALMOST_ONE).logit()
    log_scales = splats.scales.double().clamp_min(_TINY).log()
    arrays = (splats.means, splats.quats, log_scales, logits, splats.sh)
    columns = _columns(*(array.float().cpu().numpy() for array in arrays))
    names = _properties(splats.sh_degree)
    table = np.zeros((len(splats), len(names)), "<f4")
    for i, name in enumerate(names):
        if name in columns:
            table[:, i] = columns[name]
    return table.tobytes()


def _decode(path: Path, records: np.ndarray, sh_degree: int) -> tuple[Tensor, ...]:
    """means [N, 3], quats [N, 4], log-scales [N, 3], logits [N], sh [N, K, 3] of finite float32."""
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
            not_finite[name] += np.count_nonzero(~np.isfinite(column[chunk]))
    for name, amount in not_finite.items():
        _refuse(path, name, "NaN or infinite", amount, records)
    return tuple(torch.from_numpy(array) for array in arrays)


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


def _require_drawable(path: Path, splats: Splats) -> None:
    """Refuse what no viewer could draw, before a file is begun."""
    if len(splats) == 0:
        raise InputError(f"{path}: there are no Gaussians to write.")
    if splats.has_features:
        raise InputError(f"{path}: a PLY file holds spherical harmonics; these Gaussians carry features.")
    for name in ("means", "quats", "scales", "opacities", "sh"):
        values = getattr(splats, name)
        if not torch.stack(values.aminmax()).isfinite().all():  # no mask as large as the scene unless needed
            _refuse(path, name, "NaN or infinite", (~values.isfinite()).sum(), values)
    _refuse(path, "scales", "negative", (splats.scales < 0).sum(), splats.scales)
    outside = (splats.opacities < 0) | (splats.opacities > 1)
    _refuse(path, "opacities", "outside [0, 1]", outside.sum(), splats.opacities)
    _refuse_unrotated(path, "quats", splats.quats)


def _refuse_unrotated(path: Path, name: str, quats: Float[Tensor, "N 4"]) -> None:
    """A quaternion whose squared length underflows or overflows in float32 cannot be normalised."""
    lengths = quats.float().square().sum(dim=-1)
    unusable = (lengths < _TINY) | ~lengths.isfinite()
    _refuse(path, name, "quaternions that cannot be normalised", unusable.sum(), quats)


def _refuse(path: Path, name: str, fault: str, amount: int | Tensor, values: Sized) -> None:
    if amount:
        raise InputError(f"{path}: {name}: {int(amount):,} values are {fault} ({len(values):,} Gaussians).")
