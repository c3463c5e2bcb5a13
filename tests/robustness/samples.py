"""Sound input of every kind, made once: what the broken is made from."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
import torch
from colmap_folder import Folder, write_capture
from elastic_arrays import encoded, random_arrays
from film import NAMES, llff_rows, write_colmap_film, write_film
from moving_arrays import random_moving, write_moving
from splat_files import SINGLE_FILES, scene
from transforms_folder import as_nerfstudio, write_blender

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.cli import main
from flexgs_lightning.codec.recipes.halves import write_halves
from flexgs_lightning.codec.recipes.images import Recipe, write_images
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.deploy.formats.registry import FORMATS, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.path_file import write_path
from flexgs_lightning.deploy.trainer_cameras import write_trainer_cameras
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
_SMALL = ("--model.compression_training.steps=1", "--model.compression.psnr_loss=3")
PARTS = {
    "networks": (
        "--model.elastic.selection=gsnet",
        "--model.elastic.residual_anchors=[]",
        "--model.elastic.field_heads=[means,sh]",
        "--model.elastic.field_resolution=2",
        "--model.compression.quantization=uniform",
        "--model.compression.entropy=hash_grid",
        "--model.compression.attributes=[scales]",
        *_SMALL,
    ),
    "rule": ("--model.compression.sh_mask=learned", *_SMALL),
}
"""Options of trainings with all other parts, by name."""


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
        trainer_cameras: cameras.json of a 3DGS model.
        transforms: a capture with transforms.json.
        blender: one with such a file for each split.
        films: filmed captures by layout: "frames" and "videos" with cameras.json, "llff" with poses, and
            "colmap".
        benchmark: runs of a benchmark, of which one is finished.
        processed: what is left of ``flexgs data process`` for the same command: its report.
        recipes: a file of each codec recipe.
        profile: what a frame costs.
        video: of a few frames.
        site: a folder to serve.
        studies: folders of finished studies by the command's name.
        moving: checkpoint of a filmed scene with motion, lives and features.
        parts: checkpoints with the other parts by name.
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
    def trainer_cameras(self) -> Path:
        return self.root / "trainer_cameras.json"

    @property
    def transforms(self) -> Path:
        return self.root / "transforms"

    @property
    def blender(self) -> Path:
        return self.root / "blender"

    @property
    def benchmark(self) -> Path:
        return self.root / "benchmark"

    @property
    def processed(self) -> Path:
        return self.root / "processed"

    @property
    def films(self) -> dict[str, Path]:
        return {name: self.root / "films" / name for name in ("frames", "videos", "llff", "colmap")}

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
    def parts(self) -> dict[str, Path]:
        runs = self.root / "runs"
        return {name: runs / name / "version_0" / "checkpoints" / "last.ckpt" for name in PARTS}

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
    for name, options in PARTS.items():
        assert main(["fit", fit[0], f"--name={name}", *fit[2:], *options]) == 0
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
    write_trainer_cameras(read_colmap(samples.binary).views, samples.trainer_cameras)
    Profile("a clock", ((10, 1.0), (40, 2.0)), ((10, 1.5), (40, 2.5))).write(samples.profile)
    samples.site.mkdir()
    shutil.copytree(samples.binary, samples.scenes / "garden")
    (samples.site / "index.html").write_text("<p>A page")
    _write_states(samples)
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
    shutil.copy(samples.exported, samples.site)
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
    write_colmap_film(samples.films["colmap"], {f"{name}.png": i for i, name in enumerate(NAMES)})
    write_blender(samples.blender, {"train": 3, "val": 1, "test": 2}, times=True)


def _write_states(samples: Samples) -> None:
    """What a benchmark and structure from motion leave behind, which take long to make."""
    version = samples.benchmark / "garden" / "version_0"
    version.mkdir(parents=True)
    shutil.copy(samples.run / "config.yaml", version)
    result = {"gaussians": 40, "psnr": 20.0, "ssim": 0.9, "worst": {"name": "b.png", "psnr": 18.0}}
    mean = {"psnr": 20.0, "ssim": 0.9}
    metrics = {
        "mean": mean, "ratios": {"0.1": result, "1": result}, "gaussians": 40, "iteration": FIRST + SECOND,
        "capture": "garden", "milliseconds": 1.5, "protocol": {"test_every": 8}, "worst": result["worst"],
        "images": [{"name": "b.png", "psnr": 18.0}],
    }  # fmt: skip
    (version / "metrics.json").write_text(json.dumps(metrics))
    settings = {
        "source": str(samples.binary / "images"), "frames": 150, "matching": "auto",
        "camera_model": "PINHOLE", "feature_side": 1600,
    }  # fmt: skip
    verdict = {
        "photos": 4, "registered": 3, "points": 100, "reprojection_error": 0.5, "track_length": 2.5,
        "models": [3], "left_out": {"c.png": "it fits no other"},
    }  # fmt: skip
    samples.processed.mkdir()
    (samples.processed / "process.json").write_text(json.dumps({"settings": settings, "verdict": verdict}))


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
