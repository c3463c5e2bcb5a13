"""What checking a checkpoint costs: load of a million Gaussians, and the digests' part of it.

python benchmarks/checkpoint_door.py runs/fox/version_0/checkpoints/step_4000.ckpt
"""

import hashlib
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash

from flexgs_lightning.model.checkpoint import load, read_checkpoint
from flexgs_lightning.model.checkpoint_record import sealed

COUNT, TRIES = 1_000_000, 5


def larger(tensor: torch.Tensor) -> torch.Tensor:
    """Rows repeated up to ``COUNT``."""
    if tensor.ndim == 0:
        return tensor
    return tensor.repeat((-(-COUNT // len(tensor)),) + (1,) * (tensor.ndim - 1))[:COUNT].contiguous()


def seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(source: Path) -> None:
    checkpoint = torch.load(source, weights_only=True)
    checkpoint["state_dict"] = {name: larger(value) for name, value in checkpoint["state_dict"].items()}
    for optimizer in checkpoint["optimizer_states"]:
        for moments in optimizer["state"].values():
            moments.update({name: larger(value) for name, value in moments.items()})
    statistics_of = checkpoint["flexgs"]["densification"]["statistics"]
    statistics_of.update({name: larger(value) for name, value in statistics_of.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.ckpt"
        torch.save(sealed(checkpoint), path)
        print(f"{COUNT:,} Gaussians, {path.stat().st_size / 1e6:,.0f} MB")
        print(f"load: {seconds(lambda: load(path)):.3f} s")
        print(f"whole, as a resume reads it: {seconds(lambda: read_checkpoint(path)):.3f} s")
        print(f"both digests: {seconds(lambda: sealed(checkpoint)):.3f} s")
    data = torch.randint(256, (1 << 28,), dtype=torch.uint8).numpy()
    for name, digest in {"xxh3_128": xxhash.xxh3_128, "crc32": zlib.crc32, "sha256": hashlib.sha256}.items():
        print(f"{name}: {len(data) / 1e9 / seconds(lambda digest=digest: digest(data)):.1f} GB/s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
