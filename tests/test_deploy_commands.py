"""The export and render commands, as typed, on a small COLMAP folder and a checkpoint of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import auto_cli
from PIL import Image
from scipy.spatial.transform import Rotation
from small_scene import around, ball, pixels, video_frames

from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.contact_sheet import contact_sheet_of
from flexgs_lightning.deploy.export import export
from flexgs_lightning.deploy.formats.ply import read_ply, write_ply
from flexgs_lightning.deploy.path_file import write_path
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.deploy.render_command import render
from flexgs_lightning.deploy.trajectory import orbit
from flexgs_lightning.errors import InputError
from flexgs_lightning.images import to_uint8
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, CHECKPOINT_VERSION, load
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.splats import Splats


@pytest.fixture
def splats() -> Splats:
    return ball()


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A COLMAP text folder of nine 40x30 photos around the origin."""
    root = tmp_path / "capture"
    model = root / "sparse" / "0"
    (root / "images").mkdir(parents=True)
    model.mkdir(parents=True)
    lines = []
    for i, camera in enumerate(around(9)):
        x, y, z, w = Rotation.from_matrix(camera.viewmats[0, :3, :3].numpy()).as_quat()
        lines += [f"{i + 1} {w} {x} {y} {z} 0 0 4 1 view_{i}.png", "20 15 -1"]
        Image.fromarray(np.full((30, 40, 3), 20 * i, np.uint8)).save(root / "images" / f"view_{i}.png")
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    (model / "cameras.txt").write_text("1 PINHOLE 40 30 40 40 20 15\n")
    (model / "points3D.txt").write_text("1 0 0 0 255 0 0 0.5\n2 1 0 0 0 255 0 0.5\n")
    return root


@pytest.fixture
def ply(tmp_path: Path, splats: Splats) -> Path:
    write_ply(splats, tmp_path / "scene.ply")
    return tmp_path / "scene.ply"


@pytest.fixture
def ckpt(tmp_path: Path, splats: Splats, capture: Path) -> Path:
    """What a training leaves: on a white background, at half size, every fourth photo held out."""
    scene = Scene(Gaussians.from_splats(splats))
    facts = {
        "version": CHECKPOINT_VERSION,
        "sh_degree": 1,
        "started_trained": False,
        "seed": 42,
        "densification": None,
        "antialiased": True,
        "background": [1.0, 1.0, 1.0],
        "data": {"root": str(capture), "downscale": 2, "test_every": 4},
        "scene": scene.as_plain(),
        "rows": [f"scene.{name}" for name in scene.row_names()],
    }
    state = {f"scene.{name}": value for name, value in scene.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 100, CHECKPOINT_KEY: facts}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def run(command: Callable[..., None], *arguments: str | Path) -> None:
    """As typed on a command line."""
    auto_cli(command, args=[str(argument) for argument in arguments], as_positional=False)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_export_is_the_model(tmp_path: Path, ckpt: Path) -> None:
    run(export, "--ckpt", ckpt, "--output", tmp_path / "out" / "scene.ply")
    model, read = load(ckpt).splats(), read_ply(tmp_path / "out" / "scene.ply")
    for camera in around(3, 90, 70):
        torch.testing.assert_close(draw(read, camera), draw(model, camera), rtol=0, atol=1e-6)


def test_export_refuses(tmp_path: Path, ckpt: Path) -> None:
    with pytest.raises(InputError, match=r"scene\.obj: expected the name of a splat file"):
        export(ckpt, tmp_path / "scene.obj")
    with pytest.raises(InputError, match=r"none\.ckpt: no such checkpoint"):
        export(tmp_path / "none.ckpt", tmp_path / "scene.ply")
    (tmp_path / "scene.ply").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        export(ckpt, tmp_path / "scene.ply")
    assert (tmp_path / "scene.ply").read_text() == "precious"
    export(ckpt, tmp_path / "scene.ply", overwrite=True)
    assert len(read_ply(tmp_path / "scene.ply")) == 400


def test_render_of_a_checkpoint_needs_no_more_options(tmp_path: Path, ckpt: Path) -> None:
    run(render, "--ckpt", ckpt, "--output", tmp_path / "out")
    assert names_in(tmp_path / "out") == ["view_0.png", "view_4.png", "view_8.png"]
    frame = pixels(tmp_path / "out" / "view_4.png")
    camera = around(9)[4].resized(20, 15)
    expected = to_uint8(draw(load(ckpt).splats(), camera, torch.ones(3), antialiased=True))
    assert np.abs(frame.astype(int) - expected).max() <= 1
    assert (expected == 255).any()  # the white background shows


def test_options_win_over_the_checkpoint(tmp_path: Path, ckpt: Path) -> None:
    options = ("--downscale", "1", "--test_every", "3", "--background", "black", "--photos", "true")
    run(render, "--ckpt", ckpt, "--output", tmp_path / "out", *options)
    assert names_in(tmp_path / "out") == ["view_0.png", "view_3.png", "view_6.png"]
    frame = pixels(tmp_path / "out" / "view_6.png")
    assert frame.shape == (30, 80, 3)
    assert (frame[:, 40:] == 120).all()
    assert frame[0, 0].tolist() == [0, 0, 0]


def test_render_of_a_ply(tmp_path: Path, ply: Path, capture: Path) -> None:
    run(render, "--ply", ply, "--data_root", capture, "--path", "train", "--output", tmp_path / "train")
    assert names_in(tmp_path / "train") == [f"view_{i}.png" for i in range(1, 8)]
    run(
        render,
        "--ply",
        ply,
        "--data_root",
        capture,
        "--path",
        "orbit",
        "--frames",
        "6",
        "--output",
        tmp_path / "o.mp4",
    )
    assert len(video_frames(tmp_path / "o.mp4")[1]) == 6
    run(
        render,
        "--ply",
        ply,
        "--data_root",
        capture,
        "--path",
        "test",
        "--frames",
        "5",
        "--output",
        tmp_path / "flight",
    )
    assert names_in(tmp_path / "flight") == [f"0000{i}.png" for i in range(5)]


def test_render_along_a_path_file_needs_no_capture(tmp_path: Path, ply: Path, splats: Splats) -> None:
    path = orbit(around(5), 4)
    write_path(path, tmp_path / "path.json")
    run(render, "--ply", ply, "--path", tmp_path / "path.json", "--output", tmp_path / "out")
    for i, camera in enumerate(path):
        frame = pixels(tmp_path / "out" / f"0000{i}.png")
        assert np.abs(frame.astype(int) - to_uint8(draw(splats, camera))).max() <= 1
    run(
        render,
        "--ply",
        ply,
        "--path",
        tmp_path / "path.json",
        "--frames",
        "7",
        "--output",
        tmp_path / "seven",
    )
    assert len(names_in(tmp_path / "seven")) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ply": None}, "expected either --ckpt or --ply, found neither"),
        ({"ckpt": Path("x.ckpt")}, "expected either --ckpt or --ply, found both"),
        ({"ply": Path("none.ply")}, r"none\.ply: could not be read"),
        ({"data_root": None}, "--path test: expected --data_root"),
        ({"data_root": Path("nowhere")}, "nowhere"),
        ({"path": Path("tset")}, "--path tset: expected test, train, orbit or a camera path file"),
        ({"test_every": 0}, "has no test views"),
        ({"path": "orbit", "frames": 0}, "frames: expected at least 1"),
        ({"path": "orbit", "photos": True}, "--photos: there are photos only for"),
        ({"output": Path("x.gif")}, r"expected an \.mp4 file or a folder"),
    ],
)
def test_render_refuses(
    tmp_path: Path, ply: Path, capture: Path, options: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"output": tmp_path / "out", "ply": ply, "data_root": capture}
    with pytest.raises(InputError, match=message):
        render(**(arguments | options))
    assert not (tmp_path / "out").exists()


def test_render_on_cuda_without_cuda(
    tmp_path: Path, ply: Path, capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: this machine has no CUDA device"):
        render(tmp_path / "out", ply=ply, data_root=capture, device="cuda")


def test_existing_output_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        render(tmp_path / "out.mp4", ply=tmp_path / "none.ply")


def test_contact_sheet_of_views(tmp_path: Path, splats: Splats, capture: Path) -> None:
    views = read_colmap(capture).test_views
    contact_sheet_of(splats, views, tmp_path / "sheet.png", background=torch.ones(3))
    sheet = pixels(tmp_path / "sheet.png")
    tile = to_uint8(draw(splats, views[1].camera, torch.ones(3)))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape)
    assert (windows == tile).all(axis=(-1, -2, -3)).sum() == 1  # the render stands there as it is
