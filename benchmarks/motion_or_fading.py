"""Is it motion or fading? Measures a trained scene of panoptic_basketball on the ball's known path.

    python benchmarks/motion_or_fading.py --ckpt runs/…/last.ckpt [--ratio 0.1] [--json out.json]
    python benchmarks/motion_or_fading.py --ckpt runs/…/last.ckpt --earlier 1 2 4 8 15

The ball (radius 12 cm) flies in frames 18 to 32; half a second is 15 frames. Fewer frames tell for how long
Gaussians go along: each of a relay does so for as long as it lives. Quality is measured in squares
of 64 pixels around it at the test cameras in frames 14 to 34, at the size that the scene was trained at.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flexgs_lightning.deploy.opening import choose_device, load_any, open_capture
from flexgs_lightning.evaluation.tracks import FilmedObject, Track, carried, quality_around, summary

BALL_RADIUS = 0.12
FLIGHT, THROW = range(18, 33), range(14, 35)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--data_root", type=Path, help="the capture; by default the one it was trained on")
    parser.add_argument("--track", type=Path, help="by default ball_track.npz in the capture")
    parser.add_argument("--radius", type=float, default=BALL_RADIUS, help="of the object, in world units")
    parser.add_argument("--earlier", type=int, nargs="+", default=[15], help="frames")
    parser.add_argument("--crop", type=int, default=64, help="pixels")
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_any(options.ckpt).to(choose_device(options.device))
    root = options.data_root or Path(model.data["root"])
    capture = open_capture(model.data | {"root": str(root)})
    track = Track.read(options.track or root / "ball_track.npz", options.radius)
    filmed = FilmedObject(model, capture, track, options.ratio)
    who = {earlier: carried(filmed, FLIGHT, earlier) for earlier in options.earlier}
    around = quality_around(filmed, THROW, options.crop)
    print(summary(who, around))
    if options.json:
        options.json.write_text(json.dumps({"carried": who, "around": around}, indent=2) + "\n")


if __name__ == "__main__":
    main()
