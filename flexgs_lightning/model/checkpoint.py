"""Checkpoints: reading them safely, and the facts they carry beside Lightning's own."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from flexgs_lightning.cameras import NEAR_PLANE
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.baking import baked
from flexgs_lightning.model.basis_motion import BasisMotion
from flexgs_lightning.model.budget import PLY_HEADER_BYTES, ply_bytes_per_gaussian, ratio_for
from flexgs_lightning.model.checkpoint_record import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    SCENE,
    Facts,
    require_sound,
)
from flexgs_lightning.model.compression.coordinates import all_frames
from flexgs_lightning.model.compression.motion_mask import MotionMask
from flexgs_lightning.model.compression.quantization import UniformQuantization
from flexgs_lightning.model.compression.rule_quantization import RuleQuantization
from flexgs_lightning.model.compression.sh_mask import ShMask
from flexgs_lightning.model.feature_appearance import FeatureAppearance
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.lifespan import Lifespan
from flexgs_lightning.model.motion import PolynomialMotion
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.profile import Profile, read_profile
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.transform_field import TransformField
from flexgs_lightning.records import parsed, plain_size, shown
from flexgs_lightning.splats import Splats

__all__ = ["CHECKPOINT_KEY", "CHECKPOINT_VERSION", "SCENE", "Model", "load", "read_checkpoint", "scene_state"]

KINDS = (
    RatioResiduals, TransformField, PolynomialMotion, BasisMotion, Lifespan, FeatureAppearance,
    ShMask, MotionMask, UniformQuantization, RuleQuantization,
)  # fmt: skip
"""Parts that a checkpoint may hold: each enters ``part.PARTS`` where its module is imported."""


@dataclass(frozen=True)
class Model:
    """A scene for use outside training, and what its file says about how to draw it.

    Attributes:
        scene: the Gaussians; an elastic scene in rank order.
        sh_degree: degree of the spherical harmonics that training had reached.
        antialiased: whether it was trained with the antialiased rasterizer.
        background: colour behind the scene, [3] float32.
        data: options of the data module that it was trained on (``root``, ``downscale``, …); may be empty.
        iteration: training steps done.
        name: short name for people.
        seconds: how long a scene that moves lasts; None if that is unknown.
        frames: that it was trained on, where its file says so.
        time: the moment that is meant where none is asked for; ``replace`` makes a still of a moving scene.
    """

    scene: Scene
    sh_degree: int
    antialiased: bool
    background: torch.Tensor
    data: dict[str, Any]
    iteration: int
    name: str = "scene"
    seconds: float | None = None
    frames: int | None = None
    time: float | None = None

    def __len__(self) -> int:
        return len(self.scene)

    @property
    def gaussians(self) -> Gaussians:
        """The raw Gaussians."""
        return self.scene.gaussians

    @property
    def elastic(self) -> bool:
        """Whether it was trained to draw at any ratio."""
        return self.scene.elastic

    @property
    def near_plane(self) -> float:
        """World units in front of a camera in which it sees nothing, as in training."""
        return self.data.get("near_plane") or NEAR_PLANE

    @staticmethod
    def of_splats(splats: Splats, name: str, antialiased: bool = False) -> Model:
        """Splats of one size, from a file that says no more; drawn on black."""
        scene = Scene(Gaussians.from_splats(splats)).eval()
        return Model(scene, splats.sh_degree, antialiased, torch.zeros(3), {}, 0, name)

    def to(self, device: torch.device | str) -> Model:
        """The same on another device; the scene moves."""
        self.scene.to(device)
        return replace(self, background=self.background.to(device))

    @property
    def moves(self) -> bool:
        """Whether it looks different from time to time."""
        return self.scene.moves

    @torch.no_grad()
    def splats(self, time: float | None = None) -> Splats:
        """The full scene ready to draw, without gradients and without unused spherical harmonics.

        Args:
            time: of a scene that moves, in [0, 1] over its group of frames; by default ``self.time``.

        Raises:
            InputError: the scene moves and there is no time, or one outside [0, 1].
        """
        return self._ready(self.scene.showing(self.time if time is None else time), 1.0)

    @torch.no_grad()
    def at(
        self,
        ratio: float | None = None,
        time: float | None = None,
        *,
        max_gaussians: int | None = None,
        max_megabytes: float | None = None,
        max_milliseconds: float | None = None,
        profile: Profile | str | Path | None = None,
    ) -> Splats:
        """The best model within a budget: exactly floor(e N) Gaussians, always the same ones, nested.

        Of a scene that moves, those of them that are to be seen at a time in [0, 1] over its group of frames.

        Give one budget: a ratio e in (0, 1], a number of Gaussians, megabytes of an exported PLY file, or
        milliseconds of a frame on the device of a profile (or of the profile's file). A budget above the
        model's size gives the full model.

        Raises:
            InputError: no or several budgets, one that is out of range or holds no Gaussian, or a ratio below
                1 of a scene that was not trained to be elastic; or the scene moves and there is no time, or
                one outside [0, 1].
        """
        ratio = self.ratio_of(
            ratio,
            max_gaussians=max_gaussians,
            max_megabytes=max_megabytes,
            max_milliseconds=max_milliseconds,
            profile=profile,
        )
        return self._ready(self.scene.showing(self.time if time is None else time), ratio)

    def ratio_of(
        self,
        ratio: float | None = None,
        *,
        max_gaussians: int | None = None,
        max_megabytes: float | None = None,
        max_milliseconds: float | None = None,
        profile: Profile | str | Path | None = None,
    ) -> float:
        """The ratio that a budget comes to; see ``at``."""
        ratio = ratio_for(
            len(self),
            ratio=ratio,
            max_gaussians=max_gaussians,
            max_megabytes=max_megabytes,
            max_milliseconds=max_milliseconds,
            bytes_per_gaussian=ply_bytes_per_gaussian(self.sh_degree),
            overhead_bytes=PLY_HEADER_BYTES,
            profile=read_profile(profile) if isinstance(profile, str | Path) else profile,
        )
        if ratio < 1.0 and not self.elastic:
            raise InputError(
                f"ratio: expected 1, found {ratio:.4g}: the scene is not an elastic model; "
                "--model.elastic_training.steps trains one."
            )
        return ratio

    def _ready(self, shown: tuple[Scene, float | None], ratio: float) -> Splats:
        """For whoever draws, writes or measures; features are baked, with their loss in the log."""
        scene, moment = shown
        splats = scene.at(Conditions(ratio, moment)).detach()
        if scene.appearance is not None:
            return baked(splats, scene.appearance.shade)[0]
        return splats.with_sh_degree(self.sh_degree)


def read_checkpoint(path: str | Path, mapped: bool = False, whole: bool = True) -> dict[str, Any]:
    """Load a checkpoint of this package. Only tensors and plain values are unpickled.

    Args:
        path: the file.
        mapped: leave tensors on the disk until they are read, for who needs a part of them.
        whole: check everything; otherwise what is drawn, and not what only a resume needs.

    Raises:
        InputError: the file is missing, truncated, damaged, not this package's, of another version, or holds
            objects that only unpickling arbitrary code could restore; see ``require_sound``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint.")
    size = plain_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            stored = [entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist()]
            if not all(stored) or sum(entry.file_size for entry in archive.infolist()) > size:
                raise ValueError("an archive that unpacks to more than it is")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises five kinds, depending on where the damage is
        told = isinstance(error, (RuntimeError, UnpicklingError, zipfile.BadZipFile))
        reason = (str(error).strip().splitlines() or [""])[0] if told else "its bytes are damaged"
        raise InputError(
            f"{path}: not a readable checkpoint, expected a complete file written by this package "
            f"({shown(reason, 200)})."
        ) from error
    require_sound(path, checkpoint, size, whole)
    result: dict[str, Any] = checkpoint
    return result


def load(path: str | Path) -> Model:
    """Open a trained model: ``load("runs/fox/version_0/checkpoints/last.ckpt").splats()``.

    Raises:
        InputError: as ``read_checkpoint``, or parameters are missing or do not fit.
    """
    checkpoint = read_checkpoint(path, mapped=True, whole=False)
    plain = checkpoint[CHECKPOINT_KEY]
    facts = parsed(path, plain, Facts)
    return Model(
        scene=_scene(path, checkpoint["state_dict"], plain["scene"]),
        sh_degree=facts.sh_degree,
        antialiased=facts.antialiased,
        background=torch.tensor(facts.background),
        data=plain["data"],
        iteration=checkpoint["global_step"],
        name=Path(facts.data.root).name if facts.data.root else Path(path).stem,
        seconds=facts.seconds,
    )


def scene_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scene's own entries of a checkpoint's ``state_dict``."""
    return {name.removeprefix(SCENE): value for name, value in state.items() if name.startswith(SCENE)}


def _scene(path: str | Path, state: Mapping[str, Any], plain: Mapping[str, Any]) -> Scene:
    """The scene of a checkpoint; an elastic one in rank order, ready to be sliced."""
    own = scene_state(state)
    require_fitting(path, own, plain)
    scene = Scene.from_state(own, plain)
    scene.load_state_dict(own)
    scene.eval()
    with _refused(path):  # options that only drawing asks for
        scene.sort()
        scene.drawn(1, Conditions(0.5 if scene.elastic else 1.0, 0.5))
    return scene


@contextlib.contextmanager
def _refused(path: str | Path) -> Iterator[None]:
    """Say of whatever torch or Python says that the file is wrong."""
    try:
        yield
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: parameters of the scene are missing or do not fit ({reason}).") from error


def require_fitting(path: str | Path, own: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Refuse a scene's state that is not what its facts describe, before memory is taken for it.

    A scene of that make is put together from shapes alone; planes of a field may have any resolution above
    the smallest of their kind, which is what is made before the state is loaded.

    Raises:
        InputError: a tensor is missing, unknown or of another shape (named); facts that no scene has.
    """
    with _refused(path), torch.device("meta"):
        expected = Scene.from_state({name: value.to("meta") for name, value in own.items()}, plain)
    shapes = {name: (value.shape, value.dtype) for name, value in expected.state_dict().items()}
    gaussians = expected.gaussians
    for attribute in gaussians.attributes.values():
        rows = (len(gaussians),) if attribute.per_gaussian else ()
        shape = torch.Size(rows + attribute.shape_at(gaussians.sh_degree))
        shapes[f"gaussians.params.{attribute.name}"] = shape, torch.float32
    for name in sorted(shapes.keys() | own.keys()):
        if name not in own or name not in shapes:
            fault = "missing" if name not in own else "unknown"
            raise InputError(f"{path}: parameters of the scene do not fit: {SCENE}{name} is {fault}.")
        (shape, dtype), found = shapes[name], own[name]
        free = "_planes." in name and found.ndim == 4  # their two last sides are the resolution
        same = _covers(found.shape, shape) if free else found.shape == shape
        if not same or found.dtype != dtype:
            raise InputError(
                f"{path}: parameters of the scene do not fit: {SCENE}{name}: expected {tuple(shape)} "
                f"{dtype}, found {tuple(found.shape)} {found.dtype}."
            )
        if name.endswith(".frames") and not all_frames(found):
            raise InputError(f"{path}: {SCENE}{name}: not the numbers of frames.")
    order = own.get("selection.importance_order")
    if order is not None and not torch.equal(order.sort().values, torch.arange(len(order))):
        raise InputError(
            f"{path}: {SCENE}selection.importance_order: not an order of {len(order)} Gaussians."
        )


def _covers(planes: torch.Size, smallest: torch.Size) -> bool:
    """As many planes and channels, and no fewer cells."""
    return planes[:2] == smallest[:2] and planes[2] >= smallest[2] and planes[3] >= smallest[3]
