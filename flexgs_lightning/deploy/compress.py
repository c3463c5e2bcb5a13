"""``flexgs compress``. Its signature and docstring are the command line's help."""

import logging
from pathlib import Path
from typing import Literal

import torch

from flexgs_lightning.codec.conversion import arrays_of
from flexgs_lightning.codec.decoder import SUFFIX
from flexgs_lightning.codec.encoder import Encoding, encode
from flexgs_lightning.codec.rate_search import plan_for, search_bytes_refined, search_refined
from flexgs_lightning.codec.refinement import refined
from flexgs_lightning.codec.trained_rule import trained_plan, trained_quantization
from flexgs_lightning.codec.views import Judged, mean_psnr, read_views, split_views
from flexgs_lightning.deploy.opening import choose_device, given, open_capture, open_model
from flexgs_lightning.deploy.render import require_free
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import MEGABYTE

log = logging.getLogger(__name__)


def compress(
    output: Path,
    ckpt: Path | None = None,
    ply: Path | None = None,
    psnr_loss: float | None = None,
    prefix_psnr_loss: float | None = None,
    max_megabytes: float | None = None,
    refine_steps: int = 160,
    data_root: Path | None = None,
    downscale: int | None = None,
    test_every: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> None:
    """Write a trained scene as an elastic file: every size in one file, a tenth to a twentieth of a PLY.

    The file may be cut at any chunk's end ("flexgs info" lists them) and then is the model of so many
    Gaussians. What each number is worth, and the rate, are found out on training views; test views are left
    alone.

    Args:
        output: The .egs file to write.
        ckpt: Checkpoint of a training.
        ply: 3DGS PLY file, instead of a checkpoint.
        psnr_loss: Decibels of PSNR that the full model may lose, on training views; by default the steps that
            a scene was trained for bytes with, otherwise 0.1. Views that training has not seen lose less.
        prefix_psnr_loss: The same for small prefixes; by default as psnr_loss, but at most 0.2.
        max_megabytes: Instead: size of the file in megabytes (1,000,000 bytes).
        refine_steps: Images drawn to choose the rounding of spherical harmonics by; 0 for none, which is
            quicker and makes larger files.
        data_root: COLMAP folder of the capture; by default the one that the checkpoint was trained on.
        downscale: Reduction of the capture's photos; by default as trained, or 1.
        test_every: Every n-th photo is a test view; by default as trained, or 8.
        device: Where to draw; "auto" takes CUDA where there is a device.
        overwrite: Replace the file if it exists.
    """
    if output.suffix.lower() != SUFFIX:
        raise InputError(f"{output}: expected the name of an {SUFFIX} file.")
    if max_megabytes is not None and (psnr_loss is not None or prefix_psnr_loss is not None):
        raise InputError("expected either --max-megabytes or --psnr-loss, found both.")
    if max_megabytes is not None and not max_megabytes > 0:
        raise InputError(f"--max-megabytes: expected a positive number, found {max_megabytes}.")
    if refine_steps < 0:
        raise InputError(f"--refine-steps: expected 0 or more, found {refine_steps}.")
    require_free(output, overwrite, (SUFFIX,))
    model = open_model(ckpt, ply)
    arrays = arrays_of(model)
    data = model.data | given(root=data_root, downscale=downscale, test_every=test_every)
    if not data.get("root"):
        raise InputError(
            "--data-root: expected the scene's capture; its views tell what each number is worth."
        )
    place = choose_device(device)
    measuring, judging = (
        read_views(views, arrays.background) for views in split_views(open_capture(data).train_views)
    )
    trained = trained_quantization(model.scene)
    plan = plan_for(arrays, measuring, place) if trained is None else trained_plan(arrays, trained)
    if max_megabytes is not None:
        encoding = search_bytes_refined(plan, measuring, place, max_megabytes * MEGABYTE, refine_steps)
    elif trained is not None and psnr_loss is None and prefix_psnr_loss is None:
        encoding = encode(plan, plan.rule)
        if refine_steps:
            cameras = [view.camera for view in measuring]
            encoding = encode(refined(plan, encoding, cameras, place, refine_steps), plan.rule)
    else:
        loss = 0.1 if psnr_loss is None else psnr_loss
        encoding = search_refined(
            plan, measuring, judging, place, loss, prefix_psnr_loss, refine_steps
        ).encoding
    facts = {"psnr": _psnr(encoding, judging, place), "bytes": encoding.bytes_by_stream}
    encoding.write(output, facts)
    size = output.stat().st_size
    log.info(
        f"{output}: {len(arrays):,} Gaussians, {size / MEGABYTE:.3f} MB, {size / len(arrays):.2f} bytes each"
    )


def _psnr(encoding: Encoding, judging: list[Judged], device: torch.device) -> dict[str, float]:
    """PSNR of what the file decodes to at each level, on the judging views."""
    decoded = encoding.decoded
    return {
        f"{level.ratio:g}": round(mean_psnr(decoded, level.ratio, judging, device), 3)
        for level in decoded.levels
    }
