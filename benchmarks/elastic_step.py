"""Time of a step of the elastic stage against one of the first stage, with the same Gaussians.

    python benchmarks/elastic_step.py --ckpt runs/fox/version_0/checkpoints/last.ckpt [--rounds 3]

Two real ``flexgs fit`` from one first-stage checkpoint, on the capture that it was trained on: the first
stage continued without densification, and the elastic stage of configs/flexgs.yaml without refreshes of the
ranking. They take turns, so that other work on the machine meets both. Prints the mean time of a step (steps
of the elastic stage differ with their ratios) and the CPU time of all threads for each round, as Markdown.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import torch
from rasterizer import processor
from training_step import WARM_UP

from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.checkpoint import load

CONFIGS = Path(__file__).parent.parent / "configs"


def stages(steps: int) -> dict[str, list[str]]:
    """Options of both trainings."""
    return {
        "first": [
            *("--model.reconstruction_steps", str(steps), "--model.densification.every", "1000000"),
            *("--model.densification.start_step", "0", "--model.densification.stop_step", str(steps)),
            *("--model.densification.reset_every", "0"),
        ],
        "elastic": [
            *("--config", str(CONFIGS / "flexgs.yaml"), "--model.reconstruction_steps", "0"),
            *("--model.elastic_training.steps", str(steps)),
            *("--importance_refresh.every_n_steps", str(10 * steps)),
        ],
    }


def milliseconds(ckpt: Path, options: list[str], steps: int) -> tuple[float, float]:
    """Mean wall and CPU time of a step after the warm-up."""
    data = load(ckpt).data
    with tempfile.TemporaryDirectory() as runs:
        cli = FlexGSCLI(
            [
                "fit",
                *options,
                *("--start_from", str(ckpt), "--runs", runs, "--test_after_fit", "false"),
                *("--data.root", data["root"], "--data.downscale", str(data["downscale"])),
                *("--trainer.accelerator", "cpu", "--trainer.val_check_interval", str(steps)),
                *("--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", str(10 * steps)),
                "--trainer.callbacks+=training_step.StepTimer",
            ]
        )
    timer = next(callback for callback in cli.trainer.callbacks if hasattr(callback, "milliseconds"))
    return statistics.mean(timer.milliseconds(0)), statistics.mean(timer.milliseconds(1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="first-stage checkpoint")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = WARM_UP + options.steps + 1
    rounds = [
        [milliseconds(options.ckpt, args, steps) for args in stages(steps).values()]
        for _ in range(options.rounds)
    ]
    print(f"\n{processor()}, {options.threads} threads, {len(load(options.ckpt)):,} Gaussians\n")
    print("| first stage | elastic stage | ratio | CPU time, first | elastic | ratio |")
    print("|---|---|---|---|---|---|")
    for (first, first_cpu), (elastic, elastic_cpu) in rounds:
        print(
            f"| {first:.1f} ms | {elastic:.1f} ms | {elastic / first:.2f} "
            f"| {first_cpu:.1f} ms | {elastic_cpu:.1f} ms | {elastic_cpu / first_cpu:.2f} |"
        )
    ratio = statistics.median(elastic[0] / first[0] for first, elastic in rounds)
    print(f"\nAn elastic step takes {ratio:.2f} times as long (median over the rounds).")


if __name__ == "__main__":
    main()
