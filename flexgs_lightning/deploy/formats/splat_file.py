"""What every format has in common: the value that passes in and out, and what is refused at the door."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.splats import Splats

TINY = 2.0**-126
"""The smallest normal float32, in place of an opacity or scale of 0."""
ALMOST_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1, in place of an opacity of 1: its logit is 16.6."""
LARGEST_LOG_SCALE = 88.72
"""exp of more than 88.722 is infinite in float32."""
BLOCK = 1 << 16
"""Gaussians that are encoded at a time, so that a large scene needs little memory beside itself."""

_PLAUSIBLE = 256
"""Bytes that one byte of a compressed file may unpack to; real scenes stay below 10."""
_ALWAYS_PLAUSIBLE = 1 << 24
"""Bytes that any file may unpack to."""


@dataclass(frozen=True)
class SplatFile:
    """Splats, and what a file says beside them about how they are to be drawn.

    Attributes:
        splats: the Gaussians, on the CPU where they were read.
        antialiased: they are meant for the antialiased rasterizer; see ``rasterize``.
    """

    splats: Splats
    antialiased: bool = False


def assemble(
    path: Path,
    *,
    means: np.ndarray,
    quats: np.ndarray,
    opacities: np.ndarray,
    sh: np.ndarray,
    scales: np.ndarray | None = None,
    log_scales: np.ndarray | None = None,
) -> Splats:
    """Splats from what a file holds: float32 arrays as in ``Splats``, with scales or their logarithms.

    Raises:
        InputError: values that are NaN, infinite or out of range (named and counted).
    """
    given: dict[str, np.ndarray | None] = {"means": means, "quats": quats, "opacities": opacities, "sh": sh}
    given |= {"scales": scales} if scales is not None else {"log scales": log_scales}
    tensors = {
        name: torch.from_numpy(np.require(array, np.float32, ["C", "W"])) for name, array in given.items()
    }
    for name, values in tensors.items():
        refuse_not_finite(path, name, values)
    if scales is None:
        log = tensors["log scales"]
        refuse(path, "log scales", "beyond exp(88.7)", (log > LARGEST_LOG_SCALE).sum(), log)
        tensors["scales"] = log.exp()
    refuse(path, "scales", "negative", (tensors["scales"] < 0).sum(), means)
    opaque = tensors["opacities"]
    refuse(path, "opacities", "outside [0, 1]", ((opaque < 0) | (opaque > 1)).sum(), means)
    refuse_unrotated(path, "quats", tensors["quats"])
    return Splats(
        means=tensors["means"],
        quats=tensors["quats"],
        scales=tensors["scales"].clamp_min_(TINY),
        opacities=opaque.clamp_(TINY, ALMOST_ONE),
        sh=tensors["sh"],
    )


def require_drawable(path: Path, splats: Splats) -> None:
    """Refuse what no viewer could draw, before a file is begun.

    Raises:
        InputError: there are no Gaussians; values are NaN, infinite or out of range (named and counted).
    """
    if len(splats) == 0:
        raise InputError(f"{path}: there are no Gaussians to write.")
    if splats.has_features:
        raise InputError(f"{path}: a splat file holds spherical harmonics; these Gaussians carry features.")
    for name in ("means", "quats", "scales", "opacities", "sh"):
        refuse_not_finite(path, name, getattr(splats, name))
    refuse(path, "scales", "negative", (splats.scales < 0).sum(), splats)
    outside = (splats.opacities < 0) | (splats.opacities > 1)
    refuse(path, "opacities", "outside [0, 1]", outside.sum(), splats)
    refuse_unrotated(path, "quats", splats.quats)


def refuse_not_finite(path: Path, name: str, values: Tensor) -> None:
    """Refuse NaN and infinity, without a mask as large as the scene unless there is one of them."""
    if values.numel() and not torch.stack(values.aminmax()).isfinite().all():
        refuse(path, name, "NaN or infinite", (~values.isfinite()).sum(), values)


def refuse_unrotated(path: Path, name: str, quats: Float[Tensor, "N 4"]) -> None:
    """A quaternion whose squared length underflows or overflows in float32 cannot be normalised."""
    lengths = quats.float().square().sum(dim=-1)
    unusable = (lengths < TINY) | ~lengths.isfinite()
    refuse(path, name, "quaternions that cannot be normalised", unusable.sum(), quats)


def refuse(path: Path, name: str, fault: str, amount: int | Tensor, values: Sized) -> None:
    """Refuse the file if ``amount`` values of ``name`` have a fault; ``values`` tells how many Gaussians."""
    if amount:
        raise InputError(f"{path}: {name}: {int(amount):,} values are {fault} ({len(values):,} Gaussians).")


def joined(parts: list[Splats]) -> Splats:
    """All Gaussians, with the harmonics of the highest degree among them."""
    if len(parts) == 1:
        return parts[0]
    degree = max(part.sh_degree for part in parts)
    parts = [part.with_sh_degree(degree) for part in parts]
    columns = (
        [getattr(part, name) for part in parts] for name in ("means", "quats", "scales", "opacities", "sh")
    )
    return Splats(*(torch.cat(column) for column in columns))


def require_plausible(path: Path, unpacked: int, packed: int) -> None:
    """Refuse a file that would fill the memory: what it states against the bytes that it has.

    Raises:
        InputError: more than 256 bytes, and 16 MiB in all, for each byte of the file.
    """
    if unpacked > max(_PLAUSIBLE * packed, _ALWAYS_PLAUSIBLE):
        raise InputError(
            f"{path}: states {unpacked:,} bytes of content, far more than its {packed:,} bytes can hold; "
            "it is damaged or made to fill the memory."
        )


@dataclass(frozen=True)
class Arrays:
    """A block of Gaussians as NumPy arrays to encode; quaternions of length 1, shapes as in ``Splats``."""

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    sh: np.ndarray

    @property
    def log_scales(self) -> np.ndarray:
        """[n, 3] natural logarithms."""
        return np.log(np.maximum(self.scales, np.float32(TINY)))

    def __len__(self) -> int:
        return len(self.means)


def arrays(splats: Splats) -> Arrays:
    """All of ``splats``, as float32 on the CPU."""
    quats = torch.nn.functional.normalize(splats.quats.double(), dim=-1)
    values = (splats.means, quats, splats.scales, splats.opacities, splats.sh)
    return Arrays(*(value.detach().float().cpu().numpy() for value in values))


def blocks(splats: Splats, size: int = BLOCK) -> Iterator[tuple[slice, Arrays]]:
    """The rows and the arrays of one block after the other."""
    for start in range(0, len(splats), size):
        rows = slice(start, min(start + size, len(splats)))
        yield rows, arrays(splats[rows])
