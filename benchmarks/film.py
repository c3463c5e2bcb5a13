"""Bytes and quality of films: scenes that move, coded at several rates, as one or more groups of frames.

    python benchmarks/film.py --ckpt moving.ckpt --losses 0.1 0.3
    python benchmarks/film.py --ckpt first_half.ckpt second_half.ckpt --losses 0.3
    python benchmarks/film.py --ckpt trained_for_bytes.ckpt --as-trained --losses --every 5
    python benchmarks/film.py --ckpt moving.ckpt --losses --megabytes 0.31 --every 5

Each loss is what the full model may lose on training views that judge the rate; films may also take so many
megabytes, or the steps that a scene was trained for bytes with. Test views are only
reported: what the decoded file loses against the uncoded model there, at each ratio. Uncoded are all numbers
as float32, tables of small prefixes too. Prints a Markdown table, and bytes a Gaussian by attribute.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import numpy as np
import torch

from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.conversion import arrays_of
from flexgs_lightning.codec.film import film_sizes, open_film, read_film
from flexgs_lightning.codec.views import Judged, evenly, mean_psnr, read_views
from flexgs_lightning.deploy.compress import compress
from flexgs_lightning.deploy.opening import open_capture
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.model.residuals import RatioResiduals

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", type=Path, nargs="+", required=True)
    parser.add_argument("--losses", type=float, nargs="*", default=[0.1, 0.3])
    parser.add_argument("--megabytes", type=float, nargs="*", default=[])
    parser.add_argument("--as-trained", action="store_true", help="with the steps of training for bytes")
    parser.add_argument("--every", type=int, default=1, help="measure on every n-th test view")
    parser.add_argument("--refine-steps", type=int, help="by default as flexgs compress has it")
    parser.add_argument("--data-root", type=Path, help="by default as trained")
    parser.add_argument("--near", type=float, help="near plane of test views; by default the capture's")
    parser.add_argument("--all-views", action="store_true", help="measure on all test views, not on 96")
    options = parser.parse_args()
    models = [load(path) for path in options.ckpt]
    root = {} if options.data_root is None else {"root": str(options.data_root)}
    captures = [open_capture(model.data | root) for model in models]
    if options.near:
        captures = [capture.with_near_plane(options.near) for capture in captures]
    test = [capture.test_views[:: options.every] for capture in captures]
    views = [
        read_views(own if options.all_views else evenly(own), tuple(model.background.tolist()))
        for own, model in zip(test, models, strict=True)
    ]
    arrays = [arrays_of(model) for model in models]
    gaussians = sum(map(len, arrays))
    tables = sum(
        table.numel()
        for model in models
        for part in model.scene.each_part()
        if isinstance(part, RatioResiduals)
        for table in part.tables
    )
    raw = 4 * tables + sum(4 * sum(p.numel() for p in m.gaussians.own().values()) for m in models)
    ratios = [level.ratio for level in arrays[0].levels]
    uncoded = {ratio: _psnr(arrays, views, ratio) for ratio in ratios}
    groups = f"{gaussians:,} Gaussians in {len(models)} groups"
    print(f"{groups}; uncoded {raw:,} bytes, {raw / gaussians:.1f} each")
    print("test PSNR uncoded: " + ", ".join(f"{100 * r:g} %: {uncoded[r]:.3f}" for r in ratios))
    print("| asked for | bytes | a Gaussian | times smaller | Mbit/s | dB lost on test views at "
          + " | ".join(f"{100 * r:g} %" for r in ratios) + " |")  # fmt: skip
    print("|" + "---|" * (5 + len(ratios)))
    wishes: list[dict[str, float]] = [{"psnr_loss": loss} for loss in options.losses]
    wishes += [{"max_megabytes": size} for size in options.megabytes]
    for wish in [*wishes, *([{}] if options.as_trained else [])]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.egs"
            compress(
                path, options.ckpt, refine_steps=options.refine_steps, data_root=options.data_root,
                device="cpu", **wish,
            )  # fmt: skip
            size, film, file = path.stat().st_size, read_film(path), open_film(path)
            parts: dict[str, int] = {}
            for _, sizes in film_sizes(file):
                parts = {name: parts.get(name, 0) + sizes.get(name, 0) for name in parts | sizes}
        coded = {ratio: _psnr(film.groups, views, ratio) for ratio in ratios}
        lost = " | ".join(f"{uncoded[r] - coded[r]:.3f}" for r in ratios)
        rate = f"{8e-6 * size / film.seconds:.3f}" if film.seconds else "?"
        asked = ", ".join(f"{name} {value:g}" for name, value in wish.items()) or "as trained"
        print(f"| {asked} | {size:,} | {size / gaussians:.2f} | {raw / size:.1f} | {rate} | {lost} |")
        print("  " + ", ".join(f"{name} {count / gaussians:.2f}" for name, count in parts.items()))
        moving = [float(np.mean(g.flags > 0)) for g in film.groups]
        print(f"  moving: {', '.join(f'{100 * share:.0f} %' for share in moving)}", flush=True)


def _psnr(groups: Sequence[ElasticModelArrays], views: Sequence[Sequence[Judged]], ratio: float) -> float:
    """Mean over groups."""
    return statistics.fmean(mean_psnr(g, ratio, v, CPU) for g, v in zip(groups, views, strict=True))


if __name__ == "__main__":
    main()
