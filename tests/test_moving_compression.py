"""Training for bytes of scenes that move: the file's steps, masks of motion, the stage, and what it gains."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from elastic_arrays import random_sensitivities
from moving_arrays import random_moving
from moving_scene import ball_capture, capture, options  # noqa: F401  (a fixture)
from small_scene import around, ball
from test_compression_stage import CPU, FRAME, overlay

from flexgs_lightning import Compression, CompressionTraining, ElasticTraining, load
from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.conversion import arrays_of, file_frames, movement_of, trained_quantization
from flexgs_lightning.codec.encoder import distances, encode, make_plan
from flexgs_lightning.codec.film import open_film, read_film
from flexgs_lightning.codec.trained_rule import rule_of, trained_plan
from flexgs_lightning.codec.views import Judged, mean_psnr, read_views
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.deploy import compress as compressing
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.columns import from_columns, to_columns
from flexgs_lightning.model.compression.coordinates import PLACES
from flexgs_lightning.model.compression.layout import MOVES, TURNS
from flexgs_lightning.model.compression.motion_mask import MotionMask
from flexgs_lightning.model.compression.quantization import UniformQuantization
from flexgs_lightning.model.compression.rule_quantization import RuleQuantization
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, first_parts
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.shading import RayShader
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.compression.bits import bits_at
from flexgs_lightning.training.compression.parts import make_small
from flexgs_lightning.training.compression.stage import compress_step, compression_optimizers
from flexgs_lightning.training.elastic.stage import Iteration
from flexgs_lightning.training.optimization import LearningRates, residual_units

POLYNOMIAL = MotionOptions(path="polynomial", opacity="varying")
PATHS = {
    "polynomial": POLYNOMIAL,
    "bases": MotionOptions(path="bases", bases=3, knots=5),
    "free_bases": MotionOptions(path="free_bases", bases=3, knots=5, opacity="varying"),
}
TIMES = (0.0, 0.35, 0.9)


def moving_scene(motion: MotionOptions, elastic: bool = True, features: bool = False) -> Scene:
    """A ball of which one half moves and the other hardly does."""
    torch.manual_seed(3)
    splats = ball()[:200]
    parts = first_parts(motion, "features" if features else "sh")
    plain = Scene(Gaussians.from_splats(splats.with_sh_degree(0) if features else splats), parts=parts)
    params, goes = plain.gaussians.params, (torch.arange(200) % 2).float()
    with torch.no_grad():
        for name, spread in {"motion": 0.6, "omega": 0.3, "coefficients": 1.0, "appearance": 0.3}.items():
            if name in params:
                noise = spread * torch.randn(params[name].shape)
                still = 1.0 if name == "appearance" else goes.view(-1, *[1] * (noise.ndim - 1)) + 1e-3
                params[name].copy_(noise * still)
        if "time_centers" in params:
            params["time_centers"].copy_(torch.rand(200))
            params["time_scales"].copy_(0.3 * torch.randn(200))
        for part in plain.each_part():
            for group in part.groups():
                if group.name.startswith("bases"):
                    group.parameters[0].normal_(std=0.4)
    if not elastic:
        return plain
    units = residual_units(LearningRates(), 1.0, plain.gaussians.attributes)
    named = dict(zip(plain.parts.keys(), plain.each_part(), strict=True))
    return elastic_scene(plain.gaussians, FRAME, ElasticOptions(residual_anchors=(0.3,)), units, parts=named)


def view_loss(scene: Scene, splats: Splats, view: Judged) -> torch.Tensor:
    shader = None if scene.appearance is None else RayShader(scene.appearance.shade)
    return (rasterize(splats, view.camera, shader=shader).image - view.photo).square().mean()


def seen(scene: Scene, grain: float = 0.0) -> list[Judged]:
    """What the scene shows from all around and at several times, as photos, which may be noisy."""
    torch.manual_seed(5)
    cameras, views = around(3, 24, 16), []
    shader = None if scene.appearance is None else RayShader(scene.appearance.shade)
    for i, time in itertools.product(range(3), TIMES):
        with torch.no_grad():
            image = rasterize(scene.at(Conditions(1.0, time)), cameras[i], shader=shader).image
            image = (image + grain * torch.randn_like(image)).clamp(0, 1)
        views.append(Judged(cameras[i], image, time))
    return views


def model_of_scene(scene: Scene) -> Model:
    return Model(scene, scene.gaussians.sh_degree, False, torch.zeros(3), {}, 0)


def train(scene: Scene, options: Compression, training: CompressionTraining, views: list[Judged]) -> dict:
    """The stage's iterations; returns the last one's parts."""
    optimizers = compression_optimizers(scene, LearningRates(), ElasticTraining(), training, 1.0)
    elastic = ElasticTraining(steps=1, ratio_range=(0.2, 0.5))
    for step in range(training.steps):
        view = views[step % len(views)]
        loss = partial(view_loss, scene, view=view)
        iteration = Iteration(step, loss, torch.Tensor.backward, moments=(view.time,))
        total, parts = compress_step(scene, elastic, options, training, iteration)
        assert total.isfinite()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    assert parameter.grad is not None, group["name"]
                    assert parameter.grad.isfinite().all(), group["name"]
            optimizer.step()
            optimizer.zero_grad()
    return parts


# -- columns and steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_columns_return_a_scene_that_moves_alike(path: str) -> None:
    scene = moving_scene(PATHS[path])
    params, layout = dict(scene.gaussians.params.items()), movement_of(scene).layout
    frames = file_frames(scene)
    values = to_columns(layout, params, frames)
    assert values.shape == (200, 13 + layout.motion_columns)
    raw = from_columns(layout, values, frames)
    sh = torch.cat([raw.pop("sh0")[:, None], params["sh"][:, 1:]], dim=1)
    again = {name: value.view_as(params[name]) for name, value in raw.items()} | {"sh": sh}
    for time in TIMES:
        one = scene.drawn(200, Conditions(1.0, time))
        two = scene.drawn(200, Conditions(1.0, time), {**params, **again})
        for name in ("means", "scales", "opacities", "sh"):
            torch.testing.assert_close(getattr(two, name), getattr(one, name), atol=1e-5, rtol=1e-4)
        turns = [torch.nn.functional.normalize(splats.quats, dim=1) for splats in (one, two)]
        torch.testing.assert_close((turns[0] * turns[1]).sum(dim=1).abs(), torch.ones(200))


def test_training_knows_the_steps_of_the_file() -> None:
    """The rule in floats against the specification's integers, number by number, motion too."""
    arrays = random_moving(total=200)
    plan = make_plan(arrays, random_sensitivities(arrays), (3e-4,) * 3)
    numbers, layout = plan.numbers, arrays.movement.layout
    values = arrays.levels[-1].values
    found = rule_of(plan).classes(torch.from_numpy(values), torch.arange(200), 2).numpy()
    rows = numbers.integers(values).astype(object)
    rows[:, 13] = distances(rows[:, PLACES["means"]].astype(np.int32), numbers.centre, numbers.cell_bits)
    different = 0
    for attribute, name in enumerate(layout.attributes):
        for i, c in itertools.product(range(200), layout.rule_rows(name)):
            t = min(max(rows[i, 0], 0), 4096)
            features = [t, t * t // 4096, *rows[i, 1:4], rows[i, 13], min(max(rows[i, 14], -32768), 32767)]
            total = 1024 * int(plan.rule.offsets(2, i, i + 1)[attribute])
            total += 4096 * int(numbers.weights[c, 0])
            total += sum(int(w) * int(f) for w, f in zip(numbers.weights[c, 1:], features, strict=True))
            low, high = numbers.bounds[c]
            expected = min(max((total + 32768) // 65536, low), high)
            different += expected != found[i, c]
            assert abs(expected - found[i, c]) <= 1
    assert different < 0.02 * 200 * layout.width  # rounded at the edge between two classes


def quantised(arrays: ElasticModelArrays, harm: float) -> RuleQuantization:
    plan = make_plan(arrays, random_sensitivities(arrays), (harm,) * len(arrays.levels))
    ratios = [level.ratio for level in arrays.levels]
    frames = torch.zeros(arrays.total, dtype=torch.uint8)
    return RuleQuantization(rule_of(plan), ratios, frames, flags=torch.from_numpy(arrays.flags.copy()))


@pytest.mark.parametrize("path", PATHS)
def test_a_checkpoints_rule_makes_the_same_file(path: str) -> None:
    """Of a scene of which moves what may, in steps that take nobody's motion."""
    arrays = random_moving(path)  # type: ignore[arg-type]
    plan = make_plan(arrays, random_sensitivities(arrays), (1e-6,) * 3)
    plan = replace(plan, worth=np.zeros((0, 2)))
    again = trained_plan(arrays, quantised(arrays, 1e-6))
    assert [data for _, data in encode(again, again.rule).chunks] == [
        data for _, data in encode(plan, plan.rule).chunks
    ]


def test_what_training_let_stand_still_stands_still_in_the_file() -> None:
    """Who has no flag, and who has but whose motion rounds to nothing."""
    arrays = random_moving()
    trained = quantised(arrays, 1e-4)
    values = arrays.levels[-1].values
    motion = next(field for field in arrays.movement.layout.motion if field.name == "motion")
    values[::3, motion.values] = 1e-9
    expected = arrays.flags & trained.flags.numpy()
    expected[::3] &= TURNS
    plan = trained_plan(arrays, trained)
    assert np.array_equal(plan.arrays.flags & MOVES, expected & MOVES)
    still = plan.arrays.flags & MOVES == 0
    assert not plan.arrays.levels[-1].values[still, motion.values].any(), "losses count from there"
    other = quantised(random_moving("bases"), 1e-4)
    with pytest.raises(InputError, match="trained for columns of"):
        trained_plan(arrays, other)


# -- modules combine freely ----------------------------------------------------------------------------

AXES = {
    "quantization": ("elastic_file", "uniform", "learned_steps"),
    "entropy": ("factorized", "hash_grid", "no_entropy"),
    "mask": ("learned_motion_mask", "gradient_motion_mask", None),
}
COMBINATIONS = [
    (path, quantization, AXES["entropy"][(i + j) % 3], AXES["mask"][(i + 2 * j + 1) % 3])
    for i, path in enumerate(PATHS)
    for j, quantization in enumerate(AXES["quantization"])
]
"""Each two choices but for few meet."""


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: "+".join(map(str, names)))
def test_combinations_train(names: tuple[str, str, str, str | None]) -> None:
    path, quantization, entropy, mask = names
    options = overlay(quantization, entropy, *([mask] if mask else []))
    scene = moving_scene(PATHS[path])
    views = seen(scene)
    make_small(model_of_scene(scene), options, views, FRAME, partial(view_loss, scene))
    parts = train(scene, options, CompressionTraining(steps=2, rate_weight=1e-3, rate_rows=100), views)
    of_motion = "bits_motion" if path == "polynomial" else "bits_coefficients"
    assert (of_motion in parts) == (entropy != "no_entropy")
    assert ("bits_time_scales" in parts) == (entropy != "no_entropy" and path != "bases")
    assert ("motion_mask_share" in parts) == (mask == "learned_motion_mask")
    again = Scene.from_state(scene.state_dict(), scene.as_plain()).eval()
    again.load_state_dict(scene.state_dict())
    for time in TIMES:
        one, two = again.at(Conditions(0.3, time)), scene.eval().at(Conditions(0.3, time))
        assert torch.equal(one.means, two.means)
        assert torch.equal(one.quats, two.quats)
    assert bits_at(again, 0.5) == bits_at(scene, 0.5)
    if quantization == "elastic_file":  # and is a file
        part = trained_quantization(scene)
        assert part is not None
        plan = trained_plan(arrays_of(model_of_scene(scene)), part)
        decoded = encode(plan, plan.rule).decoded
        for view in views[:3]:
            with torch.no_grad():
                ours = rasterize(scene.at(Conditions(1.0, view.time)), view.camera).image
                theirs = rasterize(decoded.at(1.0, view.time), view.camera).image
            assert psnr(ours, theirs.clamp(0, 1)).item() > 27, "grids that do not lie alike, in coarse steps"


def test_features_are_quantised_and_counted() -> None:
    options = overlay("learned_steps", "factorized")
    scene = moving_scene(POLYNOMIAL, features=True)
    views = seen(scene)
    make_small(model_of_scene(scene), options, views, FRAME, partial(view_loss, scene))
    parts = train(scene, options, CompressionTraining(steps=2, rate_weight=1e-3, rate_rows=100), views)
    assert parts["bits_appearance"] > 0
    (part,) = (part for part in scene.eval().each_part() if isinstance(part, UniformQuantization))
    raw = scene.raw(200, Conditions(time=0.5))
    places = (raw["appearance"] - part.ranges["appearance"][0]) / part.steps()["appearance"]
    torch.testing.assert_close(places, places.round(), atol=1e-2, rtol=0)
    assert part.ranges["motion"][0] < 0 < part.ranges["motion"][1]
    for name in ("motion", "appearance"):  # nothing is a value of its own
        low = part.ranges[name][0] / ((part.ranges[name][1] - part.ranges[name][0]) / 255)
        assert low == pytest.approx(round(low), abs=1e-4)


def test_a_film_of_features_says_what_baking_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = replace(model_of_scene(moving_scene(POLYNOMIAL, features=True).eval()), data={"root": "ball"})
    monkeypatch.setattr(compressing, "open_capture", lambda data: capture())
    monkeypatch.setattr(compressing, "open_model", lambda path, ply: model)
    film = tmp_path / "ball.egs"
    with caplog.at_level("INFO", logger="flexgs_lightning"):
        compressing.compress(film, [tmp_path / "last.ckpt"], max_megabytes=0.03, refine_steps=0, device="cpu")
    assert "Harmonics in place of features lose" in caplog.text
    (group,) = read_film(film).groups
    assert group.sh_degree == 3
    lost, views = open_film(film).front.facts["psnr_lost_by_baking"], capture().train_views[::4]
    shader = RayShader(model.scene.appearance.shade)  # type: ignore[union-attr]
    whole = []
    for view in read_views(views, (0.0, 0.0, 0.0)):
        with torch.no_grad():
            image = rasterize(model.scene.at(Conditions(time=view.time)), view.camera, shader=shader).image
        whole.append(psnr(image, view.photo).item())
    judged = mean_psnr(arrays_of(model), 1.0, read_views(views, (0.0, 0.0, 0.0)), CPU)
    assert lost == pytest.approx(np.mean(whole) - judged, abs=0.01)


# -- masks of motion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_masked_gaussians_stand_still_and_the_others_do_not_notice(path: str) -> None:
    scene = moving_scene(PATHS[path], elastic=False)
    kept = torch.arange(200) % 3 == 0
    mask = MotionMask(200, learned=False)
    mask.keep_only(kept)
    named = dict(zip(scene.parts.keys(), scene.each_part(), strict=True))
    masked = Scene(scene.gaussians, parts={"motion_mask": mask, **named}).eval()
    before = scene.eval().gaussians.params["means"]
    for time in TIMES:
        one, two = (s.drawn(200, Conditions(1.0, time)) for s in (scene, masked))
        assert torch.equal(two.means[kept], one.means[kept])
        assert torch.equal(two.means[~kept], before[~kept])
        assert torch.equal(two.opacities, one.opacities)
    arrays = arrays_of(model_of_scene(masked))
    assert np.array_equal(arrays.flags > 0, kept.numpy())
    camera = around(1, 24, 16)
    for time in TIMES:
        with torch.no_grad():
            ours = rasterize(masked.at(Conditions(1.0, time)), camera).image
        torch.testing.assert_close(rasterize(arrays.at(1.0, time), camera).image, ours, atol=2e-3, rtol=0)


def test_gradients_know_who_moves() -> None:
    scene = moving_scene(POLYNOMIAL)
    options = replace(overlay("gradient_motion_mask", "uniform"), motion_threshold=0.02)
    make_small(model_of_scene(scene), options, seen(scene), FRAME, partial(view_loss, scene))
    (mask,) = (part for part in scene.each_part() if isinstance(part, MotionMask))
    kept = (mask.logits >= 0).float()
    assert kept[1::2].mean() > 0.8  # who moves (some are hidden)
    assert kept[::2].mean() < 0.1  # who hardly does


def test_a_price_of_bits_lets_those_stand_still_that_hardly_move() -> None:
    scene = moving_scene(POLYNOMIAL)
    options = replace(overlay("uniform", "learned_motion_mask"), bits=12)
    views = seen(scene)
    make_small(model_of_scene(scene), options, views, FRAME, partial(view_loss, scene))
    train(scene, options, CompressionTraining(steps=30, rate_weight=1e-4, mask_rate=0.2), views)
    (mask,) = (part for part in scene.each_part() if isinstance(part, MotionMask))
    kept = (mask.logits >= 0).float()
    assert kept[1::2].mean() > kept[::2].mean() + 0.3


# -- what training gains, and what it refuses ----------------------------------------------------------


def test_training_lowers_the_bytes_of_the_film() -> None:
    """At a price and at none, from the same scene with the same steps; and the coded scene stays elastic."""
    sizes, decoded = [], []
    for price in (0.0, 1e-3):
        scene = moving_scene(POLYNOMIAL)
        views, model = seen(scene, grain=0.05), model_of_scene(scene)
        training = CompressionTraining(steps=30, rate_weight=price, rate_rows=200, rate_share=20.0)
        make_small(model, Compression(), views, FRAME, partial(view_loss, scene))
        train(scene, Compression(), training, views)
        part = trained_quantization(scene.eval())
        assert part is not None
        plan = trained_plan(arrays_of(model), part)
        encoding = encode(plan, plan.rule)
        sizes.append(sum(encoding.bytes_by_stream.values()))
        decoded.append(encoding.decoded)
    assert sizes[1] < 0.85 * sizes[0]
    for ratio in (0.3, 1.0):
        assert mean_psnr(decoded[1], ratio, views, CPU) > mean_psnr(decoded[0], ratio, views, CPU) - 1.5


def test_what_cannot_be_combined_is_one_message() -> None:
    still = Scene(Gaussians.from_splats(ball()))
    features = moving_scene(POLYNOMIAL, features=True)
    for scene, wrong, message in (
        (
            still,
            overlay("learned_motion_mask"),
            "motion_mask: expected none for a scene whose Gaussians",
        ),
        (
            features,
            overlay("elastic_file"),
            "quantization: expected uniform or none for a scene with",
        ),
        (features, overlay("uniform", "learned_mask"), "sh_mask: expected none for a scene with harmonics"),
    ):
        with pytest.raises(InputError, match=message):
            make_small(model_of_scene(scene), wrong, [], FRAME, partial(view_loss, scene))
    for name, value in {"motion_target": 1.0, "motion_threshold": -1.0}.items():
        with pytest.raises(InputError, match=f"model.compression.{name}: expected"):
            Compression(**{name: value})  # type: ignore[arg-type]


# -- the stage, as users run it ------------------------------------------------------------------------

STAGES = (
    "--model.reconstruction_steps=12",
    "--model.elastic_training.steps=4",
    "--model.compression_training.steps=6",
    "--model.compression.psnr_loss=0.2",
    "--model.elastic_training.ratio_range=[0.1,1.0]",
    "--model.elastic.residual_anchors=[0.3]",
    "--model.learning_rates.motion=0.01",
    "--model.densification.start_step=1000",
    "--importance_refresh.every_n_steps=4",
    "--elastic_validation.ratios=[0.3]",
    "--checkpoint.every_n_steps=2",
    "--checkpoint.keep=true",
    "--trainer.val_check_interval=22",
)


def test_the_stage_trains_resumes_and_becomes_a_file(
    ball_capture: Capture,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = FlexGSCLI(options(tmp_path / "whole", *STAGES))
    folder = run.run_folder / "checkpoints"
    last = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    for step in (16, 18):  # where the stage begins, and within
        copy = tmp_path / f"{step}.ckpt"
        shutil.copy(folder / f"step_{step}.ckpt", copy)
        again = FlexGSCLI(
            options(tmp_path / str(step), *STAGES, f"--ckpt_path={copy}", "--test_after_fit=false")
        )
        found = torch.load(again.run_folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert found.keys() == last.keys()
        assert all(torch.equal(found[name], value) for name, value in last.items())

    model = load(folder / "last.ckpt")
    views = read_views(capture().test_views, (0.0, 0.0, 0.0))
    rounded = [psnr(rasterize(model.at(1.0, v.time), v.camera).image, v.photo).item() for v in views]
    tested = float(run.trainer.callback_metrics["test/psnr"])
    assert tested == pytest.approx(np.mean(rounded), abs=0.05), "tests draw what is rounded"
    part = trained_quantization(model.scene)
    assert part is not None
    assert list(model.scene.parts) == ["residuals", "quantization", "lifespan", "motion"]

    monkeypatch.setattr(compressing, "open_capture", lambda data: capture())
    film = tmp_path / "ball.egs"
    compressing.compress(film, [folder / "last.ckpt"], device="cpu")
    plan = trained_plan(arrays_of(model), part)
    assert np.array_equal(open_film(film).front.groups, 1)
    (group,) = read_film(film).groups
    assert np.array_equal(group.levels[-1].values, encode(plan, plan.rule).decoded.levels[-1].values)
    for ratio in (0.3, 1.0):
        whole = np.mean([psnr(rasterize(model.at(ratio, v.time), v.camera).image, v.photo) for v in views])
        assert abs(mean_psnr(group, ratio, views, CPU) - whole) < 1
