"""Damage from a seed: to bytes, to records of plain values, and to a checkpoint's content."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Rng = np.random.Generator

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**31),
    10**30,
    0.5,
    -0.0,
    1e30,
    1e308,
    math.nan,
    math.inf,
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "abc",
    "\x1b[31m",
    "../x",
    "/etc/passwd",
    "a" * 5000,
    [],
    {},
    [[]],
)
LINES = (
    b"\xff\xfe\x00",
    b"\n\n",
    b"#",
    b"nan",
    b"inf",
    b"-1",
    b"0",
    b"99999999999",
    b"1e999",
    b"9" * 5000,
    b"null",
)
WORDS = (
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\0\0\xc0\x7f",
    b"\0\0\0\0",
    b"\xff" * 8,
    b"\0" * 8,
)


# -- bytes ---------------------------------------------------------------------------------------------


def broken_bytes(data: bytes, rng: Rng) -> bytes:
    """One change of a kind that happens, or that somebody makes on purpose; most of them near the start."""
    content = bytearray(data)
    if not content:
        return rng.bytes(100)
    near = max(1, len(content) if rng.random() < 0.5 else min(len(content), 2_000))
    at, length = int(rng.integers(near)), int(rng.integers(1, 64))
    match int(rng.integers(10)):
        case 0:
            content[at] ^= 1 << int(rng.integers(8))
        case 1:
            content[at : at + length] = rng.bytes(len(content[at : at + length]))
        case 2:
            del content[at : at + length]
        case 3:
            content[at:at] = content[at : at + length]
        case 4:
            del content[at:]
        case 5:
            word = WORDS[int(rng.integers(len(WORDS)))]
            content[at : at + len(word)] = word
        case 6:
            return _other_file(rng)
        case 7:
            content += rng.bytes(length)
        case 8:
            content[at:at] = LINES[int(rng.integers(len(LINES)))]
        case _:
            places = [i for i in range(near) if chr(content[i]).isdigit()]
            if places:
                at = int(rng.choice(places))
                content[at : at + 1] = LINES[int(rng.integers(3, len(LINES)))]
    return bytes(content)


def _other_file(rng: Rng) -> bytes:
    """What is no file of the kind at all."""
    choices = (b"", b"\n", b"\0" * 1000, rng.bytes(500), b"{}", b"[]", b"null", b"ply\n", b"<html></html>")
    choices += (
        b"[" * 100_000,
        b'{"a":' * 50_000,
        "é".encode("latin-1"),
        "{}".encode("utf-16"),
        b"PK\3\4" + rng.bytes(80),
    )
    return choices[int(rng.integers(len(choices)))]


def no_plain_file(path: Path, rng: Rng) -> None:
    """Put a pipe, a folder, a device or nothing where a file was."""
    path.unlink()
    match int(rng.integers(5)):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path)  # to itself
        case _:
            pass


# -- records -------------------------------------------------------------------------------------------


def broken_record(
    value: Any, rng: Rng, leaf: Callable[[Any, Rng], Any] | None = None, depths: Sequence[int] = (20, 200)
) -> Any:
    """A copy with one value replaced, removed, renamed, doubled or wrapped; ``leaf`` breaks other values."""
    content = copy.deepcopy(value)
    places = list(_places(content))
    if not places:
        return _other_value(rng, content)
    container, key = places[int(rng.integers(len(places)))]
    found = container[key]
    match int(rng.integers(8)):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[f"{key}_"] = container.pop(key)
        case 2:
            container[key] = [found]
        case 3:
            container[key] = nested(int(rng.choice(depths)))
        case 4 if isinstance(found, list) and found:
            container[key] = found * 2 if rng.random() < 0.5 else found[:-1]
        case 5 if isinstance(found, str):
            container[key] = found + "x"
        case _:
            changed = None if leaf is None else leaf(found, rng)
            container[key] = _other_value(rng, found) if changed is None else changed
    return content


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _other_value(rng: Rng, found: Any) -> Any:
    if isinstance(found, (int, float)) and rng.random() < 0.7:
        return NUMBERS[int(rng.integers(len(NUMBERS)))]
    choices = NUMBERS + OTHERS
    return choices[int(rng.integers(len(choices)))]


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every place of a value in its container, of long lists the first ones."""
    if depth > 30:
        return
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(min(len(value), 4))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield value, key
        yield from _places(value[key], depth + 1)


# -- checkpoints ---------------------------------------------------------------------------------------


def broken_tensor(value: Any, rng: Rng) -> Any:
    """Another tensor in place of one: of another shape, type or size, or with values that are no numbers."""
    if not isinstance(value, torch.Tensor):
        return None
    flat = value.clone().reshape(-1)
    match int(rng.integers(9)):
        case 0 if flat.numel() and flat.is_floating_point():
            flat[int(rng.integers(flat.numel()))] = float(
                rng.choice([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0])
            )
            return flat.reshape(value.shape)
        case 1:
            return flat[: flat.numel() // 2]
        case 2:
            return value.repeat((2,) + (1,) * (value.ndim - 1)) if value.ndim else value[None]
        case 3:
            return value.to(torch.float16) if value.is_floating_point() else value.float()
        case 4:
            return torch.zeros(1).expand(10**6, 10**6)  # more than any machine's memory
        case 5:
            return value.unsqueeze(-1)
        case 6:
            return torch.zeros((0, *value.shape[1:]))
        case 7:
            return value.to(torch.complex64) if value.is_floating_point() else value.double()
        case _:
            return value.long() if value.is_floating_point() else -value
