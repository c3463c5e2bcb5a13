"""Guided sampling: new Gaussians where several photos show something that the model does not have.

Density control grows what is there. What flies through empty space has no Gaussian beside it to grow from,
and is smeared over what lies behind. Spacetime Gaussians (Li et al. 2024, section 4.3) therefore draw new
ones along the rays of pixels with large errors. Here a place on such a ray is taken only if most of the
cameras that look at it at that moment see the same colour there, and are wrong there, too.
"""

# No `from __future__ import annotations` here: jsonargparse reads the options' types.
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import View
from flexgs_lightning.errors import InputError, require_fields
from flexgs_lightning.model.gaussians import Gaussians, neighbour_distances
from flexgs_lightning.model.moving import MotionOptions
from flexgs_lightning.model.part import Sightings
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.processes import gather_rows, process_rank, world_size
from flexgs_lightning.splats import SH_C0, Splats

MOST_PIXELS = 480 * 270
"""Pixels of an image that is searched; larger ones are reduced."""
DEPTHS = 48
"""Places on a ray, in equal steps of the depth's logarithm."""
NEAREST = 1 / 50
"""Where rays begin, relative to the farthest that is drawn, unless the near plane is farther."""
BEHIND = 1.02
"""Places deeper than what is drawn, by this factor, are hidden."""
ALIKE = 0.12
"""Largest difference of a channel between two cameras' photos of one place."""
LEAST_VIEWS = 6
"""So many cameras must look at a place: of fewer, two or three agree by chance."""
SPACING = 3.0
"""One Gaussian in a cube of so many pixels' width."""
PATHS = 32
"""Paths from a place to those of the next and the last moment that are tried."""
BEST_PATHS = 4
"""Of which the best are averaged."""
LEAST_GAIN = 0.1
"""What moves must be seen in this much more of the cameras along its path than where it stands."""
FARTHEST = 0.2
"""Longest path from one moment to the next, relative to the scene's extent."""
WIDEST = 4.0
"""Largest scale of a new Gaussian, in pixels."""
OPACITY = 0.5


@dataclass(frozen=True)
class GuidedSampling:
    """When and where Gaussians are added that no other Gaussian leads to.

    Args:
        every: iterations of the first stage from one round to the next; 0 for none.
        stop_step: rounds happen before this iteration only; null for half of the stage.
        stride: of a scene that moves, every n-th moment brings Gaussians, which live about as long.
        rays: pixels of each image that are searched, drawn by their errors.
        error: mean error of a place's colours, in [0, 1], from which on it counts as missing.
        agreement: share of the cameras looking at a place that must miss the same colour there.
        max_gaussians: most Gaussians that one moment brings in one round.

    Raises:
        InputError: an option is out of range.
    """

    every: int = 0
    stop_step: int | None = None
    stride: int = 2
    rays: int = 64
    error: float = 0.06
    agreement: float = 0.6
    max_gaussians: int = 200

    def __post_init__(self) -> None:
        checks = {
            "every": (self.every >= 0, "0 (never) or more"),
            "stop_step": (self.stop_step is None or self.stop_step >= 1, "null or 1 or more"),
            "stride": (self.stride >= 1, "1 or more"),
            "rays": (1 <= self.rays <= MOST_PIXELS, f"1 to {MOST_PIXELS:,}"),
            "error": (0 < self.error < 1, "a number between 0 and 1"),
            "agreement": (0 < self.agreement <= 1, "above 0, at most 1"),
            "max_gaussians": (1 <= self.max_gaussians <= 1_000_000, "1 to 1,000,000"),
        }
        require_fields("model.guided_sampling.", self, checks)

    def check_motion(self, motion: MotionOptions) -> None:
        """Refuse scenes in which a Gaussian cannot be of one moment only.

        Raises:
            InputError: Gaussians move together, or all live for ever.
        """
        if self.every and (
            motion.path not in ("none", "polynomial")
            or (motion.path == "polynomial" and motion.opacity == "constant")
        ):
            raise InputError(
                "model.guided_sampling: expected model.motion.path polynomial with model.motion.opacity "
                f"varying, or a scene that stands still; found {motion.path} and {motion.opacity}."
            )

    def is_due(self, completed: int, total_steps: int) -> bool:
        """Whether a round follows so many iterations of the first stage."""
        stop = total_steps // 2 if self.stop_step is None else self.stop_step
        return self.every > 0 and completed % self.every == 0 and completed < stop


class Evidence:
    """What the cameras of one moment say of places in space."""

    def __init__(
        self,
        cameras: Cameras,
        images: Float[Tensor, "C H W 3"],
        photos: Float[Tensor, "C H W 3"],
        depths: Float[Tensor, "C H W 1"],
        options: GuidedSampling,
    ) -> None:
        """Compare renders with photos.

        Args:
            cameras: of one moment.
            images: drawn, as the cameras would have taken them.
            photos: of the same size.
            depths: drawn; 0 where nothing is.
            options: what counts.
        """
        factor = 1
        while cameras.width * cameras.height > MOST_PIXELS * factor**2:
            factor += 1
        self._options = options
        self.cameras = cameras.resized(max(1, cameras.width // factor), max(1, cameras.height // factor))
        size = (self.cameras.height, self.cameras.width)
        self._reach = depths.amax().clamp_min(cameras.near_plane)
        depths = depths.where(depths > 0, self._reach)
        maps = torch.cat([photos, images - photos, depths], dim=-1).permute(0, 3, 1, 2)
        maps = functional.interpolate(maps, size, mode="area") if factor > 1 else maps
        colors, errors = _blurred(maps[:, :3], 3), _blurred(maps[:, 3:6], 5).abs().mean(dim=1, keepdim=True)
        self._maps = torch.cat([colors, errors, maps[:, 6:]], dim=1).contiguous()

    def missing(self) -> "Found":
        """Places whose colour most cameras see, and do not find drawn; draws from the global generator."""
        rays = [self._places(camera) for camera in range(len(self.cameras))]
        places = Found(*(torch.cat(values) for values in zip(*rays, strict=True)))
        agreeing = self.agreement(places.positions, places.colors) >= self._options.agreement
        return _thinned(places[agreeing.nonzero().squeeze(1)], self._options.max_gaussians)

    def agreement(self, positions: Float[Tensor, "P 3"], colors: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        """Share of the cameras looking at each place that miss its colour there; 0 if too few look."""
        seen, agreeing = (positions.new_zeros(len(positions)) for _ in range(2))
        size = positions.new_tensor([self.cameras.width, self.cameras.height])
        for camera, maps in enumerate(self._maps):
            viewmat, K = self.cameras.viewmats[camera], self.cameras.Ks[camera]
            points = positions @ viewmat[:3, :3].T + viewmat[:3, 3]
            depths = points[:, 2]
            pixels = (points @ K.T)[:, :2] / depths.clamp_min(1e-6)[:, None]
            inside = (depths > self.cameras.near_plane) & (pixels > 0).all(1) & (pixels < size).all(1)
            grid = (2 * pixels / size - 1).nan_to_num(0).clamp(-2, 2)
            found = functional.grid_sample(
                maps[None], grid[None, None], align_corners=False, padding_mode="border"
            )
            values = found[0, :, 0].T
            looks = inside & (depths < BEHIND * values[:, 4])
            alike = (values[:, :3] - colors).abs().amax(dim=1) < ALIKE
            seen += looks
            agreeing += looks & alike & (values[:, 3] > self._options.error)
        return agreeing / seen * (seen >= LEAST_VIEWS) if len(seen) else seen

    def _places(self, camera: int) -> tuple[Tensor, Tensor, Tensor]:
        """Places on rays through pixels that are wrong: positions, colours, and a pixel's width there."""
        maps = self._maps[camera].flatten(1)
        weights = maps[3].where(maps[3] > self._options.error, 0.0)
        count = min(self._options.rays, int((weights > 0).sum()))
        if count == 0:
            return maps.new_empty(0, 3), maps.new_empty(0, 3), maps.new_empty(0)
        pixels = torch.multinomial(weights, count)
        viewmat, K = self.cameras.viewmats[camera], self.cameras.Ks[camera]
        width = self.cameras.width
        centres = torch.stack([pixels % width + 0.5, pixels // width + 0.5, torch.ones_like(pixels)], dim=1)
        rays = torch.linalg.solve(K, centres.T).T
        near = (NEAREST * self._reach).clamp_min(self.cameras.near_plane)
        steps = (torch.arange(DEPTHS, device=maps.device) + 0.5) / DEPTHS
        depths = near * (maps[4, pixels, None].clamp_min(1.05 * near) / near) ** steps
        positions = (rays[:, None] * depths[..., None] - viewmat[:3, 3]) @ viewmat[:3, :3]
        colors = maps[:3, pixels].T[:, None].expand(-1, DEPTHS, -1)
        return positions.reshape(-1, 3), colors.reshape(-1, 3), (depths / K[0, 0]).flatten()


@dataclass(frozen=True)
class Found:
    """P places of one moment: positions [P, 3], colours [P, 3] in [0, 1], width of a pixel there [P]."""

    positions: Float[Tensor, "P 3"]
    colors: Float[Tensor, "P 3"]
    widths: Float[Tensor, " P"]

    def __getitem__(self, chosen: Int[Tensor, " p"]) -> "Found":
        """Some of them."""
        return Found(self.positions[chosen], self.colors[chosen], self.widths[chosen])


def _thinned(places: Found, most: int) -> Found:
    """One place a cube, and no more than that many; which ones the global generator draws."""
    order = torch.randperm(len(places.positions), device=places.positions.device)
    if not len(order):
        return places
    places = places[order]
    cubes = (places.positions / (SPACING * places.widths.median())).floor().long()
    _, cube = cubes.unique(dim=0, return_inverse=True)
    last = len(order)
    first = cube.new_full((int(cube.max()) + 1,), last)
    first.scatter_reduce_(0, cube, torch.arange(last, device=cube.device), "amin")
    return places[first.sort().values[:most]]


def _blurred(maps: Float[Tensor, "C D H W"], size: int) -> Float[Tensor, "C D H W"]:
    return functional.avg_pool2d(maps, size, stride=1, padding=size // 2, count_include_pad=False)


# -- over time -----------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """What is known of a moment: when it is, what its cameras say, and what is missing."""

    time: float
    evidence: Evidence
    found: Found


def steps_of(moment: Moment, neighbours: Sequence[tuple[Moment, int]], farthest: float) -> Tensor:
    """How far each place found at a moment moves until the next one, [P, 3].

    Tried are the paths to places of like colour in the next moment, and from such in the one before; the best
    are those along which most cameras keep seeing that colour.

    Args:
        moment: whose places.
        neighbours: the next moment (with 1), the one before (with -1), or one of them.
        farthest: longest path.
    """
    positions, colors = moment.found.positions, moment.found.colors
    tried = [_paths(moment.found, other.found, farthest) * sign for other, sign in neighbours]
    paths = torch.cat([torch.zeros_like(positions)[:, None], *tried], dim=1)  # [P, H, 3], the first rests
    count = paths.shape[1]
    score = positions.new_zeros(len(positions) * count)
    wanted = colors[:, None].expand(-1, count, -1).reshape(-1, 3)
    for other, sign in neighbours:
        score += other.evidence.agreement((positions[:, None] + sign * paths).reshape(-1, 3), wanted)
    score = score.reshape(-1, count) / max(len(neighbours), 1)
    best = score.topk(min(BEST_PATHS, count), dim=1)
    path = paths.gather(1, best.indices[..., None].expand(-1, -1, 3)).mean(dim=1)
    moving = best.values.mean(dim=1) > score[:, 0] + LEAST_GAIN
    return path * moving[:, None]


def _paths(places: Found, others: Found, farthest: float) -> Float[Tensor, "P H 3"]:
    """Some paths from each place to others of like colour; those that lead nowhere rest."""
    if not len(others.positions):
        return places.positions.new_zeros(len(places.positions), 1, 3)
    near = torch.cdist(places.positions, others.positions) < farthest
    alike = torch.cdist(places.colors, others.colors, p=float("inf")) < ALIKE
    drawn = torch.rand(near.shape, device=near.device) * (near & alike)
    chance, chosen = drawn.topk(min(PATHS, drawn.shape[1]), dim=1)
    return (others.positions[chosen] - places.positions[:, None]) * (chance > 0)[..., None]


def sample_missing(
    scene: Scene,
    views: Sequence[View],
    look: Callable[[list[int]], Evidence],
    options: GuidedSampling,
    extent: float,
) -> Gaussians:
    """New Gaussians for what training views show and a scene does not have.

    Processes that train together share the moments out, and all get the same Gaussians.

    Args:
        scene: whose kind of Gaussians to make.
        views: training views.
        look: evidence of views of one moment, by their places among these.
        options: how.
        extent: of the scene.
    """
    by_time = _moments(views)
    times = sorted(by_time)
    step = min((late - early for early, late in itertools.pairwise(times)), default=1.0)
    known: dict[int, Moment] = {}
    found = [_Rows.none(scene.gaussians.device)]
    for anchor in range(len(times))[:: options.stride][process_rank() :: world_size()]:
        nearby = range(max(anchor - 1, 0), min(anchor + 2, len(times)))
        known = {i: known[i] if i in known else _known(times[i], look(by_time[times[i]])) for i in nearby}
        neighbours = [(known[i], i - anchor) for i in nearby if i != anchor]
        moved = steps_of(known[anchor], neighbours, FARTHEST * extent)
        found.append(_Rows.of(known[anchor], moved / step))
    gathered = [torch.cat(gather_rows(torch.cat(column))) for column in zip(*found, strict=True)]
    return _as_gaussians(scene, _Rows(*gathered), options.stride * step)


class _Rows(NamedTuple):
    """P new Gaussians: balls with these radii and colours, where and when they were seen, and their speed."""

    positions: Float[Tensor, "P 3"]
    colors: Float[Tensor, "P 3"]
    scales: Float[Tensor, " P"]
    times: Float[Tensor, " P"]
    velocities: Float[Tensor, "P 3"]

    @staticmethod
    def none(device: torch.device) -> "_Rows":
        points, numbers = torch.empty(0, 3, device=device), torch.empty(0, device=device)
        return _Rows(points, points, numbers, numbers, points)

    @staticmethod
    def of(moment: Moment, velocities: Float[Tensor, "P 3"]) -> "_Rows":
        """Balls as wide as the places are apart, within a few pixels."""
        found, widths = moment.found, moment.found.widths
        scales = neighbour_distances(found.positions).clamp(widths, WIDEST * widths)
        times = torch.full_like(widths, moment.time)
        return _Rows(found.positions, found.colors, scales, times, velocities)


def _known(time: float, evidence: Evidence) -> Moment:
    return Moment(time, evidence, evidence.missing())


def _moments(views: Sequence[View]) -> dict[float, list[int]]:
    """Places of the views of each moment; of views of several sizes those of the most frequent one."""
    moments: dict[float, dict[tuple[int, int], list[int]]] = {}
    for place, view in enumerate(views):
        sizes = moments.setdefault(view.time or 0.0, {})
        sizes.setdefault((view.camera.width, view.camera.height), []).append(place)
    return {time: max(sizes.values(), key=len) for time, sizes in moments.items()}


def _as_gaussians(scene: Scene, rows: _Rows, span: float) -> Gaussians:
    """With what the scene's parts make of things that were seen at a moment, moving."""
    count = len(rows.positions)
    quats = rows.positions.new_zeros(count, 4)
    quats[:, 0] = 1.0
    sh = rows.positions.new_zeros(count, *scene.gaussians.params["sh"].shape[1:])
    sh[:, 0] = (rows.colors - 0.5) / SH_C0
    opacities = rows.positions.new_full((count,), OPACITY)
    splats = Splats(rows.positions, quats, rows.scales[:, None].repeat(1, 3), opacities, sh)
    gaussians = Gaussians.from_splats(splats).extended(scene.gaussians.attributes.values())
    for part in scene.each_part():
        part.place(gaussians, Sightings(rows.times, rows.velocities, span))
    return gaussians
