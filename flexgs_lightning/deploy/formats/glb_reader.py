"""Reading GLB with KHR_gaussian_splatting, as any program wrote it; see ``glb``.

All primitives with the extension are read, through the nodes of the scene and their transforms. Everything
lies in the file itself: nothing is fetched from where a URI points to.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flexgs_lightning.deploy.formats.frames import half_turn, moved
from flexgs_lightning.deploy.formats.glb import (
    ANTIALIASED,
    BINARY_CHUNK,
    CHUNK,
    EXTENSION,
    HEADER,
    JSON_CHUNK,
    MAGIC,
    coefficient,
)
from flexgs_lightning.deploy.formats.splat_file import SplatFile, assemble, joined, require_plausible
from flexgs_lightning.errors import InputError
from flexgs_lightning.splats import MAX_SH_DEGREE, SH_C0, Splats

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_TYPES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_DEEPEST = 64
"""Nodes below each other; more are taken for a mistake."""
_LEAST_BYTES = 44
"""That a Gaussian takes in memory at degree 0; several primitives may share an accessor, and so bytes."""
_LARGEST_JSON = 1 << 26


def read_glb(path: Path) -> SplatFile:
    """Read a ``.glb`` file.

    Raises:
        InputError: not GLB; no Gaussians in it; attributes missing; accessors that reach beyond the file, or
            of a kind that there is not; nodes that contain themselves; transforms that shear; compressed
            forms; values that are NaN, infinite or out of range.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror or error}).") from error
    return _Reader(path, data).read()


class _Reader:
    """One file: its JSON, and its binary chunk [bytes] uint8."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self._path = path
        chunks = self._chunks(data)
        try:
            content = json.loads(bytes(chunks[JSON_CHUNK]))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: the JSON of the GLB file is not sound ({error}).") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}: the JSON of the GLB file is no object.")
        self._content = content
        self._visited: set[int] = set()
        self._binary = np.frombuffer(chunks.get(BINARY_CHUNK, b""), np.uint8)

    def _chunks(self, data: bytes | mmap.mmap) -> dict[int, memoryview]:
        view = memoryview(data)
        if len(view) < HEADER.size or HEADER.unpack_from(view)[:2] != (MAGIC, 2):
            raise InputError(f"{self._path}: not a GLB file of version 2.")
        if HEADER.unpack_from(view)[2] != len(view):
            stated = HEADER.unpack_from(view)[2]
            raise InputError(f"{self._path}: states {stated:,} bytes, the file holds {len(view):,}.")
        chunks: dict[int, memoryview] = {}
        start = HEADER.size
        while start + CHUNK.size <= len(view):
            length, kind = CHUNK.unpack_from(view, start)
            start += CHUNK.size
            if length > len(view) - start:
                raise InputError(f"{self._path}: a chunk of {length:,} bytes reaches beyond the file.")
            chunks.setdefault(kind, view[start : start + length])
            start += length + -length % 4
        if len(chunks.get(JSON_CHUNK, b"")) not in range(1, _LARGEST_JSON):
            raise InputError(f"{self._path}: no JSON chunk, or one above 64 MiB, in the GLB file.")
        return chunks

    def read(self) -> SplatFile:
        required = self._content.get("extensionsRequired", [])
        unknown = [name for name in required if name != EXTENSION] if isinstance(required, list) else required
        if unknown:
            raise InputError(
                f"{self._path}: needs the glTF extension {unknown[0]!r}, which is not read here."
            )
        parts, flags, total = [], [], 0
        for matrix, primitive in self._primitives():
            splats = self._splats(primitive)
            total += len(splats)
            require_plausible(self._path, total * _LEAST_BYTES, len(self._binary))
            try:
                parts.append(splats if np.array_equal(matrix, np.eye(4)) else moved(splats, matrix))
            except (ValueError, np.linalg.LinAlgError) as error:
                raise InputError(f"{self._path}: a node's transform: {error}.") from error
            extras = primitive.get("extras")
            flags.append(isinstance(extras, dict) and extras.get(ANTIALIASED) is True)
        if not parts:
            raise InputError(f"{self._path}: no primitive with {EXTENSION} in its scene.")
        return SplatFile(half_turn(joined(parts), "z"), any(flags))

    # -- the scene's tree ------------------------------------------------------------------------------

    def _item(self, kind: str, index: Any) -> dict[str, Any]:
        """An entry of a top-level list of objects."""
        items = self._content.get(kind)
        if isinstance(items, list) and isinstance(index, int) and 0 <= index < len(items):
            item = items[index]
            if isinstance(item, dict):
                return item
        raise InputError(f"{self._path}: there is no {kind}[{index!r}] in the GLB file.")

    def _indices(self, value: Any, what: str) -> list[int]:
        if not isinstance(value, list) or not all(type(index) is int for index in value):
            raise InputError(f"{self._path}: {what}: expected a list of whole numbers.")
        return value

    def _primitives(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Each primitive of Gaussians with the matrix [4, 4] that takes it into the world."""
        scene = self._item("scenes", self._content.get("scene", 0))
        for root in self._indices(scene.get("nodes", []), "nodes of the scene"):
            yield from self._below(root, np.eye(4), 0)

    def _below(
        self, index: int, parent: np.ndarray, depth: int
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        if index in self._visited or depth >= _DEEPEST:
            raise InputError(
                f"{self._path}: node {index} lies below two nodes, itself, or more than {_DEEPEST} others."
            )
        self._visited.add(index)
        node = self._item("nodes", index)
        matrix = parent @ self._matrix(node)
        if "mesh" in node:
            primitives = self._item("meshes", node["mesh"]).get("primitives")
            for primitive in primitives if isinstance(primitives, list) else []:
                extensions = primitive.get("extensions") if isinstance(primitive, dict) else None
                if isinstance(extensions, dict) and isinstance(extensions.get(EXTENSION), dict):
                    yield matrix, primitive
        for child in self._indices(node.get("children", []), f"children of node {index}"):
            yield from self._below(child, matrix, depth + 1)

    def _matrix(self, node: dict[str, Any]) -> np.ndarray:
        if "matrix" in node:
            return self._numbers(node["matrix"], 16, "matrix of a node").reshape(4, 4).T
        translation = self._numbers(node.get("translation", [0, 0, 0]), 3, "translation of a node")
        rotation = self._numbers(node.get("rotation", [0, 0, 0, 1]), 4, "rotation of a node")
        scale = self._numbers(node.get("scale", [1, 1, 1]), 3, "scale of a node")
        if not np.linalg.norm(rotation) > 0:
            raise InputError(f"{self._path}: rotation of a node: a quaternion of length 0.")
        x, y, z, w = rotation / np.linalg.norm(rotation)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        matrix = np.eye(4)
        matrix[:3, :3] = (np.eye(3) + 2 * w * cross + 2 * cross @ cross) * scale
        matrix[:3, 3] = translation
        return matrix

    def _numbers(self, value: Any, count: int, what: str) -> np.ndarray:
        sound = isinstance(value, list) and all(
            type(number) in (int, float) and abs(number) < 1e30 for number in value
        )
        if not sound or len(value) != count:
            raise InputError(f"{self._path}: {what}: expected {count} numbers, found {repr(value)[:60]}.")
        return np.array(value, np.float64)

    # -- values ----------------------------------------------------------------------------------------

    def _splats(self, primitive: dict[str, Any]) -> Splats:
        extensions = primitive["extensions"][EXTENSION].get("extensions")
        if extensions:
            raise InputError(f"{self._path}: Gaussians in a compressed form, which is not read here.")
        attributes = primitive.get("attributes")
        if not isinstance(attributes, dict):
            raise InputError(f"{self._path}: a primitive without attributes.")
        means = self._attribute(attributes, "POSITION", 3)
        count = len(means)
        quats = self._attribute(attributes, f"{EXTENSION}:ROTATION", 4, count)
        return assemble(
            self._path,
            means=means,
            quats=quats[:, [3, 0, 1, 2]],
            scales=self._attribute(attributes, f"{EXTENSION}:SCALE", 3, count),
            opacities=self._attribute(attributes, f"{EXTENSION}:OPACITY", 1, count)[:, 0],
            sh=self._harmonics(attributes, count),
        )

    def _harmonics(self, attributes: dict[str, Any], count: int) -> np.ndarray:
        """[count, K, 3]; without coefficients, the points' colour."""
        if coefficient(0, 0) not in attributes:
            colors = self._attribute(attributes, "COLOR_0", None, count)
            return (colors[:, None, :3] - 0.5) / SH_C0
        names = [[coefficient(0, 0)]]
        for degree in range(1, MAX_SH_DEGREE + 1):
            names.append([coefficient(degree, order) for order in range(2 * degree + 1)])
            if not any(name in attributes for name in names[-1]):
                names.pop()
                break
        columns = [self._attribute(attributes, name, 3, count) for degree in names for name in degree]
        return np.stack(columns, axis=1)

    def _attribute(
        self, attributes: dict[str, Any], name: str, components: int | None, count: int | None = None
    ) -> np.ndarray:
        """[count, components] float32."""
        if name not in attributes:
            raise InputError(f"{self._path}: Gaussians without the attribute {name}.")
        accessor = self._item("accessors", attributes[name])
        found, kind = accessor.get("count"), _COMPONENTS.get(accessor.get("componentType", 0))
        width = _TYPES.get(str(accessor.get("type")))
        wanted = (3, 4) if components is None else (components,)
        if kind is None or width is None or width not in wanted or "sparse" in accessor:
            kinds = f"{accessor.get('type')!r} of {accessor.get('componentType')!r}"
            raise InputError(
                f"{self._path}: {name}: accessor of type {kinds}; expected {' or '.join(map(str, wanted))} "
                "floats or normalised integers, and not sparse."
            )
        if type(found) is not int or found < 1 or (count is not None and found != count):
            expected = "at least one" if count is None else f"{count:,}"
            raise InputError(f"{self._path}: {name}: {found!r} values; expected {expected}.")
        item = np.dtype(kind)
        values = self._view(name, accessor, found, width * item.itemsize)
        columns = values.view(item).reshape(found, width)
        if item.kind == "f":
            return columns.astype(np.float32)
        if accessor.get("normalized") is not True:
            raise InputError(f"{self._path}: {name}: integers that are not normalised.")
        return np.maximum(columns.astype(np.float32) / np.iinfo(item).max, -1.0)

    def _view(self, name: str, accessor: dict[str, Any], count: int, item_bytes: int) -> np.ndarray:
        """[count, item_bytes] uint8 of an accessor, checked against buffer view, buffer and file."""
        view = self._item("bufferViews", accessor.get("bufferView"))
        buffer = self._item("buffers", view.get("buffer"))
        if view.get("buffer") != 0 or "uri" in buffer:
            raise InputError(f"{self._path}: {name}: lies outside the GLB file; expected its binary chunk.")
        facts = (view.get("byteOffset", 0), view.get("byteLength"), accessor.get("byteOffset", 0))
        start, length, inner = (fact if type(fact) is int and fact >= 0 else -1 for fact in facts)
        stride = view.get("byteStride", item_bytes)
        if min(start, length, inner) < 0 or type(stride) is not int or not item_bytes <= stride <= 252:
            raise InputError(f"{self._path}: {name}: offsets {facts} and stride {stride!r} make no sense.")
        needed = inner + (count - 1) * stride + item_bytes
        if needed > length or start + length > len(self._binary):
            raise InputError(
                f"{self._path}: {name}: {count:,} values need {needed:,} bytes of a view of {length:,} at "
                f"{start:,}; the binary chunk has {len(self._binary):,}."
            )
        first = self._binary[start + inner :]
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(first, (count, item_bytes), (stride, 1), writeable=False)
        )
