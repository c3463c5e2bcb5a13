"""Renders on disk: frames, video, contact sheets and the commands that make them; nothing half-written."""

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from small_scene import around, ball, pixels, video_frames

from flexgs_lightning.deploy.contact_sheet import SheetRow, contact_sheet
from flexgs_lightning.deploy.render import draw, render_views
from flexgs_lightning.deploy.video import video_writer
from flexgs_lightning.errors import InputError
from flexgs_lightning.images import error_map, side_by_side, to_uint8
from flexgs_lightning.splats import Splats


@pytest.fixture
def splats() -> Splats:
    return ball()


class Photo:
    """An image source of one colour, or one that fails."""

    def __init__(self, colour: tuple[int, ...], width: int = 40, height: int = 30) -> None:
        self.pixels = np.broadcast_to(np.array(colour, np.uint8), (height, width, len(colour))).copy()
        self.error: BaseException | None = None

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[-1] == 4

    def read(self) -> np.ndarray:
        if self.error is not None:
            raise self.error
        return self.pixels


# -- frames --------------------------------------------------------------------------------------------


def test_frames_are_the_renders_rounded(tmp_path: Path, splats: Splats) -> None:
    cameras = around(3)
    names = ["b/view.1.jpg", "a.jpg", "c.png"]
    assert render_views(splats, cameras, tmp_path / "out", names=names) == tmp_path / "out"
    files = ["b_view.1.png", "a.png", "c.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)
    for i, name in enumerate(files):
        image = draw(splats, cameras[i])
        assert image.max() > 1  # clamped, not wrapped round
        expected = np.rint(np.clip(image.numpy(), 0, 1) * 255)
        assert np.array_equal(pixels(tmp_path / "out" / name), expected)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_names_of_a_capture_cannot_leave_the_folder_or_collide(tmp_path: Path, splats: Splats) -> None:
    names = ["../../evil.png", "/etc/x.jpg", "a/b.jpg", "a_b.jpg", "a/b.png"]
    render_views(splats, around(5), tmp_path / "out", names=names)
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["a_b_00002.png", "a_b_00003.png", "a_b_00004.png", "etc_x.png", "evil.png"]


def test_cameras_of_several_sizes_and_background(tmp_path: Path, splats: Splats) -> None:
    cameras = [around(2), around(1, 20, 50)]
    render_views(splats, cameras, tmp_path / "out", background=torch.tensor([1.0, 0.5, 0.0]))
    assert pixels(tmp_path / "out" / "00000.png").shape == (30, 40, 3)
    assert pixels(tmp_path / "out" / "00002.png").shape == (50, 20, 3)
    assert pixels(tmp_path / "out" / "00002.png")[0, 0].tolist() == [255, 128, 0]


def test_photos_stand_to_the_right_over_the_background(tmp_path: Path, splats: Splats) -> None:
    photos = [Photo((200, 100, 50)), Photo((200, 100, 50, 51))]
    render_views(splats, around(2), tmp_path / "out", photos=photos, background=torch.tensor([1.0, 1.0, 1.0]))
    opaque, faint = pixels(tmp_path / "out" / "00000.png"), pixels(tmp_path / "out" / "00001.png")
    assert opaque.shape == (30, 80, 3)
    assert (opaque[:, 40:] == [200, 100, 50]).all()
    assert (faint[:, 40:] == [244, 224, 214]).all()  # 0.2 photo + 0.8 white
    assert np.array_equal(opaque[:, :40], to_uint8(draw(splats, around(2)[0], torch.ones(3))))


@pytest.mark.parametrize(
    ("names", "photos"), [(["a"], None), (["a", "b", "c"], None), (None, [Photo((0, 0, 0))])]
)
def test_numbers_of_names_and_photos(tmp_path: Path, splats: Splats, names: Any, photos: Any) -> None:
    with pytest.raises(InputError, match="2 cameras with"):
        render_views(splats, around(2), tmp_path / "out", names=names, photos=photos)
    with pytest.raises(InputError, match="0 cameras with"):
        render_views(splats, around(2)[:0], tmp_path / "out")


# -- video ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 49)])
def test_video_holds_every_frame_at_an_even_size(
    tmp_path: Path, splats: Splats, width: int, height: int
) -> None:
    cameras = around(7, width, height)
    render_views(splats, cameras, tmp_path / "orbit.mp4", fps=12.5, quality=10)
    meta, frames = video_frames(tmp_path / "orbit.mp4")
    assert meta["size"] == (width // 2 * 2, height // 2 * 2)
    assert meta["fps"] == 12.5
    assert meta["codec"] == "h264"
    assert len(frames) == 7
    for frame, camera in zip(frames, cameras, strict=True):
        grey = to_uint8(draw(splats, camera)).mean(axis=-1)[: frame.shape[0], : frame.shape[1]]
        assert np.abs(frame.mean(axis=-1) - grey).mean() < 6  # colour is stored at half resolution


def test_video_beside_frames(tmp_path: Path, splats: Splats) -> None:
    render_views(splats, around(3), tmp_path / "out", video=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
        "video.mp4",
    ]
    assert len(video_frames(tmp_path / "out" / "video.mp4")[1]) == 3


def test_video_of_several_sizes_centres_the_smaller(tmp_path: Path, splats: Splats) -> None:
    cameras = [around(1, 64, 32), around(1, 32, 64)]
    render_views(splats, cameras, tmp_path / "mixed.mp4", background=torch.ones(3))
    meta, frames = video_frames(tmp_path / "mixed.mp4")
    assert meta["size"] == (64, 64)
    assert frames[0][:12].max() < 40
    assert frames[0][20:44].mean() > 100
    assert frames[1][:, :12].max() < 40


@pytest.mark.parametrize(
    ("fps", "quality"), [(0.0, 8.0), (-1.0, 8.0), (math.nan, 8.0), (30.0, 0.0), (30.0, 11.0)]
)
def test_bad_video_options(tmp_path: Path, splats: Splats, fps: float, quality: float) -> None:
    with pytest.raises(InputError, match="expected fps > 0 and quality 1 to 10"):
        render_views(splats, around(1), tmp_path / "x.mp4", fps=fps, quality=quality)
    assert list(tmp_path.iterdir()) == []


def test_ffmpeg_that_cannot_write_is_noticed(tmp_path: Path) -> None:
    def write() -> None:
        with video_writer(tmp_path / "no_such_folder" / "x.mp4", (16, 16), 30, 8) as append:
            append(np.zeros((16, 16, 3), np.uint8))

    with pytest.raises(OSError, match=r"ffmpeg stored 0 of 1 frames|Broken pipe"):
        write()


def test_missing_ffmpeg_is_said(tmp_path: Path, splats: Splats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "")

    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg._io, "get_ffmpeg_exe", none)
    with pytest.raises(InputError, match=r"no ffmpeg program.*PNG frames need none"):
        render_views(splats, around(1), tmp_path / "x.mp4")


# -- nothing half-written, nothing overwritten ---------------------------------------------------------


@pytest.mark.parametrize("output", ["out", "out.mp4"])
@pytest.mark.parametrize("error", [InputError("photo.jpg: damaged."), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, splats: Splats, output: str, error: BaseException
) -> None:
    photos = [Photo((0, 0, 0)), Photo((0, 0, 0)), Photo((0, 0, 0))]
    photos[1].error = error
    with pytest.raises(type(error)):
        render_views(splats, around(3), tmp_path / output, photos=photos)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path: Path, splats: Splats, monkeypatch: pytest.MonkeyPatch) -> None:
    save: Callable[..., None] = Image.Image.save

    def save_until_full(image: Image.Image, path: Path, *args: Any) -> None:
        save(image, path, *args)
        if path.name == "00001.png":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with pytest.raises(InputError, match=r"out: could not be written .No space left"):
        render_views(splats, around(3), tmp_path / "out", video=True)
    assert list(tmp_path.iterdir()) == []


def test_overwrites_only_when_asked_and_only_renders(tmp_path: Path, splats: Splats) -> None:
    folder, file = tmp_path / "out", tmp_path / "x.mp4"
    folder.mkdir()
    for output in (folder, file):  # an empty folder is free
        render_views(splats, around(3), output)
        with pytest.raises(InputError, match="exists already"):
            render_views(splats, around(2), output)
        render_views(splats, around(2), output, overwrite=True)
    assert len(list(folder.iterdir())) == 2
    assert len(video_frames(file)[1]) == 2
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"not replaced.*thesis\.txt"):
        render_views(splats, around(2), folder, overwrite=True)
    assert (folder / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.mov", "x.ply.jpg"])
def test_kinds_of_files_that_are_not_written(tmp_path: Path, splats: Splats, name: str) -> None:
    with pytest.raises(InputError, match=r"expected an \.mp4 file or a folder"):
        render_views(splats, around(1), tmp_path / name)


# -- pictures for people -------------------------------------------------------------------------------


def test_rounding_and_clamping() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5 / 255 + 1e-4, 0.4 / 255, 0.5, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 0, 128, 255, 255]


def test_error_map_grows_brighter_with_the_error() -> None:
    photo = torch.full((1, 6, 3), 0.5)
    render = photo + torch.tensor([0, 0.02, -0.05, 0.1, 0.25, 0.5])[None, :, None]
    luminance = error_map(render, photo) @ np.array([0.2126, 0.7152, 0.0722])
    assert error_map(render, photo)[0, 0].max() <= 4  # no error is black
    assert (np.diff(luminance[0, :5]) > 10).all()
    assert luminance[0, 4] == luminance[0, 5]  # the range's end
    assert np.array_equal(error_map(render, photo, 0.5)[0, 4], error_map(photo + 0.125, photo)[0, 0])


def test_side_by_side_is_render_photo_error() -> None:
    render, photo = torch.rand(5, 7, 3), torch.rand(5, 7, 3)
    image = side_by_side(render, photo)
    assert image.shape == (5, 21, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image[:, :7], to_uint8(render))
    assert np.array_equal(image[:, 7:14], to_uint8(photo))
    assert np.array_equal(image[:, 14:], error_map(render, photo))
    with pytest.raises(ValueError, match="one shape"):
        side_by_side(render, photo[:, :6])


def test_contact_sheet_shows_every_row(tmp_path: Path) -> None:
    colours = [torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])]
    rows = [
        SheetRow(f"view {i}", c.expand(60, 300, 3), 1 - c.expand(60, 300, 3)) for i, c in enumerate(colours)
    ]
    rows.append(SheetRow("a small one", torch.zeros(20, 30, 3), torch.zeros(20, 30, 3)))
    contact_sheet((row for row in rows), tmp_path / "sheet.png", tile_width=150)
    sheet = pixels(tmp_path / "sheet.png")
    assert 450 <= sheet.shape[1] < 480  # three reduced tiles and a margin
    for colour in colours:
        for shown in (colour, 1 - colour):
            assert (sheet == to_uint8(shown)).all(axis=-1).sum() >= 150 * 30
    caption = sheet[: sheet.shape[0] // 8]
    assert (caption.max(axis=-1) < 80).sum() > 20  # there is ink


def test_contact_sheet_needs_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no views"):
        contact_sheet([], tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []
