"""Our files as ``@playcanvas/splat-transform`` reads them, and its files as we read them.

    python tests/interop/splat_transform.py

Needs node 18 and npm, which fetches the program into a temporary folder. Every format that both know goes
both ways; what is compared is values, within what each format's quantisation allows. Ends with a list, and
with status 1 if anything differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from splat_files import angles, matched, scene

from flexgs_lightning.deploy.formats.registry import FORMATS, read_splats, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.formats.streamed_sog import write_streamed_sog
from flexgs_lightning.splats import Splats

PACKAGE = "@playcanvas/splat-transform@2.7.1"
"""The last version for node 18 and 20."""
COUNT = 2_500
TOLERANCES = {"means": 2e-5, "scales": 2e-5, "opacities": 2e-6, "sh": 2e-5, "angles": 2e-3}
"""Two readers of one file: rounding of float32, of logits and logarithms in their PLY."""
COARSE = {"splat": {"angles": 0.03}}
"""They take a rotation's byte for a share of 255 instead of 256."""


def differences(a: Splats, b: Splats) -> dict[str, float]:
    """Largest differences, Gaussians in the order of ``a``; relative for scales."""
    b = matched(b, a)
    return {
        "means": float((a.means - b.means).abs().max() / a.means.abs().max()),
        "scales": float((a.scales / b.scales - 1).abs().max()),
        "opacities": float((a.opacities - b.opacities).abs().max()),
        "sh": float((a.sh - b.sh).abs().max()),
        "angles": float(torch.stack([angles(a, turned) for turned in _about_own_axes(b)]).amin(dim=0).max()),
    }


def _about_own_axes(splats: Splats) -> list[Splats]:
    """The same ellipsoids four times: half a turn about an axis of its own changes none."""
    w, x, y, z = splats.quats.unbind(-1)
    turns = [(w, x, y, z), (-x, w, z, -y), (-y, -z, w, x), (-z, y, -x, w)]
    return [replace(splats, quats=torch.stack(turn, dim=-1)) for turn in turns]


class SplatTransform:
    """The program, installed for as long as this script runs."""

    def __init__(self, folder: Path) -> None:
        quick = ("--fetch-retries=1", "--fetch-timeout=30000")
        install = ("npm", "install", "--silent", "--no-audit", "--no-fund", *quick)
        try:
            subprocess.run(
                (*install, "--prefix", str(folder), PACKAGE), capture_output=True, timeout=180, check=True
            )
            subprocess.run(("node", "--version"), capture_output=True, timeout=30, check=True)
        except (OSError, subprocess.SubprocessError) as error:  # not for us to mend
            print(f"skipped: {PACKAGE} could not be installed ({error}).")
            raise SystemExit(0) from error
        self._program = folder / "node_modules" / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"

    def __call__(self, source: Path, target: Path, *options: str) -> Splats | None:
        """Convert; what is in the target, as we read it."""
        self._run("node", str(self._program), "-q", "-w", "-g", "cpu", *options, str(source), str(target))
        return read_splats(target).splats

    @staticmethod
    def _run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def check(what: str, a: Splats, b: Splats | None, format: str) -> bool:
    """Print one line; whether the two scenes are one."""
    if b is None or len(a) != len(b) or a.sh_degree != b.sh_degree:
        print(f"FAILED  {what}: another number of Gaussians or SH degree")
        return False
    found, allowed = differences(a, b), TOLERANCES | COARSE.get(format, {})
    sound = all(found[key] <= allowed[key] for key in allowed)
    values = ", ".join(f"{key} {value:.1e}" for key, value in found.items())
    print(f"{'ok    ' if sound else 'FAILED'}  {what}: {values}")
    return sound


def main() -> int:
    sound = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert = SplatTransform(folder / "node")
        splats = scene(COUNT)
        write_splats(SplatFile(splats), folder / "scene.ply")
        for format in ("ply", "compressed-ply", "splat", "spz", "spz3", "sog"):
            path = folder / f"ours_{format}{FORMATS[format].suffix}"
            write_splats(SplatFile(splats), path, format)
            theirs = convert(path, folder / f"theirs_of_ours_{format}.ply")
            sound &= check(f"our {format}, read by both", read_splats(path).splats, theirs, format)
        write_streamed_sog([SplatFile(splats), SplatFile(splats[:500])], folder / "streamed")
        for level, count in ((0, COUNT), (1, 500)):
            path = folder / "streamed" / f"{level}_0" / "meta.json"
            theirs = convert(path, folder / f"theirs_of_level_{level}.ply")
            assert theirs is not None
            assert len(theirs) == count
            sound &= check(f"level {level} of our streamed SOG", read_splats(path).splats, theirs, "sog")
        for suffix, options in (
            (".compressed.ply", ()),
            (".spz", ()),
            ("_3.spz", ("--spz-version", "3")),
            (".sog", ()),
        ):
            path = folder / f"theirs{suffix}"
            ours = convert(folder / "scene.ply", path, *options)
            theirs = convert(path, folder / f"theirs{suffix}.back.ply")
            assert ours is not None
            sound &= check(f"their {suffix}, read by both", ours, theirs, suffix)
        sound &= check(
            "their .glb of our PLY", splats, convert(folder / "scene.ply", folder / "a.glb"), "glb"
        )
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
