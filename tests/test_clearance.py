"""Camera clearance: what the SfM points say, what is inside, and that files come out clean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from densification_scene import Scene, started
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_processes import run, scene

from flexgs_lightning import load
from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import MAX_POINTS_TRIED, Capture, Points, View
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.data.images import ImageFile
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, read_checkpoint
from flexgs_lightning.training.clearance import (
    SURFACE_POINTS,
    CameraClearance,
    ClearSpace,
    clear_space,
    nearest_observed,
)
from flexgs_lightning.training.densification import MCMC, AdaptiveDensityControl, Densification

# -- what the SfM points say -----------------------------------------------------------------------------

NOWHERE = ImageFile(Path("nowhere.png"), (64, 48), False)


def camera(center: tuple[float, float, float]) -> Cameras:
    """A camera of 64x48 pixels that looks along +z."""
    viewmat = torch.eye(4)
    viewmat[:3, 3] = -torch.tensor(center)
    K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    return Cameras(viewmat[None], K[None], 64, 48)


def wall(depth: float, count: int = 1000) -> torch.Tensor:
    """Points on a wall across the z axis."""
    draw = torch.Generator().manual_seed(count)
    return torch.cat([torch.rand(count, 2, generator=draw) - 0.5, torch.full((count, 1), depth)], dim=1)


def capture(
    points: torch.Tensor, views: list[tuple[tuple[float, float, float], torch.Tensor | None]]
) -> Capture:
    """Views at places, with the rows of the points that each observes; all of them train."""
    colors = torch.zeros(len(points), 3, dtype=torch.uint8)
    return Capture(
        "walls",
        tuple(View(f"{i}.png", camera(place), NOWHERE, seen) for i, (place, seen) in enumerate(views)),
        Points(points, colors),
        "none",
        test_every=0,
    )


def test_observations_are_those_of_the_tracks(small_capture: Path, tmp_path: Path) -> None:
    """In the rows of the capture's points, binary and text."""
    model = pycolmap.Reconstruction(str(small_capture / "sparse" / "0"))
    text = tmp_path / "text"
    (text / "sparse" / "0").mkdir(parents=True)
    (text / "images").symlink_to(small_capture / "images")
    model.write_text(str(text / "sparse" / "0"))
    rows = {number: row for row, number in enumerate(sorted(model.points3D))}
    expected: dict[str, set[int]] = {image.name: set() for image in model.images.values()}
    for number, point in model.points3D.items():
        for element in point.track.elements:
            expected[model.images[element.image_id].name].add(rows[number])
    for root in (small_capture, text):
        found = {view.name: view.observed for view in read_colmap(root).views}
        assert {name: set(seen.tolist()) for name, seen in found.items() if seen is not None} == expected


def test_nearest_observed_is_the_nearest_view_s_and_leaves_mismatches_out() -> None:
    points = torch.cat([wall(4.0), torch.tensor([[0.0, 0, 0.1]] * 9)])
    everything = torch.arange(1009, dtype=torch.int32)
    far = capture(points, [((0.0, 0.0, 0.0), everything)])
    assert nearest_observed(far, 0.01) == pytest.approx(4.0, abs=0.01)  # 9 of 1009 are left out
    assert nearest_observed(far, 0.0) == pytest.approx(0.1)
    close_up = ((0.0, 0.0, 3.5), everything[:50])  # of few observations
    many = capture(points, [((0.0, 0.0, 0.0), everything)] * 40 + [close_up])
    assert nearest_observed(many, 0.01) == pytest.approx(0.5, abs=0.02)


def test_held_out_views_do_not_count() -> None:
    points = wall(4.0)
    everything = torch.arange(len(points), dtype=torch.int32)
    places = [((0.0, 0.0, 3.0), everything), *[((0.1 * i, 0.0, 0.0), everything) for i in range(3)]]
    held_out = Capture(
        **{**vars(capture(points, places)), "test_every": 4}  # the first is held out
    )
    space = clear_space(held_out, CameraClearance(share=0.5))
    assert space is not None
    torch.testing.assert_close(space.centers, torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]]))
    assert float(space.radii.max()) == pytest.approx(2.0, abs=0.02)


def test_a_stated_near_plane_clears_pyramids() -> None:
    """Inside is what the image with its margin shows, nearer than the plane; beside it a wall may stand."""
    found = capture(wall(4.0), [((0.0, 0.0, 0.0), None), ((1.5, 0.0, 0.0), None)]).with_near_plane(1.0)
    space = clear_space(found, CameraClearance(share=0.01))
    assert space is not None
    draw = torch.Generator().manual_seed(0)
    means = 6 * torch.rand(20_000, 3, generator=draw) - 3
    expected = torch.zeros(len(means), dtype=torch.bool)
    for view in found.views:
        x, y, z = (means - view.camera.positions).double().unbind(dim=1)
        width, height = 64 / 50 * z, 48 / 50 * z  # of the image at that depth; the centre is its middle
        shown = (x.abs() <= 0.65 * width) & (y.abs() <= 0.65 * height)
        near = (means - view.camera.positions).norm(dim=1) < 0.01 * 4.5
        expected |= (z > 0) & (z < 1.0) & shown | near
    assert torch.equal(space.contains(means), expected)
    assert 100 < expected.sum() < 1000
    without = clear_space(found.with_near_plane(0.01), CameraClearance(share=0.01))
    assert without is not None
    assert not without.contains(means).any()


def test_what_is_before_the_near_plane_is_not_observed() -> None:
    """Points on a camera's own housing would leave it no space."""
    points = torch.cat([wall(4.0), wall(0.04, 30) * 0.05 + torch.tensor([0.0, 0.0, 0.038])])
    found = capture(points, [((0.0, 0.0, 0.0), None)])
    assert nearest_observed(found, 0.01) == pytest.approx(0.04, abs=0.01)
    assert nearest_observed(found.with_near_plane(1.0), 0.01) == pytest.approx(4.0, abs=0.01)


def test_space_around_held_out_cameras_is_asked_for() -> None:
    places = [((0.0, 0.0, 0.0), None), *[((2.0 + i, 0.0, 0.0), None) for i in range(3)]]
    held_out = Capture(**{**vars(capture(wall(4.0), places)), "test_every": 4}).with_near_plane(1.0)
    in_front = torch.tensor([[0.0, 0.0, 0.5], [2.0, 0.0, 0.5]])
    for asked, expected in ((False, [False, True]), (True, [True, True])):
        space = clear_space(held_out, CameraClearance(share=0.01, held_out=asked))
        assert space is not None
        assert space.contains(in_front).tolist() == expected


@pytest.mark.parametrize("observed", [None, torch.zeros(0, dtype=torch.int32)])
def test_without_observations_points_inside_the_image_count(observed: torch.Tensor | None) -> None:
    beside = wall(1.0) + torch.tensor([5.0, 0, 0])
    behind = wall(-1.5)
    found = capture(torch.cat([beside, wall(4.0), behind]), [((0.0, 0.0, 0.0), observed)])
    seen = found.points_seen(found.views[0])
    torch.testing.assert_close(seen, wall(4.0))
    assert nearest_observed(found, 0.01) == pytest.approx(4.0, abs=0.01)


def test_many_points_without_observations_are_thinned() -> None:
    found = capture(wall(4.0, 3 * MAX_POINTS_TRIED - 7), [((0.0, 0.0, 0.0), None)])
    assert 0.9 * MAX_POINTS_TRIED < len(found.points_seen(found.views[0])) <= MAX_POINTS_TRIED


def test_a_surface_behind_the_camera_keeps_its_room() -> None:
    """A photographer with the back to a wall that other cameras show."""
    behind = wall(-0.6)
    points = torch.cat([wall(4.0), behind])
    seen = torch.arange(1000, dtype=torch.int32)
    space = clear_space(
        capture(points, [((0.0, 0.0, 0.0), seen), ((9.0, 0.0, 0.0), seen)]), CameraClearance()
    )
    assert space is not None
    assert not space.contains(behind).any()
    assert float(space.radii[0]) == pytest.approx(0.8 * 0.6, abs=0.01)
    assert float(space.radii[1]) > 3.1  # the other camera keeps its own
    few = torch.cat([wall(4.0), behind[: SURFACE_POINTS - 1]])  # mismatches are no surface
    space = clear_space(capture(few, [((0.0, 0.0, 0.0), seen)]), CameraClearance())
    assert space is not None
    assert space.contains(behind).all()


def test_off_without_points_and_when_asked_to_be() -> None:
    seen = torch.arange(1000, dtype=torch.int32)
    assert clear_space(capture(wall(4.0), [((0.0, 0.0, 0.0), seen)]), CameraClearance(share=0)) is None
    nothing = capture(torch.zeros(0, 3), [((0.0, 0.0, 0.0), None)])
    assert clear_space(nothing, CameraClearance()) is None
    unseen = capture(wall(-4.0), [((0.0, 0.0, 0.0), None)])
    assert nearest_observed(unseen, 0.01) == float("inf")


@pytest.mark.parametrize(
    ("option", "value"), [("share", -0.1), ("share", 1.0), ("share", float("nan")), ("quantile", 1.5)]
)
def test_bad_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"model\.clearance\.{option}: expected .*found"):
        CameraClearance(**{option: value})


@pytest.mark.parametrize("name", ["fox", "bonsai", "gerrard_hall", "herz_jesus_p25", "llff_fern"])
def test_real_captures_have_hardly_a_point_inside(shared_data: Path, name: str) -> None:
    """What lies inside is no content: the SfM points of all captures at hand stay out of it."""
    found = read_colmap(shared_data / name, downscale=4)
    space = clear_space(found, CameraClearance())
    assert space is not None
    assert int(space.contains(found.points.positions).sum()) <= len(found.points) / 2000


# -- what is inside --------------------------------------------------------------------------------------


def inside_by_hand(space: ClearSpace, means: torch.Tensor) -> torch.Tensor:
    distances = (means.double()[:, None] - space.centers.double()).norm(dim=-1)
    return (distances < space.radii.double()).any(dim=1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_inside_is_what_float64_says(offset: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexgs_lightning.training.clearance.PAIRS_AT_ONCE", 1000)
    draw = torch.Generator().manual_seed(0)
    space = ClearSpace(
        torch.randn(70, 3, generator=draw) + offset, torch.rand(70, generator=draw) * 0.5 + 0.01
    )
    means = 2 * torch.randn(5000, 3, generator=draw) + offset
    found = space.contains(means.to(device))
    assert found.device.type == device
    expected = inside_by_hand(space, means)
    assert 0 < int(expected.sum()) < 2500
    assert torch.equal(found.cpu(), expected)


def test_what_is_not_finite_is_not_inside() -> None:
    space = ClearSpace(torch.zeros(1, 3), torch.ones(1))
    means = torch.tensor([[0.0, 0, 0], [float("nan"), 0, 0], [float("inf"), 0, 0], [0.0, 2, 0]])
    assert space.contains(means).tolist() == [True, False, False, False]
    assert space.contains(means[:0]).tolist() == []


def test_cameras_contain_what_they_project_into_their_image() -> None:
    draw = torch.Generator().manual_seed(0)
    cameras = Cameras.stack([camera((0.0, 0.0, 0.0)), camera((1.0, -1.0, 2.0))])
    points = 4 * torch.randn(500, 3, generator=draw)
    for one, found in zip(cameras, cameras.contain(points), strict=True):
        x, y, z = (points @ one.viewmats[0, :3, :3].T + one.viewmats[0, :3, 3]).double().numpy().T
        column, row = 50 * x / z + 32, 50 * y / z + 24
        expected = (z > 0) & (column >= 0) & (column < 64) & (row >= 0) & (row < 48)
        assert 10 < expected.sum() < 250
        np.testing.assert_array_equal(found.numpy(), expected)


# -- density control -------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [AdaptiveDensityControl, MCMC])
def test_a_refinement_clears_the_space_and_says_so(control: type[Densification]) -> None:
    built = Scene(count=60)
    space = ClearSpace(torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([0.8]))
    inside = space.contains(built.params["means"])
    assert 5 < int(inside.sum()) < 50
    density = started(control(start_step=2, every=10), built, total=30, clear_space=space)
    reports = built.train(density, range(9))
    assert not reports
    assert len(built.gaussians) == 60
    (report,) = built.train(density, range(9, 10))
    assert report.too_close >= int(inside.sum()) - 3  # a few were pruned for their opacity before
    assert report.count == len(built.gaussians)
    assert not space.contains(built.params["means"]).any()
    built.check_consistent()
    assert density.state_dict()["too_close"] == report.too_close


def test_a_space_that_holds_everything_stops_the_training() -> None:
    built = Scene()
    everywhere = ClearSpace(torch.zeros(1, 3), torch.tensor([100.0]))
    control = AdaptiveDensityControl(start_step=2, every=10)
    density = started(control, built, total=30, clear_space=everywhere)
    with pytest.raises(InputError, match=r"model\.clearance"):
        built.train(density, range(10))


# -- trainings -------------------------------------------------------------------------------------------

STEPS, REFINED = 60, 20
HELD_OUT = 9
"""A view with a training camera beside it, where every third view is held out."""
FLOATERS = 8


@pytest.fixture(scope="module")
def hazy_capture(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small capture with a few points just in front of a held-out camera, as a bad match leaves them."""
    root = tmp_path_factory.mktemp("captures") / "hazy"
    (root / "sparse" / "0").mkdir(parents=True)
    (root / "images").symlink_to(small_capture / "images")
    model = pycolmap.Reconstruction(str(small_capture / "sparse" / "0"))
    viewmat = read_colmap(small_capture).views[HELD_OUT].camera.viewmats[0].double()
    spots = [((i % 3 - 1) * 0.01, (i // 3 - 1) * 0.01, 0.03 + 0.002 * i) for i in range(FLOATERS)]
    for spot in spots:
        world = viewmat[:3, :3].T @ (torch.tensor(spot).double() - viewmat[:3, 3])
        model.add_point3D(world.numpy(), pycolmap.Track(), np.array([250, 20, 250], np.uint8))
    model.write_binary(str(root / "sparse" / "0"))
    return root


def arguments(root: Path, runs: Path, *extra: str) -> list[str]:
    # Nothing grows: splits draw at random, and what one draws changes with the number of Gaussians.
    dense = {"start_step": 10, "stop_step": 60, "every": REFINED, "grow_grad2d": 1000}
    return [
        "fit",
        f"--data.root={root}",
        f"--runs={runs}",
        "--data.test_every=3",
        f"--model.reconstruction_steps={STEPS}",
        "--model.initialization.opacity=0.5",
        "--model.lpips=none",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        *(f"--model.densification.{name}={value}" for name, value in dense.items()),
        *extra,
    ]


OFF = "--model.clearance.share=0"


@pytest.fixture(scope="module")
def hazy(hazy_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a training without clearance."""
    return FlexGSCLI(arguments(hazy_capture, tmp_path_factory.mktemp("hazy"), OFF)).run_folder


@pytest.fixture(scope="module")
def clear(hazy_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a training with clearance, as by default."""
    keep = ("--checkpoint.every_n_steps=15", "--checkpoint.keep=true")
    return FlexGSCLI(arguments(hazy_capture, tmp_path_factory.mktemp("clear"), *keep)).run_folder


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def intruders(root: Path, checkpoint: Path) -> int:
    """Gaussians of a checkpoint that lie in the capture's clear space."""
    space = clear_space(read_colmap(root, test_every=3), CameraClearance())
    assert space is not None
    return int(space.contains(load(checkpoint).splats().means).sum())


def psnr(folder: Path) -> dict[str, float]:
    return {
        image["name"]: image["psnr"] for image in json.loads((folder / "metrics.json").read_text())["images"]
    }


def removed(folder: Path) -> dict[int, float]:
    """What TensorBoard shows, by iteration: the last refinement's number until the next one's."""
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars("densification/too_close") if event.value}


def test_floaters_before_a_held_out_camera_are_removed(hazy_capture: Path, hazy: Path, clear: Path) -> None:
    assert intruders(hazy_capture, last(hazy)) >= FLOATERS
    assert intruders(hazy_capture, last(clear)) == 0
    assert min(removed(clear)) == REFINED
    too_close = read_checkpoint(last(clear))[CHECKPOINT_KEY]["densification"]["too_close"]
    assert FLOATERS <= too_close <= FLOATERS + 2, "hardly any of the scene itself"
    before, after = psnr(hazy), psnr(clear)
    worst = read_colmap(hazy_capture).views[HELD_OUT].name
    assert after[worst] > before[worst] + 2.5, f"{before[worst]:.2f} -> {after[worst]:.2f} dB"
    others = [abs(after[name] - before[name]) for name in before if name != worst]
    assert max(others) < 0.05


def test_a_resumed_run_equals_the_uninterrupted_one(hazy_capture: Path, clear: Path, tmp_path: Path) -> None:
    """Before the removal and after it; what was removed in all is not forgotten."""
    for step in (15, 30):
        copy = tmp_path / f"step_{step}.ckpt"
        copy.write_bytes((clear / "checkpoints" / copy.name).read_bytes())
        resumed = FlexGSCLI(arguments(hazy_capture, tmp_path / str(step), f"--ckpt_path={copy}")).run_folder
        expected, found = scene(last(clear)), scene(last(resumed))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_second_stage_starts_clean(hazy_capture: Path, hazy: Path, tmp_path: Path) -> None:
    options = ("--model.elastic_training.steps=2", f"--start_from={last(hazy)}")
    cli = FlexGSCLI(arguments(hazy_capture, tmp_path, *options, "--model.reconstruction_steps=0"))
    lost = len(load(last(hazy))) - len(load(last(cli.run_folder)))
    assert lost == intruders(hazy_capture, last(hazy))
    assert removed(cli.run_folder) == {0: lost}
    assert intruders(hazy_capture, last(cli.run_folder)) == 0
    worst = read_colmap(hazy_capture).views[HELD_OUT].name
    assert psnr(cli.run_folder)[worst] > psnr(hazy)[worst] + 2.5


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_processes_clear_alike(hazy_capture: Path, tmp_path: Path, strategy: str) -> None:
    options = (f"--trainer.strategy={strategy}", "--replica_check.every_n_steps=1")
    options = (*options, "--model.elastic_training.steps=2", "--model.densification.grow_grad2d=0.0002")
    for outcome in run(2, arguments(hazy_capture, tmp_path, *options), tmp_path / "logs"):
        assert outcome.status == 0, outcome.errors
    folder = tmp_path / "hazy" / "version_0"
    assert intruders(hazy_capture, last(folder)) == 0
    assert removed(folder)[REFINED] >= FLOATERS


def test_a_capture_without_points_trains_without_a_limit(small_capture: Path, tmp_path: Path) -> None:
    root = tmp_path / "pointless"
    (root / "sparse" / "0").mkdir(parents=True)
    (root / "images").symlink_to(small_capture / "images")
    model = pycolmap.Reconstruction(str(small_capture / "sparse" / "0"))
    model.delete_all_points2D_and_points3D()
    model.write_binary(str(root / "sparse" / "0"))
    few = "--model.initialization.random_gaussians=500"
    cli = FlexGSCLI(arguments(root, tmp_path / "runs", few))
    assert cli.model.clear_space is None
    assert removed(cli.run_folder) == {}
