"""The named benchmarks: their scenes, where they are published, and the protocols of their published numbers.

Pure data and look-ups. A *benchmark* is what one downloads, a *protocol* is how its numbers are measured;
Tanks & Temples has two, because the FlexGS paper's rows are not at the size that the 3DGS paper uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from flexgs_lightning.data.capture import TEST_EVERY
from flexgs_lightning.errors import InputError

T = TypeVar("T")

_REFRAW360 = "https://storage.googleapis.com/gresearch/refraw360"
_NEURAL_3D = "https://github.com/facebookresearch/Neural_3D_Video/releases/download/v1.0"
_INRIA = "https://repo-sam.inria.fr/fungraph/3d-gaussian-splatting/datasets/input"


@dataclass(frozen=True)
class BenchmarkScene:
    """One capture of a benchmark.

    Attributes:
        name: its name in papers, and of its folder.
        benchmark: name of the benchmark that it belongs to.
        downscale: ``images_N`` that published numbers are measured on; 1 is the size as shipped.
        archive: address of the zip file that holds it.
        member: its folder inside that archive.
        parts: addresses of what goes before, of an archive that is split over several files.
    """

    name: str
    benchmark: str
    downscale: int
    archive: str
    member: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Captures that are reported together.

    Attributes:
        name: name on the command line, and of the folder that holds the scenes.
        title: name in print.
        scenes: all its captures.
    """

    name: str
    title: str
    scenes: tuple[BenchmarkScene, ...]


@dataclass(frozen=True)
class Protocol:
    """A way in which numbers on a benchmark are published.

    Attributes:
        name: name on the command line.
        benchmark: the benchmark it is for.
        description: the choices that move numbers, for reports.
        downscale: image scale of every scene; None leaves each scene at its own.
        background: colour behind the Gaussians in training and evaluation.
        test_every: every n-th image by sorted name is held out, beginning with the first.
        frames: of longer films, how many frames from the first on are used; None for all.
    """

    name: str
    benchmark: str
    description: str
    downscale: int | None = None
    background: Literal["black", "white"] = "black"
    test_every: int = TEST_EVERY
    frames: int | None = None


@dataclass(frozen=True)
class SceneProtocol:
    """A protocol applied to a scene: what a data module and a trainer need to know.

    Attributes:
        scene: the capture.
        protocol: the protocol.
    """

    scene: BenchmarkScene
    protocol: Protocol

    @property
    def downscale(self) -> int:
        """Factor by which the shipped photos are reduced."""
        return self.protocol.downscale or self.scene.downscale

    @property
    def background(self) -> Literal["black", "white"]:
        """Colour behind the Gaussians."""
        return self.protocol.background

    @property
    def test_every(self) -> int:
        """Every n-th image is held out."""
        return self.protocol.test_every


def _scenes(benchmark: str, archive: str, downscale: int, *members: str) -> tuple[BenchmarkScene, ...]:
    return tuple(BenchmarkScene(m.rpartition("/")[2], benchmark, downscale, archive, m) for m in members)


def _mipnerf360() -> Benchmark:
    """Barron et al. 2022: outdoor scenes at a quarter, indoor ones at half the size (their section 6)."""
    name, main, extra = "mipnerf360", f"{_REFRAW360}/360_v2.zip", f"{_REFRAW360}/360_extra_scenes.zip"
    outdoor = _scenes(name, main, 4, "bicycle", "garden", "stump")
    indoor = _scenes(name, main, 2, "bonsai", "counter", "kitchen", "room")
    later = _scenes(name, extra, 4, "flowers", "treehill")  # published apart, after the others
    return Benchmark(name, "Mip-NeRF 360", tuple(sorted(outdoor + indoor + later, key=lambda s: s.name)))


def _tanks_and_temples() -> Benchmark:
    """The two scenes of Tanks & Temples and the two of Deep Blending that 3DGS papers average over."""
    name = "tanks_and_temples"
    members = ("tandt/train", "tandt/truck", "db/drjohnson", "db/playroom")
    scenes = _scenes(name, f"{_INRIA}/tandt_db.zip", 1, *members)
    return Benchmark(name, "Tanks & Temples with Deep Blending", scenes)


def _zipnerf() -> Benchmark:
    """Barron et al. 2023: four houses, here as undistorted by their authors; half size as shipped."""
    name, houses = "zipnerf", ("alameda", "berlin", "london", "nyc")
    archives = ((house, f"{_REFRAW360}/zipnerf-undistorted/{house}.zip") for house in houses)
    scenes = tuple(scene for house, url in archives for scene in _scenes(name, url, 2, house))
    return Benchmark(name, "Zip-NeRF", scenes)


def _neural_3d_video() -> Benchmark:
    """Li et al. 2022: six scenes in a kitchen, filmed by 18 to 21 cameras at 2704x2028 and 30 per second."""
    name = "neural_3d_video"
    whole = ("coffee_martini", "cook_spinach", "cut_roasted_beef", "flame_steak", "sear_steak")
    scenes = [scene for s in whole for scene in _scenes(name, f"{_NEURAL_3D}/{s}.zip", 2, s)]
    salmon = f"{_NEURAL_3D}/flame_salmon_1_split"
    parts = tuple(f"{salmon}.z{number:02d}" for number in (1, 2, 3))
    scenes.append(BenchmarkScene("flame_salmon_1", name, 2, f"{salmon}.zip", "flame_salmon_1", parts))
    return Benchmark(name, "Neural 3D Video", tuple(sorted(scenes, key=lambda scene: scene.name)))


BENCHMARKS: dict[str, Benchmark] = {
    b.name: b for b in (_mipnerf360(), _tanks_and_temples(), _zipnerf(), _neural_3d_video())
}
"""Every benchmark by name."""

SCENES: dict[str, BenchmarkScene] = {scene.name: scene for b in BENCHMARKS.values() for scene in b.scenes}
"""Every scene by name; names are unique over benchmarks."""

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "mipnerf360",
            "mipnerf360",
            "outdoor scenes at images_4, indoor scenes at images_2, as shipped; black background",
        ),
        Protocol(
            "tanks_and_temples",
            "tanks_and_temples",
            "photos at the size as shipped (Kerbl et al. 2023); black background",
        ),
        Protocol(
            "tanks_and_temples_quarter",
            "tanks_and_temples",
            "photos reduced by 4, white background: what the FlexGS paper's Tanks & Temples rows were "
            "measured with (its published code trains with --resolution 4)",
            downscale=4,
            background="white",
        ),
        Protocol(
            "zipnerf",
            "zipnerf",
            "undistorted photos at images_2, as shipped; black background",
        ),
        Protocol(
            "neural_3d_video",
            "neural_3d_video",
            "the first 300 frames at half size (1352x1014), the first camera held out (Li et al. 2024, "
            "Spacetime Gaussians); black background",
            frames=300,
        ),
    )
}
"""Every protocol by name. A benchmark's default protocol has the benchmark's own name."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    return _find("benchmark", name, BENCHMARKS)


def find_scene(name: str, benchmark: str | None = None) -> BenchmarkScene:
    """The scene called ``name``, of ``benchmark`` if one is given.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if benchmark is None:
        return _find("scene", name, SCENES)
    scenes = {scene.name: scene for scene in find_benchmark(benchmark).scenes}
    return _find(f"scene of {benchmark}", name, scenes)


def find_protocol(name: str) -> Protocol:
    """The protocol called ``name``.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    return _find("protocol", name, PROTOCOLS)


def scene_protocol(scene: str, protocol: str | None = None) -> SceneProtocol:
    """How ``scene`` is measured under ``protocol`` (by default its benchmark's own).

    ``scene_protocol("garden").downscale`` is 4. A scene's folder bears its name, so that a configuration
    needs to name the protocol only.

    Raises:
        InputError: unknown scene or protocol, or the protocol is for another benchmark.
    """
    if protocol is None:
        found = find_scene(scene)
        return SceneProtocol(found, PROTOCOLS[found.benchmark])
    chosen = find_protocol(protocol)
    return SceneProtocol(find_scene(scene, chosen.benchmark), chosen)


def _find(kind: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise InputError(f"unknown {kind} '{name}'; expected one of {', '.join(known)}.")
    return known[name]
