"""``flexgs unseen``: ratios between those that were trained (Table 4 of the FlexGS paper)."""

# No `from __future__ import annotations` here: jsonargparse reads the types.
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.curves import plot
from flexgs_lightning.evaluation.measure import measure
from flexgs_lightning.evaluation.study import Schedule, Study, open_study
from flexgs_lightning.evaluation.subject import subject_of
from flexgs_lightning.evaluation.tables import unseen_page
from flexgs_lightning.evaluation.training import TRAINING
from flexgs_lightning.files import atomic_path, locked

log = logging.getLogger(__name__)

TRAINED, TESTED = (0.01, 0.05, 0.1, 0.15), (0.02, 0.04, 0.06, 0.08)


def unseen(
    ckpts: list[Path],
    config: list[str] | None = None,
    trained: list[float] = list(TRAINED),  # noqa: B006 (never changed)
    tested: list[float] = list(TESTED),  # noqa: B006
    points: int = 40,
    tolerance: float = 0.05,
    output: Path = Path("runs/unseen"),
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Measure elastic models at ratios that they were not trained for, and look for dips in between.

    Writes unseen.json, unseen.md with a table of both kinds of ratios, and unseen.png, a curve over many
    ratios. A dip is a ratio that draws worse than a smaller one.

    Args:
        ckpts: Checkpoints of elastic models of one capture.
        config: Configs (files or names) with settings of data and metrics; by default each checkpoint's own
            config.yaml.
        trained: Ratios that training drew.
        tested: Ratios that it did not.
        points: Ratios of the curve, evenly spaced in log from the smallest of the others to 1.
        tolerance: Largest fall in dB below a smaller ratio that is no dip.
        output: Folder of the report.
        device: Where to measure; "auto" takes CUDA where there is a device.
    """
    if points < 2 or tolerance < 0:
        raise InputError(
            f"--points and --tolerance: expected 2 or more and 0 or more, found {points} and {tolerance}."
        )
    if not ckpts:
        raise InputError("--ckpts: expected at least one checkpoint.")
    studies = [
        open_study(path, config or [], schedule=Schedule(1, 1), device=device, seed=0) for path in ckpts
    ]
    names = _names(ckpts)
    for path, study in zip(ckpts, studies, strict=True):
        _check(path, study, studies[0], [*trained, *tested])
    with locked(output):
        _write(dict(zip(names, studies, strict=True)), trained, tested, points, tolerance, output)


def dips(psnr: Mapping[float, float], tolerance: float) -> list[dict[str, float]]:
    """Ratios whose PSNR falls more than ``tolerance`` dB below that of a smaller ratio.

    Args:
        psnr: PSNR in dB by ratio.
        tolerance: in dB.

    Returns:
        "ratio", and "depth" in dB below the best smaller ratio, for each dip.
    """
    found, best = [], -math.inf
    for ratio in sorted(psnr):
        if psnr[ratio] < best - tolerance:
            found.append({"ratio": ratio, "depth": best - psnr[ratio]})
        best = max(best, psnr[ratio])
    return found


def _write(
    studies: Mapping[str, Study],
    trained: Sequence[float],
    tested: Sequence[float],
    points: int,
    tolerance: float,
    output: Path,
) -> None:
    """Measure, and write the report."""
    ratios = sorted({*trained, *tested, *_curve(min([*trained, *tested]), points)})
    models = {name: _measured(name, study, ratios, tolerance) for name, study in studies.items()}
    first = next(iter(studies.values()))
    report = {
        "capture": first.capture.name,
        "protocol": first.protocol(),
        "trained": sorted(trained),
        "tested": sorted(tested),
        "tolerance": tolerance,
        "models": models,
    }
    pages = {"unseen.json": json.dumps(report, indent=2) + "\n", "unseen.md": unseen_page(report)}
    for name, text in pages.items():
        with atomic_path(output / name) as temporary:
            temporary.write_text(text)
    curves = {name: [(r["ratio"], r["psnr"]) for r in model["ratios"]] for name, model in models.items()}
    plot(curves, output / "unseen.png", xlabel="ratio", title=first.capture.name, marks=trained)
    log.info("Report: %s", output / "unseen.md")


def _measured(name: str, study: Study, ratios: Sequence[float], tolerance: float) -> dict[str, Any]:
    model = study.model.to(study.device)
    results = []
    for ratio in tqdm(ratios, desc=name, unit="ratio"):
        subject = subject_of(model, ratio)
        means = measure(subject, study.data, study.metrics, study.background, antialiased=study.antialiased)
        means.pop("images")
        results.append({"ratio": ratio, "gaussians": len(subject), **means})
    return {
        "gaussians": len(model),
        "ratios": results,
        "dips": dips({result["ratio"]: result["psnr"] for result in results}, tolerance),
    }


def _check(path: Path, study: Study, first: Study, ratios: Sequence[float]) -> None:
    """Refuse what cannot be measured before anything is.

    Raises:
        InputError: see ``Study.check_ratios``; the model is not elastic, of another capture, or measured
            under another protocol.
    """
    study.check_ratios(ratios, f"--trained and --tested with {path}")
    if not study.model.elastic:
        raise InputError(f"{path}: expected an elastic model, found one of the first stage only.")
    if study.capture.name != first.capture.name:
        raise InputError(
            f"{path}: of the capture '{study.capture.name}', but the first is of '{first.capture.name}'."
        )
    found = study.protocol()
    for name, expected in first.protocol().items():
        if found[name] != expected:
            raise InputError(
                f"{path}: would be measured with {name} {found[name]}, but the first with {expected}; "
                "--config sets data and metrics for all."
            )


def _curve(lowest: float, points: int) -> list[float]:
    """Ratios from ``lowest`` to 1, evenly spaced in log."""
    return [lowest ** (1 - i / (points - 1)) for i in range(points)]


def _names(ckpts: Sequence[Path]) -> list[str]:
    """The shortest ends of the runs' folders that tell them apart."""
    folders = [path.resolve().parents[1] for path in ckpts]
    folders = [folder.parents[1] if folder.parent.name == TRAINING else folder for folder in folders]
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise InputError("--ckpts: expected different runs, found one of them twice.")
