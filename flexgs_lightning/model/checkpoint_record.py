"""What a checkpoint must hold: its fields, its tensors, and a digest of both.

``require_sound`` is the one door: afterwards every field is there and of its type, every tensor lies within
the file, the scene's are finite and of the attributes' shapes, and the digests are those that were written.
What a resume needs beyond that (moments that fit the optimizers) is compared where these are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import xxhash
from msgspec import UNSET, Meta, Struct, UnsetType
from torch import Tensor

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import Attribute, table_with
from flexgs_lightning.model.part import PARTS, Part, part_from_plain
from flexgs_lightning.processes import ALONE
from flexgs_lightning.records import Finite, Natural, Positive, parsed
from flexgs_lightning.splats import MAX_SH_DEGREE

CHECKPOINT_KEY = "flexgs"
"""Entry of a Lightning checkpoint that marks it as this package's."""
CHECKPOINT_VERSION = 2
SCENE = "scene."
"""Where the scene stands in a checkpoint's ``state_dict``."""
DIGESTS = "digests"
PARAMETERS = f"{SCENE}gaussians.params."
_SCENE_ENTRIES = ("state_dict", "global_step", CHECKPOINT_KEY)
"""What the scene's digest covers; the training's covers all else: moments, loops, callbacks."""
_DEEPEST = 24
_MOST_VALUES = 100_000
"""Values of a checkpoint; one has about a thousand."""


# -- fields --------------------------------------------------------------------------------------------


class CaptureOptions(Struct):
    """See ``CaptureDataModule.options``: the capture that the scene was trained on."""

    root: str | None = None
    downscale: Positive | UnsetType = UNSET
    test_every: Natural | UnsetType = UNSET
    images: str | UnsetType = UNSET
    masks: str | UnsetType = UNSET
    name: str | None = None
    frames: tuple[Natural, Natural] | None = None
    near_plane: Annotated[float, Meta(gt=0, le=1e30)] | None = None
    cameras: str | None = None
    views: Positive | UnsetType = UNSET
    view_size: Positive | UnsetType = UNSET
    kept_cameras: str | None = None


class DensificationState(Struct):
    """See ``Densification.state_dict``."""

    kind: str
    statistics: dict[str, Tensor]
    too_close: Natural = 0


class Kind(Struct):
    """A selection, or a part of a scene: its kind, and options that only the kind knows."""

    kind: str


class SceneFacts(Struct):
    """See ``Scene.as_plain``."""

    elastic: bool
    selection: Kind
    parts: dict[str, Kind]


class Facts(Struct):
    """This package's own entry; see ``FlexGSModule.on_save_checkpoint``."""

    version: int
    sh_degree: Annotated[int, Meta(ge=0, le=MAX_SH_DEGREE)]
    started_trained: bool
    antialiased: bool
    background: tuple[Finite, Finite, Finite]
    data: CaptureOptions
    seed: Natural
    densification: DensificationState | None
    scene: SceneFacts
    rows: list[str]
    seconds: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    options: dict[str, Any] = {}
    shares: list[Natural] = []
    digests: dict[str, str] = {}


class ParameterGroup(Struct):
    """A group of an optimizer: which parameters, by number, and how they learn."""

    params: list[Natural]
    lr: Annotated[float, Meta(ge=0, le=1e30)]


class OptimizerState(Struct):
    """See ``torch.optim.Optimizer.state_dict``."""

    state: dict[Natural, dict[str, Any]]
    param_groups: list[ParameterGroup]


class Checkpoint(Struct):
    """The whole file. One without optimizers can be drawn and measured, but not gone on from."""

    global_step: Natural
    state_dict: dict[str, Tensor]
    flexgs: Facts
    epoch: Natural = 0
    optimizer_states: list[OptimizerState] = []
    lr_schedulers: list[Any] = []
    loops: dict[str, Any] = {}
    callbacks: dict[str, dict[str, Any]] = {}


# -- the door ------------------------------------------------------------------------------------------


def require_sound(path: Path, checkpoint: Any, size: int, whole: bool = True) -> None:
    """Refuse a checkpoint that nothing should be made of.

    Args:
        path: for messages.
        checkpoint: what the file holds, only read.
        size: bytes of the file.
        whole: look at everything; otherwise at what is drawn, and leave moments, loops and callbacks alone.

    Raises:
        InputError: no checkpoint of this package or release; a field is missing, of another type or out of
            range (named); tensors that the file cannot hold; parameters of other shapes than their
            attributes', NaN or infinite (named); content that is not that of its digests.
    """
    facts = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(facts, dict):
        raise InputError(f"{path}: not a checkpoint of this package, it has no '{CHECKPOINT_KEY}' entry.")
    if facts.get("version") != CHECKPOINT_VERSION:
        raise InputError(
            f"{path}: checkpoint of version {str(facts.get('version'))[:40]}, "
            f"this release reads version {CHECKPOINT_VERSION}."
        )
    _require_held(path, checkpoint, size)
    record = parsed(path, checkpoint, Checkpoint)
    missing = [name for name in record.flexgs.rows if name not in record.state_dict]
    if missing:
        raise InputError(f"{path}: {CHECKPOINT_KEY}.rows: names '{missing[0]}', which is not in state_dict.")
    for name in ("scene", "training") if whole else ("scene",):
        _require_digest(path, checkpoint, name, record.flexgs.digests.get(name))
    _require_shapes(path, record, _attributes(path, checkpoint[CHECKPOINT_KEY]["scene"]["parts"]))
    for name, tensor in record.state_dict.items():
        _require_finite(path, name, tensor)
    if record.flexgs.densification is not None and whole:
        for name, tensor in record.flexgs.densification.statistics.items():
            _require_finite(path, f"{CHECKPOINT_KEY}.densification.statistics.{name}", tensor)


def sealed(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the digests of its content, to be written; one of another package as it is."""
    if CHECKPOINT_KEY not in checkpoint:
        return checkpoint
    digests = {name: _digest(checkpoint, name) for name in ("scene", "training")}
    return {**checkpoint, CHECKPOINT_KEY: {**checkpoint[CHECKPOINT_KEY], DIGESTS: digests}}


# -- digests -------------------------------------------------------------------------------------------


def _require_digest(path: Path, checkpoint: dict[str, Any], name: str, stated: str | None) -> None:
    """A checkpoint that another plugin wrote, or an earlier release, has none."""
    if stated is not None and stated != _digest(checkpoint, name):
        raise InputError(
            f"{path}: the file is damaged: the digest of its {name} is not the one that was written with it."
        )


def _digest(checkpoint: Mapping[str, Any], name: str) -> str:
    """XXH3 of every value with its place, type and shape. It finds damage; it is no proof against forgery."""
    digest = xxhash.xxh3_128()
    for entry, value in checkpoint.items():
        if (entry in _SCENE_ENTRIES) != (name == "scene"):
            continue
        if entry == CHECKPOINT_KEY:
            value = {key: fact for key, fact in value.items() if key != DIGESTS}
        for place, leaf in _leaves(value, entry):
            if isinstance(leaf, Tensor):
                digest.update(f"{place}:{leaf.dtype}{tuple(leaf.shape)}".encode())
                if leaf.numel():
                    digest.update(leaf.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data)
            else:
                digest.update(f"{place}:{leaf!r};".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _leaves(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value that is no container, with its place; empty containers, too."""
    if isinstance(value, (dict, list, tuple)) and depth > _DEEPEST:
        raise InputError(f"{place[:80]}…: more than {_DEEPEST} levels.")
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(
                item, f"{place}.{key}" if isinstance(key, str) else f"{place}[{key!r}]", depth + 1
            )
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]", depth + 1)
    else:
        yield place, value


# -- tensors -------------------------------------------------------------------------------------------


def _require_held(path: Path, checkpoint: dict[str, Any], size: int) -> None:
    """Values no more than a checkpoint has, and tensors no larger together than the file that holds them.

    A tensor may claim a shape of any size over a few bytes (strides of 0); a copy would fill the memory.
    """
    try:
        held = 0
        for count, (place, leaf) in enumerate(_leaves(checkpoint, "")):
            if isinstance(leaf, Tensor):
                if leaf.layout is not torch.strided or leaf.is_complex() or leaf.is_quantized:
                    raise InputError(
                        f"{place[1:]}: expected a plain tensor, found {leaf.dtype}, {leaf.layout}."
                    )
                held += leaf.numel() * leaf.element_size()
            if count > _MOST_VALUES or held > size:
                raise InputError(f"{place[1:]}: values up to here exceed what {size:,} bytes hold.")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _attributes(path: Path, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Attribute]:
    """The scene's table: what its parts bring is in it, too; they are made of shapes alone here."""
    try:
        with torch.device("meta"):
            return table_with(
                attribute
                for values in parts.values()
                if values["kind"] not in PARTS or PARTS[values["kind"]].attributes is not Part.attributes
                for attribute in part_from_plain(values["kind"], values, 1, ALONE).attributes()
            )
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {CHECKPOINT_KEY}.scene.parts: {error}") from error


def _require_shapes(path: Path, record: Checkpoint, table: Mapping[str, Attribute]) -> None:
    """Each attribute's tensor has its shape, and as many rows as there are Gaussians."""
    given = {
        name.removeprefix(PARAMETERS): t
        for name, t in record.state_dict.items()
        if name.startswith(PARAMETERS)
    }
    missing = [name for name, attribute in table.items() if attribute.drawn and name not in given]
    if missing:
        raise InputError(f"{path}: state_dict: parameters are missing: {PARAMETERS}{missing[0]}.")
    unknown = sorted(given.keys() - table.keys())
    if unknown:
        raise InputError(f"{path}: state_dict: there is no attribute '{unknown[0]}'.")
    means, sh = given["means"], given["sh"]
    count = means.shape[0] if means.ndim else 0
    bases = sh.shape[1] if sh.ndim == 3 else 0
    degree = math.isqrt(bases) - 1
    if (degree + 1) ** 2 != bases or not record.flexgs.sh_degree <= degree <= MAX_SH_DEGREE:
        raise InputError(
            f"{path}: {PARAMETERS}sh: {tuple(sh.shape)} is no shape of spherical harmonics of degree "
            f"{record.flexgs.sh_degree} to {MAX_SH_DEGREE}."
        )
    if count < 1:
        raise InputError(f"{path}: {PARAMETERS}means: {tuple(means.shape)}; expected at least one Gaussian.")
    for name, tensor in given.items():
        attribute = table[name]
        expected = ((count,) if attribute.per_gaussian else ()) + attribute.shape_at(degree)
        if tuple(tensor.shape) != expected or tensor.dtype != torch.float32:
            raise InputError(
                f"{path}: {PARAMETERS}{name}: expected {expected} float32, found {tuple(tensor.shape)} "
                f"{str(tensor.dtype).removeprefix('torch.')}."
            )


def _require_finite(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.aminmax()  # both NaN if a value is
        if not (math.isfinite(low) and math.isfinite(high)):
            amount = int((~tensor.isfinite()).sum())
            raise InputError(f"{path}: {name}: {amount:,} of {tensor.numel():,} values are NaN or infinite.")
