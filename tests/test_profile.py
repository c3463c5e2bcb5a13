"""Budgets in milliseconds: profiles, their fit, and what they buy."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from elastic_arrays import encoded, random_arrays

from flexgs_lightning.cli import main
from flexgs_lightning.codec.conversion import model_of
from flexgs_lightning.codec.decoder import read_elastic
from flexgs_lightning.deploy.budgets import Budget, parse_budgets, with_profile
from flexgs_lightning.deploy.formats.ply import read_ply, write_ply
from flexgs_lightning.deploy.opening import load_any
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import ratio_for
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.profile import Profile, read_profile

COUNTS = (1000, 3000, 10_000, 50_000, 100_000)


def profile_of(fixed: float, each: float, exponent: float = 1.0) -> Profile:
    """A device whose cost is known."""
    return Profile("test", tuple((count, fixed + each * count**exponent) for count in COUNTS))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "scene.egs"
    encoded(random_arrays(2000)).write(path)
    return path


@pytest.mark.parametrize(("fixed", "each", "exponent"), [(2, 1e-4, 1.0), (0, 3e-4, 1.0), (5, 2e-2, 0.5)])
def test_the_fit_finds_the_cost(fixed: float, each: float, exponent: float) -> None:
    cost = profile_of(fixed, each, exponent).cost
    for count in (500, 20_000, 400_000):  # beyond what was measured, too
        assert cost.milliseconds(count) == pytest.approx(fixed + each * count**exponent, rel=1e-3)
        assert cost.count(cost.milliseconds(count)) == pytest.approx(count, rel=1e-6)


def test_the_fit_bears_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = (1 + 0.05 * torch.randn(len(COUNTS), generator=generator)).tolist()
    exact = profile_of(4, 2e-4)
    points = tuple((n, ms * factor) for (n, ms), factor in zip(exact.points, noise, strict=True))
    cost = Profile("noisy", points).cost
    for count in (1000, 30_000, 100_000):
        assert cost.milliseconds(count) == pytest.approx(4 + 2e-4 * count, rel=0.15)


def test_a_cost_that_does_not_depend_on_the_count_buys_everything_or_nothing() -> None:
    cost = Profile("flat", ((10, 5.0), (1000, 5.0), (2000, 5.0))).cost
    assert cost.count(5.1) > 1e6
    assert cost.count(4.0) < 1


def test_milliseconds_buy_gaussians(scene: Path) -> None:
    model = load_any(scene)
    profile = profile_of(2, 1e-2)
    assert len(model.at(max_milliseconds=7, profile=profile)) in (499, 500)
    assert len(model.at(max_milliseconds=1e6, profile=profile)) == 2000
    assert ratio_for(10**6, max_milliseconds=12, profile=profile_of(2, 1e-5)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("milliseconds", "profile", "message"),
    [
        (7.0, None, "flexgs profile makes one"),
        (1.5, profile_of(2, 1e-2), r"one Gaussian takes 2\.\d+ ms on test"),
        (0.0, profile_of(2, 1e-2), "expected a positive number"),
        (math.nan, profile_of(2, 1e-2), "expected a positive number"),
    ],
)
def test_times_that_buy_nothing_are_refused(
    scene: Path, milliseconds: float, profile: Profile | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_any(scene).at(max_milliseconds=milliseconds, profile=profile)


def test_profiles_come_back_from_their_file(tmp_path: Path) -> None:
    profile = Profile("a device", ((10, 1.5), (100, 2.25)), ((10, 2.0), (100, 3.0)), {"width": 640})
    profile.write(tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == profile


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"version": 2, "points": [[1, 1], [2, 2]]}',
        b'{"version": 1}',
        b'{"version": 1, "points": {}}',
        b'{"version": 1, "points": [[1, 1]]}',
        b'{"version": 1, "points": [[5, 1], [5, 2]]}',
        b'{"version": 1, "points": [[1, 1], [2]]}',
        b'{"version": 1, "points": [[1, 1], [2, NaN]]}',
        b'{"version": 1, "points": [[1, 1], [0, 2]]}',
        b'{"version": 1, "points": [[1, 1], [2, -2]]}',
        b'{"version": 1, "points": [[1, 1], [2, true]]}',
        b'{"version": 1, "points": [[1, 1], [1e300, 2]]}',
        b'{"version": 1, "points": [[1, 1], [2, 2]], "p95": 3}',
        b" " * (1 << 20) + b"{}",
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.json"):
        read_profile(path)


def test_no_file_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be read"):
        read_profile(tmp_path / "p.json")


def test_budgets_take_a_profile_or_have_this_device_measured(tmp_path: Path) -> None:
    profile_of(2, 1e-2).write(tmp_path / "p.json")
    with pytest.raises(InputError, match="expected --max-milliseconds beside it"):
        parse_budgets(None, None, None, None, tmp_path / "p.json")
    given = parse_budgets(["0.5"], None, None, ["16", "33"], tmp_path / "p.json")
    assert [budget.max_milliseconds for budget in given] == [None, 16, 33]
    measured: list[int] = []

    def measure() -> Profile:
        measured.append(1)
        return profile_of(0, 1)

    assert with_profile(given, measure) == given
    assert not measured
    open_ones = [*parse_budgets(["0.5"], None, None), Budget(max_milliseconds=5), Budget(max_milliseconds=6)]
    found = with_profile(open_ones, measure)
    assert len(measured) == 1
    assert [budget.profile for budget in found] == [None, profile_of(0, 1), profile_of(0, 1)]


def test_profile_measures_and_export_and_render_keep_to_it(
    scene: Path, small_capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt", str(scene), "--data-root", str(small_capture), "--device", "cpu"]
    assert main(["profile", *words, "--output", str(tmp_path / "p.json")]) == 0
    profile = read_profile(tmp_path / "p.json")
    assert [count for count, _ in profile.points] == [20, 40, 100, 200, 400, 1000, 2000]
    late = dict(profile.p95)
    assert all(0 < median <= late[count] for count, median in profile.points)
    assert (profile.facts["width"], profile.facts["height"]) == (96, 64)
    (tmp_path / "p.json").unlink()
    profile_of(2, 1e-2).write(tmp_path / "p.json")
    budget = ["--max-milliseconds", "7", "--profile", str(tmp_path / "p.json")]
    assert main(["export", "--ckpt", str(scene), "--output", str(tmp_path / "a.ply"), *budget]) == 0
    assert len(read_ply(tmp_path / "a.ply")) in (499, 500)
    path = ["--data-root", str(small_capture), "--path", "test", "--output", str(tmp_path / "frames")]
    assert main(["render", "--ckpt", str(scene), *path, *budget]) == 0
    # Without a profile this device is measured; it draws 2,000 Gaussians in less than ten minutes.
    here = ["--max-milliseconds", "600000"]
    assert main(["export", "--ckpt", str(scene), "--output", str(tmp_path / "b.ply"), *here]) == 0
    assert len(read_ply(tmp_path / "b.ply")) == 2000


def test_a_scene_of_one_size_is_not_profiled(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ply(read_elastic(scene).splats()[:50], tmp_path / "a.ply")
    assert main(["profile", "--ply", str(tmp_path / "a.ply"), "--output", str(tmp_path / "p.json")]) == 1
    assert "one size" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_the_players_profile_is_read(tmp_path: Path) -> None:
    """As ``measure.js`` writes it; tests/test_player_page.py has it written by a browser."""
    content: dict[str, Any] = {"version": 1, "device": "ANGLE", "scene": "fox", "width": 4, "height": 3}
    content |= {"points": [[30, 1.25], [60, 2]], "p95": [[30, 2], [60, 3.5]]}
    (tmp_path / "p.json").write_text(json.dumps(content))
    assert read_profile(tmp_path / "p.json").cost.milliseconds(30) == pytest.approx(1.25)


def test_a_profiles_file_is_enough_in_python(scene: Path, tmp_path: Path) -> None:
    profile_of(2, 1e-2).write(tmp_path / "p.json")
    model: Model = model_of(read_elastic(scene))
    assert len(model.at(max_milliseconds=7, profile=tmp_path / "p.json")) in (499, 500)
