"""Films: elastic files of scenes that move; written, read, cut and damaged."""

import dataclasses
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from elastic_arrays import same
from elastic_reader import FilmReader
from moving_arrays import film_digest, random_moving, three_groups, write_moving
from small_scene import ball

from flexgs_lightning.codec.container import START_BYTES
from flexgs_lightning.codec.conversion import arrays_of, model_of
from flexgs_lightning.codec.decoder import MEMORY_FACTOR
from flexgs_lightning.codec.encoder import encode, make_plan
from flexgs_lightning.codec.film import Film, cut_film, open_film, read_film
from flexgs_lightning.codec.sensitivity import Sensitivity
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.attributes import residual_columns
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.layout import MOVES, TURNS
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.moving import MotionOptions, first_parts, moving_parts
from flexgs_lightning.model.residuals import RatioResiduals
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.model.sequence import place_in

KNOWN = Path(__file__).parent / "known_answers"
MUTATIONS = 120


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Film]:
    path = tmp_path_factory.mktemp("film") / "scene.egs"
    return path, write_moving(path, three_groups())


def test_decodes_to_what_the_encoder_says(written: tuple[Path, Film]) -> None:
    path, film = written
    found = read_film(path)
    assert film_digest(found) == film_digest(film)
    assert (found.bounds, found.seconds, found.frames) == (film.bounds, 2.5, 75)
    assert [group.movement.path for group in found.groups] == ["polynomial", "bases", "free_bases"]
    for one, other in zip(found.groups, film.groups, strict=True):
        assert same(one, other)
        assert np.array_equal(one.movement.knots, other.movement.knots)
    assert open_film(path).front.facts == {"psnr": {"1": 30.5}}


@pytest.mark.parametrize("name", ["moving", "film"])
def test_known_answers_and_a_reader_written_from_the_documentation(name: str) -> None:
    """Files of an earlier day decode to the same bits; tests/known_answers/make.py wrote them."""
    film = read_film(KNOWN / f"{name}.egs")
    assert film_digest(film) == (KNOWN / f"{name}.sha256").read_text().strip()
    reader = FilmReader((KNOWN / f"{name}.egs").read_bytes())
    assert reader.bounds == film.bounds
    for group, arrays in zip(reader.groups, film.groups, strict=True):
        assert list(group.ratios) == [level.ratio for level in arrays.levels]
        for level, values in zip(arrays.levels, group.levels, strict=True):
            assert np.array_equal(level.values, values)
        assert np.array_equal(arrays.sh_rest.reshape(len(arrays), -1), group.sh_rest)
        knots = np.concatenate([group.translations, group.rotations], axis=-1)
        assert np.array_equal(knots, arrays.movement.knots.reshape(knots.shape))
        assert group.least == arrays.movement.least_opacity


def test_another_process_with_other_threads_decodes_the_same_bits(written: tuple[Path, Film]) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from moving_arrays import film_digest; from flexgs_lightning.codec.film import read_film;"
        "print(film_digest(read_film(sys.argv[1])))"
    )
    threads = {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", program, str(written[0]), str(Path(__file__).parent)],
        env=os.environ | threads, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == film_digest(written[1])


def test_every_cut_at_a_chunks_end_is_the_film_coarser(written: tuple[Path, Film], tmp_path: Path) -> None:
    path, film = written
    data, front = path.read_bytes(), open_film(path).front
    cut = tmp_path / "cut.egs"
    first_chunks = [entry.group for entry in front.entries[:3]]
    assert first_chunks == [0, 1, 2]  # the coarse prefix of every group comes first
    for number, end in enumerate(front.indexed_lengths()):
        cut.write_bytes(data[:end])
        if number < 2:
            with pytest.raises(InputError, match=f"group {number + 1} of 3 has no chunk"):
                read_film(cut)
            continue
        for group, whole in zip(read_film(cut).groups, film.groups, strict=True):
            ratio = len(group) / whole.total
            assert np.array_equal(group.values_at(ratio), whole.values_at(ratio))
            assert np.array_equal(group.flags, whole.flags[: len(group)])
            assert len(group.at(ratio, 0.4)) > 0


def test_a_share_reads_no_more_chunks_than_it_needs(written: tuple[Path, Film]) -> None:
    path, film = written
    for group, whole in zip(read_film(path, ratio=0.1).groups, film.groups, strict=True):
        assert len(group) < len(whole) or len(whole) < 300
        assert np.array_equal(group.values_at(0.1), whole.values_at(0.1))


def test_cut_film_keeps_within_a_budget(written: tuple[Path, Film], tmp_path: Path) -> None:
    path, _ = written
    ends = open_film(path).front.indexed_lengths()
    count = cut_film(path, tmp_path / "small.egs", ends[4] + 10)
    assert (tmp_path / "small.egs").stat().st_size == ends[4]
    assert sum(map(len, read_film(tmp_path / "small.egs").groups)) == count
    with pytest.raises(InputError, match="first chunk of each group"):
        cut_film(path, tmp_path / "none.egs", ends[1])
    assert not (tmp_path / "none.egs").exists()


def test_times_of_a_film() -> None:
    bounds = (0.0, 0.25, 1.0)
    assert place_in(bounds, 0.0) == (0, 0.0)
    assert place_in(bounds, 0.25) == (1, 0.0)
    assert place_in(bounds, 1.0) == (1, 1.0)
    assert place_in(bounds, 0.125) == (0, 0.5)
    seconds = [1.1, 0.7, 1.2]  # of 33, 21 and 36 frames
    ends = [sum(seconds[:i]) / sum(seconds) for i in range(4)]
    for frame, group in ((0, 0), (32, 0), (33, 1), (53, 1), (54, 2), (89, 2)):
        for time in (frame / 90, float(np.float32(frame / 90))):
            assert place_in(ends, time)[0] == group, "rounding must not show a group beyond its last frame"


# -- what it means ---------------------------------------------------------------------------------------


def elastic(options: MotionOptions) -> Model:
    """A model that moves, with displacements of a small prefix."""
    gaussians = Gaussians.from_splats(ball()[:80])
    scene = Scene(gaussians, parts=moving_parts(options))
    gaussians = scene.gaussians
    spread = {"motion": 0.5, "omega": 0.02, "coefficients": 1.0, "time_centers": 0.5, "time_scales": 1.0}
    with torch.no_grad():
        gaussians.params["quats"].mul_(0.7 + torch.rand(80, 1))
        for name in spread.keys() & set(gaussians.params):
            gaussians.params[name].normal_().mul_(spread[name])
        for values in [v for part in scene.each_part() for v in part.parameters()]:
            values.normal_().mul_(0.3)
    columns = {n: a.residual for n, a in gaussians.attributes.items() if a.residual}
    residuals = RatioResiduals(80, [0.25], dict.fromkeys(columns, 1.0), columns=columns)
    residuals.tables[0].data.normal_().mul_(0.05)
    parts = {"residuals": residuals, **dict(scene.parts.items())}
    scene = Scene(gaussians, parts=parts, elastic=True).eval()
    return Model(scene, gaussians.sh_degree, False, torch.zeros(3), {}, 10, "ball", seconds=2.0)


@pytest.mark.parametrize("path", ["none", "polynomial", "bases", "free_bases"])
@pytest.mark.parametrize("opacity", ["varying", "constant"])
def test_arrays_draw_as_the_model_does_and_back(path: str, opacity: str) -> None:
    torch.manual_seed(0)
    if path == "none" and opacity == "constant":
        pytest.skip("stands still")
    model = elastic(MotionOptions(path=path, opacity=opacity, bases=4, knots=6))  # type: ignore[arg-type]
    arrays = arrays_of(model)
    back = model_of(arrays, seconds=model.seconds)
    for ratio in (0.25, 1.0):
        for time in (0.0, 0.37, 1.0):
            wanted = model.at(ratio, time)
            # Of small sizes, only quaternions' lengths differ, so that turns of polynomials do a little.
            turning = 0.03 if path == "polynomial" and ratio < 1 else 2e-4
            for found in (arrays.at(ratio, time), back.at(ratio, time)):
                assert len(found) == len(wanted)
                torch.testing.assert_close(found.means, wanted.means, atol=2e-4, rtol=1e-3)
                torch.testing.assert_close(found.opacities, wanted.opacities, atol=1e-3, rtol=1e-3)
                covariances = [covariance(splats) for splats in (found, wanted)]
                assert (covariances[0] - covariances[1]).abs().max() < turning * covariances[1].abs().max()


def covariance(splats) -> torch.Tensor:
    w, x, y, z = torch.nn.functional.normalize(splats.quats, dim=1).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    turn = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1) * splats.scales[:, None]
    return turn @ turn.transpose(1, 2)


def test_those_whose_motion_no_image_misses_stand_still() -> None:
    arrays = dataclasses.replace(random_moving(total=200), flags=np.full(200, MOVES | TURNS, np.uint8))
    levels = len(arrays.levels)
    worth = np.zeros((200, 2))
    worth[:50] = 1.0
    sensitivities = [
        Sensitivity(np.ones_like(level.values), np.ones((len(level.values), 3, 3)), worth)
        for level in arrays.levels
    ]
    plan = make_plan(arrays, sensitivities, (1e-2,) * levels)
    flags = encode(plan, plan.rule).decoded.flags
    ranks = encode(plan, plan.rule).ranks
    assert set(flags[ranks >= 50]) == {0}
    moving = np.abs(arrays.levels[-1].values[:50, -13:]).sum(axis=1) > 0
    assert (flags[np.argsort(ranks)][:50][moving] > 0).all()
    assert encode(plan, plan.rule.scaled((1e-3,) * levels)).decoded.flags.sum() > flags.sum() - 1


def test_rigid_bases_leave_alone_who_stands_still() -> None:
    arrays = random_moving("bases", varying=False, total=100, order=3, elastic=False)
    still = torch.from_numpy(arrays.flags & MOVES == 0)
    assert 10 < still.sum() < 90
    model = model_of(arrays)
    before, after = (model.at(1.0, time).means for time in (0.1, 0.9))
    assert torch.equal(before[still], after[still])
    assert ((before - after).norm(dim=1)[~still] > 1e-3).all()
    torch.testing.assert_close(after, arrays.at(1.0, 0.9).means)


def test_features_in_motion_become_harmonics_of_each_gaussians_own_time() -> None:
    torch.manual_seed(0)
    options = MotionOptions(path="polynomial", opacity="varying")
    plain = Scene(
        Gaussians.from_splats(ball()[:100].with_sh_degree(0)), parts=first_parts(options, "features")
    )
    units = dict.fromkeys(("means", "quats", "scales", "opacities", "sh", "time_centers", "time_scales"), 0.0)
    columns = residual_columns(plain.gaussians.attributes)
    residuals = RatioResiduals(100, [0.3], units | {"sh": 1.0}, columns=columns)
    with torch.no_grad():
        plain.gaussians.params["sh"].mul_(0.2)
        plain.gaussians.params["appearance"].normal_(std=0.3)
        plain.gaussians.params["time_centers"].fill_(0.4)
        plain.gaussians.params["motion"].normal_(std=0.3)
        for weight in plain.parts["appearance"].parameters():
            weight.normal_(std=0.3)
        residuals.tables[0].normal_(std=0.1)
    parts = {"residuals": residuals, **dict(plain.parts.items())}
    model = Model(
        Scene(plain.gaussians, parts=parts, elastic=True).eval(), 0, False, torch.zeros(3), {}, 10, "ball"
    )
    arrays = arrays_of(model)
    assert arrays.sh_degree == 3
    for ratio in (0.3, 1.0):
        found, expected = arrays.at(ratio, 0.4), model.at(ratio, 0.4)  # which bakes for its moment
        torch.testing.assert_close(found.means, expected.means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sh, expected.sh, rtol=0, atol=0.02)
        later = model.at(ratio, 0.9)
        assert (later.sh - found.sh).abs().max() > 0.1, "what features of time add then is not in the file"
    assert "appearance" in model.scene.parts, "the model keeps its features"


# -- damage ----------------------------------------------------------------------------------------------


def test_mutated_films(written: tuple[Path, Film], tmp_path: Path) -> None:
    """Bits flipped, bytes taken out or put in: refused, and recovered as a prefix of each group."""
    source, whole = written
    data, path = source.read_bytes(), tmp_path / "scene.egs"
    rng = np.random.default_rng(0)
    recovered = 0
    for number in range(MUTATIONS):
        place = int(rng.integers(0, len(data)))
        flipped = bytes([data[place] ^ (1 << int(rng.integers(0, 8)))])
        changed = [
            data[:place] + flipped + data[place + 1 :],
            data[:place] + bytes(int(rng.integers(1, 50))) + data[place:],
            data[:place] + data[place + int(rng.integers(1, 50)) :],
        ][number % 3]
        path.write_bytes(changed)
        with pytest.raises(InputError) as caught:
            read_film(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
        try:
            part = read_film(path, recover=True)
        except InputError:
            continue
        recovered += 1
        for group, full in zip(part.groups, whole.groups, strict=True):
            ratio = len(group) / full.total
            assert np.array_equal(group.values_at(ratio), full.values_at(ratio))
    assert recovered > MUTATIONS // 5


def test_heads_and_streams_that_lie_under_a_right_checksum(
    written: tuple[Path, Film], tmp_path: Path
) -> None:
    data, path = bytearray(written[0].read_bytes()), tmp_path / "scene.egs"
    front = open_film(written[0]).front
    length = struct.unpack_from("<I", data, 12)[0]
    rng = np.random.default_rng(1)
    refused = 0
    for number in range(40):
        index = number % len(front.entries)
        chunk = front.entries[index].chunk
        reach = 60 if index < 3 and number % 2 else chunk.length
        changed = bytearray(data)
        changed[chunk.offset + int(rng.integers(0, reach))] ^= 1 << int(rng.integers(0, 8))
        body = changed[START_BYTES : START_BYTES + length]
        entry = length - 16 * (len(front.entries) - index)
        body[entry + 12 : entry + 16] = struct.pack(
            "<I", zlib.crc32(changed[chunk.offset : chunk.offset + chunk.length])
        )
        changed[START_BYTES : START_BYTES + length] = body
        changed[16:20] = struct.pack("<I", zlib.crc32(body))
        path.write_bytes(changed)
        tracemalloc.start()
        try:
            read_film(path)
        except InputError as error:
            refused += "damaged" in str(error)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_FACTOR * len(data)
        tracemalloc.stop()
    assert refused > 20


def test_memory_is_bounded_by_the_films_size(tmp_path: Path) -> None:
    """The smallest film that so many Gaussians may take: all alike, coded coarsely."""
    arrays = random_moving("bases", total=3000, sh_degree=3, order=32, elastic=False)
    level = dataclasses.replace(arrays.levels[0], values=np.repeat(arrays.levels[0].values[:1], 3000, axis=0))
    path = tmp_path / "scene.egs"
    alike = dataclasses.replace(arrays, levels=(level,), sh_rest=arrays.sh_rest * 0)
    write_moving(path, [alike], harm=1.0)
    read_film(path)
    tracemalloc.start()
    read_film(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size >= 4 * 3000
    assert peak < MEMORY_FACTOR * path.stat().st_size
