"""``fit``, ``validate`` and ``test``: Lightning's command line with this package's defaults."""

import logging
import operator
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.deploy.ply import read_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, load, read_checkpoint
from flexgs_lightning.training.callbacks import (
    Checkpointing,
    ElasticValidation,
    GracefulInterruption,
    ImportanceRefresh,
    IterationAxis,
    ReplicaCheck,
    TemperatureDecay,
    TensorBoardPages,
    TestReport,
    ThroughputLogger,
    TrainingClock,
    TrainingProgress,
    ValidationImages,
)
from flexgs_lightning.training.callbacks.checkpointing import FOLDER, SafeCheckpointIO, newest_checkpoint
from flexgs_lightning.training.callbacks.interruption import signals_given_back
from flexgs_lightning.training.module import FlexGSModule
from flexgs_lightning.training.parallel import ReplicaStrategy, check_strategy, lost_processes_explained
from flexgs_lightning.training.sharding import ShardStrategy

log = logging.getLogger(__name__)

DESCRIPTIONS = {
    "fit": "Train a scene.",
    "validate": "Measure a checkpoint on the held-out views.",
    "test": "Measure a checkpoint on the held-out views, and write metrics.json into its run folder.",
}


def _parser_texts(subcommand: str) -> dict[str, str]:
    """Short, because every mistyped option prints the usage: the options number about a hundred."""
    usage = f"flexgs {subcommand} [--config FILE ...] --data.root FOLDER [options]"
    return {"usage": usage, "description": DESCRIPTIONS[subcommand]}


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

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(
            FlexGSModule,
            CaptureDataModule,
            args=list(sys.argv[1:] if args is None else args),
            save_config_callback=RunConfigCallback,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "flexgs", **{name: _parser_texts(name) for name in self.subcommands()}},
            trainer_defaults={
                "max_epochs": -1,
                "devices": 1,
                "num_sanity_val_steps": 0,
                "check_val_every_n_epoch": None,
                "val_check_interval": 1_000,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                "callbacks": [ThroughputLogger(), TestReport(), TensorBoardPages()],
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
            "--start_from",
            type=Path | None,
            default=None,
            help="Trained scene to start a new training from: a checkpoint, or any 3DGS PLY of the capture.",
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="Measure the held-out views when training is complete.",
        )
        parser.add_lightning_class_args(Checkpointing, "checkpoint")
        parser.add_lightning_class_args(ValidationImages, "validation_images")
        parser.add_lightning_class_args(GracefulInterruption, "interruption")
        parser.add_lightning_class_args(ImportanceRefresh, "importance_refresh")
        parser.add_lightning_class_args(TemperatureDecay, "temperature")
        parser.add_lightning_class_args(ElasticValidation, "elastic_validation")
        parser.add_lightning_class_args(ReplicaCheck, "replica_check")
        parser.link_arguments(
            ("model.reconstruction_steps", "model.elastic_training.steps"),
            "trainer.max_steps",
            compute_fn=operator.add,
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and find and check the checkpoint before any expensive minute is spent."""
        self.config = parser.parse_args(cast(Sequence[str], args))
        options = self.config[self.config.subcommand]
        runs = self._run_root(options)
        if options.ckpt_path == "last":
            options.ckpt_path = str(newest_checkpoint(runs))
        if options.ckpt_path is not None:
            self._trained = read_checkpoint(options.ckpt_path, mapped=True)[CHECKPOINT_KEY]
        elif self.config.subcommand != "fit":
            raise InputError(f"--ckpt_path: {self.config.subcommand} needs a checkpoint ('last' or a file).")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder: a new one for a new training, the checkpoint's own otherwise."""
        options = self.config[self.subcommand]
        self._run_folder_logger = self._logger(options)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to the run folder unless the user configured another logger; read and write safely."""
        options = self._get(self.config_init, "trainer")
        if options["logger"] in (None, True):
            kwargs["logger"] = self._run_folder_logger
        progress = [] if options["enable_progress_bar"] is False else [TrainingProgress()]
        kwargs["callbacks"] = [*(options["callbacks"] or []), IterationAxis(), TrainingClock(), *progress]
        kwargs["plugins"] = [*(options["plugins"] or []), SafeCheckpointIO()]
        ReplicaStrategy.register()
        ShardStrategy.register()
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise InputError(f"trainer: {error}") from error
        check_strategy(trainer.strategy, trainer.world_size)
        warnings.filterwarnings("ignore", ".*sync_dist=True")  # these are means already
        if not trainer.is_global_zero:  # the first process speaks for all
            logging.getLogger().setLevel(logging.ERROR)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Read the capture before any other process is started, and say it plainly if one is lost."""
        self.datamodule.prepare_data()
        with signals_given_back(), lost_processes_explained():
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Open the scene to start from."""
        path = self._get(self.config_init, "start_from")
        if path is not None:
            self.model.start = read_ply(path) if path.suffix.lower() == ".ply" else load(path).splats()

    def before_validate(self) -> None:
        """Say where a checkpoint is not measured as it was trained."""
        now = self.datamodule.options()
        background = self.model.evaluation_background.tolist()
        settings = {
            "data.downscale": (self._trained["data"]["downscale"], now["downscale"]),
            "data.test_every": (self._trained["data"]["test_every"], now["test_every"]),
            "model.background": (self._trained["background"], background),
            "model.antialiased": (self._trained["antialiased"], self.model.antialiased),
        }
        for name, (trained, found) in settings.items():
            if trained != found:
                log.warning(
                    "%s: the checkpoint was trained with %s, but is measured with %s. "
                    "--config with the run's config.yaml takes the training's settings.",
                    name,
                    trained,
                    found,
                )

    def before_test(self) -> None:
        """As ``before_validate``."""
        self.before_validate()

    def after_fit(self) -> None:
        """Measure what was trained."""
        interruption = self._get(self.config_init, "interruption")
        if interruption.exit_status is not None:  # of the first process; the others did as they were told
            raise SystemExit(interruption.exit_status if self.trainer.is_global_zero else 0)
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
        if options.ckpt_path is not None and Path(options.ckpt_path).resolve().parent.name == FOLDER:
            folder = Path(options.ckpt_path).resolve().parents[1]
            root, version = folder.parent, folder.name
        return TensorBoardLogger(root.parent, name=root.name, version=version, default_hp_metric=False)
