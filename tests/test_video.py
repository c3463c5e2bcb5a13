"""Videos: every frame by its number, in any order."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from film import SIZE, number_in, numbered_frame, write_video
from PIL import Image

from flexgs_lightning.data.video import VideoFrame, open_video
from flexgs_lightning.errors import InputError

COUNT = 40
ENCODINGS = {
    "closed groups": {"bf": "0"},
    "frames out of order": {"bf": "3", "x264-params": "b-adapt=0:scenecut=0"},
    "open groups": {"bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"},
    "one group": {"bf": "2", "g": "1000"},
}


def decoded_in_order(path: Path) -> list[np.ndarray]:
    """All frames as the library gives them without any seeking."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(params=ENCODINGS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    frames = [numbered_frame(i) for i in range(COUNT)]
    return write_video(tmp_path / "film.mp4", frames, **ENCODINGS[request.param])


def test_frames_are_exact_in_any_order(path: Path) -> None:
    video, expected = open_video(path), decoded_in_order(path)
    assert (len(video), video.size, video.rate) == (COUNT, SIZE, 30.0)
    assert [number_in(frame) for frame in expected] == list(range(COUNT))
    order = [*np.random.default_rng(0).permutation(COUNT), *range(COUNT), *reversed(range(COUNT))]
    for index in order:
        np.testing.assert_array_equal(VideoFrame(video, int(index)).read(), expected[index])


def test_a_group_is_read_together(path: Path) -> None:
    video, expected = open_video(path), decoded_in_order(path)
    groups = {video.group(index) for index in range(COUNT)}
    assert sorted(index for group in groups for index in group) == list(range(COUNT))
    read = list(VideoFrame(video, 19).read_group())
    assert [frame.index for frame, _ in read] == list(video.group(19))
    for frame, pixels in read:
        np.testing.assert_array_equal(pixels, expected[frame.index])


def test_colours_survive(tmp_path: Path) -> None:
    """Flat colours, so that chroma at half resolution costs nothing; within the codec's rounding."""
    colours = [(200, 30, 60), (20, 180, 90), (240, 240, 240), (0, 0, 0), (30, 60, 220)]
    frames = [np.full((64, 96, 3), colour, np.uint8) for colour in colours]
    video = open_video(write_video(tmp_path / "flat.mp4", frames, crf="0"))
    for i, frame in enumerate(frames):
        assert np.abs(VideoFrame(video, i).read().astype(int) - frame).max() <= 4


def test_other_containers(tmp_path: Path) -> None:
    frames = [numbered_frame(i) for i in range(20)]
    for name, codec in (("film.webm", "libvpx"), ("film.mkv", "libx264"), ("film.mov", "mpeg4")):
        video = open_video(write_video(tmp_path / name, frames, codec=codec, rate=25))
        assert [number_in(VideoFrame(video, i).read()) for i in (13, 2, 19, 0)] == [13, 2, 19, 0]
        assert video.rate == pytest.approx(25, rel=2e-3), "Matroska counts in milliseconds"


def test_frames_are_reduced_by_area(tmp_path: Path) -> None:
    frame = VideoFrame(open_video(write_video(tmp_path / "film.mp4", [numbered_frame(5)] * 3)), 1)
    whole = Image.fromarray(frame.read())
    reduced = replace(frame, reduction=5).read()
    assert reduced.shape == (12, 19, 3)
    np.testing.assert_array_equal(reduced, np.asarray(whole.reduce(5, (0, 0, 95, 60))))


def test_what_is_sent_to_a_worker_reads_alike(tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "film.mp4", [numbered_frame(i) for i in range(9)]))
    sent = pickle.loads(pickle.dumps([VideoFrame(video, i) for i in range(9)]))
    assert sent[3].video is sent[4].video
    assert number_in(sent[7].read()) == 7
    assert sent[7] == VideoFrame(video, 7)


def test_a_file_that_was_written_again_is_opened_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", [numbered_frame(i) for i in range(9)])
    assert number_in(VideoFrame(open_video(path), 4).read()) == 4
    write_video(path, [numbered_frame(i + 100) for i in range(9)])
    assert number_in(VideoFrame(open_video(path), 4).read()) == 104


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with pytest.raises(InputError, match=rf"^{path}: no such file, expected a video"):
        open_video(path)
    for content, part in ((b"", "an empty file"), (b"no film at all" * 99, "expected a readable video")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"^{path}: .*{part}"):
            open_video(path)


def test_uneven_times_are_refused(tmp_path: Path) -> None:
    frames = [numbered_frame(i) for i in range(12)]
    dropped = write_video(tmp_path / "dropped.mp4", frames, timestamps=[*range(6), *range(8, 14)])
    with pytest.raises(InputError, match=r"dropped.mp4: frame . comes at .* frames are missing"):
        open_video(dropped)


def test_damage_is_told_with_the_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", [numbered_frame(i) for i in range(COUNT)], crf="1")
    video, content = open_video(path), bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    hurt = packets[20]
    content[hurt.pos : hurt.pos + hurt.size] = bytes(hurt.size)
    path.write_bytes(content)
    number = sorted(packet.pts for packet in packets).index(hurt.pts)
    with pytest.raises(
        InputError, match=rf"^{path}: (frame {number} of {COUNT} is damaged|expected a readable)"
    ):
        VideoFrame(video, number).read()
    assert number_in(VideoFrame(video, 3).read()) == 3, "other groups are well"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"^{path}"):
        VideoFrame(open_video(path), COUNT - 1).read()
