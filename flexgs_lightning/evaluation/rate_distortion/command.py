"""``flexgs rd``. Its signature and docstring are the command line's help."""

# No `from __future__ import annotations` here: jsonargparse reads the types.
import logging
from pathlib import Path
from typing import Literal

from flexgs_lightning.codec.conversion import movement_of
from flexgs_lightning.codec.refinement import STEPS
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.cell_folders import keeping_cells, require_finished
from flexgs_lightning.evaluation.rate_distortion.cells import plan, run
from flexgs_lightning.evaluation.rate_distortion.gscodec import LAMBDAS
from flexgs_lightning.evaluation.rate_distortion.names import (
    MOVING_SYSTEMS,
    STILL_ONLY,
    SYSTEMS,
    Settings,
    parse_systems,
)
from flexgs_lightning.evaluation.rate_distortion.report import MARKDOWN_NAME, write_report
from flexgs_lightning.evaluation.study import Schedule, open_study
from flexgs_lightning.settings import CONFIGS

log = logging.getLogger(__name__)


def rd(
    ckpt: Path,
    config: list[str] | None = None,
    systems: list[str] | None = None,
    ratios: list[float] = [0.05, 0.1, 0.3, 1.0],  # noqa: B006 (never changed)
    losses: list[float] = [0.05, 0.1, 0.3, 1.0],  # noqa: B006
    stops: list[float] = [0.1, 0.5, 2.0, 4.0],  # noqa: B006
    start: Path | None = None,
    scale: float = 1.0,
    rates: int = 50,
    lambdas: list[float] = list(LAMBDAS),  # noqa: B006
    refine_steps: int = STEPS,
    output: Path | None = None,
    report: Path | None = None,
    configs: Path = CONFIGS,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 42,
) -> None:
    """Bytes against quality: the elastic file beside other formats and codecs, on held-out views.

    Every system writes files, and what is read back from them is measured, with one rasterizer and the same
    metrics. Each cell (a system at a setting) has its own folder; what is finished is not run again, and a
    cell that fails does not stop the others (its error.txt says why). The output folder gets rd.json, rd.md
    and curves, rd.png.

    Args:
        ckpt: Checkpoint of an elastic training.
        config: Configs (files or names) with settings of data and metrics; by default the checkpoint's own
            config.yaml.
        systems: What to compare: egs (the elastic file, cut at every chunk), one-size (the same coder for the
            full model alone), float32 and float16 (uncoded, motion too; with .zstd or .xz compressed), cogs
            (the runner-up of COGS 2025), rave (rave:50 with 50 anchors), gscodec (gscodec+NAME with a change
            of configs/codec/gscodec), gsplat-png, any format of flexgs convert; ply.zstd and ply.xz are
            compressed PLY files. By default all that hold the scene; of one that moves others are left out,
            and the report says so.
        ratios: Shares of the Gaussians at which each format gets a file, in (0, 1].
        losses: Decibels that training views may lose: settings of egs and one-size.
        stops: The same at which the rounds of cogs end; training views gain from fine-tuning before they
            lose by pruning.
        start: Checkpoint that systems with a training of their own start from, such as a first stage; by
            default the full model of ckpt.
        scale: Lengths of these trainings as a share of the published ones.
        rates: Files of RAVE, from its first anchor to its last.
        lambdas: Weights of the bits: settings of gscodec.
        refine_steps: As in flexgs compress.
        output: Folder of the cells; by default runs/rd/SCENE.
        report: Folder of the report, if not that of the cells.
        configs: Folder of the overlays; by default those that are shipped.
        device: Where to train and draw; "auto" takes CUDA where there is a device.
        seed: Seed of every training.
    """
    study = open_study(ckpt, config or [], schedule=Schedule(1, 1), device=device, seed=seed)
    moves = study.model.moves
    if moves:
        movement_of(study.model.scene)  # refuses what no file holds, before anything is done
    study.check_ratios(ratios, "--ratios")
    if not study.model.elastic:
        ratios = [1.0]
    settings = Settings(
        tuple(ratios), tuple(losses), tuple(stops), scale, refine_steps, start, rates, tuple(lambdas), configs
    )
    output = output or Path("runs/rd") / study.capture.name
    asked = parse_systems(systems or (MOVING_SYSTEMS if moves else SYSTEMS), settings)
    chosen = [system for system in asked if system.holds_motion or not moves]
    left_out = {system.name: STILL_ONLY for system in asked if system not in chosen}
    if left_out:
        log.warning("The scene moves; left out: %s (%s).", ", ".join(left_out), STILL_ONLY)
    if not chosen:
        raise InputError(
            f"--systems: expected any of {', '.join(MOVING_SYSTEMS)} for a scene that moves, found "
            f"{' '.join(left_out)}."
        )
    report = report or output
    with keeping_cells(output):
        cells = plan(study, chosen, output)
        run(study, cells)
        write_report(study, chosen, cells, report, left_out)
    log.info("Report: %s", report / MARKDOWN_NAME)
    require_finished(cells)
