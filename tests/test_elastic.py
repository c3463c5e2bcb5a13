"""Elastic models: nested exact prefixes, equality of masked and selected renders, the two-stage training."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_scene import around, ball

from flexgs_lightning import load, rasterize
from flexgs_lightning.deploy.formats.ply import read_ply, write_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.attributes import ATTRIBUTES
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.selection import Ordered
from flexgs_lightning.model.selector import rank
from flexgs_lightning.model.surgery import Surgery
from flexgs_lightning.rendering.importance import blending_importance
from flexgs_lightning.splats import Splats
from flexgs_lightning.training.elastic import ElasticTraining
from flexgs_lightning.training.elastic.losses import field_regularization
from flexgs_lightning.training.elastic.stage import Iteration, descend, elastic_optimizer
from flexgs_lightning.training.elastic.subset import Subset
from flexgs_lightning.training.losses import Parts

ALL_PARTS = ElasticOptions(
    residual_anchors=(0.1, 0.3),
    field_heads=("means", "scales", "quats", "opacities", "sh"),
    field_resolution=8,
)
UNITS = {"means": 0.01, "quats": 0.01, "scales": 0.02, "opacities": 0.1, "sh": 0.05}
RATIOS = (0.02, 0.05, 0.11, 0.29, 0.5, 0.999, 1.0)


def elastic(selection: str = "ordered", *, parts: ElasticOptions = ALL_PARTS, count: int = 100) -> Scene:
    torch.manual_seed(3)
    if selection == "gsnet":
        parts = replace(parts, selection="gsnet", residual_anchors=())
    gaussians, frame = Gaussians.from_splats(ball()[:count]), SceneFrame(torch.zeros(3), 2.0)
    return elastic_scene(gaussians, frame, parts, UNITS)


def descended(model: Scene, options: ElasticTraining, step: int, photometric: Any) -> tuple[float, Parts]:
    loss, parts = descend(model, options, Iteration(step, photometric, torch.Tensor.backward))
    return loss.item(), parts


def perturbed(model: Scene) -> Scene:
    """As if trained: no displacement is zero any more."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("gaussians"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def same(a: Splats, b: Splats, atol: float = 0.0) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Splats)]
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in pairs)


@pytest.mark.parametrize("selection", ["ordered", "gsnet"])
def test_construction_changes_no_image(selection: str) -> None:
    model = elastic(selection).eval()
    order = model.ranking()
    plain = model.gaussians.splats()
    for ratio in RATIOS:
        splats = model.at(ratio)
        expected = plain[order[: len(splats)]] if ratio < 1 else plain
        assert torch.equal(splats.means, expected.means)
        cameras = around(2)
        assert torch.allclose(rasterize(splats, cameras).image, rasterize(expected, cameras).image, atol=1e-6)


@pytest.mark.parametrize("selection", ["ordered", "gsnet"])
def test_every_ratio_is_an_exact_deterministic_prefix_of_one_ranking(selection: str) -> None:
    model = perturbed(elastic(selection))
    order = model.ranking().tolist()
    assert sorted(order) == list(range(100))
    for ratio in RATIOS:
        splats = model.at(ratio)
        assert len(splats) == int(ratio * 100 + 1e-9)
        assert same(splats, model.at(ratio))
    before = {ratio: model.at(ratio) for ratio in RATIOS}
    model.sort()
    assert isinstance(model.selection, Ordered)
    for ratio in RATIOS:
        if selection == "ordered":
            assert same(model.at(ratio), before[ratio], atol=1e-6)
    assert model.ranking().tolist() == list(range(100))


@pytest.mark.parametrize("selection", ["ordered", "gsnet"])
def test_gradients_of_a_step_are_those_of_one_graph(selection: str) -> None:
    """Each render goes backward by itself, and a prefix's gradients are added to its rows."""
    model = perturbed(elastic(selection))
    cameras, photos = around(2), torch.rand(2, 30, 40, 3, generator=torch.Generator().manual_seed(3))

    def photometric(splats: Splats) -> torch.Tensor:
        return (rasterize(splats, cameras).image - photos).square().sum()

    options = ElasticTraining(
        sampling="list", ratios=(0.3, 0.05), importance_weight=0.0, sparsity_weight=0.0, full_weight=0.6
    )
    torch.manual_seed(7)
    loss, _ = descended(model, options, 0, photometric)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(7)
    whole = 0.6 * photometric(model.at(1.0))
    for ratio in (0.3, 0.05):
        if selection == "ordered":
            whole = whole + 0.2 * photometric(model.at(ratio))
        else:
            whole = whole + 0.2 * photometric(Subset(model, ratio, 1.0).splats)
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].norm().clamp_min(1e-6)
        assert (found[name] - expected[name]).norm() / scale < 1e-5, name


def test_the_full_model_is_never_displaced() -> None:
    model = perturbed(elastic())
    assert same(model.at(1.0), model.gaussians.splats())
    assert not same(model.at(0.29), model.gaussians.splats()[:29], atol=1e-3)


@pytest.mark.parametrize("parts", [ALL_PARTS, ElasticOptions(residual_anchors=())])
def test_drawing_the_selected_equals_drawing_all_masked(parts: ElasticOptions) -> None:
    """The same image and the same gradients, of the Gaussians, the selector and the field."""
    ratio = 0.3
    model = perturbed(elastic("gsnet", parts=parts)).train()

    def gradients(image: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (image - 0.3).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    torch.manual_seed(11)
    subset = Subset(model, ratio, 1.0)
    splats = subset.splats
    assert 5 < len(splats) < 95
    drawn = rasterize(splats, around(2)).image
    found = gradients(drawn)

    torch.manual_seed(11)
    params = model.gaussians.params
    network = model.selection.network
    logits = network.logits(params["means"], params["scales"], params["quats"], ratio)
    mask = network.sample(logits, 1.0).mask
    full = model.drawn(len(model), Conditions(ratio))
    splats = Splats(full.means, full.quats, full.scales, full.opacities * mask, full.sh)
    everything = rasterize(splats, around(2)).image
    expected = gradients(everything)

    assert torch.allclose(drawn, everything, atol=1e-7)
    assert found.keys() == expected.keys()
    assert any(name.startswith("selection") for name in found)
    for name in found:
        scale = expected[name].norm().clamp_min(1e-12)
        assert (found[name] - expected[name]).norm() / scale < 1e-5, name


def test_a_mask_that_selects_nothing_falls_back_to_the_most_likely_gaussian() -> None:
    model = elastic("gsnet")
    with torch.no_grad():
        model.selection.network.mix_ratio.bias.copy_(torch.tensor([500.0, -500.0]))
    subset = Subset(model, 0.1, 1.0)
    assert len(subset.splats) == 1
    assert subset.mask.sum() == 1


def test_residual_tables_hold_rows_for_their_prefix_only_and_fade_out() -> None:
    residuals = RatioResiduals(1000, (0.01, 0.1), UNITS)
    assert [len(table) for table in residuals.tables] == [10, 100]
    assert residuals.weights(0.005) == [1.0, 1.0]
    assert residuals.weights(0.01) == pytest.approx([1.0, 1.0])
    assert residuals.weights(0.01 * 10**0.5) == pytest.approx([0.5, 1.0])
    assert residuals.weights(0.1) == pytest.approx([0.0, 1.0])
    assert residuals.weights(1.0) == pytest.approx([0.0, 0.0])
    with torch.no_grad():
        residuals.tables[1].fill_(1.0)
    change = residuals.displacements(200, 0.2)["means"]
    weight = residuals.weights(0.2)[1]
    assert torch.allclose(change[:100], torch.tensor(0.01 * weight))
    assert torch.equal(change[100:], torch.zeros(100, 3))


def test_residuals_follow_their_gaussian_through_a_new_ranking() -> None:
    residuals = RatioResiduals(100, (0.1,), UNITS)
    with torch.no_grad():
        residuals.tables[0].copy_(torch.arange(10.0)[:, None].expand(10, 14) + 1)
    order = torch.arange(100)
    order[[0, 3, 50, 60]] = torch.tensor([3, 50, 60, 0])
    Surgery(Scene(Gaussians.from_splats(ball()[:100]), parts={"r": residuals}, elastic=True)).permute(order)
    rows = residuals.tables[0][:, 0].tolist()
    assert rows == [4, 2, 3, 0, 5, 6, 7, 8, 9, 10]


def test_residuals_need_a_ranking_that_holds_still() -> None:
    with pytest.raises(InputError, match=r"residual_anchors: expected \[\] with gsnet"):
        ElasticOptions(selection="gsnet")


@pytest.mark.parametrize("anchors", [(), (0.3, 0.1), (0.1, 0.1), (0.0, 0.5), (0.5, 1.0)])
def test_impossible_anchors_are_refused(anchors: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="ascending ratios"):
        RatioResiduals(10, anchors, UNITS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ratios", (0.5, 1.5)),
        ("ratios", ()),
        ("ratio_range", (0.5, 0.1)),
        ("prefixes", 0),
        ("steps", -1),
        ("ratio_smoothness", -1.0),
    ],
)
def test_impossible_training_options_are_named(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"elastic_training.{option}"):
        ElasticTraining(**{option: value})


def test_ratios_are_log_uniform_or_go_round_the_list() -> None:
    torch.manual_seed(0)
    options = ElasticTraining(ratio_range=(0.01, 1.0), prefixes=1)
    logs = torch.tensor([options.draw_ratios(step)[0] for step in range(4000)]).log10()
    assert (logs >= -2).all()
    assert (logs <= 0).all()
    histogram = torch.histc(logs, 8, -2, 0) / 500
    assert (histogram - 1).abs().max() < 0.2
    cycled = ElasticTraining(sampling="list", ratios=(0.1, 0.2, 0.3), prefixes=1)
    assert [cycled.draw_ratios(step)[0] for step in range(4)] == [0.1, 0.2, 0.3, 0.1]
    pair = ElasticTraining(prefixes=2).draw_ratios(0)
    assert pair[0] < 0.1 <= pair[1]


def test_the_loss_weighs_subset_and_full_as_stated() -> None:
    model = elastic()
    photometric = lambda splats: torch.tensor(float(len(splats)))  # noqa: E731
    options = ElasticTraining(sampling="list", ratios=(0.1,), full_weight=0.25, prefixes=2, full_every=3)
    loss, parts = descended(model, options, 0, photometric)
    assert loss == pytest.approx(0.75 * 10 + 0.25 * 100)
    assert parts["selected"] == pytest.approx(0.1)
    loss, parts = descended(model, options, 1, photometric)
    assert loss == pytest.approx(0.75 * 10)
    assert "full_loss" not in parts


def test_the_field_is_regularised_by_what_is_asked_for() -> None:
    model = perturbed(elastic())
    photometric = lambda splats: torch.zeros(())  # noqa: E731
    weights = {"plane_variation": 2.0, "ratio_smoothness": 3.0, "ratio_deviation": 5.0}
    loss, parts = descended(model, ElasticTraining(**weights), 0, photometric)
    field = model.parts["field"]
    terms = (field.total_variation(), field.ratio_smoothness(), field.ratio_deviation())
    assert all(term > 0.01 for term in terms)
    assert loss == pytest.approx(sum(w * t.item() for w, t in zip((2, 3, 5), terms, strict=True)))
    assert parts["field_ratio_smoothness"].item() == pytest.approx(terms[1].item())
    loss, parts = descended(model, ElasticTraining(), 0, photometric)
    assert loss == 0
    assert not any(name.startswith("field") for name in parts)


def test_smoothness_carries_a_list_of_ratios_to_those_between() -> None:
    """Ratio planes that were taught at both ends become a ramp, which no image asked for."""
    model = elastic()
    options = ElasticTraining(ratio_smoothness=1.0)
    field = model.parts["field"]
    planes = list(field.ratio_planes)
    optimizer = torch.optim.Adam(planes, lr=0.02)
    for _ in range(400):
        loss = 1e-3 * field_regularization(field, options, {})
        loss = loss + sum(
            (plane[:, :, 0] - 2.0).square().sum() + plane[:, :, -1].square().sum() for plane in planes
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for plane in planes:
        ramp = torch.linspace(2.0, 0.0, plane.shape[2])[:, None].expand_as(plane)
        assert (plane - ramp).abs().max() < 0.2


@pytest.mark.parametrize(("times_extent", "factor"), [(False, 1.0), (True, 4.0)])
def test_rates_of_the_networks_follow_the_extent_if_asked_for(times_extent: bool, factor: float) -> None:
    options = ElasticTraining(rates_times_extent=times_extent, grid_rate=0.1, network_rate=0.01)
    optimizer = elastic_optimizer(elastic(), options, extent=4.0)
    assert optimizer is not None
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["residuals"] == options.residual_rate
    assert rates["field_planes"] == pytest.approx(0.1 * factor)
    assert rates["field_layers"] == pytest.approx(0.01 * factor)


# -- the two stages together ---------------------------------------------------------------------------------

STAGE = 30


def arguments(capture: Path, runs: Path, *extra: str) -> list[str]:
    return [
        "fit",
        f"--data.root={capture}",
        f"--runs={runs}",
        f"--model.reconstruction_steps={STAGE}",
        f"--model.elastic_training.steps={STAGE}",
        "--model.sh_degree_interval=10",
        "--model.elastic.field_heads=[means,scales,quats]",
        "--model.elastic.field_resolution=8",
        "--model.lpips=none",
        "--importance_refresh.every_n_steps=10",
        "--temperature.end=0.5",
        "--elastic_validation.ratios=[0.02,0.1,0.5]",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        *extra,
    ]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("selection", ["ordered", "gsnet"])
def test_resuming_in_either_stage_equals_the_uninterrupted_run(
    selection: str, small_capture: Path, tmp_path: Path
) -> None:
    """Also at the boundary of the stages and at a refresh of the ranking."""
    choice = (f"--model.elastic.selection={selection}",)
    if selection == "gsnet":
        choice += ("--model.elastic.residual_anchors=[]",)
    keep = ("--checkpoint.keep=true", "--checkpoint.every_n_steps=1")
    whole = FlexGSCLI(arguments(small_capture, tmp_path / "whole", *choice, *keep))
    expected = state(whole.run_folder)
    assert whole.trainer.global_step == 2 * STAGE
    for stop in (STAGE, STAGE + 1, STAGE + 10):
        folder = shutil.copytree(whole.run_folder, tmp_path / str(stop) / "version_0")
        checkpoint = folder / "checkpoints" / f"step_{stop}.ckpt"
        second = FlexGSCLI(
            arguments(small_capture, tmp_path / str(stop), *choice, f"--ckpt_path={checkpoint}")
        )
        assert second.run_folder == folder
        found = state(second.run_folder)
        assert found.keys() == expected.keys()
        for name in expected:
            assert torch.equal(found[name], expected[name]), (stop, name)


@pytest.fixture(scope="module")
def trained(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> FlexGSCLI:
    runs = tmp_path_factory.mktemp("elastic")
    steps = ("--model.reconstruction_steps=300", "--model.elastic_training.steps=300")
    keep = ("--checkpoint.keep=true", "--checkpoint.every_n_steps=300")
    return FlexGSCLI(arguments(small_capture, runs, *steps, *keep, "--importance_refresh.every_n_steps=100"))


def test_elastic_training_makes_small_prefixes_better_than_pruning(trained: FlexGSCLI) -> None:
    model = load(trained.run_folder / "checkpoints" / "last.ckpt")
    views = trained.datamodule.capture.train_views  # 14 views are too few to expect much of others
    photos = [torch.from_numpy(view.source.read()).float()[None] / 255 for view in views]

    def psnr(splats: Splats) -> float:
        errors = [
            (rasterize(splats, view.camera).image.clamp(0, 1) - photo).square().mean()
            for view, photo in zip(views, photos, strict=True)
        ]
        return float((-10 * torch.stack(errors).log10()).mean())

    first_stage = load(trained.run_folder / "checkpoints" / "step_300.ckpt").splats()
    order = rank(blending_importance(first_stage, [view.camera for view in views]))
    pruned = psnr(first_stage[order[: len(model) // 10]])
    assert psnr(model.at(0.1)) > pruned + 1.5
    assert psnr(model.at(1.0)) > psnr(model.at(0.1)) > psnr(model.at(0.02))


def test_a_loaded_model_draws_within_any_budget(trained: FlexGSCLI, tmp_path: Path) -> None:
    model = load(trained.run_folder / "checkpoints" / "last.ckpt")
    assert model.elastic
    assert len(model.at(0.073)) == int(0.073 * len(model))
    assert len(model.at(max_gaussians=77)) == 77
    assert len(model.at(max_gaussians=10**9)) == len(model)
    splats = model.at(max_megabytes=0.1)
    path = tmp_path / "scene.ply"
    write_ply(splats, path)
    one = (path.stat().st_size - 2000) / len(splats)
    assert 0.1e6 - 2 * one - 2048 < path.stat().st_size <= 0.1e6
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        model.at(1.5)
    with pytest.raises(InputError, match="exactly one"):
        model.at(0.5, max_gaussians=3)
    with pytest.raises(InputError, match="no Gaussian"):
        model.at(max_megabytes=0.001)


def test_the_exported_subset_draws_as_the_model_does(trained: FlexGSCLI, tmp_path: Path) -> None:
    model = load(trained.run_folder / "checkpoints" / "last.ckpt")
    camera = trained.datamodule.capture.test_views[0].camera
    for ratio in (0.05, 1.0):
        write_ply(model.at(ratio), tmp_path / f"{ratio}.ply")
        exported = rasterize(read_ply(tmp_path / f"{ratio}.ply"), camera).image
        assert torch.allclose(exported, rasterize(model.at(ratio), camera).image, atol=1e-5)


def test_the_second_stage_starts_from_a_checkpoint_or_any_ply(
    trained: FlexGSCLI, small_capture: Path, tmp_path: Path
) -> None:
    checkpoint = trained.run_folder / "checkpoints" / "last.ckpt"
    splats = load(checkpoint).splats()
    ply = tmp_path / "flat.ply"
    write_ply(splats.with_sh_degree(0), ply)
    for name, path, degree in (("ckpt", checkpoint, 3), ("ply", ply, 3)):
        options = (
            "--model.reconstruction_steps=0",
            "--model.elastic_training.steps=2",
            f"--start_from={path}",
        )
        cli = FlexGSCLI(arguments(small_capture, tmp_path / name, *options))
        model = load(cli.run_folder / "checkpoints" / "last.ckpt")
        assert len(model) == len(splats)
        assert model.gaussians.sh_degree == degree
        full = cli.model.gaussians.splats()
        assert same(model.splats(), full), "all spherical harmonics, however short the stage"
        assert model.elastic


def test_a_first_stage_scene_is_not_elastic(small_capture: Path, tmp_path: Path) -> None:
    cli = FlexGSCLI(arguments(small_capture, tmp_path, "--model.elastic_training.steps=0"))
    model = load(cli.run_folder / "checkpoints" / "last.ckpt")
    assert not model.elastic
    assert len(model.at(1.0)) == len(model)
    with pytest.raises(InputError, match=r"expected 1, found 0\.5: the scene is not an elastic model"):
        model.at(0.5)


def test_no_steps_without_a_scene_to_start_from(small_capture: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--start_from"):
        FlexGSCLI(arguments(small_capture, tmp_path, "--model.reconstruction_steps=0"))


def test_names_of_parameters_are_the_checkpoints(trained: FlexGSCLI) -> None:
    names = set(state(trained.run_folder))
    assert {f"scene.gaussians.params.{name}" for name in ATTRIBUTES} <= names
    assert len({name for name in names if "params.means" in name}) == 1, "stored once"
