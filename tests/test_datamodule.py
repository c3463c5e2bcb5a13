"""Streaming: which views come when, from how much memory, through which process."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from colmap_folder import Folder, write_capture
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.utils.data import Sampler

from flexgs_lightning.data.capture import View, ViewBatch
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.ordering import HeldOutOrder, TrainingOrder, training_batches
from flexgs_lightning.data.streaming import (
    ImageCache,
    ReadingError,
    ViewDataset,
    ViewLoader,
    WorkerContext,
    lost_workers_explained,
)
from flexgs_lightning.errors import InputError

SIZE = (161, 121)
IMAGE_BYTES = 161 * 121 * 3


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_capture(tmp_path, count=9)


def prepared(folder: Folder, **options: Any) -> CaptureDataModule:
    datamodule = CaptureDataModule(str(folder.root), **options)
    datamodule.setup("fit")
    return datamodule


def drawn(sizes: list[tuple[int, int]], batch_size: int, seed: int, count: int) -> list[list[int]]:
    return list(itertools.islice(training_batches(sizes, batch_size, seed), count))


# The order


def test_a_pass_is_a_permutation_and_passes_differ() -> None:
    views = [batch[0] for batch in drawn([SIZE] * 50, 1, seed=3, count=500)]
    passes = [tuple(views[start : start + 50]) for start in range(0, 500, 50)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert len(set(passes)) == 10


def test_the_order_depends_on_the_seed_alone() -> None:
    assert drawn([SIZE] * 20, 3, 5, 100) == drawn([SIZE] * 20, 3, 5, 100)
    assert drawn([SIZE] * 20, 3, 5, 100) != drawn([SIZE] * 20, 3, 6, 100)
    # as recorded: an update of NumPy must not change the views of a run that is resumed after it
    assert [batch[0] for batch in drawn([SIZE] * 10, 1, 0, 10)] == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


def test_batches_are_full_and_of_one_size() -> None:
    random = np.random.default_rng(0)
    sizes = [((100, 60), (99, 60), (60, 100))[i] for i in random.choice(3, 47, p=[0.7, 0.2, 0.1])]
    batches = drawn(sizes, 4, 0, 2000)
    assert all(len(batch) == 4 and len({sizes[i] for i in batch}) == 1 for batch in batches)
    counts = Counter(itertools.chain(*batches))
    assert max(counts.values()) - min(counts[i] for i in range(47)) <= 4 / sizes.count((60, 100)) + 2


@pytest.mark.parametrize("first", [0, 1, 7, 49, 50, 51, 99])
def test_resuming_anywhere_continues_the_order(first: int) -> None:
    def order(**options: Any) -> TrainingOrder:
        return TrainingOrder([SIZE] * 7, 2, seed=1, iterations=100, **options)

    assert list(order(first=lambda: first)) == list(order())[first:]
    assert len(order(first=lambda: first)) == 100


def test_processes_share_the_batch_of_one() -> None:
    one = TrainingOrder([SIZE] * 7, 6, seed=1, iterations=50)
    three = [TrainingOrder([SIZE] * 7, 2, 1, rank, 3, iterations=50) for rank in range(3)]
    assert [[*a, *b, *c] for a, b, c in zip(*three, strict=True)] == list(one)


def test_endless_order_has_no_length() -> None:
    order = TrainingOrder([SIZE] * 3, 1, seed=0)
    with pytest.raises(TypeError):
        len(order)
    assert len(list(itertools.islice(order, 1000))) == 1000


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_held_out_views_are_seen_once_over_all_processes(world_size: int) -> None:
    orders = [HeldOutOrder(7, rank, world_size) for rank in range(world_size)]
    assert len({len(order) for order in orders}) == 1, "they may draw together"
    seen = [
        index
        for rank, order in enumerate(orders)
        for batch, (index,) in enumerate(order)
        if not HeldOutOrder.repeats(7, batch, rank, world_size)
    ]
    assert sorted(seen) == list(range(7))
    assert sum(len(order) for order in orders) < 7 + world_size
    assert list(HeldOutOrder(7)) == [[i] for i in range(7)]


# The cache


class CountingSource:
    """An image of one value that counts how often it is decoded."""

    has_alpha = False

    def __init__(self, value: int) -> None:
        self.value = value
        self.reads = 0

    def read(self) -> np.ndarray:
        self.reads += 1
        return np.full((SIZE[1], SIZE[0], 3), self.value, np.uint8)


def counting_views(folder: Folder) -> list[View]:
    views = read_colmap(folder.root).views
    return [View(view.name, view.camera, CountingSource(i)) for i, view in enumerate(views)]


def test_cache_keeps_what_fits_the_budget_and_decodes_the_rest_again(folder: Folder) -> None:
    views = counting_views(folder)
    cache = ImageCache(views, budget=4 * IMAGE_BYTES + 100)
    assert len(cache) == 4
    assert cache.size == 4 * IMAGE_BYTES
    for _ in range(3):
        for i, view in enumerate(views):
            assert (cache.read(view.name, view.source) == i).all()
    assert [view.source.reads for view in views] == [1] * 4 + [3] * 5  # type: ignore[attr-defined]


def test_budget_of_nothing_caches_nothing(folder: Folder) -> None:
    views = counting_views(folder)
    cache = ImageCache(views, budget=0)
    assert len(cache) == cache.size == 0
    assert (cache.read(views[3].name, views[3].source) == 3).all()


def test_a_failed_read_does_not_fill_its_place(folder: Folder) -> None:
    view = read_colmap(folder.root).views[0]
    cache = ImageCache([view], budget=IMAGE_BYTES)
    photo = folder.image(view.name).read_bytes()
    folder.image(view.name).write_bytes(photo[:200])
    with pytest.raises(InputError):
        cache.read(view.name, view.source)
    folder.image(view.name).write_bytes(photo)
    np.testing.assert_array_equal(cache.read(view.name, view.source), view.source.read())


# Batches


def test_a_batch_holds_the_views_it_names(folder: Folder) -> None:
    datamodule = prepared(folder, batch_size=3)
    views = datamodule.capture.train_views
    for batch in itertools.islice(datamodule.train_dataloader(), 10):
        assert batch.images.shape == (3, 121, 161, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.alphas is None
        for row, index in enumerate(batch.indices.tolist()):
            assert batch.names[row] == views[index].name
            assert torch.equal(batch.images[row], torch.from_numpy(views[index].source.read()))
            assert torch.equal(batch.cameras.viewmats[row], views[index].camera.viewmats[0])
            assert torch.equal(batch.cameras.Ks[row], views[index].camera.Ks[0])


def test_alpha_is_opaque_for_photos_without(folder: Folder) -> None:
    (folder.root / "masks").mkdir()
    Image.new("L", SIZE, 77).save(folder.root / "masks" / "photo_02.png")
    (batch,) = itertools.islice(prepared(folder, batch_size=7).train_dataloader(), 1)
    assert batch.alphas is not None
    levels = dict(zip(batch.names, batch.alphas.flatten(1).unique(dim=1).tolist(), strict=True))
    assert levels.pop("photo_02.png") == [77]
    assert set(map(tuple, levels.values())) == {(255,)}


def test_writing_into_a_batch_leaves_the_cache_alone(folder: Folder) -> None:
    loader = prepared(folder).val_dataloader()
    assert isinstance(loader, ViewLoader)
    before = [batch.images.clone() for batch in loader]
    for batch in loader:
        batch.images.zero_()
    assert all(torch.equal(a, b.images) for a, b in zip(before, loader, strict=True))


def test_held_out_loader(folder: Folder) -> None:
    datamodule = prepared(folder)
    loader = datamodule.val_dataloader()
    assert [batch.names for batch in loader] == [("photo_00.png",), ("photo_08.png",)]
    assert [batch.names for batch in datamodule.test_dataloader()] == [batch.names for batch in loader]
    assert prepared(folder, test_every=0).val_dataloader() == []


# Worker processes


def test_workers_give_what_this_process_gives(folder: Folder) -> None:
    """Over several passes, and begun anew after a break in the middle."""
    here = prepared(folder, batch_size=2, num_workers=0, cache_megabytes=0).train_dataloader()
    module = prepared(folder, batch_size=2, num_workers=2)
    loader = module.train_dataloader()
    for _ in range(2):
        pairs = itertools.islice(zip(here, loader, strict=False), 20)
        assert all(same(a, b) for a, b in pairs)
    assert len(multiprocessing.active_children()) == 2
    for process in multiprocessing.active_children():
        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            assert "torch" in maps.read_text()
            assert not re.search("numba|llvmlite|gsplat|pycolmap", maps.read_text())
    module.teardown("fit")
    assert not multiprocessing.active_children()


def same(a: ViewBatch, b: ViewBatch) -> bool:
    return (
        a.names == b.names
        and torch.equal(a.images, b.images)
        and torch.equal(a.cameras.viewmats, b.cameras.viewmats)
        and torch.equal(a.cameras.Ks, b.cameras.Ks)
        and torch.equal(a.indices, b.indices)
    )


class RotatingOrder(Sampler[list[int]]):
    """Begins one view later each time, so that another worker's turn comes for each view."""

    def __init__(self) -> None:
        self.starts = itertools.count()

    def __iter__(self) -> Iterator[list[int]]:
        start = next(self.starts)
        return iter([[(start + i) % 8] for i in range(8)])


def test_workers_share_the_cache(folder: Folder) -> None:
    """Once a view is cached no worker needs its file."""
    views = read_colmap(folder.root).views[:8]
    context = WorkerContext()
    cache = ImageCache(views, budget=8 * IMAGE_BYTES, context=context)
    loader = ViewLoader(ViewDataset(views, cache), RotatingOrder(), 2, context)
    first = {batch.names: batch.images for batch in loader}
    for view in views:
        os.truncate(folder.image(view.name), 0)
    second = {batch.names: batch.images for batch in loader}
    assert first.keys() == second.keys() == {(view.name,) for view in views}
    assert all(torch.equal(first[names], second[names]) for names in first)
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_photo_gives_one_message(folder: Folder, num_workers: int) -> None:
    path = folder.image("photo_03.png")
    path.write_bytes(path.read_bytes()[:500])  # the header stays readable
    datamodule = prepared(folder, num_workers=num_workers)
    with pytest.raises(InputError) as caught:
        for _ in itertools.islice(datamodule.train_dataloader(), 9):
            pass
    assert str(caught.value).startswith(f"{path}: expected a readable image")
    assert "\n" not in str(caught.value)
    datamodule.teardown("fit")


def test_a_worker_that_is_killed_gives_one_message(folder: Folder) -> None:
    datamodule = prepared(folder, num_workers=1, cache_megabytes=0)
    batches = iter(datamodule.train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    told = pytest.raises(ReadingError, match=r"worker process .* was killed.*--data\.num_workers")
    with told, lost_workers_explained():
        worker.kill()  # torch's handler of SIGCHLD may raise from here on
        deque(batches, maxlen=0)  # endless: the worker may answer for a while until the system ends it
    datamodule.teardown("fit")


ORPHANS = """
import os, signal, sys
from flexgs_lightning.data.datamodule import CaptureDataModule
datamodule = CaptureDataModule(sys.argv[1], num_workers=1)
datamodule.setup("fit")
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
signal.setitimer(signal.ITIMER_REAL, 1.0)  # while the worker imports
next(iter(datamodule.train_dataloader()))
"""


def test_workers_that_are_just_starting_end_with_a_main_process_that_is_killed(folder: Folder) -> None:
    command = [sys.executable, "-c", ORPHANS, str(folder.root)]
    with subprocess.Popen(command, start_new_session=True) as main:
        assert main.wait() == -signal.SIGKILL
    for _ in range(1200):
        try:
            os.killpg(main.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(main.pid, signal.SIGKILL)
    pytest.fail("a worker is still there")


def test_automatic_workers(folder: Folder) -> None:
    assert prepared(folder)._workers == 0
    assert prepared(folder, cache_megabytes=0)._workers >= 1
    evaluation = CaptureDataModule(str(folder.root), cache_megabytes=0)
    evaluation.setup("test")
    assert evaluation._workers == 0


# Under Lightning


class Recorder(pl.LightningModule):
    """Steps by hand and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.seen: list[tuple[str, ...]] = []
        self.validated: list[str] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.01)

    def training_step(self, batch: ViewBatch, _: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((batch.targets(self.weight) - self.weight).square().mean())
        optimizer.step()
        self.seen.append(batch.names)

    def validation_step(self, batch: ViewBatch, _: int) -> None:
        self.validated += batch.names


def fit(folder: Folder, checkpoints: Path, resume: Path | None = None, **options: Any) -> Recorder:
    model = Recorder()
    trainer = pl.Trainer(
        max_steps=30,
        val_check_interval=8,
        num_sanity_val_steps=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(checkpoints, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ],
    )
    trainer.fit(model, datamodule=prepared_by_trainer(folder, **options), ckpt_path=resume)
    assert trainer.global_step == 30
    return model


def prepared_by_trainer(folder: Folder, **options: Any) -> CaptureDataModule:
    return CaptureDataModule(str(folder.root), **options)


@pytest.mark.filterwarnings("ignore")
def test_resumed_training_sees_the_rest_of_the_views(
    folder: Folder, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    whole = fit(folder, tmp_path / "a", batch_size=2)
    assert len(whole.seen) == 30
    assert whole.validated == ["photo_00.png", "photo_08.png"] * 3
    for step in (1, 8, 11, 29):  # within a pass, at a validation, one before the end
        rest = fit(folder, tmp_path / "b", tmp_path / "a" / f"step={step}.ckpt", batch_size=2)
        assert rest.seen == whole.seen[step:]
        assert torch.equal(rest.weight, whole.weight)
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


@pytest.mark.filterwarnings("ignore")
def test_resumed_training_with_workers(folder: Folder, tmp_path: Path) -> None:
    whole = fit(folder, tmp_path / "a", num_workers=0)
    rest = fit(folder, tmp_path / "b", tmp_path / "a" / "step=11.ckpt", num_workers=1)
    assert rest.seen == whole.seen[11:]
    assert not multiprocessing.active_children()


def test_validating_first_leaves_a_cache_that_workers_can_share(folder: Folder) -> None:
    datamodule = CaptureDataModule(str(folder.root), num_workers=1)
    datamodule.setup("validate")
    assert len(list(datamodule.val_dataloader())) == 2
    datamodule.setup("fit")
    assert len(list(itertools.islice(datamodule.train_dataloader(), 8))) == 8
    datamodule.teardown("fit")


def test_capture_before_setup_says_so(folder: Folder) -> None:
    with pytest.raises(RuntimeError, match="setup"):
        _ = CaptureDataModule(str(folder.root)).capture


def test_downscale_of_nothing_is_refused(folder: Folder) -> None:
    with pytest.raises(InputError, match="downscale: found 0"):
        prepared(folder, downscale=0)


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 0), ("cache_megabytes", -1), ("num_workers", -1), ("seed", -1)]
)
def test_options_out_of_range(option: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{option}: found {value}"):
        CaptureDataModule("anywhere", **{option: value})
