"""Reading GLB with KHR_gaussian_splatting, as any program wrote it; see ``glb``.

All primitives with the extension are read, through the nodes of the scene and their transforms. Everything
lies in the file itself: nothing is fetched from where a URI points to.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec import Struct

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
from flexgs_lightning.records import Natural, parse_json, plain_size, shown
from flexgs_lightning.splats import MAX_SH_DEGREE, SH_C0, Splats

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_TYPES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_DEEPEST = 64
"""Nodes below each other; more are taken for a mistake."""
_LEAST_BYTES = 44
"""That a Gaussian takes in memory at degree 0; several primitives may share an accessor, and so bytes."""
_LARGEST_NUMBER = 1e15
"""Of transforms: products of such are finite in float32."""
_LARGEST_JSON = 1 << 26


class Accessor(Struct):
    """Numbers in a buffer view."""

    count: Natural
    componentType: int  # noqa: N815 (glTF's names)
    type: str
    bufferView: Natural | None = None  # noqa: N815
    byteOffset: Natural = 0  # noqa: N815
    normalized: bool = False
    sparse: Any = None


class BufferView(Struct):
    """A part of a buffer."""

    buffer: Natural
    byteLength: Natural  # noqa: N815
    byteOffset: Natural = 0  # noqa: N815
    byteStride: Natural | None = None  # noqa: N815


class Buffer(Struct):
    """Bytes; without an address those of the file's binary chunk."""

    byteLength: Natural  # noqa: N815
    uri: str | None = None


class Node(Struct):
    """A place in the tree: a matrix, or translation, rotation and scale, of what is below."""

    mesh: Natural | None = None
    children: list[Natural] = []
    matrix: list[float] | None = None
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)


class Primitive(Struct):
    """What is drawn: accessors by attribute."""

    attributes: dict[str, Natural]
    extensions: dict[str, Any] = {}
    extras: Any = None

    @property
    def gaussians(self) -> dict[str, Any] | None:
        """What the extension says; None if these are no Gaussians."""
        content = self.extensions.get(EXTENSION)
        return content if isinstance(content, dict) else None


class Mesh(Struct):
    """Several of these."""

    primitives: list[Primitive]


class Scene(Struct):
    """Roots of the tree."""

    nodes: list[Natural] = []


class Content(Struct):
    """The JSON of a GLB file, as far as it is read."""

    scene: Natural = 0
    scenes: list[Scene] = []
    nodes: list[Node] = []
    meshes: list[Mesh] = []
    accessors: list[Accessor] = []
    bufferViews: list[BufferView] = []  # noqa: N815
    buffers: list[Buffer] = []
    extensionsRequired: list[str] = []  # noqa: N815


Item = TypeVar("Item")


def read_glb(path: Path) -> SplatFile:
    """Read a ``.glb`` file.

    Raises:
        InputError: not GLB; no Gaussians in it; attributes missing; accessors that reach beyond the file, or
            of a kind that there is not; nodes that contain themselves; transforms that shear; compressed
            forms; values that are NaN, infinite or out of range.
    """
    plain_size(path)
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
        self._content = parse_json(f"{path}: its JSON", bytes(chunks[JSON_CHUNK]).rstrip(b"\0 "), Content)
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
        unknown = [name for name in self._content.extensionsRequired if name != EXTENSION]
        if unknown:
            raise InputError(
                f"{self._path}: needs the glTF extension {shown(unknown[0])}, which is not read here."
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
            extras = primitive.extras
            flags.append(isinstance(extras, dict) and extras.get(ANTIALIASED) is True)
        if not parts:
            raise InputError(f"{self._path}: no primitive with {EXTENSION} in its scene.")
        return SplatFile(half_turn(joined(parts), "z"), any(flags))

    # -- the scene's tree ------------------------------------------------------------------------------

    def _item(self, kind: str, items: list[Item], index: int | None) -> Item:
        """An entry of a top-level list of objects."""
        if index is None or index >= len(items):
            raise InputError(f"{self._path}: there is no {kind}[{index}] in the GLB file.")
        return items[index]

    def _primitives(self) -> Iterator[tuple[np.ndarray, Primitive]]:
        """Each primitive of Gaussians with the matrix [4, 4] that takes it into the world."""
        for root in self._item("scenes", self._content.scenes, self._content.scene).nodes:
            yield from self._below(root, np.eye(4), 0)

    def _below(self, index: int, parent: np.ndarray, depth: int) -> Iterator[tuple[np.ndarray, Primitive]]:
        if index in self._visited or depth >= _DEEPEST:
            raise InputError(
                f"{self._path}: node {index} lies below two nodes, itself, or more than {_DEEPEST} others."
            )
        self._visited.add(index)
        node = self._item("nodes", self._content.nodes, index)
        matrix = parent @ self._matrix(node)
        if not (np.abs(matrix) < _LARGEST_NUMBER).all():
            raise InputError(f"{self._path}: node {index}: its transform is beyond {_LARGEST_NUMBER:g}.")
        if node.mesh is not None:
            for primitive in self._item("meshes", self._content.meshes, node.mesh).primitives:
                if primitive.gaussians is not None:
                    yield matrix, primitive
        for child in node.children:
            yield from self._below(child, matrix, depth + 1)

    def _matrix(self, node: Node) -> np.ndarray:
        if node.matrix is not None:
            return self._numbers(node.matrix, 16, "matrix of a node").reshape(4, 4).T
        translation = self._numbers(node.translation, 3, "translation of a node")
        rotation = self._numbers(node.rotation, 4, "rotation of a node")
        scale = self._numbers(node.scale, 3, "scale of a node")
        if not np.linalg.norm(rotation) > 0:
            raise InputError(f"{self._path}: rotation of a node: a quaternion of length 0.")
        x, y, z, w = rotation / np.linalg.norm(rotation)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        matrix = np.eye(4)
        matrix[:3, :3] = (np.eye(3) + 2 * w * cross + 2 * cross @ cross) * scale
        matrix[:3, 3] = translation
        return matrix

    def _numbers(self, value: Sequence[float], count: int, what: str) -> np.ndarray:
        if len(value) != count or not all(abs(number) < _LARGEST_NUMBER for number in value):
            raise InputError(f"{self._path}: {what}: expected {count} numbers, found {shown(value)}.")
        return np.array(value, np.float64)

    # -- values ----------------------------------------------------------------------------------------

    def _splats(self, primitive: Primitive) -> Splats:
        if (primitive.gaussians or {}).get("extensions"):
            raise InputError(f"{self._path}: Gaussians in a compressed form, which is not read here.")
        attributes = primitive.attributes
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

    def _harmonics(self, attributes: dict[str, int], count: int) -> np.ndarray:
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
        self, attributes: dict[str, int], name: str, components: int | None, count: int | None = None
    ) -> np.ndarray:
        """[count, components] float32."""
        if name not in attributes:
            raise InputError(f"{self._path}: Gaussians without the attribute {name}.")
        accessor = self._item("accessors", self._content.accessors, attributes[name])
        found, kind = accessor.count, _COMPONENTS.get(accessor.componentType)
        width = _TYPES.get(accessor.type)
        wanted = (3, 4) if components is None else (components,)
        if kind is None or width is None or width not in wanted or accessor.sparse is not None:
            kinds = f"{shown(accessor.type)} of {accessor.componentType}"
            raise InputError(
                f"{self._path}: {name}: accessor of type {kinds}; expected {' or '.join(map(str, wanted))} "
                "floats or normalised integers, and not sparse."
            )
        if found < 1 or (count is not None and found != count):
            expected = "at least one" if count is None else f"{count:,}"
            raise InputError(f"{self._path}: {name}: {found} values; expected {expected}.")
        item = np.dtype(kind)
        values = self._view(name, accessor, found, width * item.itemsize)
        columns = values.view(item).reshape(found, width)
        if item.kind == "f":
            return columns.astype(np.float32)
        if not accessor.normalized:
            raise InputError(f"{self._path}: {name}: integers that are not normalised.")
        return np.maximum(columns.astype(np.float32) / np.iinfo(item).max, -1.0)

    def _view(self, name: str, accessor: Accessor, count: int, item_bytes: int) -> np.ndarray:
        """[count, item_bytes] uint8 of an accessor, checked against buffer view, buffer and file."""
        view = self._item("bufferViews", self._content.bufferViews, accessor.bufferView)
        buffer = self._item("buffers", self._content.buffers, view.buffer)
        if view.buffer != 0 or buffer.uri is not None:
            raise InputError(f"{self._path}: {name}: lies outside the GLB file; expected its binary chunk.")
        start, length, inner = view.byteOffset, view.byteLength, accessor.byteOffset
        stride = item_bytes if view.byteStride is None else view.byteStride
        if not item_bytes <= stride <= 252:
            raise InputError(f"{self._path}: {name}: a stride of {stride} bytes for values of {item_bytes}.")
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
