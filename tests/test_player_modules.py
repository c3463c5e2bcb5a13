"""The player's modules that need no browser, in node: the decoder gives the same bits as Python's."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from elastic_arrays import digest, encoded, random_arrays

from flexgs_lightning.codec.decoder import read_elastic

HERE = Path(__file__).parent
KNOWN = HERE / "known_answers"


def node(*words: object) -> str:
    """What a node program prints; skips where there is no node."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node: install it (apt-get install nodejs) to test the player's modules")
    command = [program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digest_of(path: Path) -> str:
    """SHA-256 of what the player decodes a file to."""
    found: str = json.loads(node(HERE / "player" / "digest.mjs", path))["digest"]
    return found


@pytest.mark.parametrize("name", ["levels", "one_size", "moving", "film"])
def test_known_answers_decode_to_the_same_bits(name: str) -> None:
    assert digest_of(KNOWN / f"{name}.egs") == (KNOWN / f"{name}.sha256").read_text().strip()


def test_a_larger_file_decodes_to_the_same_bits(tmp_path: Path) -> None:
    """Several chunks a level, SH degree 3, large numbers and long gaps between cells."""
    encoded(random_arrays(3000, sh_degree=3, seed=2), harm=1e-5).write(tmp_path / "scene.egs")
    assert digest_of(tmp_path / "scene.egs") == digest(read_elastic(tmp_path / "scene.egs"))


@pytest.mark.parametrize("script", sorted((HERE / "player").glob("*.test.mjs")), ids=lambda path: path.name)
def test_modules(script: Path) -> None:
    """Tests that are written in JavaScript themselves, run by node's own runner."""
    node("--test", script)
