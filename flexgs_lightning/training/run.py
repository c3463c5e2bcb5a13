"""A training as settings describe it: module, data, callbacks, trainer, and a run folder of its own."""

from __future__ import annotations

import contextlib
import inspect
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace, lazy_instance
from lightning import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.streaming import ReadingError, lost_workers_explained
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import place_of, unwritable
from flexgs_lightning.records import shown
from flexgs_lightning.settings import OneLineErrors, element_of, with_config_files, with_lists
from flexgs_lightning.signals import NOTHING, Stopped, keeping
from flexgs_lightning.training.callbacks import WITH_OPTIONS
from flexgs_lightning.training.callbacks.checkpointing import FOLDER, LAST, newest_checkpoint
from flexgs_lightning.training.callbacks.interruption import signals_given_back
from flexgs_lightning.training.densification import AdaptiveDensityControl
from flexgs_lightning.training.module import FlexGSModule
from flexgs_lightning.training.options import require_values
from flexgs_lightning.training.parallel import ReplicaStrategy, check_strategy, lost_processes_explained
from flexgs_lightning.training.run_folder import RunConfigCallback, RunLogger
from flexgs_lightning.training.scene_module import SceneModule
from flexgs_lightning.training.sharding import ShardStrategy

TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "devices": 1,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,
    "val_check_interval": 1_000,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""Where Lightning's own defaults are meant for other trainings."""


class RunParser(OneLineErrors, LightningArgumentParser):
    """Lightning's, with errors of one line."""


class TrainingRun(LightningCLI):
    """Builds a training from options and YAML files; ``train`` runs it.

    ``TrainingRun(["--config", "flexgs", "--data.root", "my_capture"]).train()`` is what ``flexgs fit`` does
    with these options. ``model``, ``datamodule`` and ``trainer`` are there to look at or change before.

    Args:
        args: options as on the command line.
        run: whether the first of them is a subcommand, to be run at once (the command line's way).
        parser_kwargs: of the parsers.

    Raises:
        InputError: an option that cannot be, or a checkpoint that cannot be read.
        SystemExit: the options are none of a training's; the message stands on standard error.
    """

    def __init__(
        self, args: Sequence[str], *, run: bool = False, parser_kwargs: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            FlexGSModule,
            CaptureDataModule,
            args=list(args),
            run=run,
            save_config_callback=RunConfigCallback,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs=parser_kwargs or {},
            parser_class=RunParser,
            trainer_defaults=TRAINER_DEFAULTS,
        )

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Subcommands have Lightning's own ``--ckpt_path``."""
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if not add_subcommands:
            self.parser.add_argument(
                "--ckpt_path", type=str | None, default=None, help="Checkpoint to go on from."
            )

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
        for name, kind in WITH_OPTIONS.items():
            parser.add_lightning_class_args(kind, name)
        parser.set_defaults({"model.densification": lazy_instance(AdaptiveDensityControl)})
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; configs may be named, and lists be written with commas or spaces."""
        own = next(iter(self._subcommand_parsers.values()), parser)
        lists = {
            action.option_strings[0]: element
            for action in own._actions
            if action.option_strings and (element := element_of(getattr(action, "_typehint", None)))
        }
        typed = with_config_files(cast(Sequence[str], args))
        self.config = parser.parse_args(with_lists(typed, lists))
        seed = self.config.get("seed_everything", self.options.get("seed_everything"))
        if isinstance(seed, int) and not 0 <= seed < 1 << 32:
            raise InputError(f"seed_everything: expected 0 to {(1 << 32) - 1}, found {seed}.")
        for name in ("model", "data", "trainer", *WITH_OPTIONS):
            if not isinstance(self.options.get(name), Namespace):
                found = shown(self.options.get(name))
                raise InputError(f"{name}: expected options by name, found {found}.")
        for name, parameter in inspect.signature(FlexGSModule.__init__).parameters.items():
            found = self.options.model.get(name)
            if is_dataclass(parameter.annotation) and not isinstance(found, Namespace):
                raise InputError(f"model.{name}: expected options by name, found {shown(found)}.")
        for name, kind in {"model": SceneModule, "data": CaptureDataModule, **WITH_OPTIONS}.items():
            require_values(name, kind, self.options[name])
        if self.options.get("ckpt_path") == "last":
            self.options.ckpt_path = str(newest_checkpoint(self.run_root()))

    def instantiate_classes(self) -> None:
        """Make what the options describe.

        Raises:
            InputError: what a constructor refused, also where the parser speaks of types instead.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise _refusal(error) or InputError(f"options: {error}") from error

    @property
    def options(self) -> Any:
        """The parsed options, those of the subcommand if there is one."""
        return self.config[self.config.subcommand] if "subcommand" in self.config else self.config

    def before_instantiate_classes(self) -> None:
        """Choose the run folder: a new one for a new training, the checkpoint's own otherwise."""
        self._run_folder_logger = self._logger()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to the run folder; loggers that the user configured come beside, and False is silence."""
        settings = self._get(self.config_init, "trainer")
        asked = settings["logger"]
        self._run_folder_logger.silent = asked is False
        others = asked if isinstance(asked, list) else [asked] if isinstance(asked, Logger) else []
        kwargs["logger"] = [self._run_folder_logger, *others]
        if settings["fast_dev_run"]:  # then Lightning takes no logger, whose folder is the run's otherwise
            kwargs["default_root_dir"] = self._run_folder_logger.log_dir
        ReplicaStrategy.register()
        ShardStrategy.register()
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"trainer: {error}") from error
        check_strategy(trainer.strategy, trainer.world_size)
        warnings.filterwarnings("ignore", ".*sync_dist=True")  # these are means already
        if not trainer.is_global_zero:  # the first process speaks for all
            logging.getLogger().setLevel(logging.ERROR)
        return trainer

    def train(self) -> None:
        """Train, or go on from ``ckpt_path``, and measure the held-out views.

        Raises:
            InputError: the capture cannot be read, training broke, or a file could not be written.
            Stopped: after a signal, with a checkpoint.
        """
        self.datamodule.prepare_data()
        with self.ending_cleanly():
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.options.ckpt_path)
            self.after_fit()

    @contextlib.contextmanager
    def ending_cleanly(self) -> Iterator[None]:
        """Explain what ends a training early, and leave signals as they were found.

        Raises:
            InputError: another process was lost, a photo could not be decoded, or a file could not be written
                (a full disk, no permission).
        """
        with keeping(self._what_is_kept), signals_given_back(), lost_processes_explained():
            try:
                with lost_workers_explained():
                    yield
            except ReadingError as error:
                self._remove_unless_resumable()
                raise InputError(f"{error} {self._what_is_kept()}") from error
            except OSError as error:
                path = Path(place_of(error) or self._run_folder_logger.log_dir)
                message = f"{unwritable(path, error)} {self._what_is_kept()}"
                raise InputError(message) from error

    def _remove_unless_resumable(self) -> None:
        """A photo may be found broken in the first iterations, which nobody wants to keep a run folder of."""
        training = self.config.get("subcommand", "fit") == "fit"
        if training and self.trainer.is_global_zero and not self.last_checkpoint.is_file():
            shutil.rmtree(self._run_folder_logger.log_dir, ignore_errors=True)
            with contextlib.suppress(OSError):  # unless other runs are there
                self.run_root().rmdir()
                self.run_root().parent.rmdir()

    def _what_is_kept(self) -> str:
        if self.config.get("subcommand", "fit") != "fit":
            return NOTHING
        if not self.last_checkpoint.is_file():
            return "There is no checkpoint yet; the same command starts again."
        return f"{self.last_checkpoint} is kept; the same command with --ckpt_path last goes on."

    def after_fit(self) -> None:
        """Measure what was trained."""
        interruption = self._get(self.config_init, "interruption")
        if interruption.signal is not None:
            if not self.trainer.is_global_zero:  # it did as it was told
                raise SystemExit
            raise Stopped(interruption.signal, told=self.trainer.global_step < self.trainer.max_steps)
        if self._get(self.config, "test_after_fit") and self.datamodule.capture.test_views:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    @property
    def last_checkpoint(self) -> Path:
        """Where the newest checkpoint of this run is, if there is one yet."""
        return Path(self._run_folder_logger.log_dir) / FOLDER / LAST

    @property
    def run_folder(self) -> Path:
        """Where this run's files are."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def run_root(self) -> Path:
        """Folder of all runs of this name."""
        root = Path(self.options.data.root or "scene").resolve()
        return Path(self.options.runs) / (self.options.name or (root.stem if root.is_file() else root.name))

    def _logger(self) -> RunLogger:
        root, ckpt_path = self.run_root(), self.options.ckpt_path
        version: str | None = None
        if ckpt_path is not None and Path(ckpt_path).resolve().parent.name == FOLDER:
            folder = Path(ckpt_path).resolve().parents[1]
            root, version = folder.parent, folder.name
        return RunLogger(root.parent, name=root.name, version=version, default_hp_metric=False)


def _refusal(error: BaseException | None) -> InputError | None:
    """What this package said, at the bottom of a parser's error."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error
