"""CaptureDataModule: streams batches of views with bounded memory."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from flexgs_lightning.data.benchmarks import scene_protocol
from flexgs_lightning.data.capture import TEST_EVERY, Capture, GroupedSource, View, ViewBatch
from flexgs_lightning.data.film import cut
from flexgs_lightning.data.ordering import HeldOutOrder, TrainingOrder
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.data.residence import DeviceViews
from flexgs_lightning.data.streaming import (
    ImageCache,
    ReadingError,
    ViewDataset,
    ViewLoader,
    WorkerContext,
    image_bytes,
)
from flexgs_lightning.errors import InputError

logger = logging.getLogger(__name__)

MAX_AUTOMATIC_WORKERS = 4
INVENTED_VIEWS = 96
"""Of a trained scene that has no photos."""
VIEW_SIZE = 480
"""Longest side of these, in pixels."""
INVENTED = "invented"
"""In place of cameras' file or folder: look for none."""


MOST_VIEWS, MOST_WORKERS = 4096, 256
"""Of a batch, and of a training: more are mistakes."""


class CaptureDataModule(LightningDataModule):
    """Photos of one scene with their cameras, from a folder that ``read_capture`` knows.

    Training is one endless epoch, and which views iteration k sees is a function of ``seed`` and k alone:
    a resumed run goes on with exactly the views that an uninterrupted one would see.

    Args:
        root: Folder of the capture: ``images/`` and a COLMAP model in ``sparse/0``, or a ``transforms.json``
            (nerfstudio, instant-ngp) or ``transforms_train.json`` (Blender) with its photos.
        downscale: Reduce photos by this factor. ``images_N`` is used if present; otherwise ``images`` is
            reduced by an area filter. By default the protocol's factor for this scene, or 1.
        test_every: Every n-th photo by sorted name is held out, beginning with the first, unless the capture
            names its own test photos; 0 holds out none of either kind. By default the protocol's, or 8.
        protocol: Published protocol that sets what is left out above; the folder's name is the scene.
        batch_size: Views per training iteration and process. With several processes an iteration sees
            ``batch_size`` views in each of them.
        cache_megabytes: Memory for decoded photos, in each training process. Photos beyond it are decoded
            at each use. Training photos come first, held-out ones get what is left.
        device_megabytes: Memory for photos on the GPU, as 8-bit integers; the rest are copied at each use.
        num_workers: Worker processes that decode training photos. By default none if all training photos
            fit the cache, otherwise one per core, at most 4.
        seed: Seed of the order of training views.
        images: Folder of the photos inside ``root``.
        masks: Folder inside ``root`` of grey images that serve as alpha; it need not exist.
        name: Short name of the scene for reports; the folder's by default.
        frames: Of a scene that moves, the first frame to use and the one after the last, such as 0 50: a
            group of frames. All by default.
        near_plane: World units in front of each camera in which it sees nothing (gsplat's ``near_plane``),
            such as 1.0 where cameras stand in the walls of what they see. By default what the capture says,
            or 0.01.
        cameras: Without photos, where ``root`` is a trained scene: whose cameras to look through, a COLMAP
            folder, a transforms.json, a 3DGS model's folder or its cameras.json, or a camera path; "invented"
            for none. By default those of a cameras.json that lies beside the splat file of --start_from, or
            at the top of its 3DGS model; without one they are invented.
        views: Number of cameras to invent.
        view_size: Longest side in pixels of what they see.
    """

    def __init__(
        self,
        root: str | None = None,
        downscale: int | None = None,
        test_every: int | None = None,
        protocol: str | None = None,
        batch_size: int = 1,
        cache_megabytes: int = 2048,
        device_megabytes: int = 4096,
        num_workers: int | None = None,
        seed: int = 0,
        images: str = "images",
        masks: str = "masks",
        name: str | None = None,
        frames: list[int] | None = None,
        near_plane: float | None = None,
        cameras: str | None = None,
        views: int = INVENTED_VIEWS,
        view_size: int = VIEW_SIZE,
    ) -> None:
        super().__init__()
        least = {"batch_size": (batch_size, 1), "cache_megabytes": (cache_megabytes, 0), "seed": (seed, 0)}
        least["device_megabytes"] = (device_megabytes, 0)
        least |= {"num_workers": (num_workers or 0, 0), "views": (views, 3), "view_size": (view_size, 16)}
        for option, (value, minimum) in least.items():
            if value < minimum:
                raise InputError(f"data.{option}: found {value}, expected {minimum} or more.")
        most = {"batch_size": (batch_size, MOST_VIEWS), "num_workers": (num_workers or 0, MOST_WORKERS)}
        most |= {"views": (views, MOST_VIEWS), "view_size": (view_size, MOST_VIEWS)}
        for option, (value, maximum) in most.items():
            if value > maximum:
                raise InputError(f"data.{option}: found {value}, expected at most {maximum}.")
        published = scene_protocol(Path(root or ".").resolve().name, protocol) if protocol else None
        self.root = root
        self.protocol = protocol
        if downscale is None:
            downscale = published.downscale if published else 1
        self.downscale = downscale
        self.test_every = test_every if test_every is not None else TEST_EVERY
        self.batch_size = batch_size
        self.cache_megabytes = cache_megabytes
        self.device_megabytes = device_megabytes
        self.num_workers = num_workers
        self.seed = seed
        self.images = images
        self.masks = masks
        self.name = name
        self.frames = frames
        self.near_plane = near_plane
        self._most_frames = published.protocol.frames if published else None
        self.cameras = None if cameras in (None, INVENTED) else str(Path(cameras).resolve())
        self.views = views
        self.view_size = view_size
        self.open_scene: Callable[[dict[str, Any]], Capture] | None = None
        """Makes a capture of a trained scene; given by those who know the formats of such scenes."""
        self.kept_cameras: Path | None = None
        """Camera path in which a training keeps the cameras that it invented."""
        self._resident = DeviceViews(device_megabytes * 2**20)
        self._capture: Capture | None = None
        self._cache: ImageCache | None = None
        self._context: WorkerContext | None = None
        self._workers = 0
        self._train_loader: ViewLoader | None = None

    def options(self) -> dict[str, Any]:
        """What it takes to open the same capture again: arguments of ``read_capture``, for checkpoints.

        Of a trained scene in place of photos, also what its views depend on; the near plane as it is, once
        the capture is read.
        """
        names = ["root", "downscale", "test_every", "images", "masks", "name", "frames"]
        names += ["cameras", "views", "view_size"] if self.is_scene else []
        root = None if self.root is None else str(Path(self.root).resolve())
        near_plane = self.near_plane if self._capture is None else self._capture.near_plane
        kept = {"kept_cameras": str(self.kept_cameras.resolve())} if self.kept_cameras else {}
        return {name: getattr(self, name) for name in names} | {"root": root, "near_plane": near_plane} | kept

    @property
    def is_scene(self) -> bool:
        """Whether ``root`` is a trained scene in place of photos."""
        return self.root is not None and Path(self.root).is_file()

    @property
    def invents_cameras(self) -> bool:
        """Whether that scene is looked at from cameras that nobody gave."""
        return self.is_scene and self.cameras is None

    @property
    def capture(self) -> Capture:
        """The capture; available after ``setup``."""
        if self._capture is None:
            raise RuntimeError("CaptureDataModule.capture is available after setup().")
        return self._capture

    def prepare_data(self) -> None:
        """Read and check the capture before Lightning makes a run folder: a bad one then leaves no trace.

        Raises:
            InputError: see ``read_capture``.
        """
        if self._capture is not None:
            return
        if self.root is None:
            raise InputError(
                "data.root: expected a capture's folder, found none (or start_from, with a scene)."
            )
        if self.open_scene is not None and self.is_scene:
            self._capture = self.open_scene(self.options())
        else:
            self._capture = read_capture(**self.options())
            self._keep_to_protocol(self._capture)

    def _keep_to_protocol(self, capture: Capture) -> None:
        """Of longer films protocols take the beginning."""
        moments = {view.time for view in capture.views} - {None}
        if self.frames is None and self._most_frames is not None and len(moments) > self._most_frames:
            self.frames = [0, self._most_frames]
            self._capture = cut(capture, self.frames)

    def setup(self, stage: str | None = None) -> None:
        """Read and check the capture where ``prepare_data`` has not, and decide on workers.

        Raises:
            InputError: see ``read_capture``.
        """
        self.prepare_data()
        self._cache = None  # workers of another stage could not share it
        training = stage in (None, "fit")
        self._workers = self._worker_count(self.capture.train_views) if training else 0
        if training:
            self._warn_of_decoding()
        self._context = WorkerContext() if self._workers else None

    def train_dataloader(self) -> ViewLoader:
        """Endless shuffled batches, or up to the trainer's ``max_steps``, from its ``global_step`` on."""
        views = self.capture.train_views
        rank, world_size = self._rank_and_world_size()
        max_steps = self.trainer.max_steps if self.trainer else -1
        order = TrainingOrder(
            sizes=[(view.camera.width, view.camera.height) for view in views],
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            iterations=max_steps if max_steps >= 0 else None,
            first=self._iteration,
        )
        self._train_loader = ViewLoader(
            ViewDataset(views, self._images()), order, self._workers, self._context
        )
        return self._train_loader

    def train_batch(self, indices: Sequence[int]) -> ViewBatch:
        """Training views of one image size by their places, outside of any order.

        Raises:
            ReadingError: a photo cannot be read.
        """
        batch = ViewDataset([self.capture.train_views[i] for i in indices], self._images())[
            list(range(len(indices)))
        ]
        if isinstance(batch, InputError):
            raise ReadingError(str(batch)) from batch
        return replace(batch, indices=torch.tensor(indices))

    def val_dataloader(self) -> ViewLoader | list[ViewLoader]:
        """Held-out views in order, one per batch, decoded in this process; no loader if there are none."""
        views = self.capture.test_views
        if not views:
            return []
        order = HeldOutOrder(len(views), *self._rank_and_world_size())
        return ViewLoader(ViewDataset(views, self._images()), order)

    def test_dataloader(self) -> ViewLoader | list[ViewLoader]:
        """The same as ``val_dataloader``."""
        return self.val_dataloader()

    def transfer_batch_to_device(
        self, batch: ViewBatch, device: torch.device, dataloader_idx: int
    ) -> ViewBatch:
        """Move a batch without waiting; what is on the device already is not moved again."""
        return self._resident.moved(batch, device)

    def teardown(self, stage: str) -> None:
        """End the worker processes, and let go of the photos on the device."""
        self._resident = DeviceViews(self.device_megabytes * 2**20)
        if self._train_loader is not None:
            self._train_loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """As ``teardown``, when training fails."""
        self.teardown("fit")

    def _iteration(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _worker_count(self, views: Sequence[View]) -> int:
        if self.is_scene:
            return 0  # a worker would need the kernels and the scene
        if self.num_workers is not None:
            return self.num_workers
        if sum(image_bytes(view) for view in views) <= self._budget:
            return 0
        processes = self.trainer.num_devices if self.trainer else 1
        return max(1, min(MAX_AUTOMATIC_WORKERS, _cores() // processes))

    def _warn_of_decoding(self) -> None:
        """A frame of a video that is not in memory takes all frames before it, back to a keyframe."""
        views = self.capture.train_views
        needed = sum(image_bytes(view) for view in views)
        if needed > self._budget and any(isinstance(view.source, GroupedSource) for view in views):
            logger.warning(
                "data.cache_megabytes: %d do not hold the %d MB of the videos' frames; the rest is decoded "
                "from a keyframe on at each use, which is slow. Raise it, or store the frames as images.",
                self.cache_megabytes,
                -(-needed // 2**20),
            )

    @property
    def _budget(self) -> int:
        return self.cache_megabytes * 2**20

    def _images(self) -> ImageCache:
        """The cache of both splits, made at first use."""
        if self._cache is None:
            views = self.capture.train_views + self.capture.test_views
            self._cache = ImageCache(views, self._budget, self._context)
        return self._cache


def _cores() -> int:
    """Cores that this process may use, which on a cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
