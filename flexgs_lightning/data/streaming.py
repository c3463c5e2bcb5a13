"""From views to batches: the cache, and decoding in worker processes.

This module is all that a worker process loads: no compiled kernels, no Lightning.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch.utils.data import DataLoader, Dataset, Sampler

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import GroupedSource, ImageSource, View, ViewBatch
from flexgs_lightning.errors import InputError


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep spawned processes from importing the program that starts them, kernels and all."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM)
"""Signals that a group gets together: the main process ends its workers itself."""


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let a process that is started here begin with signals blocked, until it can say that it ignores them.

    Its first seconds go into imports, and who gets a signal then would be gone.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # first: it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_MAIN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _WorkerProcess(SpawnProcess):
    def run(self) -> None:
        """Work, and leave without Python's own end.

        That one stops the thread that hands over batches wherever it is, and inside of torch's C++ this
        aborts the process, for which the main process would be told of a worker that was killed.
        """
        super().run()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def start(self) -> None:
        with _hidden_main(), _signals_held_back():
            super().start()
        # Python ends what is left of its daemons with SIGTERM and waits; a worker does not heed that one.
        process: Any = self._popen  # type: ignore[attr-defined]
        process.terminate = process.kill


class WorkerContext(SpawnContext):
    """Starts light worker processes: spawned, because OpenMP aborts in forked ones.

    What is sent to them must be defined in a module, not in the program or notebook that is run.
    """

    Process = _WorkerProcess


def image_bytes(view: View) -> int:
    """Memory that a view's decoded image takes."""
    return int(np.prod(_shape(view)))


def _shape(view: View) -> tuple[int, int, int]:
    return view.camera.height, view.camera.width, 4 if view.source.has_alpha else 3


@dataclass(frozen=True)
class _Place:
    """Where the cache keeps a view: ``slot`` of the flags, first byte and shape of the pixels."""

    slot: int
    start: int
    shape: tuple[int, int, int]


class ImageCache:
    """Decoded images of a fixed subset of the views, in memory that all workers share.

    Each pass visits every view once in a new order. Then the best any cache can do is to keep a fixed
    subset: evicting what was used longest ago evicts what comes soonest. So the first views that fit
    the budget get a place each, filled by whoever decodes them first; the others are decoded each time.
    Frames of a video fill the places of all that are decoded with them.

    Args:
        views: in order of preference.
        budget: bytes.
        context: how workers are started; None if there are none, then the memory is this process's own.

    Attributes:
        size: bytes that the places take when all are filled.
    """

    def __init__(self, views: Sequence[View], budget: int, context: BaseContext | None = None) -> None:
        self._places: dict[str, _Place] = {}
        self._siblings: dict[ImageSource, _Place] = {}
        self.size = 0
        for view in views:
            end = self.size + image_bytes(view)
            if end <= budget:
                place = self._places[view.name] = _Place(len(self._places), self.size, _shape(view))
                self.size = end
                if isinstance(view.source, GroupedSource):
                    self._siblings[view.source] = place
        self._pixels = _memory(self.size, context)
        self._filled = _memory(len(self._places), context)
        self._lock: Any = context.Lock() if context else threading.Lock()

    def __contains__(self, name: str) -> bool:
        """Whether a view has a place (filled or not)."""
        return name in self._places

    def __len__(self) -> int:
        """Number of views that have a place."""
        return len(self._places)

    def read(self, name: str, source: ImageSource) -> UInt8[np.ndarray, "H W 3|4"]:
        """A view's image, from memory or decoded; not to be written to.

        Raises:
            InputError: see ``ImageSource.read``.
        """
        if name not in self._places:
            return source.read()
        place = self._places[name]
        pixels, filled = self._pixels_at(place), np.frombuffer(self._filled, np.uint8)
        with self._lock:  # it also orders memory: who sees the flag sees the pixels
            if filled[place.slot]:
                return pixels
        if not isinstance(source, GroupedSource):
            self._fill(place, source.read())
            return pixels
        for sibling, image in source.read_group():
            if sibling in self._siblings:
                self._fill(self._siblings[sibling], image)
        return pixels

    def _pixels_at(self, place: _Place) -> UInt8[np.ndarray, "H W 3|4"]:
        end = place.start + int(np.prod(place.shape))
        return np.frombuffer(self._pixels, np.uint8)[place.start : end].reshape(place.shape)

    def _fill(self, place: _Place, image: UInt8[np.ndarray, "H W 3|4"]) -> None:
        self._pixels_at(place)[:] = image
        with self._lock:
            np.frombuffer(self._filled, np.uint8)[place.slot] = 1


def _memory(size: int, context: BaseContext | None) -> Any:
    """Zeroed bytes, shared with the processes that ``context`` starts."""
    if context is None:
        return np.zeros(size, np.uint8)
    return context.RawArray(ctypes.c_uint8, size)


class ReadingError(InputError):
    """A photo that cannot be decoded, or whoever decodes it was lost: what was trained until now is sound."""


_LOST_WORKER = (
    "a worker process that decodes photos was killed, perhaps because memory ran out; fewer of them "
    "(--data.num_workers) and a smaller cache (--data.cache_megabytes) need less."
)
_SECONDS_TO_DIE = 5.0


@contextlib.contextmanager
def lost_workers_explained() -> Iterator[None]:
    """Turn what the loader raises when a worker process is gone, at any place, into one clear message.

    Raises:
        ReadingError: instead of the loader's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ReadingError(_LOST_WORKER) from error


class ViewDataset(Dataset[ViewBatch | InputError]):
    """Batches of views by lists of indices into ``views``.

    A worker's exception would reach the user as a traceback within a traceback, so an ``InputError`` is
    handed over as an item; ``ViewLoader`` raises it.
    """

    def __init__(self, views: Sequence[View], cache: ImageCache) -> None:
        self.names = [view.name for view in views]
        self.sources = [view.source for view in views]
        self.sizes = [(view.camera.width, view.camera.height) for view in views]
        self.near_planes = [view.camera.near_plane for view in views]
        # As arrays: each tensor that goes to a worker would hold a file descriptor open.
        self.viewmats = np.concatenate([view.camera.viewmats.numpy() for view in views])
        self.Ks = np.concatenate([view.camera.Ks.numpy() for view in views])
        self.times = _times(views)
        self.cache = cache

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: list[int]) -> ViewBatch | InputError:
        """Load views of one image size."""
        try:
            images = [self.cache.read(self.names[i], self.sources[i]) for i in indices]
        except InputError as error:
            return error
        width, height = self.sizes[indices[0]]
        return ViewBatch(
            cameras=Cameras(
                torch.from_numpy(self.viewmats[indices]),
                torch.from_numpy(self.Ks[indices]),
                width,
                height,
                self.near_planes[indices[0]],
            ),
            images=torch.from_numpy(np.stack([image[..., :3] for image in images])),
            alphas=_alphas(images),
            indices=torch.tensor(indices),
            names=tuple(self.names[i] for i in indices),
            times=None if self.times is None else torch.from_numpy(self.times[indices]),
        )


def _times(views: Sequence[View]) -> Float32[np.ndarray, " V"] | None:
    """Moments of all views, or None where some have none: a capture moves as a whole or not at all."""
    times = [view.time for view in views if view.time is not None]
    return np.array(times, np.float32) if times and len(times) == len(views) else None


def _alphas(images: list[UInt8[np.ndarray, "H W 3|4"]]) -> UInt8[torch.Tensor, "C H W 1"] | None:
    """Alpha of a batch, opaque for its photos without; None if no photo has any."""
    if all(image.shape[-1] == 3 for image in images):
        return None
    opaque = np.full((*images[0].shape[:2], 1), 255, np.uint8)
    return torch.from_numpy(
        np.stack([image[..., 3:] if image.shape[-1] == 4 else opaque for image in images])
    )


class ViewLoader:
    """Iterates over the batches of an order; decodes here or in worker processes.

    It is not a ``DataLoader`` but holds one, so Lightning leaves its order alone: it can inject no
    ``DistributedSampler``. It has nothing to save, because the order is a function of the iteration.

    Args:
        dataset: the views.
        order: lists of indices into the dataset.
        num_workers: worker processes; 0 decodes in this one.
        context: how to start them.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        order: Sampler[list[int]],
        num_workers: int = 0,
        context: BaseContext | None = None,
    ) -> None:
        self.order = order
        self._dataset = dataset
        self._num_workers = num_workers
        self._context = context
        self._loader: DataLoader[ViewBatch | InputError] | None = None

    def __iter__(self) -> Iterator[ViewBatch]:
        """Iterate from the beginning of the order; workers stay for the next time.

        Raises:
            ReadingError: a photo cannot be read.
        """
        if self._loader is None:
            self._loader = self._open()
        for item in self._received(self._loader):
            if isinstance(item, InputError):
                raise ReadingError(str(item)) from item
            yield item

    def _received(self, loader: DataLoader[ViewBatch | InputError]) -> Iterator[ViewBatch | InputError]:
        """The loader's items; a connection that breaks off is told as what it means."""
        try:
            yield from loader
        except (OSError, EOFError) as error:
            if self._num_workers == 0 or (isinstance(error, OSError) and error.errno is None):
                raise  # not of a connection, but handed over by a worker
            time.sleep(_SECONDS_TO_DIE)  # torch's handler of SIGCHLD raises in here, and nowhere later
            raise ReadingError(_LOST_WORKER) from error

    def _open(self) -> DataLoader[ViewBatch | InputError]:
        return DataLoader(
            self._dataset,
            batch_size=None,  # an item is a batch
            sampler=cast(Any, self.order),
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            multiprocessing_context=self._context if self._num_workers else None,
            persistent_workers=self._num_workers > 0,
            worker_init_fn=partial(_start_worker, main=os.getpid()),
        )

    def close(self) -> None:
        """End the worker processes; another ``iter`` starts new ones."""
        self._loader = None

    def __len__(self) -> int:
        """Number of batches; ``TypeError`` if endless."""
        return len(cast(Any, self.order))

    def state_dict(self) -> dict[str, Any]:
        """Nothing; that it exists tells Lightning that the middle of an epoch can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_: int, main: int) -> None:
    """Begin, unless the main process is gone by now: torch ends orphans, but knows it only from here on."""
    if os.getppid() != main:
        os._exit(1)
    torch.set_num_threads(1)
    for number in _LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
