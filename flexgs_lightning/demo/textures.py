"""Textures of the demo scene: synthesised once, looked up through mip levels so that nothing aliases.

Every texture is linear RGB and wraps around in both directions.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

Image = Float[np.ndarray, "H W 3"]
SIZE = 512
"""Side of a surface texture in texels."""


class Texture:
    """An image with all its reductions by two, sampled trilinearly (Williams 1983).

    Args:
        image: [H, W, 3] linear RGB, both sides powers of two.
    """

    def __init__(self, image: Image) -> None:
        self.height, self.width = image.shape[:2]
        levels: list[np.ndarray] = [np.ascontiguousarray(image, dtype=np.float32)]
        while min(levels[-1].shape[:2]) > 1:
            last = levels[-1]
            levels.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / 4)
        sizes = [level.shape[0] * level.shape[1] for level in levels]
        self._texels = np.concatenate([level.reshape(-1, 3) for level in levels])
        self._starts = np.cumsum([0, *sizes[:-1]]).astype(np.int32)

    def sample(
        self,
        u: Float[np.ndarray, " N"],
        v: Float[np.ndarray, " N"],
        footprint: Float[np.ndarray, " N"],
    ) -> Float[np.ndarray, "3 N"]:
        """Colours at (u, v), averaged over about ``footprint``; all three in periods of the texture."""
        last = len(self._starts) - 1
        level = np.clip(np.log2(np.maximum(footprint, 1e-6) * self.height), 0, last - 1e-3)
        lower = level.astype(np.int32)
        blend = (level - lower).astype(np.float32)[:, None]
        fine, coarse = self._bilinear(u, v, lower), self._bilinear(u, v, lower + 1)
        return np.ascontiguousarray((fine + (coarse - fine) * blend).T)

    def _bilinear(
        self, u: Float[np.ndarray, " N"], v: Float[np.ndarray, " N"], level: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, "N 3"]:
        width, height = self.width >> level, self.height >> level
        x, y = u * width - np.float32(0.5), v * height - np.float32(0.5)
        column, row = np.floor(x), np.floor(y)
        right, down = (x - column)[:, None], (y - row)[:, None]
        left = column.astype(np.int32) & (width - 1)
        next_column = (left + 1) & (width - 1)
        top = row.astype(np.int32) & (height - 1)
        upper = self._starts[level] + top * width
        lower = self._starts[level] + ((top + 1) & (height - 1)) * width
        above, below = self._at(upper + left), self._at(lower + left)
        above += (self._at(upper + next_column) - above) * right
        below += (self._at(lower + next_column) - below) * right
        below -= above
        below *= down
        above += below
        return above

    def _at(self, index: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N 3"]:
        return self._texels.take(index, axis=0)


# --- building blocks ---------------------------------------------------------------------------------


def rgb(hex_color: str) -> Float[np.ndarray, " 3"]:
    """Linear RGB of an sRGB colour written as six hexadecimal digits."""
    srgb = np.array([int(hex_color[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> Image:
    """Blend two colours or images by a [H, W] weight."""
    return a + (b - a) * np.asarray(weight)[..., None]


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    scale: float,
    *,
    stretch: float = 1.0,
    slope: float = 1.5,
) -> Float[np.ndarray, "H W"]:
    """Periodic noise of zero mean and unit variance with a power-law spectrum.

    Args:
        rng: source of the phases.
        shape: height and width.
        scale: lowest frequency in cycles per height; below it the spectrum falls off.
        stretch: how much longer features are along the width than along the height.
        slope: amplitudes fall as frequency^-slope; larger is smoother.
    """
    height, width = shape
    fy = np.fft.fftfreq(height, 1 / height)[:, None]
    fx = np.fft.rfftfreq(width, 1 / width)[None] * (height / width) * stretch
    frequency = np.sqrt(fx**2 + fy**2) + 1e-9
    amplitude = frequency**-slope * np.exp(-((scale / frequency) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * amplitude, s=shape)
    return (field / field.std()).astype(np.float32)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Texel centres (u, v) of a surface texture, each [SIZE, SIZE] in [0, 1)."""
    centres = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    u, v = np.meshgrid(centres, centres)
    return u, v


def cells(rng: np.random.Generator, count: int) -> tuple[np.ndarray, Int[np.ndarray, "S S"]]:
    """A periodic Voronoi diagram (Worley 1996): distance to the border over cell size, and cell number."""
    u, v = grid()
    seeds = rng.random((count, 2))
    texels = np.stack([u, v], axis=-1).reshape(-1, 2)
    distance, index = cKDTree(seeds, boxsize=np.ones(2)).query(texels, k=2)
    nearest, second = np.asarray(distance, np.float32).T
    border = (second - nearest) * np.float32(math.sqrt(count))
    return border.reshape(SIZE, SIZE), np.asarray(index)[:, 0].reshape(SIZE, SIZE)


def _bond(rows: int, columns: int, joint: float) -> tuple[np.ndarray, np.ndarray]:
    """Running bond: weight of the stone against the joint, and each stone's number."""
    u, v = grid()
    row = np.floor(v * rows)
    x = u * columns + 0.5 * (row % 2)
    column = np.floor(x) % columns
    edge = np.minimum(
        np.abs((x + 0.5) % 1 - 0.5) / columns,
        np.abs((v * rows + 0.5) % 1 - 0.5) / rows,
    )
    return smoothstep(joint * 0.5, joint, edge), (row * columns + column).astype(int)


# --- materials ---------------------------------------------------------------------------------------


def paving(rng: np.random.Generator) -> Image:
    """Slabs of warm limestone, each of its own tint, with dark joints."""
    stone, number = _bond(4, 2, 0.012)
    tint = 1 + 0.16 * rng.standard_normal((8, 1)) + 0.03 * rng.standard_normal((8, 3))
    surface = rgb("b8ab97") * tint[number]
    grain = 1 + 0.07 * noise(rng, (SIZE, SIZE), 6, slope=1.2) + 0.07 * noise(rng, (SIZE, SIZE), 40, slope=1.0)
    return mix(rgb("5c5348"), surface * grain[..., None], stone)


def brick(rng: np.random.Generator) -> Image:
    """Red brick in running bond with pale mortar."""
    brick_weight, number = _bond(8, 4, 0.012)
    tint = 1 + 0.22 * rng.standard_normal((32, 1)) + 0.05 * rng.standard_normal((32, 3))
    surface = rgb("a4543a") * np.clip(tint, 0.5, 1.6)[number]
    grain = 1 + 0.12 * noise(rng, (SIZE, SIZE), 16, slope=1.0)
    return mix(rgb("b9b0a2"), surface * grain[..., None], brick_weight)


def grass(rng: np.random.Generator) -> Image:
    """A mown lawn: clumps of two greens with drier patches."""
    blades = noise(rng, (SIZE, SIZE), 24, slope=0.9)
    patches = noise(rng, (SIZE, SIZE), 2, slope=1.6)
    lawn = mix(rgb("47552c"), rgb("87915a"), smoothstep(-1.8, 1.8, blades))
    return mix(lawn, rgb("a59d6e"), 0.5 * smoothstep(0.2, 1.8, patches + 0.4 * blades))


def wood(rng: np.random.Generator) -> Image:
    """Five planks with wavy grain along u."""
    _, v = grid()
    plank = np.floor(v * 5).astype(int)
    warp = noise(rng, (SIZE, SIZE), 2, stretch=5, slope=2.0)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (v * 15 + 0.55 * warp + rng.random(5)[plank]))
    fibre = noise(rng, (SIZE, SIZE), 30, stretch=14, slope=0.8)
    surface = mix(rgb("7d4f2b"), rgb("c08a52"), np.clip(0.25 + 0.6 * rings + 0.14 * fibre, 0, 1))
    surface = surface * (1 + 0.13 * rng.standard_normal(5))[plank][..., None]
    gap = smoothstep(0.004, 0.012, np.abs((v * 5 + 0.5) % 1 - 0.5))
    return mix(rgb("3a2516"), surface, gap)


def marble(rng: np.random.Generator) -> Image:
    """White marble with grey-green veins."""
    u, v = grid()
    warp = noise(rng, (SIZE, SIZE), 1.5, slope=1.7)
    veins = 1 - np.abs(np.sin(np.pi * (2 * u + 3 * v + 0.55 * warp)))
    cloud = smoothstep(-2, 2, noise(rng, (SIZE, SIZE), 3, slope=1.5))
    return mix(mix(rgb("f1ece2"), rgb("cfd2cb"), cloud), rgb("3f564f"), smoothstep(0.55, 1.0, veins))


def terrazzo(rng: np.random.Generator) -> Image:
    """Chips of coloured stone in cream cement."""
    border, number = cells(rng, 170)
    palette = np.stack([rgb(c) for c in ("c8553d", "2d6a6f", "e0a526", "f2e8d5", "50514f", "8fb0a5")])
    chips = palette[rng.integers(0, len(palette), 170)][number]
    return mix(rgb("ece3d0"), chips, smoothstep(0.18, 0.30, border))


def leaves(rng: np.random.Generator) -> Image:
    """Dense foliage: small leaves from shaded to sunlit green, in clumps."""
    border, number = cells(rng, 1500)
    clumps = noise(rng, (SIZE, SIZE), 5, slope=1.6)
    tone = 0.45 + 0.22 * clumps + 0.35 * (rng.random(1500)[number] - 0.5)
    foliage = mix(rgb("2c3f22"), rgb("93a35c"), np.clip(tone, 0, 1))
    return mix(rgb("1d2b16"), foliage, 0.35 + 0.65 * smoothstep(0.0, 0.4, border))


def gingham(rng: np.random.Generator) -> Image:
    """Red and white checked cloth."""
    u, v = grid()
    bands = [smoothstep(-0.08, 0.08, np.sin(2 * np.pi * 4 * axis)) for axis in (u, v)]
    cloth = mix(rgb("f3ede1"), rgb("b3262e"), 0.5 * bands[0] + 0.5 * bands[1])
    return cloth * (1 + 0.04 * noise(rng, (SIZE, SIZE), 60, slope=0.6))[..., None]


def checker(rng: np.random.Generator) -> Image:
    """Inlaid squares of walnut and maple."""
    u, v = grid()
    squares = np.sin(2 * np.pi * 2 * u) * np.sin(2 * np.pi * 2 * v)
    fibre = noise(rng, (SIZE, SIZE), 8, stretch=8, slope=1.0)
    pattern = mix(rgb("5b3620"), rgb("dcb780"), smoothstep(-0.04, 0.04, squares))
    return pattern * (1 + 0.10 * fibre)[..., None]


def stripes(rng: np.random.Generator) -> Image:
    """Hand-painted cobalt bands on white porcelain."""
    u, v = grid()
    wave = 0.02 * np.sin(2 * np.pi * 8 * u) + 0.004 * noise(rng, (SIZE, SIZE), 4)
    bands = np.sin(2 * np.pi * (3 * (v + wave)))
    thin = np.sin(2 * np.pi * (3 * v + 0.25)) - 0.97
    ink = np.maximum(smoothstep(0.25, 0.4, bands), smoothstep(0.0, 0.02, thin))
    return mix(rgb("f2f1ec"), rgb("1f4490"), ink * (0.9 + 0.1 * np.tanh(noise(rng, (SIZE, SIZE), 6))))


def plain(rng: np.random.Generator, color: str, contrast: float = 0.08) -> Image:
    """One colour with a little wear."""
    return rgb(color) * (1 + contrast * noise(rng, (SIZE, SIZE), 5, slope=1.2))[..., None]


# --- the distance ------------------------------------------------------------------------------------

HAZE = 1.25 * rgb("d3e0ea")
"""Colour of the air towards the horizon."""


def panorama(
    rng: np.random.Generator, sun: Float[np.ndarray, " 3"], shape: tuple[int, int] = (1024, 2048)
) -> Image:
    """Sky, clouds, three ranges of hills and a line of trees, as an equirectangular image.

    Row 0 is the zenith, the last row the nadir; column x looks along azimuth 2 pi x / W, counted from +x
    towards +y. ``sun`` is the unit vector towards the sun.
    """
    height, width = shape
    elevation = np.pi * (0.5 - (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height)
    azimuth = 2 * np.pi * (np.arange(width, dtype=np.float32)[None] + 0.5) / width
    image = _sky(rng, elevation, azimuth, sun)
    ranges = (  # height in degrees, variation, roughness, colour, how hazy, snow line
        (10.0, 3.2, 1.9, rgb("5b6a80"), 0.40, 11.0),
        (4.2, 1.7, 1.8, rgb("4d6152"), 0.28, None),
        (2.2, 0.7, 0.9, rgb("33492a"), 0.08, None),
    )
    degrees = np.degrees(elevation)
    for base, variation, slope, color, haze, snow_line in ranges:
        ridge = base + variation * noise(rng, shape, 3, slope=slope)[height // 2]
        relief = noise(rng, shape, 24, stretch=1.6, slope=1.3)
        rock = color * (1 + 0.22 * relief)[..., None]
        if snow_line is not None:
            rock = mix(rock, 1.2 * rgb("eef2f6"), smoothstep(-0.6, 1.6, degrees - snow_line + 1.2 * relief))
        layer = mix(rock, HAZE, np.clip(haze + 0.10 * (base - degrees) / base, 0, 1))
        image = mix(image, layer, smoothstep(-0.12, 0.12, ridge - degrees))
    return mix(image, 0.5 * rgb("9a9683"), smoothstep(0.0, 0.5, -degrees) * np.ones(shape))


def _sky(
    rng: np.random.Generator, elevation: np.ndarray, azimuth: np.ndarray, sun: Float[np.ndarray, " 3"]
) -> Image:
    shape = (elevation.size, azimuth.size)
    towards_sun = (
        np.cos(elevation) * (np.cos(azimuth) * sun[0] + np.sin(azimuth) * sun[1]) + np.sin(elevation) * sun[2]
    )
    climb = np.clip(np.sin(elevation), 0, 1) ** 0.55 * np.ones(shape)
    sky = mix(HAZE, 1.25 * rgb("3f7cc4"), climb)
    sky = sky + rgb("ffe2b0") * (0.35 * np.clip(towards_sun, 0, 1) ** 12)[..., None]
    cover = noise(rng, shape, 5, stretch=2.5, slope=1.9) + 0.2 * noise(rng, shape, 24, stretch=2.0)
    clouds = 0.85 * smoothstep(0.35, 1.7, cover) * smoothstep(0.05, 0.3, elevation)
    return mix(sky, 1.5 * rgb("fbf7f0"), clouds)
