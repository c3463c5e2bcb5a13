"""``cameras.json`` as trainers of 3DGS leave it beside their models: read, found and written."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutations import broken_record
from scipy.spatial.transform import Rotation
from small_scene import ball

from flexgs_lightning import load
from flexgs_lightning.cli import main
from flexgs_lightning.data.reading import read_capture
from flexgs_lightning.deploy.formats.registry import write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.opening import open_capture, read_cameras
from flexgs_lightning.deploy.path_file import read_path, write_path
from flexgs_lightning.deploy.trainer_cameras import cameras_beside, read_trainer_cameras
from flexgs_lightning.errors import InputError

POINT = np.array([0.3, -0.2, 0.1])
"""In the world; all cameras of ``entries`` have it in front of them."""


def entries(count: int = 5) -> list[dict[str, Any]]:
    """What a trainer writes: held-out photos first, so that names are out of order."""
    found = []
    for i in range(count):
        axes = Rotation.from_euler("yxz", [0.3 * i - 0.6, 0.1 * i, 0.05 * i]).as_matrix()
        found.append(
            {
                "id": i,
                "img_name": f"photo_{(i + 3) % count}",
                "width": 64 + 2 * i,
                "height": 48,
                "position": (POINT - axes @ [0.1 * i, 0.2, 3.0 + i]).tolist(),
                "rotation": axes.tolist(),
                "fy": 51.0,
                "fx": 50.0 + i,
            }
        )
    return found


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("given", ["file", "folder"])
def test_cameras_see_what_the_trainers_saw(given: str, tmp_path: Path) -> None:
    """By the definition of each field: the point in the camera's own axes, then in pixels."""
    path = write(tmp_path / "cameras.json", entries())
    cameras = read_cameras(path if given == "file" else tmp_path)
    by_name = sorted(entries(), key=lambda entry: entry["img_name"])
    for camera, entry in zip(cameras, by_name, strict=True):
        assert (camera.width, camera.height) == (entry["width"], entry["height"])
        seen = np.array(entry["rotation"]).T @ (POINT - entry["position"])
        pixel = np.array([entry["fx"], entry["fy"]]) * seen[:2] / seen[2] + [entry["width"] / 2, 24]
        projected = camera.Ks[0] @ (camera.viewmats[0] @ torch.tensor([*POINT, 1.0]).float())[:3]
        np.testing.assert_allclose(projected[:2] / projected[2], pixel, rtol=1e-5)
        np.testing.assert_allclose(camera.positions[0], entry["position"], atol=1e-5)
    assert [camera.width for camera in read_cameras(path, 2)] == [camera.width // 2 for camera in cameras]


MIRROR = np.diag([1.0, 1.0, -1.0]).tolist()
WRONG: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "missing": (lambda table: table[2].pop("fx"), "there is no field fx"),
    "unnamed": (lambda table: table[2].pop("img_name"), "there is no field img_name"),
    "mirror": (lambda table: table[2].update(rotation=MIRROR), "expected a rotation, found"),
    "skew": (lambda table: table[2].update(rotation=[[1, 0, 0], [0, 1, 0.1], [0, 0, 1]]), "a rotation"),
    "scaled": (lambda table: table[2].update(rotation=[[2, 0, 0], [0, 2, 0], [0, 0, 2]]), "rotation"),
    "shape": (lambda table: table[2].update(rotation=[1, 0, 0, 0, 1, 0, 0, 0, 1]), "rotation"),
    "far": (lambda table: table[2].update(position=[0, 1e30, 0]), "position"),
    "text": (lambda table: table[2].update(position=[0, "1", 0]), "position"),
    "no focal": (lambda table: table[2].update(fy=0), "fy"),
    "huge": (lambda table: table[2].update(width=1_000_000), "width"),
    "empty": (lambda table: table[2].update(height=0), "height"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_named(name: str, tmp_path: Path) -> None:
    change, message = WRONG[name]
    table = entries()
    change(table)
    path = write(tmp_path / "cameras.json", table)
    with pytest.raises(InputError) as error:
        read_cameras(path)
    found = str(error.value)
    assert found.startswith(f"{path}: [2]")
    assert message in found
    assert "\n" not in found


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    for content, message in (
        (json.dumps(entries(2)), "found 2 cameras, expected at least 3"),
        (json.dumps(entries())[:-20], "not sound JSON"),
        (json.dumps(entries()).replace("51.0", "NaN"), "not sound JSON"),
        (json.dumps(entries()).replace("51.0", "1e999"), "number out of range"),
        (json.dumps([1, 2, 3]), "expected object, found array"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=f"^{path}: .*{message}"):
            read_cameras(path)


def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Two hundred files with something in them changed, from a seed."""
    rng, refused = np.random.default_rng(0), []
    for _ in range(200):
        path = write(tmp_path / "cameras.json", broken_record(entries(), rng))
        try:
            cameras = read_trainer_cameras(path)
        except InputError as error:
            refused.append(str(error))
            continue
        assert len(cameras) >= 3
        for camera in cameras:
            assert camera.viewmats.isfinite().all()
            assert camera.Ks.isfinite().all()
    assert all(message.startswith(str(path)) for message in refused)
    assert 20 < len(refused) < 200


def test_a_trainers_cameras_are_told_from_others_of_the_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    splats = model / "point_cloud" / "iteration_30000" / "point_cloud.ply"
    table = write(model / "cameras.json", entries())
    assert cameras_beside(splats) == table
    assert cameras_beside(model / "scene.sog") == table
    assert cameras_beside(model / "point_cloud" / "mine" / "point_cloud.ply") is None
    assert cameras_beside(model / "other" / "iteration_7" / "point_cloud.ply") is None
    nearer = write(splats.parent / "cameras.json", entries())
    assert cameras_beside(splats) == nearer
    for other in ({"cameras": entries()}, {"frames": []}, [], [{"name": "cam00", "w2c": []}], "no"):
        write(nearer, other)
        assert cameras_beside(splats) == table
    write_path(read_cameras(table)[0], nearer)
    assert cameras_beside(splats) == table
    nearer.write_text("{")
    with pytest.raises(InputError, match=f"^{nearer}: not sound JSON"):
        cameras_beside(splats)


FIT = ("fit", "--config", "flexgs", "--model.lpips=none", "--trainer.accelerator=cpu")
SHORT = ("--trainer.enable_progress_bar=false", "--model.elastic_training.steps=2", "--test_after_fit=false")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder as 3DGS writes it, of five cameras around a few Gaussians."""
    splats = tmp_path / "model" / "point_cloud" / "iteration_7000" / "point_cloud.ply"
    splats.parent.mkdir(parents=True)
    write_splats(SplatFile(ball(), False), splats)
    write(tmp_path / "model" / "cameras.json", entries())
    return tmp_path / "model"


def fit(model_folder: Path, runs: Path, *options: str) -> int:
    start = model_folder / "point_cloud" / "iteration_7000" / "point_cloud.ply"
    return main([*FIT, *SHORT, "--start_from", str(start), f"--runs={runs}", "--name=x", *options])


def test_a_file_is_learned_from_with_the_cameras_beside_it(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert fit(model_folder, tmp_path / "runs") == 0
    (line,) = [each for each in caplog.messages if "cameras.json" in each]
    assert line.startswith(f"{model_folder / 'cameras.json'}: 5 cameras")
    assert "--data.cameras takes others, or 'invented'" in line
    run = tmp_path / "runs" / "x" / "version_0"
    assert not (run / "cameras.json").exists(), "nothing was invented"
    capture = open_capture(load(run / "checkpoints" / "last.ckpt").data)
    for view, camera in zip(capture.views, read_cameras(model_folder), strict=True):
        assert torch.equal(view.camera.viewmats, camera.viewmats)
        assert torch.equal(view.camera.Ks, camera.Ks)

    goes_on = ["--model.elastic_training.steps=3", "--ckpt_path=last"]
    assert fit(model_folder, tmp_path / "runs", *goes_on) == 0
    assert not (run / "cameras.json").exists()


def test_cameras_are_invented_where_that_is_asked_for(model_folder: Path, tmp_path: Path) -> None:
    """Such a run goes on with those that it kept, also where nobody asks again."""
    invented = ["--data.cameras=invented", "--data.views=3", "--data.view_size=32"]
    assert fit(model_folder, tmp_path / "runs", *invented) == 0
    kept = tmp_path / "runs" / "x" / "version_0" / "cameras.json"
    before = read_path(kept).viewmats
    goes_on = ["--model.elastic_training.steps=3", "--ckpt_path=last", *invented[1:]]
    assert fit(model_folder, tmp_path / "runs", *goes_on) == 0
    capture = open_capture(load(kept.parent / "checkpoints" / "last.ckpt").data)
    assert torch.equal(torch.cat([view.camera.viewmats for view in capture.views]), before)


def test_wide_photos_are_reduced_as_the_original_does(model_folder: Path, tmp_path: Path) -> None:
    """3DGS trains on photos of at most 1600 pixels, but writes the sizes of the originals."""
    table = entries()
    for entry in table:
        entry.update(width=3300, height=40, fx=2000.0)
    write(model_folder / "cameras.json", table)
    for number, (options, width) in enumerate({(): 1100, ("--data.downscale=11",): 300}.items()):
        assert fit(model_folder, tmp_path / "runs", *options) == 0
        last = tmp_path / "runs" / "x" / f"version_{number}" / "checkpoints" / "last.ckpt"
        assert {view.camera.width for view in open_capture(load(last).data).views} == {width}


def test_broken_cameras_beside_a_file_are_not_passed_over(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = entries()
    del table[1]["fy"]
    path = write(model_folder / "cameras.json", table)
    assert fit(model_folder, tmp_path / "runs") == 1
    message = capsys.readouterr().err
    assert f"{path}: [1]: there is no field fy. --data.cameras invented does without" in message
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def checkpoint(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    options = ["--model.reconstruction_steps=1", "--model.elastic_training.steps=1", *SHORT[::2]]
    assert main([*FIT, f"--data.root={small_capture}", f"--runs={runs}", *options]) == 0
    return runs / "small" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("budgets", [[], ["--ratio=0.5,1", "--measure=false"]])
def test_exported_cameras_are_those_of_the_photos(
    checkpoint: Path, small_capture: Path, tmp_path: Path, budgets: list[str]
) -> None:
    folder = tmp_path / "out"
    output = folder if budgets else folder / "scene.ply"
    command = ["export", f"--ckpt={checkpoint}", f"--output={output}", "--cameras=true", *budgets]
    assert main(command) == 0
    views = read_capture(small_capture).views
    for view, camera in zip(views, read_cameras(folder), strict=True):
        torch.testing.assert_close(camera.viewmats, view.camera.viewmats, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(camera.Ks, view.camera.Ks, rtol=1e-6, atol=0)
        assert (camera.width, camera.height) == (view.camera.width, view.camera.height)
    written = json.loads((folder / "cameras.json").read_text())
    assert [entry["img_name"] for entry in written] == [view.name for view in views]
    assert set(written[0]) == set(entries()[0])
    for entry, view in zip(written, views, strict=True):
        np.testing.assert_allclose(entry["position"], view.camera.positions[0], atol=1e-5)
        assert np.linalg.det(entry["rotation"]) == pytest.approx(1, abs=1e-5)
        looked_along = np.array(entry["rotation"]) @ [0, 0, 1]
        np.testing.assert_allclose(looked_along, view.camera.viewmats[0, 2, :3], atol=1e-6)
        field_of_view = 2 * math.atan(entry["width"] / 2 / entry["fx"])
        assert field_of_view == pytest.approx(2 * math.atan(48 / view.camera.Ks[0, 0, 0].item()))
    assert main([*command, "--overwrite=true"]) == 0


def test_cameras_replace_nothing_else_and_are_never_without_a_capture(
    checkpoint: Path, small_capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*options: str) -> str:
        assert main(["export", f"--ckpt={checkpoint}", "--cameras=true", *options]) == 1
        assert not list(tmp_path.rglob("scene*"))
        return capsys.readouterr().err

    output = f"--output={tmp_path / 'scene.ply'}"
    other = write(tmp_path / "cameras.json", {"frames": []})
    assert "cameras.json: exists already" in refusal(output)
    assert "no list of a capture's cameras" in refusal(output, "--overwrite=true")
    assert other.read_text() == '{"frames": []}'
    other.unlink()
    assert "the folder of meta.json" in refusal(f"--output={tmp_path / 'new' / 'meta.json'}")
    assert "the folder of lod-meta.json" in refusal(f"--output={tmp_path / 'scene'}", "--format=streamed-sog")
    assert "splatv" in refusal(f"--output={tmp_path / 'scene.splatv'}")
    away = shutil.move(small_capture, tmp_path / "away")
    try:
        assert f"needs the capture of the training, which is not at {small_capture}" in refusal(output)
    finally:
        shutil.move(away, small_capture)
