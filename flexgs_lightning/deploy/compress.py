"""``flexgs compress``. Its signature and docstring are the command line's help."""

import itertools
import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from flexgs_lightning.cameras import NEAR_PLANE
from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.conversion import arrays_of, trained_quantization
from flexgs_lightning.codec.decoder import SUFFIX
from flexgs_lightning.codec.encoder import Encoding, Plan, encode
from flexgs_lightning.codec.film import write_film
from flexgs_lightning.codec.rate_search import plan_for, search_bytes_refined, search_refined
from flexgs_lightning.codec.refinement import STEPS, refined
from flexgs_lightning.codec.trained_rule import trained_plan
from flexgs_lightning.codec.views import Judged, mean_psnr, read_views, split_views
from flexgs_lightning.deploy.groups import read_groups
from flexgs_lightning.deploy.opening import choose_device, given, open_capture, open_model
from flexgs_lightning.deploy.render import require_free
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.attributes import floats_per_gaussian
from flexgs_lightning.model.budget import MEGABYTE
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.sequence import SceneSequence
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.shading import RayShader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wish:
    """What is asked of a file, or of a group of frames in it; see ``compress``."""

    psnr_loss: float | None
    prefix_psnr_loss: float | None
    max_bytes: float | None
    refine_steps: int | None
    device: torch.device


@dataclass(frozen=True)
class _Coded:
    """A scene, or a group of frames, encoded; and what was found on the way."""

    encoding: Encoding
    psnr: dict[str, float]
    frames: int
    seconds: float | None
    near_plane: float
    baking_loss: float | None


def compress(
    output: Path,
    ckpt: list[Path] | None = None,
    ply: Path | None = None,
    psnr_loss: float | None = None,
    prefix_psnr_loss: float | None = None,
    max_megabytes: float | None = None,
    refine_steps: int | None = None,
    data_root: Path | None = None,
    downscale: int | None = None,
    test_every: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> None:
    """Write a trained scene as an elastic file: every size in one file, a tenth to a twentieth of a PLY.

    The file may be cut at any chunk's end ("flexgs info" lists them) and then is the model of so many
    Gaussians. What each number is worth, and the rate, are found out on training views; test views are left
    alone. Features become harmonics, with what that costs in the log. Scenes that move become films; several
    checkpoints, of groups of frames that follow each other, become one film of as many groups.

    Args:
        output: The .egs file to write.
        ckpt: Checkpoint of a training, or several, one for each group of frames, in their order; or a folder
            of these.
        ply: 3DGS PLY file, instead of a checkpoint.
        psnr_loss: Decibels of PSNR that the full model may lose, on training views; by default the steps that
            a scene was trained for bytes with, otherwise 0.1. Views that training has not seen lose less.
        prefix_psnr_loss: The same for small prefixes; by default as psnr_loss, but at most 0.2.
        max_megabytes: Instead: size of the file in megabytes (1,000,000 bytes).
        refine_steps: Images drawn to choose the rounding of spherical harmonics by; 0 for none, which is
            quicker and makes larger files. By default 160, but none for a scene that was trained for bytes
            and keeps its steps: its harmonics were trained on their grid.
        data_root: COLMAP folder of the capture; by default the one that the checkpoint was trained on.
        downscale: Reduction of the capture's photos; by default as trained, or 1.
        test_every: Every n-th photo is a test view; by default as trained, or 8.
        device: Where to draw; "auto" takes CUDA where there is a device.
        overwrite: Replace the file if it exists.
    """
    if output.suffix.lower() != SUFFIX:
        raise InputError(f"{output}: expected the name of an {SUFFIX} file.")
    if max_megabytes is not None and (psnr_loss is not None or prefix_psnr_loss is not None):
        raise InputError("expected either --max-megabytes or --psnr-loss, found both.")
    if max_megabytes is not None and not max_megabytes > 0:
        raise InputError(f"--max-megabytes: expected a positive number, found {max_megabytes}.")
    if refine_steps is not None and refine_steps < 0:
        raise InputError(f"--refine-steps: expected 0 or more, found {refine_steps}.")
    require_free(output, overwrite, (SUFFIX,))
    models = _models(ckpt, ply)
    chosen = given(root=data_root, downscale=downscale, test_every=test_every)
    data = [model.data | chosen for model in models]
    _require_order(models, data)
    numbers = [len(m) * floats_per_gaussian(m.sh_degree, m.gaussians.attributes) for m in models]
    coded = []
    for number, (model, own) in enumerate(zip(models, data, strict=True)):
        if len(models) > 1:
            log.info(f"Group {number} of {len(models)}: {model.name}, {len(model):,} Gaussians")
        share = None if max_megabytes is None else max_megabytes * MEGABYTE * numbers[number] / sum(numbers)
        wish = _Wish(psnr_loss, prefix_psnr_loss, share, refine_steps, choose_device(device))
        coded.append(_coded(model, own, wish))
    _write(output, models, coded)
    size, count = output.stat().st_size, sum(map(len, models))
    seconds = _seconds(coded)
    rate = f", {8e-6 * size / seconds:.3f} Mbit/s" if seconds is not None else ""
    each = f"{size / count:.2f} bytes each{rate}"
    log.info(f"{output.name}: {count:,} Gaussians, {size / MEGABYTE:.3f} MB, {each}")


def _models(ckpt: Sequence[Path] | None, ply: Path | None) -> list[Model]:
    """A model for each group of frames."""
    if not ckpt:
        return [open_model(None, ply)]
    found = (read_groups(path) if path.is_dir() else [open_model(path, ply)] for path in ckpt)
    return list(itertools.chain.from_iterable(found))


def _require_order(models: Sequence[Model], data: Sequence[dict[str, Any]]) -> None:
    """Refuse what is no film: films again, captures that are not there, frames in another order."""
    for model, own in zip(models, data, strict=True):
        if isinstance(model.scene, SceneSequence):
            raise InputError(
                f"{model.name}: a film of {len(model.scene.groups)} groups of frames; expected the "
                "checkpoint of each group."
            )
        if not own.get("root"):
            raise InputError(
                "--data-root: expected the scene's capture; its views tell what each number is worth."
            )
    for before, after in itertools.pairwise(data):
        first, second = before.get("frames"), after.get("frames")
        if first and second and first[1] != second[0]:
            raise InputError(
                f"--ckpt: expected groups of frames that follow each other, found frames {first[0]} to "
                f"{first[1]}, then {second[0]} to {second[1]}."
            )


def _coded(model: Model, data: dict[str, Any], wish: _Wish) -> _Coded:
    """Encode a scene as it is wished."""
    arrays = arrays_of(model)
    capture = open_capture(data)
    measuring, judging = (read_views(views, arrays.background) for views in split_views(capture.train_views))
    trained = trained_quantization(model.scene)
    place = wish.device
    lost = _lost_by_baking(model, arrays, judging, place)
    plan = plan_for(arrays, measuring, place) if trained is None else trained_plan(arrays, trained)
    encoding = _encoding(plan, measuring, judging, wish, keep_steps=trained is not None)
    frames = len({view.time for view in capture.train_views})
    seconds = (model.seconds or capture.seconds) if model.moves else None
    return _Coded(encoding, _psnr(encoding, judging, place), frames, seconds, capture.near_plane, lost)


def _encoding(
    plan: Plan, measuring: list[Judged], judging: list[Judged], wish: _Wish, keep_steps: bool
) -> Encoding:
    """The file as it is wished; with the plan's own steps, if they may stay and nothing else is asked."""
    place = wish.device
    steps = STEPS if wish.refine_steps is None else wish.refine_steps
    if wish.max_bytes is not None:
        return search_bytes_refined(plan, measuring, place, wish.max_bytes, steps)
    if keep_steps and wish.psnr_loss is None and wish.prefix_psnr_loss is None:
        encoding = encode(plan, plan.rule)
        if not wish.refine_steps:
            return encoding
        return encode(refined(plan, encoding, measuring, place, steps), plan.rule)
    loss = 0.1 if wish.psnr_loss is None else wish.psnr_loss
    return search_refined(plan, measuring, judging, place, loss, wish.prefix_psnr_loss, steps).encoding


@torch.no_grad()
def _lost_by_baking(
    model: Model, arrays: ElasticModelArrays, judging: Sequence[Judged], device: torch.device
) -> float | None:
    """Decibels that harmonics in place of features cost, before anything is coded; None without features."""
    appearance = model.scene.appearance
    if appearance is None:
        return None
    scene, values = model.to(device).scene, []
    for view in judging:
        image = rasterize(
            scene.at(Conditions(time=view.time if model.moves else None)),
            view.camera.to(device),
            background=model.background.to(device),
            antialiased=model.antialiased,
            shader=RayShader(appearance.shade),
        ).image
        values.append(psnr(image, view.photo.to(device)).item())
    lost = statistics.fmean(values) - mean_psnr(arrays, 1.0, judging, device)
    log.info(
        "Harmonics in place of features lose %.2f dB on training views; other losses count from there.", lost
    )
    return lost


def _write(output: Path, models: Sequence[Model], coded: Sequence[_Coded]) -> None:
    sizes: Counter[str] = Counter()
    for one in coded:
        sizes.update(one.encoding.bytes_by_stream)
    shared = [ratio for ratio in coded[0].psnr if all(ratio in one.psnr for one in coded)]
    psnr = {ratio: round(statistics.fmean(one.psnr[ratio] for one in coded), 3) for ratio in shared}
    facts: dict[str, Any] = {"psnr": psnr, "bytes": dict(sizes)}
    baked = [one.baking_loss for one in coded if one.baking_loss is not None]
    if baked:
        facts["psnr_lost_by_baking"] = round(max(baked), 3)
    if coded[0].near_plane != NEAR_PLANE:
        facts["near_plane"] = coded[0].near_plane
    encodings = [one.encoding for one in coded]
    if len(models) == 1 and not models[0].moves:
        encodings[0].write(output, facts)
        return
    known = [one.seconds for one in coded if one.seconds]
    lengths: Sequence[float] = known if len(known) == len(coded) else [one.frames for one in coded]
    ends = list(itertools.accumulate(lengths, initial=0.0))
    bounds = [end / ends[-1] for end in ends[:-1]] + [1.0]
    frames = sum(one.frames for one in coded)
    write_film(output, encodings, bounds=bounds, seconds=_seconds(coded), frames=frames, facts=facts)


def _seconds(coded: Sequence[_Coded]) -> float | None:
    """How long all last; None if that is unknown, or nothing moves."""
    lengths = [one.seconds for one in coded if one.seconds]
    return sum(lengths) if len(lengths) == len(coded) else None


def _psnr(encoding: Encoding, judging: list[Judged], device: torch.device) -> dict[str, float]:
    """PSNR of what the file decodes to at each level, on the judging views."""
    decoded = encoding.decoded
    return {
        f"{level.ratio:g}": round(mean_psnr(decoded, level.ratio, judging, device), 3)
        for level in decoded.levels
    }
