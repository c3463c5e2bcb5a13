"""Parts that move: where Gaussians are at a time, how opaque, and which are not drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation
from small_scene import around, ball

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.basis_motion import BasisMotion
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.elastic import ElasticOptions, elastic_scene
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.lifespan import Lifespan
from flexgs_lightning.model.motion import PolynomialMotion
from flexgs_lightning.model.moving import MotionOptions, moving_parts
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.training.optimization import LearningRates, residual_units

TIMES = (0.0, 0.31, 0.77, 1.0)


def moving(options: MotionOptions, seed: int = 1, count: int = 60) -> Scene:
    """A ball whose every number of motion is something."""
    scene = Scene(Gaussians.from_splats(ball()[:count]), parts=moving_parts(options))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("motion", "omega"):
            if name in scene.gaussians.params:
                scene.gaussians.params[name].copy_(
                    torch.randn(scene.gaussians.params[name].shape, generator=g)
                )
        if options.opacity == "varying":
            scene.gaussians.params["time_centers"].copy_(torch.rand(count, generator=g))
            scene.gaussians.params["time_scales"].copy_(torch.randn(count, generator=g) - 1.5)
    return scene.eval()


POLYNOMIAL = MotionOptions(path="polynomial", opacity="varying")


# -- the equations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_positions_rotations_and_opacities_are_the_published_ones(time: float, degree: int) -> None:
    scene = moving(replace(POLYNOMIAL, degree=degree))
    raw = {name: value.detach().double() for name, value in scene.gaussians.params.items()}
    d = time - raw["time_centers"]
    means = raw["means"] + sum(
        (raw["motion"][:, k] * d[:, None] ** (k + 1) for k in range(degree)), torch.zeros(3).double()
    )
    opacities = raw["opacities"].sigmoid() * torch.exp(-((d / raw["time_scales"].exp()) ** 2))
    drawn = scene.drawn(60, Conditions(time=time))
    torch.testing.assert_close(drawn.means.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(drawn.quats.double(), raw["quats"] + raw["omega"] * d[:, None])
    torch.testing.assert_close(drawn.opacities.double(), opacities, rtol=2e-5, atol=1e-7)


def test_without_centres_time_counts_from_the_middle() -> None:
    scene = moving(MotionOptions(path="polynomial"))
    assert "time_centers" not in scene.gaussians.params
    raw = scene.gaussians.params
    torch.testing.assert_close(scene.at(Conditions(time=0.5)).means, raw["means"])
    later = raw["means"] + 0.25 * raw["motion"][:, 0] + 0.0625 * raw["motion"][:, 1]
    torch.testing.assert_close(scene.at(Conditions(time=0.75)).means, later + 0.25**3 * raw["motion"][:, 2])
    assert len(scene.at(Conditions(time=0.75))) == 60


def test_gradients_are_those_of_finite_differences() -> None:
    """But for time centres, which learn from the opacity alone, as published."""
    scene, conditions = moving(POLYNOMIAL, count=5).double(), Conditions(time=0.4)
    names = ("means", "quats", "opacities", "motion", "omega", "time_scales")
    part = [scene.parts["lifespan"], scene.parts["motion"]]
    fixed = {name: value.detach() for name, value in scene.gaussians.params.items()}

    def drawn(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = {**fixed, **dict(zip(names, values, strict=True))}
        for each in part:
            rows = each(rows, 5, conditions)
        return rows["means"], rows["quats"], rows["opacities"]

    assert torch.autograd.gradcheck(drawn, [fixed[name].clone().requires_grad_() for name in names])

    center = fixed["time_centers"].clone().requires_grad_()

    def faded(center: torch.Tensor) -> torch.Tensor:
        return part[0]({**fixed, "time_centers": center}, 5, conditions)["opacities"]

    assert torch.autograd.gradcheck(faded, [center])
    moved = part[1]({**fixed, "time_centers": center}, 5, conditions)["means"]
    assert not moved.requires_grad


def splines(part: BasisMotion, time: float) -> tuple[np.ndarray, np.ndarray]:
    """The trajectories at a time, from scipy."""
    result = []
    for control in (part.translations, part.rotations):
        count = len(control)
        knots = np.arange(-3, count + 1) / (count - 3)
        result.append(BSpline(knots, control.detach().double().numpy(), 3)(time))
    return result[0], result[1]


def bases(rigid: bool, count: int = 4) -> Scene:
    options = MotionOptions(path="bases" if rigid else "free_bases", bases=count, knots=6)
    scene = Scene(Gaussians.from_splats(ball()[:60]), parts=moving_parts(options))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in (*scene.parts.parameters(), scene.gaussians.params["coefficients"]):
            parameter.normal_(std=0.5)
    return scene


@pytest.mark.parametrize("time", TIMES)
def test_rigid_bases_are_mixtures_of_motions_in_space(time: float) -> None:
    scene = bases(rigid=True)
    raw = {name: value.detach().double().numpy() for name, value in scene.gaussians.params.items()}
    translations, rotations = splines(scene.parts["motion"], time)
    weights = np.exp(raw["coefficients"])
    weights /= weights.sum(axis=1, keepdims=True)
    turns = Rotation.from_quat(weights @ rotations + [1, 0, 0, 0], scalar_first=True)
    drawn = scene.at(Conditions(time=time)).detach()
    expected = turns.apply(raw["means"]) + weights @ translations
    np.testing.assert_allclose(drawn.means.numpy(), expected, atol=2e-5)
    found = Rotation.from_quat(drawn.quats.double().numpy(), scalar_first=True)
    wanted = turns * Rotation.from_quat(raw["quats"], scalar_first=True)
    assert (found.inv() * wanted).magnitude().max() < 1e-4


@pytest.mark.parametrize("time", TIMES)
def test_free_bases_are_sums_of_trajectories(time: float) -> None:
    scene = bases(rigid=False)
    raw = {name: value.detach().double().numpy() for name, value in scene.gaussians.params.items()}
    translations, rotations = splines(scene.parts["motion"], time)
    drawn = scene.at(Conditions(time=time)).detach()
    np.testing.assert_allclose(drawn.means, raw["means"] + raw["coefficients"] @ translations, atol=2e-5)
    np.testing.assert_allclose(drawn.quats, raw["quats"] + raw["coefficients"] @ rotations, atol=2e-5)


@pytest.mark.parametrize("rigid", [True, False])
def test_bases_gradients_are_those_of_finite_differences(rigid: bool) -> None:
    scene = bases(rigid, count=2).double()
    part, raw = scene.parts["motion"], scene.gaussians.params
    names = ("means", "quats", "coefficients")

    def drawn(translations: torch.Tensor, rotations: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        state = {"translations": translations, "rotations": rotations}
        given = (dict(zip(names, rows, strict=True)), 3, Conditions(time=0.4))
        moved = torch.func.functional_call(part, state, given)
        return torch.cat([moved["means"], moved["quats"]], dim=1)

    inputs = [part.translations, part.rotations, *(raw[name][:3] for name in names)]
    assert torch.autograd.gradcheck(drawn, [value.detach().clone().requires_grad_() for value in inputs])


def test_one_rigid_motion_keeps_distances_and_new_scenes_stand_still() -> None:
    scene = bases(rigid=True, count=1)
    apart = [torch.pdist(scene.at(Conditions(time=time)).means) for time in TIMES]
    for distances in apart[1:]:
        torch.testing.assert_close(distances, apart[0], rtol=1e-4, atol=1e-5)
    for path in ("polynomial", "bases", "free_bases"):
        new = Scene(Gaussians.from_splats(ball()), parts=moving_parts(MotionOptions(path=path)))
        for part in new.each_part():
            part.begin(new.gaussians, None)
        still = new.at(Conditions(time=0.8))
        torch.testing.assert_close(still.means, ball().means)
        torch.testing.assert_close(still.quats, ball().quats)


def test_opacity_near_zero_and_near_one_stays_finite() -> None:
    scene = moving(POLYNOMIAL, count=4)
    with torch.no_grad():
        scene.gaussians.params["opacities"].copy_(torch.tensor([200.0, -200.0, 20.0, 0.0]))
        scene.gaussians.params["time_centers"].copy_(torch.tensor([0.5, 0.5, 0.5, -90.0]))
    splats = scene.drawn(4, Conditions(time=0.5))
    splats.opacities.sum().backward()
    assert splats.opacities.isfinite().all()
    assert splats.opacities[0].item() == pytest.approx(1.0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in scene.parameters())


# -- lives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", TIMES)
def test_who_does_not_live_is_not_drawn_and_the_image_is_the_same(time: float) -> None:
    scene, cameras = moving(POLYNOMIAL), around(2)
    conditions = Conditions(time=time)
    everyone, living = scene.drawn(60, conditions), scene.at(conditions)
    assert 0 < len(living) < len(everyone) == 60
    torch.testing.assert_close(
        rasterize(living, cameras).image, rasterize(everyone, cameras).image, rtol=0, atol=1e-6
    )


def test_a_life_is_as_long_as_the_threshold_says() -> None:
    scene = moving(replace(POLYNOMIAL, least_opacity=0.05), count=1)
    with torch.no_grad():
        scene.gaussians.params["opacities"].fill_(0.0)  # one half
        scene.gaussians.params["time_centers"].fill_(0.5)
        scene.gaussians.params["time_scales"].fill_(-2.0)
    reach = torch.exp(torch.tensor(-2.0)) * torch.tensor(10.0).log().sqrt()
    for distance, lives in ((reach - 1e-3, 1), (reach + 1e-3, 0)):
        for time in (0.5 - float(distance), 0.5 + float(distance)):
            assert len(scene.at(Conditions(time=time))) == lives


def test_the_highest_opacity_is_that_of_the_nearest_moment() -> None:
    scene = moving(POLYNOMIAL, count=3)
    with torch.no_grad():
        scene.gaussians.params["opacities"].fill_(0.0)
        scene.gaussians.params["time_centers"].copy_(torch.tensor([0.4, 1.5, -0.2]))
        scene.gaussians.params["time_scales"].fill_(-1.0)
    width = float(torch.exp(torch.tensor(-1.0)))
    expected = 0.5 * torch.exp(-((torch.tensor([0.0, 0.5, 0.2]) / width) ** 2))
    torch.testing.assert_close(scene.peak_opacities(), expected)
    still = Scene(Gaussians.from_splats(ball()))
    torch.testing.assert_close(still.peak_opacities(), still.at().opacities)


# -- asking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("time", "message"), [(None, "this scene moves.*found none"), (1.2, "found 1.2")])
def test_a_scene_that_moves_needs_a_time(time: float | None, message: str) -> None:
    model = Model(moving(POLYNOMIAL), 1, False, torch.zeros(3), {}, 0)
    with pytest.raises(InputError, match=message):
        model.splats(time)
    with pytest.raises(InputError, match=message):
        model.at(1.0, time)


def test_a_scene_that_stands_still_looks_alike_at_all_times() -> None:
    model = Model.of_splats(ball(), "ball")
    assert not model.moves
    assert torch.equal(model.splats(0.3).means, model.splats().means)


def test_each_camera_can_see_its_own_time() -> None:
    scene, cameras = moving(POLYNOMIAL), around(3)
    splats = [scene.drawn(60, Conditions(time=time)) for time in TIMES[:3]]
    together = rasterize(splats, cameras)
    assert together.means2d.shape == (3, 60, 2)
    for i, own in enumerate(splats):
        alone = rasterize(own, cameras[i])
        torch.testing.assert_close(together.image[i : i + 1], alone.image, rtol=0, atol=1e-6)
        assert torch.equal(together.radii[i : i + 1], alone.radii)
    with pytest.raises(ValueError, match=r"for each of 3 cameras, found \[60, 60\]"):
        rasterize(splats[:2], cameras)
    with pytest.raises(ValueError, match=r"found \[60, 60, 59\]"):
        rasterize([*splats[:2], splats[2][:59]], cameras)


def test_an_elastic_scene_moves_in_every_prefix() -> None:
    still = moving(POLYNOMIAL)
    table = still.gaussians.attributes
    scene = elastic_scene(
        still.gaussians,
        SceneFrame(torch.zeros(3), 1.0),
        ElasticOptions(residual_anchors=(0.1, 0.5)),
        residual_units(LearningRates(), 1.0, table),
        parts=dict(still.parts.items()),  # type: ignore[arg-type]
    )
    half = scene.at(Conditions(0.5, 0.3))
    whole = still.at(Conditions(time=0.3))
    assert 0 < len(half) <= 30
    assert torch.equal(half.means, whole.means[: len(half)])
    columns = scene.parts["residuals"].columns
    assert (columns["time_centers"], columns["time_scales"]) == (1, 1)
    assert list(columns)[-1] == "time_scales"
    with torch.no_grad():  # in small prefixes, all live longer
        scene.parts["residuals"].tables[1][:, -1] = 100.0
    assert len(scene.at(Conditions(0.5, 0.3))) == 30


# -- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "polynomial", "degree": 0}, "degree: expected 1 to 6, found 0"),
        ({"path": "bases", "bases": 0}, "bases: expected 1 to 256 trajectories, found 0"),
        ({"path": "bases", "knots": 3}, "knots: expected 4 to 1024 a trajectory, found 3"),
        ({"bases_rate": -1.0}, "bases_rate: expected a positive number, found -1"),
        ({"opacity": "constant", "width": -1.0}, "width: expected a positive number, found -1"),
        ({"opacity": "varying", "width": 0.0}, "width: expected a positive number, found 0"),
        ({"opacity": "varying", "least_opacity": 1.0}, "least_opacity: expected.*found 1"),
    ],
)
def test_impossible_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"model.motion.{message}"):
        MotionOptions(**options)  # type: ignore[arg-type]


def test_parts_of_options() -> None:
    assert moving_parts(MotionOptions()) == {}
    assert list(moving_parts(POLYNOMIAL)) == ["lifespan", "motion"]
    assert list(moving_parts(MotionOptions(opacity="varying"))) == ["lifespan"]
    parts = moving_parts(POLYNOMIAL).values()
    assert [type(part) for part in parts] == [Lifespan, PolynomialMotion]
