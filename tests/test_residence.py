"""Views that stay on a device. Without one, torch's meta device stands in: it has places, not pixels."""

from pathlib import Path

import torch

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import ViewBatch
from flexgs_lightning.data.datamodule import CaptureDataModule
from flexgs_lightning.data.residence import DeviceViews

META = torch.device("meta")


def batch(*names: str, alpha: bool = False) -> ViewBatch:
    count = len(names)
    pixels = torch.randint(0, 256, (count, 6, 8, 4), dtype=torch.uint8)
    cameras = Cameras(torch.eye(4).repeat(count, 1, 1), torch.eye(3).repeat(count, 1, 1), 8, 6)
    alphas = pixels[..., 3:] if alpha else None
    return ViewBatch(cameras, pixels[..., :3], alphas, torch.arange(count), names)


def test_a_view_is_moved_once_while_it_fits() -> None:
    views = DeviceViews(budget=2 * 144)
    first, second = batch("a"), batch("b")
    there = [views.moved(view, META) for view in (first, second)]
    assert all(view.images.device == META and view.cameras.device == META for view in there)
    assert views.moved(batch("a"), META) is there[0]
    third = views.moved(batch("c"), META)
    assert views.moved(batch("c"), META) is not third, "no room is left"
    assert views.moved(second, META) is there[1]


def test_batches_are_put_together_from_their_views() -> None:
    views, several = DeviceViews(10**6), batch("a", "b", "c")
    moved = views.moved(several, META)
    assert moved.names == ("a", "b", "c")
    assert moved.images.shape == (3, 6, 8, 3)
    assert moved.cameras.viewmats.shape == (3, 4, 4)
    mixed = ViewBatch.cat([batch("a"), batch("b", alpha=True)])
    assert mixed.alphas is not None
    assert (mixed.alphas[0] == 255).all()
    back = ViewBatch.cat(several.each())
    assert torch.equal(back.images, several.images)
    assert torch.equal(back.indices, several.indices)


def test_on_the_cpu_a_batch_stays_what_it_is(small_capture: Path) -> None:
    data = CaptureDataModule(str(small_capture))
    one = batch("a", "b")
    moved = data.transfer_batch_to_device(one, torch.device("cpu"), 0)
    assert moved.images.data_ptr() == one.images.data_ptr()
