"""A step must not make the host wait for a device: counted in the operations that it dispatches."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from test_elastic import arguments
from torch.utils._python_dispatch import TorchDispatchMode

from flexgs_lightning.lightning_cli import FlexGSCLI

WAITING = {
    "_local_scalar_dense": "a number is read from a tensor",
    "nonzero": "how many there are has to be known",
    "is_nonzero": "a branch on a tensor",
    "masked_select": "how many there are has to be known",
    "unique_consecutive": "how many there are has to be known",
    "_unique2": "how many there are has to be known",
    "bincount": "how many there are has to be known",
    "repeat_interleave": "how many there are has to be known",
    "lift_fresh": "a tensor made of Python numbers has to be copied",
}
"""Operations for which the host waits, on CUDA, until the device has caught up; and why."""
ON_THE_HOST = {"cpu_backend.py", "ssim_cpu.py", "streaming.py"}
"""Files that a GPU's step does not run, or that prepare photos on the host."""


class Waits(TorchDispatchMode):
    """Counts what would make the host wait, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.places: list[str] = []
        self.operations = 0

    def _note(self, what: str) -> None:
        if any(Path(frame.filename).name in ON_THE_HOST for frame in traceback.extract_stack()):
            return
        self.found[what] += 1
        calls = [f for f in traceback.extract_stack() if "/torch/" not in f.filename][-14:-2]
        self.places.append(
            f"{what}: " + "\n      > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in calls)
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.operations += 1
        if name in WAITING:
            self._note(name)
        if name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self._note("index by a mask")
        return func(*args, **(kwargs or {}))


class CountedSteps(Callback):
    """Counts through one whole iteration each: from the batch's arrival to the next."""

    def __init__(self, steps: set[int]) -> None:
        self.steps, self.counts = steps, {}  # type: ignore[var-annotated]
        self._counting: Waits | None = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
            self._counting = None
        if trainer.global_step in self.steps:
            self._counting = self.counts[trainer.global_step] = Waits()
            self._counting.__enter__()


@pytest.mark.parametrize("selection", ["ordered", "ordered with a field"])
def test_no_step_waits_for_the_device(selection: str, small_capture: Path, tmp_path: Path) -> None:
    """Neither stage, between logged steps, refinements and rankings. gsplat's own count is not seen here."""
    field = [] if "field" in selection else ["--model.elastic.field_heads=[]"]
    options = [*field, "--trainer.enable_progress_bar=true", "--importance_refresh.every_n_steps=100"]
    steps = CountedSteps({15, 47})

    class CLI(FlexGSCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Any:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.insert(0, steps)
            return trainer

    CLI(arguments(small_capture, tmp_path, *options))
    assert steps.counts.keys() == {15, 47}
    for counted in steps.counts.values():
        assert counted.operations > 50, "the step was seen"
        assert not counted.found, "\n".join(counted.places)


def test_the_counter_sees_what_waits() -> None:
    numbers = torch.rand(10)
    with Waits() as counted:
        numbers.sum().item()
        numbers[numbers > 0.5]
        numbers.nonzero()
        bool((numbers > 2).any())
        numbers + torch.tensor([1.0])
        numbers * 2.0
    assert counted.found == {
        "_local_scalar_dense": 2,
        "index by a mask": 1,
        "nonzero": 1,
        "is_nonzero": 1,
        "lift_fresh": 1,
    } or counted.found.keys() >= {"_local_scalar_dense", "index by a mask", "nonzero", "lift_fresh"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_only_gsplat_waits(small_capture: Path, tmp_path: Path) -> None:
    """It counts the intersections of Gaussians and tiles; torch warns of every other wait."""
    waits: list[str] = []

    class Watched(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            self.caught = warnings.catch_warnings(record=True)
            self.log = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if trainer.global_step in (15, 47) else "default")

        def on_train_batch_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")
            waits.extend(
                f"{w.filename}:{w.lineno}: {w.message}" for w in self.log if "synchron" in str(w.message)
            )
            self.caught.__exit__(None, None, None)

    class CLI(FlexGSCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Any:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(Watched())
            return trainer

    CLI(arguments(small_capture, tmp_path, "--trainer.accelerator=cuda", "--model.elastic.field_heads=[]"))
    assert [wait for wait in waits if "gsplat" not in wait] == []
