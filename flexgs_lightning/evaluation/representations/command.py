"""``flexgs represent``. Its signature and docstring are the command line's help."""

# No `from __future__ import annotations` here: jsonargparse reads the types.
import logging
from pathlib import Path
from typing import Literal

from flexgs_lightning.deploy.opening import given
from flexgs_lightning.evaluation.cell_folders import keeping_cells, require_finished
from flexgs_lightning.evaluation.comparison.names import elastic_settings
from flexgs_lightning.evaluation.representations.cells import plan_cells, run
from flexgs_lightning.evaluation.representations.film import Plan, open_film
from flexgs_lightning.evaluation.representations.report import MARKDOWN_NAME, write_report
from flexgs_lightning.evaluation.representations.representation import representations as chosen_of
from flexgs_lightning.settings import CONFIGS

log = logging.getLogger(__name__)


def represent(
    root: Path,
    config: list[str] = ["moving/groups_of_frames"],  # noqa: B006 (never changed)
    representations: list[str] | None = None,
    steps: int = 30_000,
    elastic_steps: int = 20_000,
    ratios: list[float] = [0.1, 0.3],  # noqa: B006
    psnr_loss: float | None = 0.3,
    refine_steps: int = 160,
    frame_stride: int = 1,
    downscale: int | None = None,
    frames: list[int] | None = None,
    output: Path | None = None,
    report: Path | None = None,
    configs: Path = CONFIGS,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 42,
) -> None:
    """Train what a scene that moves can be made of, each in as many steps, and write the table.

    There is the config as it is, and laid over it one static model, Gaussians that come and go, polynomials,
    rigid and free bases, constant and varying opacity, features instead of spherical harmonics, and a static
    model for each frame. All have as many iterations in all; what a config counts in iterations (growth,
    rounds of guided sampling) keeps its share of them. Each is measured whole, after the elastic stage, and
    from its file. What is finished is not run again, a training that was interrupted goes on, and a failure
    does not stop the others (its error.txt says why). The output folder gets representations.md,
    representations.json, and curves of PSNR over time and size.

    Args:
        root: Folder of a capture that moves.
        config: Configs of the trainings (files or names), merged in order; the first gives its name to what
            they say as they are.
        representations: Any of the overlays in configs/representations, and frames (a static model for each
            frame); all by default.
        steps: Iterations of each one's first stage, of all its trainings together.
        elastic_steps: Iterations of the elastic stage after it, as the config flexgs has it; 0 for none.
        ratios: Shares of the Gaussians at which the elastic model is measured.
        psnr_loss: Decibels that a file may lose on training views; null for no files.
        refine_steps: Images drawn for a file to choose the rounding of spherical harmonics by.
        frame_stride: Of the models of single frames, only those of every n-th frame and the one after it are
            trained, for an estimate.
        downscale: Reduction of the capture's photos; by default the config's.
        frames: The first frame to use and the one after the last, such as 0 50; by default the config's.
        output: Folder of the trainings; by default runs/represent/SCENE.
        report: Folder of the report, if not that of the trainings.
        configs: Folder of the configs and overlays; by default those that are shipped.
        device: Where to train and measure; "auto" takes CUDA where there is a device.
        seed: Seed of every training.
    """
    plan = Plan(steps, elastic_steps, tuple(sorted(ratios)), psnr_loss, refine_steps, frame_stride)
    chosen = chosen_of(config, representations, configs)
    stage = elastic_settings("flexgs", configs)
    data = given(root=str(root), downscale=downscale, frames=frames)
    film = open_film(data, chosen, plan, device, seed)
    output = output or Path("runs") / "represent" / film.capture.name
    report = report or output
    with keeping_cells(output):
        cells = plan_cells(film, chosen, stage, output)
        run(film, cells, stage)
        write_report(film, cells, report)
    log.info("Report: %s", report / MARKDOWN_NAME)
    require_finished(cells)
