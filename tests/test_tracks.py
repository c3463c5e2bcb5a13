"""Is it motion or fading? Two models of one film tell it apart, though they draw alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_scene import around

from flexgs_lightning.data.capture import Capture, Points, View
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.tracks import FilmedObject, Track, carried, quality_around, summary
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, moving_parts
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats

FRAMES, RADIUS = 12, 0.3
VELOCITY = torch.tensor([1.2, 0.0, 0.0])
START = torch.tensor([-0.6, 0.0, 0.0])


def place(frame: int) -> torch.Tensor:
    return START + VELOCITY * frame / FRAMES


def round_thing(centre: torch.Tensor, count: int = 40) -> Splats:
    """Opaque Gaussians that fill a ball."""
    g = torch.Generator().manual_seed(0)
    means = 0.15 * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1) + centre
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    return Splats(
        means, quats, torch.full((count, 3), 0.08), torch.full((count,), 0.95), torch.ones(count, 1, 3)
    )


def wall(count: int = 200) -> Splats:
    """What stands behind."""
    g = torch.Generator().manual_seed(1)
    means = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1) * 6
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    return Splats(
        means, quats, torch.full((count, 3), 0.6), torch.full((count,), 0.8), -torch.ones(count, 1, 3)
    )


def joined(*some: Splats) -> Splats:
    names = ("means", "quats", "scales", "opacities", "sh")
    return Splats(*(torch.cat([getattr(one, name) for one in some]) for name in names))


def model_of(scene: Scene) -> Model:
    return Model(scene.eval(), 0, False, torch.zeros(3), {}, 1, "thing")


def that_goes_along() -> Model:
    """One ball that moves."""
    splats = joined(round_thing(place(FRAMES // 2)), wall())
    scene = Scene(Gaussians.from_splats(splats), parts=moving_parts(MotionOptions(path="polynomial")))
    with torch.no_grad():
        scene.gaussians.params["motion"][:40, 0] = VELOCITY  # around the time 1/2
    return model_of(scene)


def that_goes_along_in_relay(life: float) -> Model:
    """A ball for every frame, each on the way for some frames before and after its own."""
    balls = [round_thing(place(k)) for k in range(FRAMES)]
    options = MotionOptions(path="polynomial", opacity="varying")
    scene = Scene(Gaussians.from_splats(joined(*balls, wall())), parts=moving_parts(options))
    params = scene.gaussians.params
    with torch.no_grad():
        params["time_centers"].fill_(0.5)
        params["time_scales"].fill_(5.0)
        for k in range(FRAMES):
            ball = slice(40 * k, 40 * (k + 1))
            params["motion"][ball, 0] = VELOCITY
            params["time_centers"][ball] = k / FRAMES
            # opacity(t) = 0.95 exp(-((t - mu) / s)^2) falls to the least that is drawn after this many frames
            params["time_scales"][ball] = float(np.log(life / FRAMES / np.log(0.95 * 255) ** 0.5))
    return model_of(scene)


def that_fades() -> Model:
    """A ball for every frame, each there for a moment only."""
    balls = [round_thing(place(k)) for k in range(FRAMES)]
    scene = Scene(
        Gaussians.from_splats(joined(*balls, wall())), parts=moving_parts(MotionOptions(opacity="varying"))
    )
    params = scene.gaussians.params
    with torch.no_grad():
        params["time_centers"].fill_(0.5)
        params["time_scales"].fill_(5.0)
        for k in range(FRAMES):
            params["time_centers"][40 * k : 40 * (k + 1)] = k / FRAMES
            params["time_scales"][40 * k : 40 * (k + 1)] = float(np.log(0.3 / FRAMES))
    return model_of(scene)


class Pixels:
    has_alpha = False

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def read(self) -> np.ndarray:
        return self.pixels


@pytest.fixture(scope="module")
def capture() -> Capture:
    """Four cameras around, of which two are held out."""
    cameras, views = around(4, 120, 90), []
    for i in range(4):
        for k in range(FRAMES):
            image = rasterize(joined(round_thing(place(k)), wall()), cameras[i]).image[0].clamp(0, 1)
            pixels = Pixels((255 * image).round().byte().numpy())
            views.append(View(f"cam{i}/{k:04d}", cameras[i], pixels, time=k / FRAMES, filmed_by=f"cam{i}"))
    points = Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))
    names = frozenset(view.name for view in views if view.filmed_by in ("cam0", "cam1"))
    return Capture("thing", tuple(views), points, "made", test_names=names)


def track() -> Track:
    return Track(torch.stack([place(k) for k in range(FRAMES)]), RADIUS)


def test_what_goes_along_carries_the_object(capture: Capture) -> None:
    found = carried(FilmedObject(that_goes_along(), capture, track()), range(7, 12), 6)
    assert found["share"] > 0.9
    assert found["share"] == pytest.approx(found["share_now"])
    assert found["track_error"] < 1e-3


def test_a_relay_carries_the_object_for_as_long_as_its_gaussians_live(capture: Capture) -> None:
    """Two lives of 2.5 frames before and after: all were there a frame ago, few four, and none six."""
    filmed = FilmedObject(that_goes_along_in_relay(2.5), capture, track())
    found = {earlier: carried(filmed, range(7, 12), earlier) for earlier in (1, 4, 6)}
    assert found[1]["share"] > 0.8
    assert 0.0 < found[4]["share"] < 0.3
    assert found[6]["share"] == 0.0
    for one in found.values():
        assert one["share_now"] > 0.95
        assert one["track_error"] < 1e-3, "each of them knows where it goes"


def test_a_life_as_long_as_the_film_is_motion(capture: Capture) -> None:
    found = carried(FilmedObject(that_goes_along_in_relay(1000.0), capture, track()), range(7, 12), 6)
    assert found["share"] > 0.95


def test_what_fades_draws_as_well_and_carries_nothing(capture: Capture) -> None:
    filmed = FilmedObject(that_fades(), capture, track())
    found = carried(filmed, range(7, 12), 6)
    assert found["share"] < 0.05 < 0.9 < found["share_now"]
    assert found["track_error"] == pytest.approx(float(VELOCITY.norm()) / 2, rel=1e-3), (
        "it stays where it was"
    )
    along = FilmedObject(that_goes_along(), capture, track())
    for one in (filmed, along):
        assert quality_around(one, range(FRAMES), 24)["psnr"] > 30


def test_a_scene_without_the_object_has_no_tracks(capture: Capture) -> None:
    model = Model.of_splats(wall(), "wall")
    filmed = FilmedObject(model, capture, track())
    found = carried(filmed, [9], 6)
    assert (found["share"], found["share_now"], found["track_error"]) == (0.0, 0.0, None)
    around_it = quality_around(filmed, range(FRAMES), 24)
    assert around_it["psnr"] < 15
    assert "nothing was on it" in summary({6: found}, around_it)


def test_the_square_stays_inside_and_around(capture: Capture) -> None:
    filmed = FilmedObject(that_goes_along(), capture, track())
    camera = capture.views[0].camera
    place_ = filmed.crop(camera, 6, 40)
    assert place_ is not None
    left, top = place_
    assert 0 <= left <= 120 - 40
    assert 0 <= top <= 90 - 40
    seen = camera.Ks[0] @ (camera.viewmats[0, :3, :3] @ place(6) + camera.viewmats[0, :3, 3])
    assert left < (seen[0] / seen[2]) < left + 40
    behind = replace(camera, viewmats=camera.viewmats * torch.tensor([1.0, 1.0, -1.0, 1.0])[None, :, None])
    assert filmed.crop(behind, 6, 40) is None


def test_paths_that_do_not_fit(capture: Capture, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"thing: 12 frames, but the object's path has 5"):
        FilmedObject(that_fades(), capture, Track(torch.zeros(5, 3), RADIUS))
    filmed = FilmedObject(that_fades(), capture, track())
    for frames in ([], [3], [12]):
        with pytest.raises(InputError, match=r"frames: expected some within 6 to 11"):
            carried(filmed, frames, 6)
    np.savez(tmp_path / "track.npz", xyz=np.zeros((3, 3)))
    assert len(Track.read(tmp_path / "track.npz", 1.0).centers) == 3
    np.savez(tmp_path / "other.npz", abc=np.zeros((3, 3)))
    for name in ("other.npz", "none.npz"):
        with pytest.raises(InputError, match=name):
            Track.read(tmp_path / name, 1.0)
