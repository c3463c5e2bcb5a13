"""How well a splat file shows its capture's held-out photos."""

from __future__ import annotations

import statistics

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.render import draw, read_photo
from flexgs_lightning.metrics.psnr import psnr


@torch.no_grad()
def psnr_on_test_views(
    file: SplatFile, capture: Capture, background: Float[Tensor, " 3"], device: torch.device
) -> float:
    """Mean over the capture's test views of each image's PSNR in dB, drawn as the file says."""
    splats = file.splats.to(device)
    values = []
    for view in tqdm(capture.test_views, desc="PSNR on test views", unit="view", leave=False):
        image = draw(splats, view.camera, background.to(device), file.antialiased)
        photo = read_photo(view.source, background).to(device)
        values.append(psnr(image[None], photo[None]).item())
    return statistics.fmean(values)
