"""``flexgs compare`` and ``flexgs ablate``. Signatures and docstrings are the command line's help."""

# No `from __future__ import annotations` here: jsonargparse reads the types.
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flexgs_lightning.evaluation.cell_folders import keeping_cells, require_finished
from flexgs_lightning.evaluation.comparison.cells import plan, run
from flexgs_lightning.evaluation.comparison.names import ablations, parse_methods
from flexgs_lightning.evaluation.comparison.report import MARKDOWN_NAME, write_report
from flexgs_lightning.evaluation.study import Schedule, open_study
from flexgs_lightning.settings import CONFIGS

log = logging.getLogger(__name__)

METHODS = (
    "prune:lightgaussian",
    "prune-finetune:lightgaussian",
    "prune",
    "prune-finetune",
    "iterative",
    "scratch:mcmc",
    "matryoshka",
    "flexgs-paper",
    "flexgs",
)
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.3, 1.0)


def compare(
    ckpt: Path,
    config: list[str] | None = None,
    methods: list[str] = list(METHODS),  # noqa: B006 (never changed)
    ratios: list[float] = list(RATIOS),  # noqa: B006
    steps: int = 20_000,
    finetune_steps: int | None = None,
    iterative_scale: float | None = None,
    scratch_steps: int | None = None,
    output: Path | None = None,
    report: Path | None = None,
    configs: Path = CONFIGS,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 42,
) -> None:
    """Train and measure rival methods from one first stage, and write the table.

    Every method but scratch:mcmc starts from the same checkpoint, and all go through the same rasterizer,
    data and metrics. Each cell (a method at a ratio) has its own folder; what is finished is not run again,
    a training that was interrupted goes on, and a cell that fails does not stop the others (its error.txt
    says why). The output folder gets comparison.json, comparison.md, curves of PSNR against size and time,
    and a picture grid for each ratio.

    Args:
        ckpt: Checkpoint of the first stage: flexgs fit without an elastic stage.
        config: Configs (files or names) with settings of data and metrics; by default the checkpoint's own
            config.yaml.
        methods: Any of prune, prune-finetune, iterative, scratch:mcmc (a model of that size trained from the
            SfM points), matryoshka, flexgs-paper, flexgs; the first two also
            by another score (prune:opacity): removal, as flexgs ranks and the default, blending, importance,
            lightgaussian, opacity, random; an ablation such as flexgs+ratio_list; or the YAML file of an
            elastic stage.
        ratios: Shares of the Gaussians in (0, 1].
        steps: Length of an elastic method's training, for all ratios together.
        finetune_steps: Length of a training for one ratio alone; by default as many as steps.
        iterative_scale: Iterative pruning trains 1,000 steps after each pruning and 5,000 at the end, times
            this; by default finetune_steps for each ratio are shared out in that proportion.
        scratch_steps: Length of a training from scratch for one ratio; by default as many as the checkpoint
            was trained for and finetune_steps together.
        output: Folder of the comparison; by default runs/compare/SCENE.
        report: Folder of the report, if not that of the comparison.
        configs: Folder of the elastic methods' settings and ablations; by default those that are shipped.
        device: Where to train and measure; "auto" takes CUDA where there is a device.
        seed: Seed of every training.
    """
    finetune = steps if finetune_steps is None else finetune_steps
    schedule = Schedule(steps, finetune, iterative_scale, scratch_steps)
    _run(ckpt, config or [], methods, ratios, schedule, output, report, "compare", configs, device, seed)


def ablate(
    ckpt: Path,
    config: list[str] | None = None,
    bases: list[str] = ["flexgs-paper", "flexgs"],  # noqa: B006
    ratios: list[float] = [0.01, 0.05, 0.1, 0.15],  # noqa: B006
    steps: int = 20_000,
    output: Path | None = None,
    report: Path | None = None,
    configs: Path = CONFIGS,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 42,
) -> None:
    """Train every ablation from one first stage, each changing one thing, and write the table.

    The ablations of a base are the files in configs/ablations/BASE. Works as flexgs compare does: finished
    trainings are not run again, and a failure does not stop the others.

    Args:
        ckpt: Checkpoint of the first stage: flexgs fit without an elastic stage.
        config: Configs (files or names) with settings of data and metrics; by default the checkpoint's own
            config.yaml.
        bases: What is ablated: flexgs-paper (Table 3 of the paper), flexgs (this project's choices).
        ratios: Shares of the Gaussians in (0, 1].
        steps: Length of every training.
        output: Folder of the comparison; by default runs/ablate/SCENE.
        report: Folder of the report, if not that of the comparison.
        configs: Folder of the elastic methods' settings and ablations; by default those that are shipped.
        device: Where to train and measure; "auto" takes CUDA where there is a device.
        seed: Seed of every training.
    """
    schedule = Schedule(steps, steps)
    names = ablations(bases, configs)
    _run(ckpt, config or [], names, ratios, schedule, output, report, "ablate", configs, device, seed)


def _run(
    ckpt: Path,
    config: Sequence[str],
    names: Sequence[str],
    ratios: Sequence[float],
    schedule: Schedule,
    output: Path | None,
    report: Path | None,
    command: str,
    configs: Path,
    device: str,
    seed: int,
) -> None:
    methods = parse_methods(names, configs)
    study = open_study(ckpt, config, schedule=schedule, device=device, seed=seed)
    output = output or Path("runs") / command / study.capture.name
    report = report or output
    with keeping_cells(output):
        cells = plan(study, methods, ratios, output)
        run(study, cells)
        write_report(study, cells, report)
    log.info("Report: %s", report / MARKDOWN_NAME)
    require_finished(cells)
