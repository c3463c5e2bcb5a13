"""Bytes and quality of the elastic file of a trained scene, and the time to write and read it.

    python benchmarks/elastic_file.py --ckpt runs/fox/version_0/checkpoints/last.ckpt --losses 0.35 0.08
    python benchmarks/elastic_file.py --gaussians 1000000

A scene that was trained for bytes is coded with its own steps (times --factors) instead of searching for a
loss, and beside it the full model alone and 50 ratios; --reference compares with the model that it was
before. The second form times a scene of random numbers, at about as many bytes a Gaussian as real ones take.
Each loss is what the full model may lose on training views that judge the rate; test views are only reported.
Prints Markdown tables: quality of the file cut at each ratio against the uncoded model at that ratio, on test
views; bytes a Gaussian by attribute; seconds. Times are CPU seconds of this process, so that other work on
the machine counts little.
"""

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import numpy as np
import torch

from flexgs_lightning.codec.arrays import ElasticModelArrays, Level
from flexgs_lightning.codec.conversion import arrays_of, trained_quantization
from flexgs_lightning.codec.decoder import open_file, read_elastic
from flexgs_lightning.codec.encoder import Encoding, Plan, chunk_stops, encode, make_plan
from flexgs_lightning.codec.rate_search import plan_for, search_refined
from flexgs_lightning.codec.refinement import refined
from flexgs_lightning.codec.sensitivity import Sensitivity
from flexgs_lightning.codec.trained_rule import trained_plan
from flexgs_lightning.codec.views import Judged, mean_psnr, read_views, split_views
from flexgs_lightning.deploy.opening import open_capture
from flexgs_lightning.model.budget import count_at
from flexgs_lightning.model.checkpoint import load

RATIOS = (0.01, 0.05, 0.1, 0.3, 1.0)
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--reference", type=Path, help="uncoded model to compare with, by default --ckpt")
    parser.add_argument("--gaussians", type=int)
    parser.add_argument("--losses", type=float, nargs="+", default=[0.35, 0.08])
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0], help="on trained steps")
    parser.add_argument("--prefix-loss", type=float, help="likewise at smaller levels")
    parser.add_argument("--refine-steps", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.gaussians:
        speed(options.gaussians)
    if options.ckpt is None:
        return
    model = load(options.ckpt)
    arrays, capture = arrays_of(model), open_capture(model.data)
    measuring, judging = (read_views(v, arrays.background) for v in split_views(capture.train_views))
    test = read_views(capture.test_views, arrays.background)
    compared = arrays if options.reference is None else arrays_of(load(options.reference))
    uncoded = {ratio: mean_psnr(compared, ratio, test, CPU) for ratio in RATIOS}
    print(
        f"{capture.name}: {len(arrays):,} Gaussians, {len(test)} test views; uncoded {_row(uncoded)}\n",
        flush=True,
    )
    trained = trained_quantization(model.scene)
    if trained is not None:
        plan = trained_plan(arrays, trained)
        for factor in options.factors:
            rule = plan.rule.scaled((factor,) * len(arrays.levels))
            encoding = encode(plan, rule)
            report(f"steps as trained times {factor:g}", encoding, plan, uncoded, test)
            print(elastic_cost(encoding, plan, factor), flush=True)
            print(dips(encoding.decoded, test), flush=True)
            if options.refine_steps:
                better = refined(plan, encoding, measuring, CPU, options.refine_steps)
                report(
                    f"steps as trained times {factor:g}, refined", encode(better, rule), plan, uncoded, test
                )
        return
    start = time.process_time()
    plan = plan_for(arrays, measuring, CPU)
    print(f"Sensitivities and rule: {time.process_time() - start:.1f} s\n", flush=True)
    for loss in options.losses:
        found = search_refined(
            plan, measuring, judging, CPU, loss, options.prefix_loss, options.refine_steps, _tell
        )
        report(f"{loss:g} dB on judging views", found.encoding, plan, uncoded, test)


def elastic_cost(encoding: Encoding, plan: Plan, factor: float) -> str:
    """What levels and chunks take, against the full model alone in growing chunks at its own steps."""
    rule = replace(plan.rule, curves=plan.rule.curves[-1:], harms=plan.rule.harms[-1:]).scaled((factor,))
    total = plan.arrays.total
    alone = replace(plan, arrays=plan.arrays.only(()), rule=rule, stops=chunk_stops(total, [total]))
    size = encode(alone, rule).size()
    share = encoding.size() / size - 1
    return f"The full model alone: {size / total:.2f} bytes a Gaussian; levels cost {100 * share:.1f} %"


def dips(decoded: ElasticModelArrays, test: list[Judged], rates: int = 50) -> str:
    """How far a rate draws worse than a smaller one."""
    psnr = np.array([mean_psnr(decoded, float(r), test, CPU) for r in np.geomspace(0.01, 1, rates)])
    deepest = (np.maximum.accumulate(psnr) - psnr).max()
    return f"Over {rates} ratios from 1 to 100 % it is at most {deepest:.3f} dB below a smaller one"


def speed(count: int) -> None:
    """Seconds to fit, encode and decode a random model with four levels, and the process's peak memory."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (count, 13)).astype(np.float32)
    values[:, 0] = rng.uniform(0.05, 0.95, count)
    values[:, 1:4] -= 4
    values[:, 7:10] *= 0.2
    levels = [Level(1.0, values)]
    for ratio in (0.3, 0.1, 0.03):
        lower = levels[0].values[: count_at(ratio, count)]
        levels.insert(0, Level(ratio, lower + rng.normal(0, 0.02, lower.shape).astype(np.float32)))
    sh_rest = rng.laplace(0, 0.05, (count, 15, 3)).astype(np.float32)
    arrays = ElasticModelArrays(count, tuple(levels), sh_rest)
    worth = [level.values[:, :1] ** 2 / (np.arange(len(level.values)) + 1000.0)[:, None] for level in levels]
    measured = [Sensitivity(np.repeat(w, 13, 1), np.repeat(w, 45, 1).reshape(-1, 15, 3)) for w in worth]
    start = time.process_time()
    plan = make_plan(arrays, measured, (1e-4,) * len(levels))
    fitted = time.process_time()
    encoding = encode(plan, plan.rule)
    written = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        encoding.write(Path(folder) / "scene.egs")
        _, seconds = _timed(Path(folder) / "scene.egs")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{count:,} random Gaussians, {encoding.size() / count:.1f} bytes each: rule {fitted - start:.1f} s, "
        f"encoding {written - fitted:.1f} s, decoding {seconds:.2f} s; peak memory {peak:.1f} GB\n",
        flush=True,
    )


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


def report(
    title: str, encoding: Encoding, plan: Plan, uncoded: dict[float, float], test: list[Judged]
) -> None:
    total = plan.arrays.total
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.egs"
        encoding.write(path)
        size = path.stat().st_size
        decoded, seconds = _timed(path)
        lengths = dict(zip(_stops(path), open_file(path).header.indexed_lengths(), strict=True))
    start = time.process_time()
    encode(plan, plan.rule)
    writing = time.process_time() - start
    lost = {ratio: uncoded[ratio] - mean_psnr(decoded, ratio, test, CPU) for ratio in RATIOS}
    print(f"\n### {title}: {size / 1e6:.3f} MB, {size / total:.2f} bytes a Gaussian\n")
    print(
        "| | "
        + " | ".join(f"{100 * ratio:g} %" for ratio in RATIOS)
        + " |\n|---"
        + "|---" * len(RATIOS)
        + "|"
    )
    print("| dB lost on test views | " + " | ".join(f"{lost[ratio]:.3f}" for ratio in RATIOS) + " |")
    cut = [min(v for k, v in lengths.items() if k >= count_at(ratio, total)) for ratio in RATIOS]
    print("| kB of the cut | " + " | ".join(f"{length / 1e3:.1f}" for length in cut) + " |\n")
    parts = {name: count / total for name, count in encoding.bytes_by_stream.items()}
    print(", ".join(f"{name} {value:.2f}" for name, value in parts.items()) + " bytes a Gaussian")
    print(
        f"\nGaussians/s: decoding {total / seconds:,.0f}, encoding once {total / writing:,.0f}\n",
        flush=True,
    )


def _timed(path: Path) -> tuple[ElasticModelArrays, float]:
    """The decoded file, and the least CPU seconds of five decodings after one that compiles."""
    times = []
    for _ in range(6):
        start = time.process_time()
        decoded = read_elastic(path)
        times.append(time.process_time() - start)
    return decoded, min(times[1:])


def _stops(path: Path) -> list[int]:
    return [entry.stop for entry in open_file(path).header.entries]


def _row(values: dict[float, float]) -> str:
    return ", ".join(f"{100 * ratio:g} %: {value:.2f} dB" for ratio, value in values.items())


if __name__ == "__main__":
    main()
