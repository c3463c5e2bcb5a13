"""Training for bytes: rounding as the file rounds, the third stage, its configs, and what the file gains."""

from __future__ import annotations

import itertools
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from elastic_arrays import random_arrays, random_sensitivities
from small_scene import around, ball
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flexgs_lightning import Compression, CompressionTraining, ElasticTraining, TrainingRun, load
from flexgs_lightning.codec.conversion import arrays_of, model_of, trained_quantization
from flexgs_lightning.codec.decoder import read_elastic
from flexgs_lightning.codec.encoder import distances, encode, make_plan
from flexgs_lightning.codec.trained_rule import rule_of, trained_plan
from flexgs_lightning.codec.views import Judged, mean_psnr, read_views
from flexgs_lightning.deploy.compress import compress
from flexgs_lightning.deploy.opening import open_capture
from flexgs_lightning.errors import InputError
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.coordinates import (
    PLACES,
    frames_of,
    from_coordinates,
    to_coordinates,
)
from flexgs_lightning.model.compression.rule_quantization import RuleQuantization
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.settings import CONFIGS
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.compression.bits import bits_at
from flexgs_lightning.training.compression.parts import make_small
from flexgs_lightning.training.compression.stage import compress_step, compression_optimizers
from flexgs_lightning.training.elastic.stage import Iteration
from flexgs_lightning.training.optimization import LearningRates, residual_units

CPU = torch.device("cpu")


# -- coordinates and steps -----------------------------------------------------------------------------


def random_raw(count: int = 50) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "quats": torch.randn(count, 4, generator=g, dtype=torch.float64),
        "log_scales": torch.randn(count, 3, generator=g, dtype=torch.float64),
        "means": torch.randn(count, 3, generator=g, dtype=torch.float64),
        "opacities": torch.rand(count, generator=g, dtype=torch.float64) * 0.98 + 0.01,
        "sh0": torch.randn(count, 3, generator=g, dtype=torch.float64),
    }


def test_coordinates_return_the_same_gaussians() -> None:
    raw = random_raw()
    frames = frames_of(raw["quats"], raw["log_scales"])
    values = to_coordinates(**raw, frames=frames)
    assert (values[:, PLACES["scales"]].diff(dim=1) <= 0).all()
    assert values[:, PLACES["rotations"]].abs().max() <= 1 + 1e-9  # the real part is the largest
    back = from_coordinates(values, frames)
    assert torch.allclose(back["opacities"].sigmoid(), raw["opacities"], atol=1e-12)
    for name, given in (("scales", "log_scales"), ("means", "means"), ("sh0", "sh0")):
        assert torch.allclose(back[name], raw[given])
    units = [torch.nn.functional.normalize(q, dim=1) for q in (back["quats"], raw["quats"])]
    assert torch.allclose((units[0] * units[1]).sum(dim=1).abs(), torch.ones(50).double())


def test_gradients_of_coordinates_are_those_of_finite_differences() -> None:
    raw = random_raw(4)
    frames = frames_of(raw["quats"], raw["log_scales"])
    inputs = [value.requires_grad_() for value in raw.values()]
    assert torch.autograd.gradcheck(lambda *x: to_coordinates(*x, frames=frames), inputs)
    values = to_coordinates(*inputs, frames=frames).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: tuple(from_coordinates(v, frames).values()), values)


def test_training_knows_the_steps_of_the_file() -> None:
    """The rule in floats against the specification's integers, number by number."""
    arrays = random_arrays(300)
    plan = make_plan(arrays, random_sensitivities(arrays), (3e-4,) * 3)
    numbers = plan.numbers
    found = rule_of(plan).classes(torch.from_numpy(arrays.levels[-1].values), torch.arange(300), 2).numpy()
    rows = numbers.integers(arrays.levels[-1].values).astype(object)
    rows[:, 13] = distances(rows[:, PLACES["means"]].astype(np.int32), numbers.centre, numbers.cell_bits)
    attribute = [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5]
    different = 0
    for i, c in itertools.product(range(300), range(14)):
        t = min(max(rows[i, 0], 0), 4096)
        features = [t, t * t // 4096, *rows[i, 1:4], rows[i, 13]]
        total = 1024 * int(plan.rule.offsets(2, i, i + 1)[attribute[c]]) + 4096 * int(numbers.weights[c, 0])
        total += sum(int(w) * int(f) for w, f in zip(numbers.weights[c, 1:], features, strict=True))
        low, high = numbers.bounds[c]
        expected = min(max((total + 32768) // 65536, low), high)
        different += expected != found[i, c]
        assert abs(expected - found[i, c]) <= 1
    assert different < 0.02 * 300 * 14  # rounded at the edge between two classes


def test_a_checkpoints_rule_makes_the_same_file() -> None:
    arrays = random_arrays(500)
    plan = make_plan(arrays, random_sensitivities(arrays), (1e-4, 1e-3, 3e-4), {"sh0": 1.3})
    ratios = [level.ratio for level in arrays.levels]
    part = RuleQuantization(rule_of(plan), ratios, torch.zeros(500, dtype=torch.uint8))
    again = trained_plan(arrays, part)
    assert [data for _, data in encode(again, again.rule).chunks] == [
        data for _, data in encode(plan, plan.rule).chunks
    ]


# -- modules combine freely ----------------------------------------------------------------------------

AXES = {
    "quantization": ("elastic_file", "uniform", "learned_steps"),
    "rounding": ("noise", "straight_through"),
    "entropy": ("factorized", "hash_grid", "no_entropy"),
    "mask": ("learned_mask", "gradient_mask"),
}
"""The configs of ``configs/codec`` that choose one thing each."""


FRAME = SceneFrame(torch.zeros(3), 4.0)


def view_loss(splats: Splats, view: Judged) -> torch.Tensor:
    return (rasterize(splats, view.camera).image - view.photo).square().mean()


def overlay(*names: str) -> Compression:
    options: dict[str, Any] = {}
    for name in names:
        options |= yaml.safe_load((CONFIGS / "codec" / f"{name}.yaml").read_text())["model"]["compression"]
    return Compression(**options)


def elastic_ball() -> Scene:
    """The ball, with one level below its full size."""
    units = residual_units(LearningRates(), 1.0)
    return elastic_scene(Gaussians.from_splats(ball()), FRAME, ElasticOptions(residual_anchors=(0.3,)), units)


def seen(scene: Scene, cameras: Any) -> list[Judged]:
    """What a scene shows, as photos."""
    with torch.no_grad():
        return [Judged(cameras[i], rasterize(scene.at(), cameras[i]).image) for i in range(len(cameras))]


def test_every_combination_is_an_overlay() -> None:
    for names in itertools.product(*AXES.values()):
        options = overlay(*names)
        assert options.quantization == ("elastic_file" if names[0] == "elastic_file" else "uniform")
        assert options.learned_steps == ("learned_steps" in names)
        assert options.rounding == names[1]
        assert options.entropy == names[2].replace("no_entropy", "none")
        assert options.sh_mask == names[3].removesuffix("_mask")


PAIRS = [
    (q, AXES["rounding"][(i + j) % 2], e, AXES["mask"][i % 2])
    for i, q in enumerate(AXES["quantization"])
    for j, e in enumerate(AXES["entropy"])
]
"""Of all combinations so many that each two choices meet."""


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_combinations_train(names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    options = overlay(*names)
    training = CompressionTraining(steps=10, rate_weight=1e-3, rate_rows=100)
    scene = Scene(Gaussians.from_splats(ball()), elastic=True)
    views = seen(scene, around(2, 24, 16))
    make_small(Model(scene, 1, False, torch.zeros(3), {}, 0), options, views, FRAME, view_loss)
    optimizers = compression_optimizers(scene, LearningRates(), ElasticTraining(), training, 1.0)
    total, parts = compress_step(
        scene,
        ElasticTraining(steps=1, ratio_range=(0.1, 0.5)),
        options,
        training,
        Iteration(3, lambda splats: view_loss(splats, views[0]), torch.Tensor.backward),
    )
    assert total.isfinite()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None, group["name"]
                assert parameter.grad.isfinite().all()
    assert any(name.startswith("bits_") for name in parts) == ("no_entropy" not in names)
    assert ("mask_share" in parts) == ("learned_mask" in names)
    again = Scene.from_state(scene.state_dict(), scene.as_plain()).eval()
    again.load_state_dict(scene.state_dict())
    assert torch.equal(again.at(0.3).sh, scene.eval().at(0.3).sh)
    assert bits_at(again, 0.5) == bits_at(scene, 0.5)


def test_every_config_of_codecs_is_one_of_these() -> None:
    ours = {name for names in AXES.values() for name in names}
    assert ours <= {path.stem for path in (CONFIGS / "codec").glob("*.yaml")}


def test_small_sizes_may_have_larger_steps() -> None:
    """p dB are 10^(p / 10) - 1 of the squared error, which goes with steps squared; harmonics keep theirs."""
    moved = ball()
    moved = Splats(moved.means + 0.02, moved.quats, moved.scales, moved.opacities, moved.sh)
    views = seen(Scene(Gaussians.from_splats(moved)), around(2, 24, 16))
    found = []
    for prefix in (None, 1.0, 10.0):
        torch.manual_seed(0)
        scene = elastic_ball()
        options = Compression(psnr_loss=1.0, prefix_psnr_loss=prefix)
        make_small(Model(scene, 1, False, torch.zeros(3), {}, 0), options, views, FRAME, view_loss)
        part = trained_quantization(scene)
        assert part is not None
        found.append(part.curves[:, :, 0].clone())
    assert torch.equal(found[0], found[1])
    octaves = torch.zeros_like(found[0])
    octaves[0, :-1] = 0.5 * math.log2(9 / (10**0.1 - 1))
    torch.testing.assert_close((found[2] - found[0]) / 4, octaves, rtol=0, atol=0.02)


def test_impossible_options_are_named() -> None:
    assert Compression(prefix_psnr_loss=None).prefix_psnr_loss is None
    bad = {"psnr_loss": 0.0, "prefix_psnr_loss": math.inf, "mask_target": 1.0, "mask_degree": 3}
    for name, value in bad.items():
        with pytest.raises(InputError, match=f"model.compression.{name}: expected"):
            Compression(**{name: value})  # type: ignore[arg-type]
    for name, value in {"psnr_loss": 200.0, "mask_target": 1.0, "mask_degree": 3}.items():
        with pytest.raises(InputError, match=f"model.compression.{name}: expected"):
            Compression(**{name: value})  # type: ignore[arg-type]
    for name, value in {"steps": -1, "rate_weight": -1.0, "rate_rows": 0, "rate_decay": 2.0}.items():
        with pytest.raises(InputError, match=f"model.compression_training.{name}: expected"):
            CompressionTraining(**{name: value})  # type: ignore[arg-type]


# -- the stage -----------------------------------------------------------------------------------------

STEPS = (8, 4, 8)
"""Iterations of the three stages."""
RATE = "--model.compression_training.rate_weight"


def train(root: Path, runs: Path, *options: str) -> TrainingRun:
    stages = ("reconstruction_steps", "elastic_training.steps", "compression_training.steps")
    lengths = [f"--model.{stage}={steps}" for stage, steps in zip(stages, STEPS, strict=True)]
    fixed = ("--model.lpips=none", "--model.sh_degree_interval=2", "--trainer.log_every_n_steps=1")
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--test_after_fit=false")
    kept = ("--checkpoint.every_n_steps=4", "--checkpoint.keep=true", "--trainer.val_check_interval=20")
    run = TrainingRun(
        [f"--data.root={root}", f"--runs={runs}", *lengths, *fixed, *quiet, *kept, f"{RATE}=1e-3", *options]
    )
    run.train()
    return run


@pytest.fixture(scope="module")
def small(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through all stages, with checkpoints at the third stage's beginning (12) and within (16)."""
    return train(small_capture, tmp_path_factory.mktemp("runs")).run_folder


def test_the_stage_resumes_bit_for_bit(small: Path, small_capture: Path, tmp_path: Path) -> None:
    for step in (12, 16):
        copy = tmp_path / f"{step}.ckpt"
        shutil.copy(small / "checkpoints" / f"step_{step}.ckpt", copy)
        again = train(small_capture, tmp_path / str(step), f"--ckpt_path={copy}")
        states = [
            torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for folder in (small, again.run_folder)
        ]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_options_of_the_stage_are_fixed_in_it(small: Path, small_capture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "16.ckpt"
    shutil.copy(small / "checkpoints" / "step_16.ckpt", copy)
    with pytest.raises(InputError, match=r"model.compression_training.rate_weight 0.001, found 0.002"):
        train(small_capture, tmp_path, f"{RATE}=0.002", f"--ckpt_path={copy}")


def test_tensorboard_shows_rate_and_distortion(small: Path) -> None:
    (path,) = small.glob("events*")
    events = EventAccumulator(str(path))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for name in ("opacities", "scales", "rotations", "sh0", "sh_rest", "update_means"):
        assert f"train/bits_{name}" in scalars
    kilobytes = [events.Scalars(f"val_kilobytes/{ratio}")[-1].value for ratio in ("5%", "30%", "100%")]
    assert 0 < kilobytes[0] < kilobytes[1] < kilobytes[2]
    assert "rate_distortion" in events.Tags()["images"]


def test_training_lowers_the_bytes_of_the_file() -> None:
    """At a price and at none, from the same scene with the same steps; and the coded scene stays elastic."""
    cameras = around(4, 24, 16)
    sizes, decoded = [], []
    for price in (0.0, 1e-3):
        torch.manual_seed(0)
        scene = elastic_ball()
        views = seen(scene, cameras)
        training = CompressionTraining(steps=60, rate_weight=price, rate_rows=400, rate_share=20.0)
        model = Model(scene, 1, False, torch.zeros(3), {}, 0)
        make_small(model, Compression(), views, FRAME, view_loss)
        optimizers = compression_optimizers(scene, LearningRates(), ElasticTraining(), training, 1.0)
        for step in range(training.steps):
            view = views[step % len(views)]
            elastic = ElasticTraining(steps=1, ratio_range=(0.2, 0.5))
            iteration = Iteration(step, partial(view_loss, view=view), torch.Tensor.backward)
            compress_step(scene, elastic, Compression(), training, iteration)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        part = trained_quantization(scene.eval())
        assert part is not None
        plan = trained_plan(arrays_of(model), part)
        encoding = encode(plan, plan.rule)
        sizes.append(sum(encoding.bytes_by_stream.values()))
        decoded.append(encoding.decoded)
    assert sizes[1] < 0.9 * sizes[0]
    for ratio in (0.3, 1.0):
        assert mean_psnr(decoded[1], ratio, views, CPU) > mean_psnr(decoded[0], ratio, views, CPU) - 2


def test_a_checkpoint_of_the_stage_draws_what_its_file_draws(small: Path, tmp_path: Path) -> None:
    checkpoint, file = small / "checkpoints" / "last.ckpt", tmp_path / "scene.egs"
    model = load(checkpoint)
    compress(file, [checkpoint], device="cpu")
    decoded = model_of(read_elastic(file))
    (view,) = read_views(open_capture(model.data).test_views[:1], (0.0, 0.0, 0.0))
    for ratio in (0.1, 1.0):
        found = [psnr(rasterize(m.at(ratio), view.camera).image, view.photo).item() for m in (model, decoded)]
        assert abs(found[0] - found[1]) < 1  # on grids that do not lie alike, in coarse steps


def test_the_command_keeps_what_was_trained_as_it_is(small: Path, tmp_path: Path) -> None:
    """Steps and harmonics, unless a refinement is asked for."""
    checkpoint = small / "checkpoints" / "last.ckpt"
    model = load(checkpoint)
    part = trained_quantization(model.scene)
    assert part is not None
    plan = trained_plan(arrays_of(model), part)
    kept = encode(plan, plan.rule).decoded
    for name, steps in (("kept", None), ("refined", 48)):
        compress(tmp_path / f"{name}.egs", [checkpoint], refine_steps=steps, device="cpu")
        decoded = read_elastic(tmp_path / f"{name}.egs")
        assert np.array_equal(decoded.sh_rest, kept.sh_rest) == (name == "kept")
        assert np.array_equal(decoded.levels[-1].values, kept.levels[-1].values)
