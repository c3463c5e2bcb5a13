"""GLB: binary glTF 2.0 with the extension KHR_gaussian_splatting.

One primitive of points, whose attributes hold positions, rotations (x, y, z, w), linear scales, opacities
and spherical harmonics as floats, and a colour for viewers that know points only. The frame is glTF's: y up,
z forward. The extension cannot say that a scene is antialiased; ``extras`` of the primitive does.
Specification: Khronos, KHR_gaussian_splatting (2026).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flexgs_lightning.deploy.formats.bits import to_bytes
from flexgs_lightning.deploy.formats.frames import half_turn
from flexgs_lightning.deploy.formats.splat_file import Arrays, SplatFile, blocks, require_drawable
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.splats import SH_C0, Splats

EXTENSION = "KHR_gaussian_splatting"
ANTIALIASED = "antialiased"
"""Entry of the primitive's ``extras``."""
MAGIC = 0x46546C67
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942
HEADER = struct.Struct("<III")
CHUNK = struct.Struct("<II")
UNSIGNED_BYTE, FLOAT = 5121, 5126
_ARRAY_BUFFER = 34962
_POINTS = 0
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def write_glb(file: SplatFile, path: Path) -> None:
    """Write floats: exact but for rounding of rotations to length 1.

    Raises:
        InputError: see ``require_drawable``; the file cannot be written.
    """
    require_drawable(path, file.splats)
    splats = half_turn(file.splats.detach().to("cpu"), "z")
    head = _head(splats, file.antialiased)
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        out.write(head)
        for name in _attributes(splats.sh_degree):
            _write_column(out, name, splats)


def coefficient(degree: int, order: int) -> str:
    """Name of the attribute with a spherical harmonic's coefficients."""
    return f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{order}"


def _attributes(sh_degree: int) -> dict[str, tuple[int, int]]:
    rest = {coefficient(d, i): (FLOAT, 3) for d in range(sh_degree + 1) for i in range(2 * d + 1)}
    return {
        "POSITION": (FLOAT, 3),
        "COLOR_0": (UNSIGNED_BYTE, 4),
        f"{EXTENSION}:ROTATION": (FLOAT, 4),
        f"{EXTENSION}:SCALE": (FLOAT, 3),
        f"{EXTENSION}:OPACITY": (FLOAT, 1),
        **rest,
    }


def _bytes(component: int, components: int) -> int:
    return components * (4 if component == FLOAT else 1)


def _head(splats: Splats, antialiased: bool) -> bytes:
    """Everything before the first attribute's values."""
    count, kinds = len(splats), _attributes(splats.sh_degree)
    views, accessors, offset = [], [], 0
    for i, (component, components) in enumerate(kinds.values()):
        length = count * _bytes(component, components)
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": length, "target": _ARRAY_BUFFER})
        accessor = {"bufferView": i, "componentType": component, "count": count, "type": _TYPES[components]}
        accessors.append(accessor | ({"normalized": True} if component == UNSIGNED_BYTE else {}))
        offset += length
    accessors[0] |= {"min": splats.means.amin(dim=0).tolist(), "max": splats.means.amax(dim=0).tolist()}
    looks = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    primitive: dict[str, Any] = {
        "mode": _POINTS,
        "attributes": {name: i for i, name in enumerate(kinds)},
        "extensions": {EXTENSION: looks},
        **({"extras": {ANTIALIASED: True}} if antialiased else {}),
    }
    content = {
        "asset": {"version": "2.0", "generator": "flexgs-lightning"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = HEADER.size + 2 * CHUNK.size + len(text) + offset
    if total >= 1 << 32:
        raise InputError(f"GLB: {total:,} bytes are more than its 32 bits can count; choose another format.")
    head = HEADER.pack(MAGIC, 2, total) + CHUNK.pack(len(text), JSON_CHUNK) + text
    return head + CHUNK.pack(offset, BINARY_CHUNK)


def _write_column(out: BinaryIO, name: str, splats: Splats) -> None:
    """One attribute's values, block after block."""
    for _, values in blocks(splats):
        out.write(_column(name, values).tobytes())


def _column(name: str, values: Arrays) -> np.ndarray:
    if name == "POSITION":
        return values.means.astype("<f4")
    if name == "COLOR_0":
        shown = np.column_stack([0.5 + SH_C0 * values.sh[:, 0], values.opacities])
        return to_bytes(255 * shown)
    column = name.removeprefix(f"{EXTENSION}:")
    if column == "ROTATION":
        return values.quats[:, [1, 2, 3, 0]].astype("<f4")
    if column == "SCALE":
        return values.scales.astype("<f4")
    if column == "OPACITY":
        return values.opacities.astype("<f4")
    degree, order = (int(word) for word in column.split("_") if word.isdecimal())
    return values.sh[:, degree**2 + order].astype("<f4")
