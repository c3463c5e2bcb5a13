"""The door for files: plain files only, records whole and of their type, one line for whatever is wrong."""

import os
from pathlib import Path

import pytest
from msgspec import Struct

from flexgs_lightning.errors import InputError, printable
from flexgs_lightning.records import (
    Positive,
    Share,
    parse_json,
    plain_size,
    read_array,
    read_bytes,
    read_json,
    read_yaml,
    shown,
)
from flexgs_lightning.settings import read_config, with_config_files

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


class Inner(Struct):
    share: Share


class Record(Struct):
    count: Positive
    inner: Inner
    names: list[str] = []


def test_what_is_no_plain_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    """Opening a pipe would wait for somebody who writes."""
    os.mkfifo(tmp_path / "pipe")
    for path, found in (
        (tmp_path / "pipe", "a pipe, socket or device"),
        (Path("/dev/zero"), "a pipe, socket or device"),
        (tmp_path, "a folder"),
        (tmp_path / "none", "No such file"),
        (tmp_path / ("n" * 300), "name too long"),
        (tmp_path / "nul\0", "could not be read"),
    ):
        with pytest.raises(InputError, match=found):
            read_bytes(path)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(InputError, match="found 11 bytes, expected at most 10"):
        plain_size(tmp_path / "large", 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"count": 1}', "there is no field inner"),
        (b'{"count": 0, "inner": {"share": 1}}', "count: expected int >= 1"),
        (b'{"count": "1", "inner": {"share": 1}}', "count: expected int, found str"),
        (b'{"count": 1, "inner": {"share": 1.5}}', "inner.share: expected float <= 1.0"),
        (b'{"count": 1, "inner": {"share": NaN}}', "not sound JSON"),
        (b'{"count": 1, "inner": {"share": 1e999}}', "inner.share: number out of range"),
        (b'{"count": 1, "inner": {"share": 1}, "names": [3]}', "names"),
        (b'{"count": 1, "inner": ' + b"[" * 100_000, "inner: expected object, found array"),
        (b'{"more": ' + b"[" * 100_000, "too many levels|truncated"),
        (b"\xff\xfe{}", "expected text"),
        (b"", "not sound JSON"),
        (b"[]", "expected object, found array"),
    ],
)
def test_a_record_is_refused_by_field(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"record\.json: .*({message})") as caught:
        read_json(path, Record)
    assert str(caught.value).isprintable()


def test_a_record_may_hold_more_than_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"count": 2, "inner": {"share": 1, "x": {}}, "later": [1]}')
    assert read_json(tmp_path / "a.json", Record) == Record(2, Inner(1.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS.encode(), "aliases stand for more than"),
        (b"a: &a [*a]", "within themselves"),
        (b"[" * 200 + b"]" * 200, "levels"),
        (b"[" * 5000, "levels|not readable"),
        (b"a: 1\na: 2\n", "'a' is given twice"),
        (b"a: \xff", "expected text"),
        (b"a\0b", "binary data"),
        (b"{a: 1", "not readable as YAML"),
        (b"a: 1\n" * 60_000, "expected at most"),
    ],
)
def test_settings_that_are_none(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"settings\.yaml: .*({message})"):
        read_yaml(path)


def test_empty_settings_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# only a comment\n")
    (tmp_path / "b.yaml").write_text("model: {sh_degree: 2}\n")
    assert read_config(tmp_path / "a.yaml") == {}
    arguments = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--x", "1"]
    assert with_config_files(arguments) == [f"--config={tmp_path / 'b.yaml'}", "--x", "1"]


def test_json_of_other_letters_is_told_without_python_s_words() -> None:
    with pytest.raises(InputError, match=r"a\.glb: not sound JSON \(not UTF-8\)"):
        parse_json("a.glb", b'{"a": "\xff"}', dict)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4" + b"\7" * 80, "an archive of arrays"),
        (b"", "damaged data"),
        (b"\x80\4", "damaged data"),
        (b"\x93NUMPY\1\0\x10\0{", "damaged data"),
    ],
)
def test_arrays_are_arrays(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_array(tmp_path / "a.npy")


def test_messages_end() -> None:
    text = str(InputError(f"x.json: found {'a' * 5000}, expected a name."))
    assert text.startswith("x.json: found aaa")
    assert text.endswith("aaa, expected a name.")
    assert len(text) < 1_200


def test_messages_are_one_line_and_cannot_steer_a_terminal() -> None:
    error = InputError("a.json: found '\x1b[31m\x07' in\n  line 2")
    assert str(error) == r"a.json: found '\x1b[31m\x07' in line 2"
    assert printable("é – ok") == "é – ok"
    assert len(shown("x" * 500)) < 70
