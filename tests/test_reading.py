"""One door for captures of every layout; the moments and the split that they may bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colmap_folder import write_capture

from flexgs_lightning.data.capture import Capture, ViewBatch
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.errors import InputError


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    write_capture(tmp_path, count=9)
    return read_capture(tmp_path)


def test_a_colmap_folder_is_read_as_one(tmp_path: Path) -> None:
    write_capture(tmp_path)
    options = {"downscale": 2, "test_every": 3, "name": "other"}
    found, expected = read_capture(tmp_path, **options), read_colmap(tmp_path, **options)  # type: ignore[arg-type]
    assert (found.name, found.protocol, found.split) == (expected.name, expected.protocol, expected.split)
    assert [view.source for view in found.views] == [view.source for view in expected.views]


def test_folders_that_are_no_capture(tmp_path: Path) -> None:
    for root, part in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "the folder is empty")):
        with pytest.raises(
            InputError, match=f"^{root}: {part}, expected a capture .cameras.json or .* a COLMAP"
        ):
            read_capture(root)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="found none of that, expected"):
        read_capture(tmp_path)


def test_a_named_test_set_goes_before_every_eighth(capture: Capture) -> None:
    assert [view.name for view in capture.test_views] == ["photo_00.png", "photo_08.png"]
    assert capture.split == "every 8th image by sorted name is held out"
    named = replace(capture, test_names=frozenset({"photo_03.png", "photo_04.png"}))
    assert [view.name for view in named.test_views] == ["photo_03.png", "photo_04.png"]
    assert {view.name for view in named.train_views} == {f"photo_0{i}.png" for i in (0, 1, 2, 5, 6, 7, 8)}
    assert named.split == "the capture's own test images are held out"
    everything = replace(named, test_every=0)
    assert (everything.train_views, everything.test_views) == (named.views, ())
    assert everything.split == "no image is held out"


def test_batches_carry_the_moments_of_their_views(
    capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = replace(capture, views=tuple(replace(v, time=i / 9) for i, v in enumerate(capture.views)))
    monkeypatch.setattr("flexgs_lightning.data.datamodule.read_capture", lambda **_: moving)
    data = CaptureDataModule(str(tmp_path), batch_size=3)
    data.setup("fit")
    expected = {view.name: view.time for view in moving.views}
    for _, batch in zip(range(4), data.train_dataloader(), strict=False):
        for same in (batch, ViewBatch.cat(batch.each()), batch.to("cpu"), batch.pinned()):
            assert same.times is not None
            assert same.times.dtype == torch.float32
            assert same.times.tolist() == pytest.approx([expected[name] for name in batch.names])


def test_batches_of_a_still_scene_have_no_moments(capture: Capture, tmp_path: Path) -> None:
    data = CaptureDataModule(str(tmp_path))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.times is None
    assert ViewBatch.cat([batch, batch]).times is None
