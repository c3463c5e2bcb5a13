"""``flexgs publish``. Its signature and docstring are the command line's help."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from flexgs_lightning.codec.decoder import SUFFIX, open_file
from flexgs_lightning.codec.film import is_film, open_film
from flexgs_lightning.data.capture import Capture
from flexgs_lightning.deploy.compress import compress
from flexgs_lightning.deploy.opening import given, open_capture, open_model
from flexgs_lightning.deploy.render import read_photo
from flexgs_lightning.deploy.web.description import Visit, describe, visits_of
from flexgs_lightning.errors import InputError
from flexgs_lightning.files import atomic_path
from flexgs_lightning.images import to_uint8
from flexgs_lightning.model.budget import MEGABYTE

log = logging.getLogger(__name__)

PLAYER = Path(__file__).parent / "player"
"""The player's files as they are shipped."""
PAGE, DESCRIPTION, SCENE = "index.html", "scene.json", "scene.egs"
PLAYER_FOLDER, PHOTO_FOLDER = "player", "photos"
_SERVED = (".js", ".css")
_JPEG_QUALITY = 90


def publish(
    output: Path,
    ckpt: Path | None = None,
    ply: Path | None = None,
    title: str | None = None,
    photos: bool = False,
    psnr_loss: float | None = None,
    max_megabytes: float | None = None,
    data_root: Path | None = None,
    downscale: int | None = None,
    test_every: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> None:
    """Write a folder of static files for any web server: the scene at every size, and a player for browsers.

    The player needs WebGL 2 and nothing from elsewhere. It shows the first bytes of the scene as soon as they
    are there, and grows. "flexgs serve" shows the folder on this machine.

    Args:
        output: The folder to write.
        ckpt: Checkpoint of a training, which is compressed first; or an elastic file (.egs) as it is.
        ply: Splat file, instead of a checkpoint.
        title: Heading of the page; by default the scene's name.
        photos: Also publish the photos of the test views, beside which the scene can be seen; of a film those
            of a few moments.
        psnr_loss: As of "flexgs compress": decibels that the full model may lose on training views.
        max_megabytes: As of "flexgs compress": size of the elastic file, in place of psnr_loss.
        data_root: COLMAP folder of the capture; by default the one that the checkpoint was trained on. It
            gives the player its first view and the test views.
        downscale: Reduction of the capture's photos; by default as trained, or 1.
        test_every: Every n-th photo is a test view; by default as trained, or 8.
        device: Where to draw while compressing; "auto" takes CUDA where there is a device.
        overwrite: Replace the folder if it is one that this command wrote.
    """
    _require_replaceable(output, overwrite)
    wished = given(root=data_root, downscale=downscale, test_every=test_every)
    compressed = ckpt is not None and ckpt.suffix.lower() == SUFFIX
    if compressed and (psnr_loss is not None or max_megabytes is not None):
        raise InputError(f"{ckpt}: an elastic file is published as it is, found a budget for compressing it.")
    model = None if compressed else open_model(ckpt, ply)
    data = ({} if model is None else model.data) | wished
    capture = _capture(data, required=photos or data_root is not None)
    with atomic_path(output) as folder:
        folder.mkdir()
        if compressed and ckpt is not None:
            open_film(ckpt) if is_film(ckpt) else open_file(ckpt)
            shutil.copyfile(ckpt, folder / SCENE)
        else:
            compress(
                folder / SCENE, None if ckpt is None else [ckpt], ply, psnr_loss, None, max_megabytes,
                device=device, data_root=data_root, downscale=downscale, test_every=test_every,
            )  # fmt: skip
        copy_player(folder)
        source = ckpt if ckpt is not None else ply
        name = (source.stem if source else "scene") if model is None else model.name
        visits = visits_of(capture)
        description = describe(folder / SCENE, capture, visits, title or name)
        if photos:
            _write_photos(visits, folder, description)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False) + "\n")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / MEGABYTE
    log.info(f"{output}: {size:.2f} MB to put on any web server; to see it here: flexgs serve {output}")


def copy_player(folder: Path) -> None:
    """Put the page and the player's own files into a site."""
    for path in sorted(PLAYER.rglob("*")):
        if path.suffix in _SERVED:
            target = folder / PLAYER_FOLDER / path.relative_to(PLAYER)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.copyfile(PLAYER / PAGE, folder / PAGE)


def _write_photos(visits: list[Visit], folder: Path, description: dict[str, Any]) -> None:
    """The test views' photos as JPEG files, named in their views."""
    (folder / PHOTO_FOLDER).mkdir()
    for i, (visit, entry) in enumerate(zip(visits, description["views"], strict=True)):
        entry["photo"] = f"{PHOTO_FOLDER}/{i:04d}.jpg"
        photo = to_uint8(read_photo(visit.view.source, torch.zeros(3)))
        Image.fromarray(photo).save(folder / entry["photo"], quality=_JPEG_QUALITY)


def _capture(data: dict[str, Any], required: bool) -> Capture | None:
    """The capture that ``data`` names, if it is there.

    Raises:
        InputError: it is required, and not there.
    """
    root = data.get("root")
    if root is not None and (required or Path(root).is_dir()):
        return open_capture(data)
    if required:
        raise InputError("--photos: expected --data-root, the capture that the photos belong to.")
    log.info("No capture at hand, so the page has no test views.")
    return None


def _require_replaceable(output: Path, overwrite: bool) -> None:
    """Refuse to replace anything but a site of an earlier call.

    Raises:
        InputError: ``output`` exists and may not be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{output}: exists already. Choose another output, or set overwrite to replace it.")
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    others = names - {PAGE, DESCRIPTION, SCENE, PLAYER_FOLDER, PHOTO_FOLDER}
    if others or DESCRIPTION not in names:
        raise InputError(f"{output}: not replaced, because it is no folder that flexgs publish wrote.")
