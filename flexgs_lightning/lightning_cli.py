"""``fit``, ``validate`` and ``test``: a ``TrainingRun`` from the command line."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from flexgs_lightning.cameras import NEAR_PLANE, Cameras
from flexgs_lightning.codec.decoder import SUFFIX
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.data.datamodule import INVENTED
from flexgs_lightning.deploy.formats.registry import is_splat_file
from flexgs_lightning.deploy.opening import open_capture, open_model_file, open_start
from flexgs_lightning.deploy.path_file import write_path
from flexgs_lightning.deploy.trainer_cameras import (
    WIDEST,
    cameras_beside,
    is_trainer_cameras,
    read_trainer_cameras,
)
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, Model, read_checkpoint
from flexgs_lightning.training.run import TrainingRun
from flexgs_lightning.training.sharding import shards_of

log = logging.getLogger(__name__)

DESCRIPTIONS = {
    "fit": "Train a scene.",
    "validate": "Measure a checkpoint, an elastic file, a splat file or a folder of groups of frames on the "
    "held-out views.",
    "test": "Measure a checkpoint, an elastic file, a splat file or a folder of groups of frames on the "
    "held-out views, and write metrics.json into its run folder, of a file or several into a new one.",
}


KEPT_CAMERAS = "cameras.json"
"""Of a run folder: the cameras that its training invented, as a camera path."""


class CameraKeeping(Callback):
    """Writes the cameras that a training without photos invented into its run folder, once it is there."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whatever looks through them again then finds the same: a resume, a test, and a person."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        path = Path(trainer.log_dir or trainer.default_root_dir) / KEPT_CAMERAS
        if trainer.is_global_zero and not path.is_file():
            write_path(Cameras.stack([view.camera for view in data.capture.views]), path)
        data.kept_cameras = path


def _is_finished(path: Path) -> bool:
    """Whether it is a finished scene: a file by its name's ending, or a folder of groups of frames."""
    return path.suffix.lower() == SUFFIX or is_splat_file(path) or path.is_dir()


def _require_times(path: Path, model: Model, capture: Capture) -> None:
    """Refuse to measure a film on a capture that lasts for another time.

    Raises:
        InputError: it does, in seconds, or where these are not known in frames.
    """
    if not model.moves:
        return
    frames, length = len({view.time for view in capture.train_views}), capture.seconds
    if model.seconds is not None and length is not None:
        same = abs(model.seconds - length) <= 0.5 * length / max(frames, 1)
    else:
        same = model.frames in (None, frames)
    if not same:
        own = [f"{model.frames} frames"] if model.frames else []
        own += [f"{model.seconds:g} s"] if model.seconds else []
        seconds = f", {length:g} s" if length else ""
        raise InputError(
            f"--ckpt_path {path}: a film of {', '.join(own)}; found {frames} frames{seconds} in "
            f"{capture.name}. Expected the frames that it was trained on: --data.frames takes some."
        )


def _parser_texts(subcommand: str) -> dict[str, str]:
    """Short, because every mistyped option prints the usage: the options number about a hundred."""
    usage = f"flexgs {subcommand} [--config FILE ...] --data.root FOLDER [options]"
    return {"usage": usage, "description": DESCRIPTIONS[subcommand]}


class FlexGSCLI(TrainingRun):
    """``TrainingRun`` with Lightning's subcommands, which run at once."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        texts = {name: _parser_texts(name) for name in self.subcommands()}
        super().__init__(
            sys.argv[1:] if args is None else args, run=True, parser_kwargs={"prog": "flexgs", **texts}
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
        """Add what only a command line needs."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--start_from",
            type=Path | None,
            default=None,
            help="Trained scene to start a new training from: a checkpoint, an elastic file or a splat file.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and find and check the checkpoint before any expensive minute is spent."""
        super().parse_arguments(parser, args)
        options = self.options
        if self.config.subcommand == "fit" and options.data.root is None and options.start_from is not None:
            self._learn_from(options.start_from)
        self._file: Model | None = None
        if options.ckpt_path is not None and _is_finished(Path(options.ckpt_path)):
            self._measure_file(Path(options.ckpt_path))
        elif options.ckpt_path is not None:
            self._trained = read_checkpoint(options.ckpt_path, mapped=True)[CHECKPOINT_KEY]
        elif self.config.subcommand != "fit":
            raise InputError(f"--ckpt_path: {self.config.subcommand} needs a checkpoint ('last' or a file).")

    def _measure_file(self, path: Path) -> None:
        """Open a finished scene in a checkpoint's place; what its file does not say is not known.

        Raises:
            InputError: it cannot be read or is to be trained on; groups are of other frames than asked for.
        """
        if self.config.subcommand == "fit":
            raise InputError(
                f"--ckpt_path {path}: expected a checkpoint to go on from, found a finished scene; "
                "--start_from starts a new training from it."
            )
        self._file = open_model_file(path)
        frames, data = self._file.data.get("frames"), self.options.data
        if path.is_dir() and frames is not None:
            if data.frames not in (None, frames):
                raise InputError(f"--data.frames: {path} has frames {frames}, found {data.frames}.")
            data.frames = frames
        self._trained = {"antialiased": self._file.antialiased, "data": self._file.data}
        if not is_splat_file(path):
            self._trained["background"] = self._file.background.tolist()
        self._path = path
        self.options.ckpt_path = None  # Lightning loads nothing, and the run folder is a new one

    def _learn_from(self, path: Path) -> None:
        """Without photos the scene is its own teacher: its renders are what the elastic stage fits.

        Raises:
            InputError: the scene cannot be read.
        """
        options = self.options
        options.data.root = str(path)
        options.model.reconstruction_steps = 0
        options.model.antialiased = open_model_file(path).antialiased
        if options.data.cameras is None and is_splat_file(path) and not self._invented_before():
            self._take_cameras_beside(path)
        whose = "given" if options.data.cameras else INVENTED
        log.info("No data.root: %s is drawn from %s cameras, and learns from these pictures.", path, whose)

    def _take_cameras_beside(self, path: Path) -> None:
        """Look through what a trainer left with its splat file, at most as large as 3DGS trains by itself.

        Raises:
            InputError: that is broken.
        """
        data = self.options.data
        try:
            found = cameras_beside(path)
            cameras = [] if found is None else read_trainer_cameras(found)
        except InputError as error:
            raise InputError(f"{error} --data.cameras {INVENTED} does without this file.") from error
        if not cameras:
            return
        data.cameras = str(found)
        data.downscale = data.downscale or -(-max(camera.width for camera in cameras) // WIDEST)
        log.info(
            "%s: %d cameras, which training looks through, their sizes divided by %d (--data.downscale). "
            "--data.cameras takes others, or '%s'.",
            *(found, len(cameras), data.downscale, INVENTED),
        )

    def _invented_before(self) -> bool:
        """Whether the run to go on with invented its cameras and kept them."""
        kept = self._kept_cameras()
        return kept is not None and kept.is_file() and not is_trainer_cameras(kept)

    def _kept_cameras(self) -> Path | None:
        """Where the run of the checkpoint keeps the cameras that it invents."""
        path = self.options.ckpt_path
        return None if path is None else Path(path).resolve().parent.parent / KEPT_CAMERAS

    def _run_subcommand(self, subcommand: str) -> None:
        """Read the capture before any other process is started, and say it plainly if one is lost."""
        self.datamodule.open_scene = open_capture
        if self.datamodule.invents_cameras:
            self.datamodule.kept_cameras = self._kept_cameras()
        self.datamodule.prepare_data()
        if self._file is not None:
            _require_times(self._path, self._file, self.datamodule.capture)
        with self.ending_cleanly():
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Open the scene to start from."""
        path = self._get(self.config_init, "start_from")
        if path is not None:
            self.model.start = open_start(path)
        if self.datamodule.invents_cameras:
            self.trainer.callbacks.append(CameraKeeping())  # type: ignore[attr-defined]

    def before_validate(self) -> None:
        """Put a file's scene in place; say where a scene is not measured as it was trained."""
        if self._file is not None:
            if shards_of(self.trainer.strategy).several:
                raise InputError(
                    "--trainer.strategy sharded: expected another for a file, which nobody shares out."
                )
            self.model.scene = self._file.scene
        now, data = self.datamodule.options(), self._trained["data"]
        background = self.model.evaluation_background.tolist()
        settings: dict[str, tuple[Any, Any]] = {
            "data.downscale": (data.get("downscale"), now["downscale"]),
            "data.test_every": (data.get("test_every"), now["test_every"]),
            "data.near_plane": (data.get("near_plane") or NEAR_PLANE, now["near_plane"]),
            "model.background": (self._trained.get("background"), background),
            "model.antialiased": (self._trained["antialiased"], self.model.antialiased),
        }
        for name, (trained, found) in settings.items():
            if trained is not None and trained != found:
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
