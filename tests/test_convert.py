"""``flexgs convert``, and splat files of every format where a PLY is taken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_scene import around, ball, pixels
from splat_files import SINGLE_FILES, matched, scene

from flexgs_lightning.cli import main
from flexgs_lightning.deploy.formats.registry import FORMATS, read_splats, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.path_file import write_path
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.images import to_uint8


@pytest.mark.parametrize("source", SINGLE_FILES)
@pytest.mark.parametrize("target", SINGLE_FILES)
def test_any_format_to_any_other(tmp_path: Path, source: str, target: str) -> None:
    """A second loss at most as large as the first: to the same format nothing more is lost."""
    original = scene(300)
    paths = [tmp_path / f"{name}{FORMATS[kind].suffix}" for name, kind in (("a", source), ("b", target))]
    write_splats(SplatFile(original, antialiased=True), paths[0], source)
    assert main(["convert", *map(str, paths), f"--format={target}"]) == 0
    read = [read_splats(path) for path in paths]
    between = matched(read[1].splats, read[0].splats)
    assert read[1].antialiased == (source != "splat" and target != "splat")
    torch.testing.assert_close(between.means, read[0].splats.means, rtol=0, atol=0.02)
    torch.testing.assert_close(between.opacities, read[0].splats.opacities, rtol=0, atol=0.003)
    if source == target:
        again = tmp_path / f"c{FORMATS[target].suffix}"
        assert main(["convert", str(paths[1]), str(again), f"--format={target}"]) == 0
        final = matched(read_splats(again).splats, read[1].splats)
        torch.testing.assert_close(final.scales, read[1].splats.scales, rtol=0.02, atol=0)


def test_convert_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_splats(SplatFile(scene(5)), tmp_path / "a.ply")
    (tmp_path / "b.spz").write_text("precious")
    for arguments, message in (
        (["none.ply", "c.spz"], "none.ply: could not be read"),
        (["a.ply", "c.obj"], "c.obj: expected the name of a splat file"),
        (["a.ply", "b.spz"], "b.spz: exists already"),
        (["b.spz", "c.ply"], "b.spz: not an SPZ file"),
    ):
        assert main(["convert", *(str(tmp_path / name) for name in arguments)]) == 1
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "b.spz"]
    assert (tmp_path / "b.spz").read_text() == "precious"
    assert main(["convert", str(tmp_path / "a.ply"), str(tmp_path / "b.spz"), "--overwrite=true"]) == 0
    assert len(read_splats(tmp_path / "b.spz").splats) == 5


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", SINGLE_FILES)
def test_render_draws_any_splat_file_as_it_says(tmp_path: Path, name: str, antialiased: bool) -> None:
    path = tmp_path / f"scene{FORMATS[name].suffix}"
    write_splats(SplatFile(ball(), antialiased), path, name)
    write_path(around(1), tmp_path / "path.json")
    command = ["render", f"--ply={path}", f"--path={tmp_path / 'path.json'}", f"--output={tmp_path / 'out'}"]
    assert main([*command, "--device=cpu"]) == 0
    file = read_splats(path)
    expected = to_uint8(draw(file.splats, around(1), antialiased=file.antialiased))
    (frame,) = (tmp_path / "out").iterdir()
    assert np.abs(pixels(frame).astype(int) - expected).max() <= 1
    other = to_uint8(draw(file.splats, around(1), antialiased=not file.antialiased))
    assert np.abs(pixels(frame).astype(int) - other).max() > 1  # the flag makes a difference
