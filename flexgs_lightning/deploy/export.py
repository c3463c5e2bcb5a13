"""``flexgs export``: a trained scene as splat files, one for each budget."""

# The signature and docstring of `export` are the command line's help, so no lazy annotations here.
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import Capture, View
from flexgs_lightning.deploy.budgets import Budget, parse_budgets
from flexgs_lightning.deploy.dialects.distillation import STEPS, distilled
from flexgs_lightning.deploy.dialects.table import find_dialect
from flexgs_lightning.deploy.fitting import Form, write_within
from flexgs_lightning.deploy.formats import splatv
from flexgs_lightning.deploy.formats.registry import FORMATS, STREAMED, Format, all_suffixes, find_format
from flexgs_lightning.deploy.formats.sog import META
from flexgs_lightning.deploy.formats.splat_file import SplatFile, require_drawable
from flexgs_lightning.deploy.formats.streamed_sog import LOD_META, write_streamed_sog
from flexgs_lightning.deploy.opening import choose_device, load_any, open_capture
from flexgs_lightning.deploy.profile import timed
from flexgs_lightning.deploy.quality import psnr_on_test_views
from flexgs_lightning.deploy.render import require_free
from flexgs_lightning.deploy.shots import views_at
from flexgs_lightning.deploy.timeline import parse_time
from flexgs_lightning.deploy.trainer_cameras import FILE, is_trainer_cameras, write_trainer_cameras
from flexgs_lightning.deploy.vantage import vantage_of_splats
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.model.budget import MEGABYTE
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)

INDEX = "index.json"


def export(
    ckpt: Path,
    output: Path,
    format: str | None = None,
    ratio: list[str] | None = None,
    max_gaussians: list[str] | None = None,
    max_megabytes: list[str] | None = None,
    max_milliseconds: list[str] | None = None,
    profile: Path | None = None,
    time: str | None = None,
    for_viewer: str = "gsplat",
    distillation_steps: int = STEPS,
    measure: bool = True,
    cameras: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> None:
    """Write a checkpoint as splat files of any format, in the capture's own world frame.

    What makes a scene elastic is baked in: any viewer draws the file as the model draws itself at that size.
    Without a budget the full model is written.

    Args:
        ckpt: Checkpoint of a training, or an elastic file (.egs).
        output: The file to write; with several budgets a folder, which gets a file for each and an
            index.json: file, format, ratio (the one asked for, or else what the budget comes to), Gaussians,
            bytes, the viewer (--for) if it is for another's, and the PSNR of the file as read back on the
            capture's test views.
        format: ply, compressed-ply, splat, spz or spz3 (SPZ version 4 or 3), sog, glb, or streamed-sog (one
            folder whose levels of detail are the budgets), or splatv for a scene that moves; by default what
            the output's suffix means, and ply for a folder.
        ratio: Shares of the Gaussians in (0, 1], such as 0.05 or 0.01 0.05 0.2.
        max_gaussians: Numbers of Gaussians, such as 120000 or 50k 200k 1M.
        max_megabytes: Sizes in megabytes (1,000,000 bytes) of the file in its format, such as 15 or 5 15.
        max_milliseconds: Times of a frame, such as 16, on the device of the profile.
        profile: What "flexgs profile" wrote on a device, or "Measure this device" of the player's page; by
            default this device is measured.
        time: Moment of a scene that moves to write as it is then, such as 0.5: in seconds if it is known how
            long the scene lasts, otherwise from 0 to 1. Only splatv holds all moments.
        for_viewer: Viewer (--for) that the file shall look right in as it comes: gsplat, spark, playcanvas or
            supersplat (that of superspl.at). The last three draw Gaussians otherwise, so the file gets other
            ones, which look there as the model's own do here, at the size of the photos; this needs the
            capture of the training.
        distillation_steps: With --for, pictures through the training's cameras that the Gaussians are fitted
            to, all together and as the viewer draws them; a few seconds a hundred. 0 adapts each by itself,
            which is quicker and loses more.
        measure: Draw the capture's test views from each file of a folder, for the index; of files for viewers
            that draw otherwise than we do (--for), as an emulation of the viewer draws them.
        cameras: Also write the cameras of the capture as cameras.json into the folder of what is written, as
            the original 3DGS does: a training with --start_from finds them there, and other programs show
            them. This needs the capture of the training.
        device: Where to draw them; "auto" takes CUDA where there is a device.
        overwrite: Replace the files if they exist.
    """
    budgets = parse_budgets(ratio, max_gaussians, max_megabytes, max_milliseconds, profile)
    streamed = format == STREAMED or output.name == LOD_META
    if streamed:
        output = output if output.name == LOD_META else output / LOD_META
    require_free(output, overwrite, _endings())
    dialect = find_dialect(for_viewer)
    if distillation_steps < 0:
        raise InputError(f"--distillation-steps {distillation_steps}: expected 0 or more.")
    film = format == splatv.NAME or (format is None and output.suffix == splatv.SUFFIX)
    if cameras:
        _require_place_for_cameras(output, len(budgets) > 1, film, overwrite)
    if film:
        _export_film(load_any(ckpt), budgets, time, output)
        return
    if streamed:
        model = _still(load_any(ckpt), time)
        levels = timed(budgets, model, model.data, device)
        _export_levels(model, levels, output.parent, _form(model, for_viewer, distillation_steps))
        return
    if len(budgets) == 1:
        chosen = find_format(output, format)
        model = _still(load_any(ckpt), time)
        (budget,) = timed(budgets, model, model.data, device)
        views = _all_views(model) if cameras else None
        _tell(output, _write(budget, model, chosen, output, _form(model, for_viewer, distillation_steps)))
        if views is not None:
            write_trainer_cameras(views, output.parent / FILE)
        return
    chosen = _named(format)
    if output.suffix:
        raise InputError(f"{output}: {len(budgets)} budgets need a folder, found the name of a file.")
    model = _still(load_any(ckpt), time)
    budgets = timed(budgets, model, model.data, device)
    for budget in budgets:  # a bad one writes nothing
        if budget.max_megabytes is None:
            budget.of(model)
    form = _form(model, for_viewer, distillation_steps)
    capture = _capture(model) if measure else None
    views = _all_views(model) if cameras else None
    with atomic_path(output) as temporary:
        temporary.mkdir()
        entries = []
        for budget in budgets:
            path = temporary / f"{output.name}{chosen.suffix}"
            file = _write(budget, model, chosen, path, form)
            path = path.rename(path.with_name(f"{output.name}_{len(file.splats)}{chosen.suffix}"))
            _tell(path, file)
            entries.append(_entry(path, chosen, model, budget, len(file.splats)))
            if dialect is not None:
                entries[-1]["for"] = for_viewer
            if capture is not None:
                read, where = chosen.read(path), choose_device(device)
                emulation = None if dialect is None else dialect.emulation
                entries[-1]["psnr"] = psnr_on_test_views(read, capture, model.background, where, emulation)
        (temporary / INDEX).write_text(json.dumps(entries, indent=2) + "\n")
        if views is not None:
            write_trainer_cameras(views, temporary / FILE)


def _form(model: Model, for_viewer: str, distillation_steps: int) -> Form:
    """What is written of the model's Gaussians for a viewer.

    Raises:
        InputError: the viewer draws otherwise than we do, and there is no capture to see how much that is.
    """
    dialect = find_dialect(for_viewer)
    if dialect is None:
        return Form(lambda splats: SplatFile(splats, model.antialiased))
    root = model.data.get("root")
    if root is None or not Path(root).is_dir():
        raise InputError(f"--for {for_viewer}: needs the capture of the training, which is not at {root}.")
    cameras = [view.camera for view in open_capture(model.data).train_views]

    def file(splats: Splats, steps: int) -> SplatFile:
        require_drawable(Path(f"--for {for_viewer}"), splats)
        fitted = distilled(splats.to("cpu"), model.antialiased, dialect, cameras, steps)
        return SplatFile(fitted, dialect.compensated)

    return Form(lambda splats: file(splats, distillation_steps), draft=lambda splats: file(splats, 0))


def _require_place_for_cameras(output: Path, several: bool, film: bool, overwrite: bool) -> None:
    """Refuse where ``cameras.json`` would lie in the way of something, before anything is written.

    Raises:
        InputError: it would be among the files of an unpacked scene, or replace what it may not.
    """
    if film or output.name in (META, LOD_META):
        kind = splatv.NAME if film else f"the folder of {output.name}"
        raise InputError(f"--cameras: not for {kind}; expected one file, or a folder of such.")
    path = output.parent / FILE
    if several or not path.exists():  # a folder is replaced whole
        return
    if not overwrite:
        raise InputError(f"{path}: exists already. Choose another folder, or set overwrite to replace it.")
    if not is_trainer_cameras(path):
        raise InputError(f"{path}: not replaced, because it is no list of a capture's cameras.")


def _all_views(model: Model) -> Sequence[View]:
    """Of the capture that the model was trained on, at its moment.

    Raises:
        InputError: the capture is not there.
    """
    capture = _read_capture(model)
    if capture is None:
        raise InputError(
            f"--cameras: needs the capture of the training, which is not at {model.data.get('root')}."
        )
    return capture.views if model.time is None else views_at(capture.views, model.time)


def _still(model: Model, time: str | None) -> Model:
    """The model at the moment asked for; itself if it does not move."""
    if not model.moves:
        if time is not None:
            raise InputError(f"--time {time}: {model.name} does not move, expected none.")
        return model
    if time is None:
        raise InputError(
            f"{model.name} moves: expected --time, the moment to write, or --format {splatv.NAME} for all."
        )
    span = parse_time(time, model.seconds)
    if not span.stands_still:
        raise InputError(f"--time {time}: expected one moment, found a stretch; a file shows one.")
    return replace(model, time=span.start)


def _export_film(model: Model, budgets: list[Budget], time: str | None, output: Path) -> None:
    """All moments in one file, for players."""
    if time is not None:
        raise InputError(f"--time {time}: {splatv.NAME} holds all moments, expected none.")
    budget = budgets[0]
    if len(budgets) > 1 or budget.max_megabytes is not None or budget.max_milliseconds is not None:
        raise InputError(f"--format {splatv.NAME}: expected one --ratio or --max_gaussians at most.")
    count = splatv.write_splatv(model, budget.share(model), _first_view(model), output)
    log.info(f"{output.name}: {count:,} Gaussians that move, {output.stat().st_size / MEGABYTE:.1f} MB")


def _first_view(model: Model) -> Cameras:
    """Where a player begins: at the capture's first test view if it is there."""
    capture = _read_capture(model)
    if capture is not None:
        return (capture.test_views or capture.views)[0].camera
    return vantage_of_splats(model.splats(0.0)).camera


def _write(budget: Budget, model: Model, format: Format, path: Path, form: Form) -> SplatFile:
    """Write the model within a budget, and return what was written; megabytes are those of the format."""
    if budget.max_megabytes is not None:
        return write_within(model, format, budget.max_megabytes * MEGABYTE, path, form)
    file = form.of(budget.of(model))
    format.write(file, path)
    return file


def _export_levels(model: Model, budgets: list[Budget], output: Path, form: Form) -> None:
    """All budgets as levels of one streamed scene."""
    if any(budget.max_megabytes is not None for budget in budgets):
        raise InputError(f"--max_megabytes: not for {STREAMED}, whose levels are --ratio or --max_gaussians.")
    files = sorted(
        (form.of(budget.of(model)) for budget in budgets),
        key=lambda file: -len(file.splats),
    )
    write_streamed_sog(files, output)
    counts = ", ".join(f"{len(file.splats):,}" for file in files)
    log.info(f"{output / LOD_META}: levels of {counts} Gaussians")


def _named(format: str | None) -> Format:
    """The format of a folder's files.

    Raises:
        InputError: there is none of that name.
    """
    name = format or "ply"
    return find_format(Path(f"x{FORMATS[name].suffix}" if name in FORMATS else "x"), name)


def _endings() -> list[str]:
    """Of the files that a folder of exports holds."""
    return sorted({Path(f"x{suffix}").suffix for suffix in all_suffixes()} | {".json", splatv.SUFFIX})


def _tell(path: Path, file: SplatFile) -> None:
    size, splats = path.stat().st_size / MEGABYTE, file.splats
    log.info(f"{path.name}: {len(splats):,} Gaussians, SH degree {splats.sh_degree}, {size:.1f} MB")


def _capture(model: Model) -> Capture | None:
    """The capture that the model was trained on, where it still is and has test views; of its moment only."""
    capture = _read_capture(model)
    if capture is None:
        log.info(f"{model.data.get('root')}: the capture is not there, so that the index has no PSNR.")
        return None
    if model.time is not None:
        capture = replace(capture, views=tuple(views_at(capture.views, model.time)))
    return capture if capture.test_views else None


def _read_capture(model: Model) -> Capture | None:
    root = model.data.get("root")
    return open_capture(model.data) if root is not None and Path(root).exists() else None


def _entry(path: Path, format: Format, model: Model, budget: Budget, count: int) -> dict[str, Any]:
    return {
        "file": path.name,
        "format": format.name,
        "ratio": count / len(model) if budget.ratio is None else budget.ratio,
        "gaussians": count,
        "bytes": path.stat().st_size,
    }
