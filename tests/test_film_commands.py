"""flexgs compress, decompress, info, export and render with films."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from film import write_film, write_table
from moving_arrays import random_moving, write_moving
from small_scene import around

from flexgs_lightning import lightning_cli
from flexgs_lightning.cli import main
from flexgs_lightning.codec.encoder import encode
from flexgs_lightning.codec.film import cut_film, open_film, read_film
from flexgs_lightning.codec.film_model import model_of_film
from flexgs_lightning.codec.rate_search import plan_for, search_loss
from flexgs_lightning.codec.views import Judged, mean_psnr, read_views
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.formats.ply import read_ply
from flexgs_lightning.deploy.opening import load_any
from flexgs_lightning.deploy.path_file import write_path
from flexgs_lightning.deploy.viewer.motion_picture import with_motion_lit
from flexgs_lightning.metrics.psnr import flicker_psnr, psnr
from flexgs_lightning.model.sequence import SceneSequence
from flexgs_lightning.processes import Shards
from flexgs_lightning.rendering.rasterizer import rasterize

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of one group."""
    path = tmp_path_factory.mktemp("films") / "scene.egs"
    write_moving(path, [random_moving(total=300)])
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of two groups, the second of which stands still."""
    path = tmp_path_factory.mktemp("films") / "film.egs"
    write_moving(path, [random_moving(total=300), random_moving("none", varying=False, total=200, seed=4)])
    return path


def test_several_checkpoints_become_one_film_within_a_budget(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture, output = write_film(tmp_path / "capture", count=3), tmp_path / "film.egs"
    write_table(capture, near_plane=0.25)
    options = ["--output", str(output), "--data-root", str(capture), "--refine-steps", "2"]
    groups = [str(scene), str(scene)]
    assert main(["compress", "--ckpt", *groups, *options, "--max-megabytes", "0.03"]) == 0
    assert 20_000 < output.stat().st_size <= 30_000
    found = read_film(output)
    assert [len(group) for group in found.groups] == [300, 300]
    assert (found.seconds, found.frames, found.bounds) == (5.0, 6, (0.0, 0.5, 1.0))
    assert load_any(output).near_plane == 0.25
    assert main(["info", str(output)]) == 0
    text = capsys.readouterr().out
    assert f"{8e-6 * output.stat().st_size / 5:.3f} Mbit/s" in text
    rows = [line.split() for line in text.split("each Gaussian\n")[1].splitlines()]
    parts = {" ".join(row[:-2]): int(row[-2].replace(",", "")) for row in rows}
    assert {"motion", "omega", "time_centers", "moves", "update of time_scales"} < parts.keys()
    assert sum(size for name, size in parts.items() if "(all" not in name) == output.stat().st_size
    for wrong, message in {
        ("--ckpt", str(output), *options[2:]): "expected the checkpoint of each group",
        ("--ckpt", *groups): "--data-root",
    }.items():
        assert main(["compress", *wrong, "--output", str(tmp_path / "again.egs")]) == 1
        assert message in capsys.readouterr().err


def test_a_moment_of_a_film_as_a_ply(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = read_film(film).groups
    for seconds, group, moment in ((0.6, 0, 0.4), (2.0, 1, None)):
        output = tmp_path / f"{seconds}.ply"
        options = ["--time", str(seconds), "--ratio", "0.3"]
        assert main(["decompress", str(film), "--output", str(output), *options]) == 0
        expected = groups[group].at(0.3, moment)
        torch.testing.assert_close(read_ply(output).means, expected.means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(read_ply(output).opacities, expected.opacities, rtol=1e-3, atol=1e-4)
    for options, message in {
        (): "expected --time",
        ("--time", "0:1"): "found a stretch",
        ("--output", str(tmp_path / "all.splatv")): "holds one group",
        ("--time", "1", "--output", str(tmp_path / "one.spz")): "expected the name of a .ply",
    }.items():
        assert main(["decompress", str(film), *options]) == 1
        assert message in capsys.readouterr().err


def test_a_group_as_splatv_and_a_film_cut_short(scene: Path, film: Path, tmp_path: Path) -> None:
    output = tmp_path / "scene.splatv"
    assert main(["decompress", str(scene), "--output", str(output), "--ratio", "0.5"]) == 0
    assert output.stat().st_size > 150 * 64
    small, limit = tmp_path / "small.egs", 0.7 * film.stat().st_size / 1e6
    assert main(["decompress", str(film), "--output", str(small), "--max-megabytes", str(limit)]) == 0
    assert small.stat().st_size <= 1e6 * limit
    assert small.stat().st_size in open_film(film).front.indexed_lengths()


def test_films_open_as_checkpoints_do(film: Path, tmp_path: Path) -> None:
    model = load_any(film)
    assert isinstance(model.scene, SceneSequence)
    groups = read_film(film).groups
    torch.testing.assert_close(model.at(0.3, 0.3).means, groups[0].at(0.3, 0.5).means)
    torch.testing.assert_close(model.splats(0.9).means, groups[1].splats().means)
    assert len(model.at(max_gaussians=30, time=0.7)) == 20  # a share of each group, the largest has 300
    assert len(with_motion_lit(model, 300, 0.1, 1.0)) > 0
    assert len(with_motion_lit(model, 300, 0.9, 1.0)) > 0
    frames, path = tmp_path / "frames", tmp_path / "path.json"
    write_path(around(2), path)
    options = ["--path", str(path), "--frames", "3", "--time", "0:2.5", "--ratio", "0.1"]
    assert main(["render", "--ckpt", str(film), "--output", str(frames), *options]) == 0
    assert len(list(frames.glob("*.png"))) == 3
    output = tmp_path / "then.ply"
    assert main(["export", "--ckpt", str(film), "--output", str(output), "--time", "2.4"]) == 0
    assert len(read_ply(output)) == 200


def test_a_film_of_several_groups_is_measured_as_one(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each held-out view at its time, at ratios too; each group; flicker from one to the next."""
    capture = write_film(tmp_path / "capture", count=6)
    write_table(capture, fps=2.4)  # 2.5 s, as the film has; its second group begins before the fifth frame
    options = [f"--data.root={capture}", f"--runs={tmp_path / 'runs'}", "--trainer.accelerator=cpu"]
    options += [
        "--model.lpips=none",
        "--trainer.enable_progress_bar=false",
        "--elastic_validation.ratios=[0.1]",
    ]
    assert main(["test", f"--ckpt_path={film}", *options]) == 0
    report = json.loads((tmp_path / "runs" / "capture" / "version_0" / "metrics.json").read_text())
    groups, quality, small, frames = read_film(film).groups, [], [], []
    for k, view in enumerate(read_views(read_capture(capture).test_views, (0.0, 0.0, 0.0))):
        moment = k / 6 / 0.6 if k < 4 else None  # the second group stands still
        for ratio, found in ((1.0, quality), (0.1, small)):
            drawn = rasterize(groups[k >= 4].at(ratio, moment), view.camera).image.clamp(0, 1)
            found.append(psnr(drawn, view.photo).item())
            if ratio == 1:
                frames.append((drawn, view.photo))
    assert len(set(small)) == 6
    over_time = report["over_time"]
    assert [frame["psnr"] for frame in over_time["frames"]] == pytest.approx(quality, abs=1e-3)
    assert over_time["worst_frame"]["frame"] == int(np.argmin(quality))
    assert report["worst"]["psnr"] == pytest.approx(min(quality), abs=1e-3)
    assert report["ratios"]["0.1"]["psnr"] == pytest.approx(sum(small) / 6, abs=1e-3)
    assert [(group["frames"], group["gaussians"]) for group in over_time["groups"]] == [
        ([0, 4], 300),
        ([4, 6], 200),
    ]
    assert over_time["groups"][1]["psnr"] == pytest.approx(sum(quality[4:]) / 2, abs=1e-3)
    (before, photo_before), (after, photo) = frames[3:5]
    jump = flicker_psnr(before, after, photo_before, photo).item()
    assert over_time["flicker_between_groups"] == pytest.approx(jump, abs=1e-3)
    assert over_time["groups"][0]["flicker"] != pytest.approx(jump, abs=1e-3)
    write_table(capture)  # 0.2 s
    assert main(["test", f"--ckpt_path={film}", *options]) == 1
    error = capsys.readouterr().err
    assert "a film of 75 frames, 2.5 s; found 6 frames, 0.2 s in capture" in error
    assert not (tmp_path / "runs" / "capture" / "version_1").exists()


def test_processes_that_share_out_gaussians_measure_no_film(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = write_film(tmp_path / "capture", count=6)
    write_table(capture, fps=2.4)
    monkeypatch.setattr(lightning_cli, "shards_of", lambda strategy: Shards(0, 2))
    options = [f"--data.root={capture}", f"--runs={tmp_path / 'runs'}", "--trainer.accelerator=cpu"]
    assert main(["test", f"--ckpt_path={film}", *options, "--model.lpips=none"]) == 1
    assert "--trainer.strategy sharded: expected another for a file" in capsys.readouterr().err


def test_a_film_that_is_cut_opens(film: Path, tmp_path: Path) -> None:
    ends = open_film(film).front.indexed_lengths()
    cut_film(film, tmp_path / "cut.egs", ends[2])
    model = model_of_film(read_film(tmp_path / "cut.egs"))
    assert 0 < len(model) < 300
    assert len(model.splats(0.1)) > 0


def test_search_keeps_its_promise_at_all_times() -> None:
    """Steps are the coarsest that lose no more PSNR than allowed, on views of all moments."""
    arrays = random_moving(total=250, sh_degree=0, elastic=False, seed=7)
    cameras, times = around(8, 64, 48), np.linspace(0, 0.9, 8)
    with torch.no_grad():
        photos = [
            rasterize(arrays.splats(float(time) * 0.98), cameras[i], background=torch.ones(3) * 0.5).image
            for i, time in enumerate(times)
        ]
    views = [Judged(cameras[i], photos[i], float(times[i])) for i in range(8)]
    plan = plan_for(arrays, views[::2], CPU)
    found = search_loss(plan, views[1::2], CPU, 0.3)
    lost = mean_psnr(arrays, 1.0, views[1::2], CPU) - mean_psnr(found.encoding.decoded, 1.0, views[1::2], CPU)
    assert lost <= 0.3
    assert found.encoding.size() < 0.7 * encode(plan, plan.rule.scaled((0.25,))).size()
