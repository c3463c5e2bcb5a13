"""Images: attributes as PNG files of a sorted grid, and view-dependent colour as a palette.

gsplat's recipe (``PngCompression``) is ``GSPLAT``. GSCodec Studio (arXiv:2506.01822) varies it: steps that
training has seen, fewer bits, a mask of who has view-dependent colour, and ANS in place of PNG.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, UnidentifiedImageError

from flexgs_lightning.codec.palette import palette
from flexgs_lightning.codec.recipes.ans import ans_bytes, ans_symbols
from flexgs_lightning.codec.recipes.columns import checked, columns_of
from flexgs_lightning.codec.recipes.grid import Sorting, grid_order, grid_shape
from flexgs_lightning.codec.recipes.package import LARGEST_NUMBER, Package, packed, read_package
from flexgs_lightning.codec.recipes.rounding import Scale, eight_bits, numbered
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.compression.quantization import RANGES
from flexgs_lightning.records import shown
from flexgs_lightning.splats import Splats

RECIPE = "images"
PLANES = {"scales": 3, "quats": 4, "opacities": 1, "sh0": 3}
"""Attributes that are images of up to eight bits, and their channels."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Recipe:
    """How splats become images.

    Attributes:
        bits: of scales, quats, opacities and sh0.
        ranges: ends of these: those of each channel, or ``RANGES``.
        entries: of the palette, at most; 65,536 at most.
        sorting: of the Gaussians.
        coder: of these attributes; means are PNG images of 16 bits in any case.
    """

    bits: int = 8
    ranges: Literal["channel", "trained"] = "channel"
    entries: int = 1 << 16
    sorting: Sorting = "grid"
    coder: Literal["png", "ans"] = "png"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or not 1 <= self.entries <= 1 << 16:
            raise InputError(
                f"recipe: expected 1 to 8 bits and 1 to 65,536 entries, found {self.bits} and {self.entries}."
            )

    @property
    def levels(self) -> int:
        """Steps between the ends."""
        return (1 << self.bits) - 1


GSPLAT = Recipe()


@torch.no_grad()
def write_images(
    splats: Splats, path: str | Path, recipe: Recipe = GSPLAT, colored: Bool[np.ndarray, " N"] | None = None
) -> None:
    """Write splats, in another order.

    Args:
        splats: what to write.
        path: the file.
        recipe: how.
        colored: which Gaussians keep their view-dependent colour; all by default.

    Raises:
        InputError: the file cannot be written.
    """
    columns = columns_of(splats)
    logs = _logarithmic(columns["means"].double().numpy())
    low, high = logs.min(axis=0), logs.max(axis=0)
    places = np.rint(65535 * (logs - low) / np.maximum(high - low, 1e-30)).astype(np.uint16)
    scales = {name: _scales(columns[name].reshape(len(splats), -1), name, recipe) for name in PLANES}
    levels = {
        name: np.column_stack(
            [
                numbered(column, scale, recipe.levels).byte().numpy()
                for column, scale in zip(columns[name].reshape(len(splats), -1).T, each, strict=True)
            ]
        )
        for name, each in scales.items()
    }
    features = [places / 65535, *(values / recipe.levels for values in levels.values())]
    order = grid_order(columns["means"].numpy(), np.concatenate(features, axis=1), recipe.sorting)
    places = places[order]
    streams = {
        "means.low.png": _png(places.astype(np.uint8)),
        "means.high.png": _png((places >> 8).astype(np.uint8)),
    }
    for name, values in levels.items():
        if recipe.coder == "png":
            streams[f"{name}.png"] = _png(values[order])
        else:
            streams[f"{name}.ans"] = ans_bytes(values[order])
    facts: dict[str, Any] = {
        "means": {"low": low.tolist(), "high": high.tolist()},
        "scales": {name: [list(scale) for scale in each] for name, each in scales.items()},
        "coder": recipe.coder,
    }
    if splats.sh_degree:
        chosen = np.ones(len(splats), bool) if colored is None else colored
        more, facts["palette"] = _palette(columns["shN"].numpy()[order], chosen[order], recipe.entries)
        streams |= more
    Package(RECIPE, len(splats), splats.sh_degree, facts, streams).write(path)


def read_images(path: str | Path) -> Splats:
    """Read what ``write_images`` wrote.

    Raises:
        InputError: see ``read_package``; streams that are missing, damaged or of another size.
    """
    path = Path(path)
    package = read_package(path, RECIPE)
    count = package.count
    low, high = (_three(path, package, end) for end in ("low", "high"))
    lower, upper = (_pixels(path, package, f"means.{part}.png", 3) for part in ("low", "high"))
    places = lower.astype(np.float64) + 256.0 * upper
    columns = {"means": _inverse(low + places * ((high - low) / 65535))}
    for name, channels in PLANES.items():
        if package.facts.get("coder") == "ans":
            data = package.stream(path, f"{name}.ans")
            levels = ans_symbols(path, name, data, count, channels)
        else:
            levels = _pixels(path, package, f"{name}.png", channels)
        scales = np.array([_scale(path, package, name, i) for i in range(channels)])
        columns[name] = scales[:, 0] + scales[:, 1] * levels
    columns["opacities"] = columns["opacities"][:, 0]
    columns["sh0"] = columns["sh0"][:, None]
    rows = (package.sh_degree + 1) ** 2 - 1
    columns["shN"] = np.zeros((count, rows, 3), np.float32)
    if rows:
        _color(path, package, columns["shN"])
    return checked(path, columns)


def _logarithmic(means: np.ndarray) -> np.ndarray:
    return np.sign(means) * np.log1p(np.abs(means))


def _inverse(logs: np.ndarray) -> np.ndarray:
    return np.sign(logs) * np.expm1(np.abs(logs))


def _scales(values: torch.Tensor, name: str, recipe: Recipe) -> list[Scale]:
    """Scale of each channel."""
    if recipe.ranges == "trained":
        low, high = RANGES[name]
        return [Scale(low, (high - low) / recipe.levels)] * values.shape[1]
    return [Scale(scale.low, scale.step * 255 / recipe.levels) for scale in map(eight_bits, values.unbind(1))]


def _palette(
    sh: Float[np.ndarray, "N K 3"], colored: Bool[np.ndarray, " N"], entries: int
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Streams and facts of view-dependent colour."""
    vectors = torch.from_numpy(sh[colored].reshape(-1, 3 * sh.shape[1]))
    centroids, labels = palette(vectors, entries) if len(vectors) else (vectors, torch.zeros(0))
    scale = eight_bits(centroids)
    streams = {
        "shN.mask": packed(np.packbits(colored)),
        "shN.centroids": packed(numbered(centroids, scale).byte().numpy()),
        "shN.labels": packed(labels.numpy().astype("<u2")),
    }
    return streams, {"entries": len(centroids), "colored": len(vectors), **scale._asdict()}


def _color(path: Path, package: Package, sh: Float[np.ndarray, "N K 3"]) -> None:
    """Fill in view-dependent colour."""
    count, width = len(sh), sh.shape[1] * 3
    bits = np.unpackbits(package.array(path, "shN.mask", "u1", -(-count // 8)), count=count).astype(bool)
    entries, colored = (int(package.number(path, "palette", name)) for name in ("entries", "colored"))
    if not (0 <= entries <= max(colored, 0) and colored == bits.sum()):
        raise InputError(f"{path}: shN: expected {int(bits.sum())} colored Gaussians, found {colored}.")
    low, step = (package.number(path, "palette", name) for name in ("low", "step"))
    centroids = low + step * package.array(path, "shN.centroids", "u1", entries, width)
    labels = package.array(path, "shN.labels", "<u2", colored)
    if colored and int(labels.max()) >= entries:
        raise InputError(f"{path}: shN.labels: {int(labels.max())} is beyond the {entries} entries.")
    sh[bits] = centroids[labels].reshape(-1, width // 3, 3)


def _png(values: UInt8[np.ndarray, "N C"]) -> bytes:
    """Rows as pixels of the grid; what is missing in its last row repeats the last."""
    height, width = grid_shape(len(values))
    missing = np.repeat(values[-1:], height * width - len(values), axis=0)
    image = np.concatenate([values, missing]).reshape(height, width, -1)
    stream = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _pixels(path: Path, package: Package, name: str, channels: int) -> UInt8[np.ndarray, "N C"]:
    height, width = grid_shape(package.count)
    try:
        with Image.open(io.BytesIO(package.stream(path, name)), formats=["PNG"]) as image:
            if image.size != (width, height) or image.mode != MODES[channels]:
                raise InputError(
                    f"{path}: {name}: expected {width}x{height} pixels of {MODES[channels]}, found "
                    f"{image.size[0]}x{image.size[1]} of {image.mode}."
                )
            pixels = np.asarray(image).reshape(height * width, channels)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {name}: not a sound PNG image.") from error
    return pixels[: package.count]


def _three(path: Path, package: Package, end: str) -> np.ndarray:
    means = package.facts.get("means")
    values = means.get(end) if isinstance(means, dict) else None
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise InputError(f"{path}: meta.json: means.{end}: expected three numbers, found {shown(values)}.")
    return np.array(values, np.float64)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST_NUMBER  # type: ignore[arg-type]


def _scale(path: Path, package: Package, name: str, channel: int) -> tuple[float, float]:
    try:
        low, step = package.facts["scales"][name][channel]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path}: meta.json: scales.{name}: expected a low and a step each.") from error
    if not (_is_number(low) and _is_number(step)):
        raise InputError(f"{path}: meta.json: scales.{name}: expected numbers, found {shown([low, step])}.")
    return float(low), float(step)
