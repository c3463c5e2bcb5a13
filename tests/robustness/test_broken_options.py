"""Every broken option is refused by name, before a file is made; see ``broken_options``."""

import random
from pathlib import Path

import pytest
from broken_options import all_cases, run_case
from length import SEED, cases
from samples import Samples


@pytest.mark.timeout(3600)
def test_broken_options(samples: Samples, tmp_path: Path) -> None:
    everything = all_cases()
    chosen = random.Random(SEED).sample(everything, min(len(cases(few=60, many=600)), len(everything)))
    faults = []
    for number, case in enumerate(chosen):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = run_case(case, samples, folder)
        if outcome.fault is not None:
            faults.append(f"{case}: {outcome.fault}: {outcome.message}")
    assert not faults, "\n".join(faults)
