"""How long the robustness tests are: few cases in every run of the tests, many by ``make fuzz SEED=1``."""

from __future__ import annotations

import os

FUZZ = bool(os.environ.get("FLEXGS_FUZZ"))
SEED = int(os.environ.get("FLEXGS_FUZZ_SEED", "0"))
"""Of every random choice."""


def cases(few: int, many: int) -> range:
    """Numbers of the cases to run."""
    return range(many if FUZZ else few)
