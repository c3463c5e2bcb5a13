"""Photos that stay on the GPU."""

from __future__ import annotations

import torch

from flexgs_lightning.data.capture import ViewBatch


class DeviceViews:
    """Moves batches to a device and keeps their views there, as uint8, while they fit a budget.

    Views beyond it are copied from pinned memory each time, without the host waiting for the copy. As in
    ``ImageCache``, a fixed subset is the best to keep where every pass visits each view once.

    Args:
        budget: bytes on the device.
    """

    def __init__(self, budget: int) -> None:
        self._room = budget
        self._views: dict[tuple[str, torch.device], ViewBatch] = {}

    def moved(self, batch: ViewBatch, device: torch.device) -> ViewBatch:
        """The batch on a device."""
        if device.type == "cpu":
            return batch.to(device)
        return ViewBatch.cat([self._moved(view, device) for view in batch.each()])

    def _moved(self, view: ViewBatch, device: torch.device) -> ViewBatch:
        """A batch of one view."""
        place = (view.names[0], device)
        if place not in self._views:
            there = view.pinned().to(device, non_blocking=True)
            size = there.nbytes
            if size > self._room:
                return there
            self._room -= size
            self._views[place] = there
        return self._views[place]
