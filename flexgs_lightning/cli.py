"""The command line: ``flexgs`` and, for ``fit``, ``validate`` and ``test``, also ``lightning``."""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.download import download
from flexgs_lightning.deploy.commands import export, render
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import read_checkpoint
from flexgs_lightning.training.callbacks import (
    Checkpointing,
    GracefulInterruption,
    TestReport,
    ThroughputLogger,
    TrainingProgress,
    ValidationImages,
)
from flexgs_lightning.training.callbacks.checkpointing import FOLDER, SafeCheckpointIO, newest_checkpoint
from flexgs_lightning.training.module import FlexGSModule

log = logging.getLogger(__name__)
INTERRUPTED = 130

HELP = """\
usage: flexgs COMMAND [options]        (flexgs COMMAND --help lists them)

training
  fit            train a scene:  flexgs fit --config configs/mipnerf360.yaml --data.root data/360/garden
  validate       measure a checkpoint on the held-out views
  test           the same, and write metrics.json into the run folder
deployment
  export         write a checkpoint as a standard 3DGS PLY
  render         draw a checkpoint or PLY: test views, an orbit or a camera path, to PNG and video
captures
  data download  fetch a benchmark's scenes
  demo           make a small capture, train on it, and show the result
"""


class RunConfigCallback(SaveConfigCallback):
    """Saves the full configuration of every training in its run folder, without replacing an earlier one."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Number the file when a run is resumed; evaluation has nothing to add."""
        if stage != "fit":
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        number = len(list(folder.glob("config*.yaml")))
        self.config_filename = f"config.resumed_{number}.yaml" if number else "config.yaml"
        super().setup(trainer, pl_module, stage)


class FlexGSCLI(LightningCLI):
    """Lightning's command line with this package's module, data and run folders."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            FlexGSModule,
            CaptureDataModule,
            args=args,
            save_config_callback=RunConfigCallback,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "flexgs"},
            trainer_defaults={
                "max_epochs": -1,
                "devices": 1,
                "num_sanity_val_steps": 0,
                "check_val_every_n_epoch": None,
                "val_check_interval": 1_000,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                "plugins": [SafeCheckpointIO()],
                "callbacks": [ThroughputLogger(), TestReport()],
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What can be done; arguments named here are not the user's to set."""
        skip = {"model", "datamodule", "weights_only"}
        return {
            "fit": skip | {"train_dataloaders", "val_dataloaders"},
            "validate": skip | {"dataloaders"},
            "test": skip | {"dataloaders"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add run folders and callbacks, and settle each fact in one place."""
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run; by default the capture's folder."
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="Measure the held-out views when training is complete.",
        )
        parser.add_lightning_class_args(Checkpointing, "checkpoint")
        parser.add_lightning_class_args(TrainingProgress, "progress")
        parser.add_lightning_class_args(ValidationImages, "validation_images")
        parser.add_lightning_class_args(GracefulInterruption, "interruption")
        parser.link_arguments("model.reconstruction_steps", "trainer.max_steps")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and find and check the checkpoint before any expensive minute is spent."""
        self.config = parser.parse_args(args)
        options = self.config[self.config.subcommand]
        runs = self._run_root(options)
        if options.ckpt_path == "last":
            options.ckpt_path = str(newest_checkpoint(runs))
        if options.ckpt_path is not None:
            read_checkpoint(options.ckpt_path)
        elif self.config.subcommand != "fit":
            raise InputError(f"--ckpt_path: {self.config.subcommand} needs a checkpoint ('last' or a file).")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder: a new one for a new training, the checkpoint's own otherwise."""
        options = self.config[self.subcommand]
        self._run_folder_logger = self._logger(options)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to the run folder unless the user configured another logger."""
        if self._get(self.config_init, "trainer")["logger"] in (None, True):
            kwargs["logger"] = self._run_folder_logger
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Measure what was trained."""
        interruption = self._get(self.config_init, "interruption")
        if interruption.interrupted:
            raise SystemExit(INTERRUPTED)
        if self._get(self.config, "test_after_fit") and self.datamodule.capture.test_views:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    @property
    def run_folder(self) -> Path:
        """Where this run's files are."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    @staticmethod
    def _run_root(options: Any) -> Path:
        return Path(options.runs) / (options.name or Path(options.data.root).resolve().name)

    def _logger(self, options: Any) -> TensorBoardLogger:
        root = self._run_root(options)
        version: str | None = None
        if options.ckpt_path is not None and Path(options.ckpt_path).parent.name == FOLDER:
            folder = Path(options.ckpt_path).resolve().parents[1]
            root, version = folder.parent, folder.name
        return TensorBoardLogger(root.parent, name=root.name, version=version, default_hp_metric=False)


COMMANDS: dict[str, Callable[..., Any] | dict[str, Any]] = {
    "export": export,
    "render": render,
    "data": {"download": download},
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Bad input (``InputError``) ends with one message on standard error and status 1.
    """
    arguments = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    _silence_known_noise()
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0 if arguments else 2
    try:
        return _run(arguments[0], arguments[1:])
    except InputError as error:
        sys.stderr.write(f"flexgs: error: {error}\n")
        return 1


def _run(command: str, arguments: list[str]) -> int:
    if command in FlexGSCLI.subcommands():
        FlexGSCLI([command, *arguments])
    elif command == "demo":
        from flexgs_lightning.demo import demo

        auto_cli(demo, args=arguments, prog="flexgs demo", as_positional=False)
    elif command in COMMANDS:
        auto_cli(COMMANDS[command], args=arguments, prog=f"flexgs {command}", as_positional=command == "data")
    else:
        sys.stderr.write(f"flexgs: error: unknown command '{command}'.\n\n{HELP}")
        return 2
    return 0


def _silence_known_noise() -> None:
    """Drop warnings that tell a user nothing that they could act on."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
