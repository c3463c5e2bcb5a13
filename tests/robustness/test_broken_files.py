"""Every broken file is refused in one line that names it, or gives what the sound one gives.

A message of a failure names seed, kind and number; the same three make the same file again.
"""

import resource
from pathlib import Path
from typing import Any

import broken_captures  # noqa: F401 (enters its kinds)
import broken_elastic  # noqa: F401
import broken_files  # noqa: F401
import broken_records  # noqa: F401
import broken_states  # noqa: F401
import pytest
import torch
from kinds import KINDS, run_case
from length import SEED, cases
from samples import Samples

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY, load
from flexgs_lightning.model.checkpoint_record import sealed

HEALED = {"download_note"}
"""Kinds whose broken files are thrown away, and the command starts from the beginning."""
SHARES = sum(share for _, share in KINDS.values())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", KINDS)
def test_broken_files(name: str, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = KINDS[name][1]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    numbers = cases(few=-(-240 * share // SHARES), many=-(-2400 * share // SHARES))
    faults, sound = [], 0
    for number in numbers:
        outcome = run_case(name, samples, tmp_path / str(number), SEED, number)
        sound += outcome.status == 0
        if outcome.fault is not None:
            faults.append(f"seed {SEED}, {name} {number}: {outcome.fault}: {outcome.message}")
    assert not faults, "\n".join(faults)
    assert not list(here.iterdir()), "files where the command was typed"
    assert sound < len(numbers) or name in HEALED, "nothing was refused: these files are not broken"


ENORMOUS = {
    "networks": [
        *(("parts", "field", name) for name in ("channels", "width", "head_width", "ratio_resolution")),
        ("parts", "field", "multipliers", 1),
        ("parts", "quantization", "entropy", "scales", "hidden"),
        ("parts", "quantization", "entropy", "scales", "rows_2d"),
        ("parts", "quantization", "entropy", "scales", "features"),
        ("selection", "hidden"),
    ],
    "rule": [
        ("parts", "residuals", "columns", "means"),
        ("parts", "quantization", "basis", 0),
        ("parts", "quantization", "entropy", "sh0", "filters", 1),
    ],
    "moving": [("parts", "appearance", "hidden"), ("parts", "motion", "knots"), ("parts", "motion", "count")],
}
"""Sizes that a checkpoint's facts may state."""


@pytest.mark.parametrize("name", ENORMOUS)
def test_stated_sizes_are_compared_with_the_file_before_memory_is_taken(
    name: str, samples: Samples, tmp_path: Path
) -> None:
    source = samples.moving if name == "moving" else samples.parts[name]
    for place in ENORMOUS[name]:
        content = torch.load(source, weights_only=True)
        found: Any = content[CHECKPOINT_KEY]["scene"]
        for key in place[:-1]:
            found = found[key]
        found[place[-1]] = 50_000_000  # of which the smallest here would take 600 MB
        path = tmp_path / "model.ckpt"
        torch.save(sealed(content), path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError, match="model"):
            load(path)
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert taken < 100_000, f"{place}: {taken // 1024} MB"
