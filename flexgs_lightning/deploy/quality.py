"""How well a splat file shows its capture's held-out photos."""

from __future__ import annotations

import statistics

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from flexgs_lightning.data.capture import Capture
from flexgs_lightning.deploy.dialects.emulation import Emulation
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.render import draw, read_photo
from flexgs_lightning.metrics.psnr import psnr


@torch.no_grad()
def psnr_on_test_views(
    file: SplatFile,
    capture: Capture,
    background: Float[Tensor, " 3"],
    device: torch.device,
    emulation: Emulation | None = None,
) -> float:
    """Mean over the capture's test views of each image's PSNR in dB.

    Drawn as the file says, or as a viewer draws it: on the CPU then.
    """
    if emulation is not None:
        device = torch.device("cpu")
    splats, background = file.splats.to(device), background.to(device)
    values = []
    for view in tqdm(capture.test_views, desc="PSNR on test views", unit="view", leave=False):
        if emulation is None:
            image = draw(splats, view.camera, background, file.antialiased)
        else:
            image = emulation(splats, view.camera, background)
        photo = read_photo(view.source, background).to(device)
        values.append(psnr(image[None], photo[None]).item())
    return statistics.fmean(values)
