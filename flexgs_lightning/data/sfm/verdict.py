"""What came of the photos, in words and numbers that a photographer can act on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from flexgs_lightning.data.colmap_library import pycolmap
from flexgs_lightning.records import Finite, Natural

_FEW_FEATURES = 150
_GOOD_SHARE = 0.95
_GOOD_ERROR = 1.0
_LISTED = 20


class Verdict(msgspec.Struct, kw_only=True):
    """The outcome.

    Attributes:
        photos: how many there were.
        registered: how many have a camera in the capture.
        points: of the sparse model.
        reprojection_error: mean over the points' observations, in pixels of the photos as taken.
        track_length: photos that see a point, on average.
        models: photos in each group that fits together, the capture's first.
        left_out: why, for each photo that is not in the capture.
    """

    photos: Natural
    registered: Natural
    points: Natural
    reprojection_error: Finite
    track_length: Finite
    models: list[Natural]
    left_out: dict[str, str]

    def lines(self) -> list[str]:
        """For the terminal."""
        found = [
            f"{self.registered} of {self.photos} photos are placed, with {self.points:,} points; "
            f"mean reprojection error {self.reprojection_error:.2f} pixels, "
            f"{self.track_length:.1f} photos a point."
        ]
        found += [f"  left out: {name}: {why}" for name, why in list(self.left_out.items())[:_LISTED]]
        if len(self.left_out) > _LISTED:
            found.append(f"  left out: {len(self.left_out) - _LISTED} more, see process.json")
        return found + self._advice()

    def _advice(self) -> list[str]:
        advice = []
        if len(self.models) > 1:
            groups = " and ".join(map(str, self.models[1:4]))
            advice.append(
                f"Some photos fit together only apart from the rest (groups of {groups}): take photos that "
                "lead over from one to the other."
            )
        if self.registered < _GOOD_SHARE * self.photos:
            advice.append(
                "Photos are missing: more overlap helps (two thirds from one to the next), and moving "
                "sideways instead of turning on the spot."
            )
        if self.reprojection_error > _GOOD_ERROR:
            advice.append(
                "The cameras fit loosely: the scene may have moved, or photos of several zooms share a "
                "camera."
            )
        return advice or ["All is well."]


def judge(database: Path, models: Path, left_before: dict[str, str]) -> Verdict:
    """Read the models, and explain what is missing from the first.

    Args:
        database: with features and matches.
        models: numbered folders, the capture's model first.
        left_before: files that never became photos, and why.
    """
    folders = sorted(models.iterdir(), key=lambda folder: int(folder.name))
    found = [pycolmap.Reconstruction(folder) for folder in folders]
    placed = [{model.images[i].name for i in model.reg_image_ids()} for model in found]
    with pycolmap.Database.open(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        features = {name: opened.num_keypoints_for_image(i) for i, name in names.items()}
        pairs, inliers = opened.read_two_view_geometry_num_inliers()
    best = dict.fromkeys(names.values(), 0)
    for pair, count in zip(pairs, inliers, strict=True):
        for i in pycolmap.pair_id_to_image_pair(pair) if isinstance(pair, int) else pair:
            best[names[i]] = max(best[names[i]], count)
    missing = sorted(set(names.values()) - placed[0])
    reasons = {name: _reason(name, features[name], best[name], placed) for name in missing}
    return Verdict(
        photos=len(names) + len(left_before),
        registered=len(placed[0]),
        points=len(found[0].points3D),
        reprojection_error=found[0].compute_mean_reprojection_error(),
        track_length=found[0].compute_mean_track_length(),
        models=[len(group) for group in placed],
        left_out={**left_before, **reasons},
    )


def _reason(name: str, features: int, best: int, placed: list[set[str]]) -> str:
    group = next((group for group in placed[1:] if name in group), None)
    if group is not None:
        return f"fits together with {len(group) - 1} others, but not with the rest"
    if features < _FEW_FEATURES:
        return f"only {features} features: blurred, dark, or hardly any texture"
    if best == 0:
        return "matches no other photo"
    return f"its best match shares {best} points with it, too few to place it"
