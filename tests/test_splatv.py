"""Moving scenes for players in browsers, read here by the published layout alone; stills of a moment."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from film import write_film
from moving_model import moving_model
from small_scene import around, ball

from flexgs_lightning.cli import main
from flexgs_lightning.deploy import export as export_module
from flexgs_lightning.deploy.formats.ply import read_ply
from flexgs_lightning.deploy.formats.splatv import write_splatv
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.model.compression.motion_mask import MotionMask
from flexgs_lightning.model.moving import MotionOptions
from flexgs_lightning.model.part import Conditions
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import SH_C0


def read_splatv(path: Path) -> tuple[dict, np.ndarray]:
    """The chunk's description, and its words [rows * 1024, 16]."""
    content = path.read_bytes()
    magic, length = struct.unpack("<II", content[:8])
    assert magic == 0x674B
    (chunk,) = json.loads(content[8 : 8 + length])
    words = np.frombuffer(content[8 + length :], "<u4")
    assert chunk["size"] == 4 * len(words) == 16 * chunk["texwidth"] * chunk["texheight"]
    assert chunk["texwidth"] == 4096
    return chunk, words.reshape(-1, 16)


def played(words: np.ndarray, time: float) -> dict[str, np.ndarray]:
    """What a player makes of it at a time."""
    halves = np.ascontiguousarray(words).view("<f2").reshape(len(words), 32).astype(np.float64)
    motion, (center, width) = halves[:, 16:25], halves[:, 30:32].T
    d = (time - center)[:, None]
    quats = halves[:, 6:10] + halves[:, 26:30] * d
    colors = np.ascontiguousarray(words[:, 7]).view(np.uint8).reshape(-1, 4) / 255.0
    with np.errstate(invalid="ignore"):  # what fills the texture has no rotation
        quats = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    return {
        "means": np.ascontiguousarray(words[:, :3]).view("<f4").astype(np.float64)
        + motion[:, :3] * d
        + motion[:, 3:6] * d**2
        + motion[:, 6:9] * d**3,
        "quats": quats,
        "scales": halves[:, 10:13],
        "opacities": colors[:, 3] * np.exp(-((d[:, 0] / width) ** 2)),
        "colors": colors[:, :3],
    }


def test_who_was_masked_stands_still_for_players(tmp_path: Path) -> None:
    model, mask = moving_model(), MotionMask(60, learned=False)
    mask.keep_only(torch.arange(60) < 20)
    parts = {"motion_mask": mask, **dict(model.scene.parts.items())}
    masked = replace(model, scene=Scene(model.gaussians, parts=parts).eval())
    write_splatv(masked, 1.0, around(1, 64, 48), tmp_path / "scene.splatv")
    early, late = (played(read_splatv(tmp_path / "scene.splatv")[1][:60], time) for time in (0.1, 0.9))
    for name in ("means", "quats"):
        moved = np.abs(early[name] - late[name]).max(axis=1)
        assert (moved[:20] > 1e-2).all()
        assert (moved[20:] == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        MotionOptions(path="polynomial", opacity="varying"),
        MotionOptions(path="polynomial", opacity="constant", degree=2),
    ],
    ids=["lives", "always there"],
)
def test_players_see_what_the_model_draws(tmp_path: Path, options: MotionOptions) -> None:
    model = moving_model(options=options)
    path = tmp_path / "scene.splatv"
    assert write_splatv(model, 1.0, around(1, 64, 48), path) == 60
    _, words = read_splatv(path)
    for time in (0.0, 0.3, 0.9):
        found = played(words[:60], time)
        splats = model.scene.drawn(60, Conditions(time=time))
        np.testing.assert_allclose(found["means"], splats.means.detach(), atol=3e-3)
        quats = torch.nn.functional.normalize(splats.quats.detach(), dim=-1).numpy()
        np.testing.assert_allclose(found["quats"], quats, atol=3e-3)
        np.testing.assert_allclose(found["scales"], splats.scales.detach(), rtol=1e-3)
        np.testing.assert_allclose(found["opacities"], splats.opacities.detach(), atol=6e-3)
        colors = (0.5 + SH_C0 * splats.sh[:, 0].detach()).clamp(0, 1)
        np.testing.assert_allclose(found["colors"], colors, atol=3e-3)


def test_what_fills_the_texture_is_not_seen(tmp_path: Path) -> None:
    write_splatv(moving_model(), 1.0, around(1, 64, 48), tmp_path / "scene.splatv")
    chunk, words = read_splatv(tmp_path / "scene.splatv")
    assert (chunk["texheight"], len(words)) == (1, 1024)
    rest = played(words[60:], 0.3)
    assert np.isfinite(rest["opacities"]).all()
    assert not rest["opacities"].any()


def test_the_first_camera_looks_as_ours(tmp_path: Path) -> None:
    camera = around(3, 64, 48)[1]
    write_splatv(moving_model(), 1.0, camera, tmp_path / "scene.splatv")
    chunk, _ = read_splatv(tmp_path / "scene.splatv")
    (given,) = chunk["cameras"]
    rotation, position = np.array(given["rotation"]), np.array(given["position"])
    viewmat = camera.viewmats[0].double().numpy()
    np.testing.assert_allclose(rotation.T, viewmat[:3, :3], atol=1e-6)
    np.testing.assert_allclose(-rotation.T @ position, viewmat[:3, 3], atol=1e-5)
    assert (given["width"], given["height"], given["fx"]) == (64, 48, camera.Ks[0, 0, 0].item())


def test_what_players_cannot_show_is_refused(tmp_path: Path) -> None:
    path, camera = tmp_path / "scene.splatv", around(1, 64, 48)
    for model, part in (
        (Model.of_splats(ball(), "rock"), "found none"),
        (moving_model(options=MotionOptions(path="polynomial", degree=5)), "found degree 5"),
    ):
        with pytest.raises(InputError, match=f"--format splatv: expected polynomial motion.*{part}"):
            write_splatv(model, 1.0, camera, path)
    assert not path.exists()


# The command


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """What ``--ckpt`` opens; its capture is a film."""
    model = replace(moving_model(), data={"root": str(write_film(tmp_path / "film"))})
    monkeypatch.setattr(export_module, "load_any", lambda path: model)
    return model


def test_a_moment_is_exported(trained: Model, tmp_path: Path) -> None:
    output = tmp_path / "then.ply"
    assert main(["export", "--ckpt", "x", "--output", str(output), "--time", "0.5"]) == 0
    written, expected = read_ply(output), trained.splats(0.25)
    torch.testing.assert_close(written.means, expected.means)
    torch.testing.assert_close(written.opacities, expected.opacities, atol=1e-5, rtol=1e-4)


def test_a_film_is_exported_from_where_the_test_camera_stands(trained: Model, tmp_path: Path) -> None:
    output = tmp_path / "film.splatv"
    assert main(["export", "--ckpt", "x", "--output", str(output)]) == 0
    chunk, _ = read_splatv(output)
    assert (chunk["cameras"][0]["width"], chunk["cameras"][0]["height"]) == (96, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "a.ply"], "ball moves: expected --time, the moment to write, or --format splatv"),
        (["--output", "a.ply", "--time", "0:1"], "--time 0:1: expected one moment, found a stretch"),
        (["--output", "a.ply", "--time", "3"], "--time 3: expected moments within the 2 s"),
        (["--output", "a.splatv", "--time", "1"], "--time 1: splatv holds all moments, expected none"),
        (["--output", "a.splatv", "--max-megabytes", "1"], "--format splatv: expected one --ratio"),
    ],
)
def test_what_is_meant_must_be_said(
    trained: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--ckpt", "x", *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))
