"""Which viewer draws how."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flexgs_lightning.deploy.dialects.emulation import (
    PLAYCANVAS,
    SPARK,
    Emulation,
    playcanvas,
    spark,
    supersplat,
)
from flexgs_lightning.errors import InputError


@dataclass(frozen=True)
class Dialect:
    """How a viewer draws a Gaussian.

    Attributes:
        low_pass: square pixels that it adds to a projected covariance.
        compensated: whether opacity falls by as much as that spreads it.
        emulation: draws what it draws, all of its ways included.
        width: covariance, as a share of the drawn one, of the Gaussian nearest to the viewer's falloff.
        height: that Gaussian's value in the centre.
    """

    low_pass: float
    compensated: bool
    emulation: Emulation
    width: float = 1.0
    height: float = 1.0


_PLAYCANVAS = Dialect(
    low_pass=PLAYCANVAS.low_pass, compensated=False, emulation=playcanvas, width=0.936, height=1.015
)
"""Its falloff is (exp(-sigma) - e^-4) / (1 - e^-4) up to sigma = 4."""
DIALECTS: dict[str, Dialect | None] = {
    "gsplat": None,
    "spark": Dialect(low_pass=SPARK.low_pass, compensated=True, emulation=spark),
    "playcanvas": _PLAYCANVAS,
    "supersplat": replace(_PLAYCANVAS, emulation=supersplat),
}
"""By the viewer's name, as it comes (Spark 2.2, PlayCanvas 2.23, superspl.at's 1.36); None draws as we do."""


def find_dialect(name: str) -> Dialect | None:
    """The dialect of a viewer; None if it draws as we do.

    Raises:
        InputError: there is none of that name.
    """
    if name not in DIALECTS:
        raise InputError(f"--for: expected one of {', '.join(DIALECTS)}, found '{name}'.")
    return DIALECTS[name]
