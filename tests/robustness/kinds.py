"""The kinds of broken files: a registry, and what every kind needs.

``KINDS`` holds one function for each kind of file: it copies sound input, breaks it by a seed, and runs a
command on it.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mutations import Rng, broken_bytes, broken_record, no_plain_file
from outcomes import Outcome, judged
from samples import Samples

from flexgs_lightning.errors import InputError

Kind = Callable[[Samples, Path, Rng], Outcome]
KINDS: dict[str, tuple[Kind, int]] = {}
"""Every kind by name, and its share of all cases."""


def kind(weight: int) -> Callable[[Kind], Kind]:
    """Enter a kind."""

    def enter(function: Kind) -> Kind:
        KINDS[function.__name__] = function, weight
        return function

    return enter


def run_case(name: str, samples: Samples, folder: Path, seed: int, number: int) -> Outcome:
    """One case of a kind; the same seed and number make the same case."""
    rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
    folder.mkdir()
    try:
        return KINDS[name][0](samples, folder, rng)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def choose(rng: Rng, choices: Any) -> Any:
    choices = list(choices)
    return choices[int(rng.integers(len(choices)))]


def break_file(path: Path, rng: Rng) -> None:
    """Bytes of a file, or now and then the file as such."""
    if rng.random() < 0.08:
        no_plain_file(path, rng)
    else:
        path.write_bytes(broken_bytes(path.read_bytes(), rng))


def accepted(outcome: Outcome, good: Callable[[], bool]) -> Outcome:
    """What is accepted must have given something good."""
    if outcome.status != 0 or outcome.fault is not None:
        return outcome
    try:
        return outcome if good() else replace(outcome, fault="accepted, with another result")
    except Exception as error:
        return replace(outcome, fault=f"accepted, with a result that cannot be read: {error}")


DEEP = (20, 200, 3000)


def dumped(value: Any) -> bytes:
    """JSON however deep; Python's own gives up at a thousand levels."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b'{"asset":' + b"[" * 3000 + b"]" * 3000 + b"}"


def break_json(path: Path, rng: Rng) -> None:
    """A value of a JSON file, or now and then its bytes."""
    if rng.random() < 0.3:
        break_file(path, rng)
    else:
        path.write_bytes(dumped(broken_record(json.loads(path.read_bytes()), rng, depths=DEEP)))


def judged_call(function: Callable[[], object], named: tuple[str, ...]) -> Outcome:
    """As ``run``, for a function of the package: what it refuses is told as ``main`` tells it."""

    def command() -> int:
        try:
            function()
        except InputError as error:
            sys.stderr.write(f"flexgs: error: {error}\n")
            return 1
        return 0

    return judged(command, named)
