"""flexgs compress, decompress and info, and elastic files where checkpoints are opened."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from elastic_arrays import encoded, random_arrays
from small_scene import around, ball

from flexgs_lightning.cli import main
from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.conversion import arrays_of_splats
from flexgs_lightning.codec.decoder import open_file, read_elastic
from flexgs_lightning.codec.encoder import distances, encode
from flexgs_lightning.codec.rate_search import plan_for, search_bytes, search_loss
from flexgs_lightning.codec.refinement import refined
from flexgs_lightning.codec.steps import row_features
from flexgs_lightning.codec.views import Judged, mean_psnr
from flexgs_lightning.deploy.formats.ply import read_ply, write_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.compression.coordinates import PLACES
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import Splats

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "scene.egs"
    encoded(random_arrays()).write(path, {"psnr": {"1": 31.25}})
    return path


def test_decompress_gives_the_model_at_each_budget(scene: Path, tmp_path: Path) -> None:
    arrays = read_elastic(scene)
    for options, count in {
        (): 2000,
        ("--ratio", "0.1"): 200,
        ("--max-gaussians", "777"): 777,
        ("--max-megabytes", "0.05"): (50_000 - 2048) // 104,
    }.items():
        output = tmp_path / f"{count}.ply"
        assert main(["decompress", str(scene), "--output", str(output), *options]) == 0
        splats, expected = read_ply(output), arrays.at(count / 2000)
        assert len(splats) == count
        assert torch.equal(splats.means, expected.means)
        assert torch.equal(splats.sh, expected.sh)
        torch.testing.assert_close(splats.opacities, expected.opacities, rtol=0, atol=1e-6)


def test_decompress_writes_a_shorter_elastic_file(scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.egs"
    limit = 0.6 * scene.stat().st_size
    assert main(["decompress", str(scene), "--output", str(output), "--max-megabytes", str(limit / 1e6)]) == 0
    assert output.stat().st_size <= limit
    assert output.stat().st_size in open_file(scene).header.indexed_lengths()
    assert main(["decompress", str(output)]) == 0
    assert len(read_ply(output.with_suffix(".ply"))) == open_file(output).gaussians


def test_info_tells_chunks_bytes_and_psnr(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(scene)]) == 0
    text = capsys.readouterr().out
    file = open_file(scene)
    assert "2,000 of 2,000 Gaussians" in text
    assert "31.25 dB" in text
    for length in file.header.indexed_lengths():
        assert f"{length:,}" in text
    rows = [line.split() for line in text.split("each Gaussian\n")[1].splitlines()]
    parts = [int(row[-2].replace(",", "")) for row in rows if "(all" not in row]
    assert sum(parts) == scene.stat().st_size


def test_damaged_files_end_with_a_message(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, output = tmp_path / "damaged.egs", tmp_path / "scene.ply"
    damaged.write_bytes(scene.read_bytes()[:-5])
    assert main(["decompress", str(damaged), "--output", str(output)]) == 1
    assert "cut off" in capsys.readouterr().err
    assert not output.exists()
    assert main(["decompress", str(damaged), "--output", str(output), "--recover", "true"]) == 0
    assert len(read_ply(output)) == open_file(damaged, recover=True).gaussians


def test_elastic_files_open_as_checkpoints_do(scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.ply"
    assert main(["export", "--ckpt", str(scene), "--output", str(output), "--ratio", "0.1"]) == 0
    torch.testing.assert_close(read_ply(output).means, read_elastic(scene).at(0.1).means)


def test_compress_refuses_bad_options(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "new.egs")
    for options, message in {
        ("--output", "new.ply", "--ckpt", str(scene)): "expected the name of an .egs file",
        ("--output", output): "neither",
        ("--output", output, "--ckpt", str(scene)): "--data-root",
        ("--output", output, "--ckpt", str(scene), "--psnr-loss", "1", "--max-megabytes", "1"): "found both",
        ("--output", str(scene), "--ckpt", str(scene)): "exists already",
    }.items():
        assert main(["compress", *options]) == 1
        assert message in capsys.readouterr().err
    assert not Path(output).exists()


def test_compress_a_ply_of_a_capture(small_capture: Path, tmp_path: Path) -> None:
    """The command end to end: smaller than a tenth of the PLY, and within the megabytes asked for."""
    ply, output = tmp_path / "ball.ply", tmp_path / "ball.egs"
    write_ply(ball(), ply)
    options = ["--ply", str(ply), "--output", str(output), "--data-root", str(small_capture)]
    assert main(["compress", *options, "--max-megabytes", "0.012"]) == 0
    assert 8000 < output.stat().st_size <= 12000
    assert len(read_elastic(output)) == 400
    assert open_file(output).header.facts["psnr"]["1"] > 0


@pytest.fixture(scope="module")
def views() -> list[Judged]:
    """Views of the ball with photos that another ball would have made, so that PSNR is finite."""
    splats = ball()
    other = Splats(splats.means + 0.02, splats.quats, splats.scales, splats.opacities, splats.sh)
    with torch.no_grad():
        return [
            Judged(camera, rasterize(other, camera).image) for camera in map(around(6).__getitem__, range(6))
        ]


def test_search_keeps_its_promise_with_few_bytes(views: list[Judged]) -> None:
    arrays = arrays_of_splats(ball())
    plan = plan_for(arrays, views[::2], CPU)
    sizes = []
    for allowed in (0.05, 0.8):
        found = search_loss(plan, views[1::2], CPU, allowed)
        lost = mean_psnr(arrays, 1.0, views[1::2], CPU) - mean_psnr(
            found.encoding.decoded, 1.0, views[1::2], CPU
        )
        assert lost <= allowed
        sizes.append(found.encoding.size())
    assert sizes[1] < 0.8 * sizes[0]
    limit = 0.5 * (sizes[0] + sizes[1])
    assert 0.8 * limit < search_bytes(plan, limit)[0].size() <= limit
    with pytest.raises(InputError, match="too little"):
        search_bytes(plan, 2000)
    with pytest.raises(InputError, match="psnr_loss"):
        search_loss(plan, views, CPU, -1.0)


def test_refinement_draws_nearer_in_as_many_bytes(views: list[Judged]) -> None:
    """Judged by views between those that the refinement has seen."""
    arrays = arrays_of_splats(ball())
    plan = plan_for(arrays, views[::2], CPU)
    rule = plan.rule.scaled((4.0,))
    plain = encode(plan, rule)
    cameras = around(32)
    around_it = [Judged(cameras[i], views[0].photo) for i in range(0, 32, 2)]
    better = encode(refined(plan, plain, around_it, CPU, steps=96), rule)
    assert better.size() < 1.03 * plain.size()
    between = [Judged(cameras[i], views[0].photo) for i in range(1, 32, 4)]
    assert _error(arrays, better.decoded, between) < 0.9 * _error(arrays, plain.decoded, between)


def test_the_rule_beats_equal_steps(views: list[Judged]) -> None:
    """At equal bytes, steps by predicted sensitivity lose less than steps that are the same for all."""
    arrays = _faint_and_strong()
    plan = plan_for(arrays, views[::2], CPU)
    rule = plan.rule
    rows = plan.numbers.integers(arrays.levels[-1].values)
    rows[:, 13] = distances(rows[:, PLACES["means"]], plan.numbers.centre, plan.numbers.cell_bits)
    features = row_features(rows).mean(axis=0)
    features[0] = 1 << 12
    known = -(rule.weights @ features) / (1 << 16) * math.log(2) / 2  # mean of what the weights say of ln S
    middle = np.log(np.arange(len(arrays)) + 1.0).mean()
    places = {name: place.start for name, place in PLACES.items()} | {"sh_rest": 13}
    curve = {name: (c + m * middle + known[places[name]], 0.0) for name, (c, m) in rule.curves[-1].items()}
    flat = dataclasses.replace(rule, weights=np.zeros_like(rule.weights), curves=(curve,))
    plain = dataclasses.replace(
        plan, numbers=dataclasses.replace(plan.numbers, weights=flat.weights), rule=flat
    )
    ours, _ = search_bytes(plan, 9000)
    theirs, _ = search_bytes(plain, 9000)
    assert abs(ours.size() - theirs.size()) < 600
    assert _error(arrays, ours.decoded, views) < 0.8 * _error(arrays, theirs.decoded, views)


def _faint_and_strong() -> ElasticModelArrays:
    """The ball with half of its Gaussians almost transparent."""
    splats = ball()
    opacities = torch.where(torch.arange(len(splats)) % 2 == 0, 0.9, 0.02)
    return arrays_of_splats(Splats(splats.means, splats.quats, splats.scales, opacities, splats.sh))


def _error(arrays: ElasticModelArrays, decoded: ElasticModelArrays, views: list[Judged]) -> float:
    with torch.no_grad():
        images = [[rasterize(a.at(1.0), view.camera).image for view in views] for a in (arrays, decoded)]
    return sum((one - other).square().mean().item() for one, other in zip(*images, strict=True))
