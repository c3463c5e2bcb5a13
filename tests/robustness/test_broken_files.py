"""Every broken file is refused in one line that names it, or gives what the sound one gives.

A message of a failure names seed, kind and number; the same three make the same file again.
"""

from pathlib import Path

import broken_captures  # noqa: F401 (enters its kinds)
import broken_files  # noqa: F401
import broken_records  # noqa: F401
import pytest
from kinds import KINDS, run_case
from length import SEED, cases
from samples import Samples

SHARES = sum(share for _, share in KINDS.values())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", KINDS)
def test_broken_files(name: str, samples: Samples, tmp_path: Path) -> None:
    share = KINDS[name][1]
    numbers = cases(few=-(-240 * share // SHARES), many=-(-2400 * share // SHARES))
    faults, sound = [], 0
    for number in numbers:
        outcome = run_case(name, samples, tmp_path / str(number), SEED, number)
        sound += outcome.status == 0
        if outcome.fault is not None:
            faults.append(f"seed {SEED}, {name} {number}: {outcome.fault}: {outcome.message}")
    assert not faults, "\n".join(faults)
    assert sound < len(numbers), "nothing was refused: these files are not broken"
