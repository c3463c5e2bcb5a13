"""Sound input of every kind, made once: what the broken is made from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
import torch
from colmap_folder import Folder, write_capture
from elastic_arrays import encoded, random_arrays
from film import llff_rows, write_film
from moving_arrays import random_moving, write_moving
from splat_files import SINGLE_FILES, scene
from transforms_folder import as_nerfstudio

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.cli import main
from flexgs_lightning.codec.recipes.halves import write_halves
from flexgs_lightning.codec.recipes.images import Recipe, write_images
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.formats.registry import FORMATS, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.path_file import write_path
from flexgs_lightning.model.profile import Profile

FIRST, SECOND = 4, 3
"""Iterations of the training that the checkpoints are of."""
TRAINING = (
    f"--model.reconstruction_steps={FIRST}",
    f"--model.elastic_training.steps={SECOND}",
    "--model.lpips=none",
    "--test_after_fit=false",
    "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=0",
    "--data.num_workers=0",
)
"""Options of the training, without its folders."""
MOMENT = "1.5"
"""Of the film: in its second group."""


MOVING = (
    "--model.motion.path=bases",
    "--model.motion.opacity=varying",
    "--model.appearance=features",
    "--model.sh_degree=0",
    "--model.elastic_training.steps=0",
)
"""Options of a training with every part that moves."""


@dataclass(frozen=True)
class Samples:
    """Folders and files; only read, and copied before anything is broken.

    Attributes:
        capture: COLMAP folder with masks and a distorting camera, in text.
        binary: the same in binary.
        run: run folder of a training of both stages, with a checkpoint of each.
        splats: a file of each format by name, streamed SOG and an unpacked SOG folder too.
        elastic: an elastic file.
        film_file: one of a scene that moves, in groups of frames.
        moment: what ``flexgs decompress`` makes of a moment of that.
        path: a camera path, whose frames have times.
        transforms: a capture with transforms.json.
        films: filmed captures by layout: "frames" and "videos" with cameras.json, "llff" with poses.
        recipes: a file of each codec recipe.
        profile: what a frame costs.
        video: of a few frames.
        site: a folder to serve.
        studies: folders of finished studies by the command's name.
        moving: checkpoint of a filmed scene with motion, lives and features.
        scenes: folder of a benchmark's scenes.
        exported: what ``flexgs export`` makes of the last checkpoint.
    """

    root: Path

    @property
    def capture(self) -> Path:
        return self.root / "capture"

    @property
    def binary(self) -> Path:
        return self.root / "binary"

    @property
    def run(self) -> Path:
        return self.root / "runs" / "capture" / "version_0"

    @property
    def checkpoints(self) -> dict[str, Path]:
        folder = self.run / "checkpoints"
        return {"first": folder / f"step_{FIRST}.ckpt", "last": folder / "last.ckpt"}

    @property
    def splats(self) -> dict[str, Path]:
        files = {name: self.root / "splats" / name / f"scene{FORMATS[name].suffix}" for name in SINGLE_FILES}
        return files | {
            "sog-folder": self.root / "splats" / "unpacked" / "meta.json",
            "streamed-sog": self.root / "splats" / "streamed" / "lod-meta.json",
            "ascii": self.root / "splats" / "ascii" / "scene.ply",
        }

    @property
    def elastic(self) -> Path:
        return self.root / "scene.egs"

    @property
    def film_file(self) -> Path:
        return self.root / "film.egs"

    @property
    def moment(self) -> Path:
        return self.root / "moment.ply"

    @property
    def path(self) -> Path:
        return self.root / "path.json"

    @property
    def transforms(self) -> Path:
        return self.root / "transforms"

    @property
    def films(self) -> dict[str, Path]:
        return {name: self.root / "films" / name for name in ("frames", "videos", "llff")}

    @property
    def recipes(self) -> dict[str, Path]:
        return {name: self.root / f"{name}.zip" for name in ("halves", "images", "ans")}

    @property
    def profile(self) -> Path:
        return self.root / "profile.json"

    @property
    def video(self) -> Path:
        return self.films["videos"] / "videos" / "cam00.mp4"

    @property
    def site(self) -> Path:
        return self.root / "site"

    @property
    def studies(self) -> dict[str, Path]:
        return {name: self.root / "studies" / name for name in ("compare", "rd")}

    def study(self, name: str) -> list[str]:
        """The command that makes a study, and goes on with it, but for its folder."""
        ckpt, own = str(self.checkpoints["last"]), str(self.run / "config.yaml")
        own_options = {"compare": ["--methods", "prune", "--steps", "1"], "rd": ["--systems", "ply"]}
        common = ["--ckpt", ckpt, "--config", own, "--ratios", "1.0", "--device", "cpu"]
        return [name, *common, *own_options[name]]

    @property
    def moving(self) -> Path:
        return self.root / "runs" / "moving" / "version_0" / "checkpoints" / "last.ckpt"

    @property
    def scenes(self) -> Path:
        return self.root / "scenes"

    @property
    def exported(self) -> Path:
        return self.root / "exported.ply"

    @property
    def decompressed(self) -> Path:
        return self.root / "decompressed.ply"


def make(root: Path) -> Samples:
    """Make all of them; a few seconds."""
    samples = Samples(root)
    names = ["a/photo_0.png", "a/photo_1.png", "b.png", "c.png"]
    for each, camera in ((samples.capture, "SIMPLE_RADIAL"), (samples.binary, "PINHOLE")):
        folder = write_capture(each, camera, size=(48, 36), names=names, binary=each == samples.binary)
        _write_points(folder)
        if each == samples.binary:
            shutil.copytree(each, samples.transforms)
            as_nerfstudio(replace(folder, root=samples.transforms))
        (each / "masks").mkdir()
        shutil.copy(each / "images" / "b.png", each / "masks" / "b.png")
    fit = [f"--data.root={samples.binary}", "--name=capture", f"--runs={root / 'runs'}", *TRAINING]
    keep = ["--checkpoint.keep=true", f"--checkpoint.every_n_steps={FIRST}"]
    assert main(["fit", *fit, *keep]) == 0
    for name, path in samples.splats.items():
        path.parent.mkdir(parents=True)
        if name == "ascii":
            _write_ascii(path)
        elif name in FORMATS and name != "streamed-sog":
            write_splats(SplatFile(scene(60, 1)), path, name)
    for name in ("sog-folder", "streamed-sog"):
        path = samples.splats[name]
        path.parent.rmdir()
        write_splats(SplatFile(scene(60, 1)), path)
    encoded(random_arrays(400)).write(samples.elastic)
    write_moving(samples.film_file, [random_moving(total=120), random_moving("bases", total=150, seed=2)])
    camera = read_colmap(samples.binary).views[0].camera
    write_path(Cameras.stack([camera, camera]), samples.path, times=[0.0, 0.5])
    Profile("a clock", ((10, 1.0), (40, 2.0)), ((10, 1.5), (40, 2.5))).write(samples.profile)
    samples.site.mkdir()
    shutil.copytree(samples.binary, samples.scenes / "garden")
    (samples.site / "index.html").write_text("<p>A page")
    _write_captures(samples)
    _write_recipes(samples)
    for name, output in samples.studies.items():
        assert main([*samples.study(name), "--output", str(output)]) == 0
    film = [f"--data.root={samples.films['frames']}", "--name=moving", f"--runs={root / 'runs'}", *TRAINING]
    assert main(["fit", *film, *MOVING]) == 0
    assert (
        main(["export", "--ckpt", str(samples.checkpoints["last"]), "--output", str(samples.exported)]) == 0
    )
    assert main(["decompress", str(samples.elastic), "--output", str(samples.decompressed)]) == 0
    moment = ["--output", str(samples.moment), "--time", MOMENT]
    assert main(["decompress", str(samples.film_file), *moment]) == 0
    return samples


def _write_points(folder: Folder) -> None:
    """Enough points to train from."""
    rng = np.random.default_rng(0)
    for xyz in rng.uniform([-1, -1, 3], [1, 1, 5], (40, 3)):
        folder.model.add_point3D(xyz, pycolmap.Track(), np.array([100, 120, 140], np.uint8))
    binary = (folder.sparse / "cameras.bin").exists()
    (folder.model.write_binary if binary else folder.model.write_text)(str(folder.sparse))


def _write_captures(samples: Samples) -> None:
    write_film(samples.films["frames"], count=3)
    write_film(samples.films["videos"], video=True, count=3)
    folder = samples.films["llff"]
    shutil.copytree(samples.films["frames"], folder)
    (folder / "cameras.json").unlink()
    np.save(folder / "poses_bounds.npy", llff_rows())


def _write_recipes(samples: Samples) -> None:
    splats = scene(60, 1)
    write_halves(splats, samples.recipes["halves"])
    write_images(splats, samples.recipes["images"])
    write_images(splats, samples.recipes["ans"], Recipe(coder="ans"))


def _write_ascii(path: Path) -> None:
    """A PLY of text, which this package reads but does not write."""
    splats = scene(20, 0)
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3))]
    names += [f"rot_{i}" for i in range(4)]
    table = torch.cat(
        [splats.means, splats.sh[:, 0], splats.opacities[:, None].logit(), splats.scales.log(), splats.quats],
        dim=1,
    )
    lines = [
        "ply",
        "format ascii 1.0",
        f"element vertex {len(splats)}",
        *(f"property float {n}" for n in names),
    ]
    lines += ["end_header", *(" ".join(f"{value:.6g}" for value in row) for row in table.tolist()), ""]
    path.write_text("\n".join(lines))
