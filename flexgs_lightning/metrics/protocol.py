"""PSNR, SSIM and LPIPS with a stated protocol, the same in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from flexgs_lightning.metrics.lpips import LPIPS, Features, LPIPSNetwork
from flexgs_lightning.metrics.psnr import color_corrected, psnr
from flexgs_lightning.metrics.ssim import SSIMReference, ssim

CORRECTED = "psnr_color_corrected"


@dataclass(frozen=True)
class Photo:
    """Photos that several renders are measured against, with what the metrics need of them.

    Attributes:
        reference: the photos and their moments, for SSIM.
        features: theirs in the LPIPS network; None leaves LPIPS out.
    """

    reference: SSIMReference
    features: Features | None

    @property
    def image(self) -> Float[Tensor, "C H W 3"]:
        """The photos."""
        return self.reference.image


def worst_view(images: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Name and PSNR of the worst image, which a mean hides; None of no images. NaN is worse than any number.

    Args:
        images: "name" and "psnr" of each.
    """
    found = [{"name": image["name"], "psnr": image["psnr"]} for image in images]
    return min(found, key=lambda image: (image["psnr"] == image["psnr"], image["psnr"]), default=None)


class ImageMetrics(nn.Module):
    """PSNR, SSIM and LPIPS of each image, and their means over all images of all processes.

    Example:
        >>> metrics = ImageMetrics(lpips="none")
        >>> photo = torch.rand(2, 32, 32, 3)
        >>> sorted(metrics.update(photo * 0.9, photo))
        ['psnr', 'ssim']
        >>> float(metrics.compute()["psnr"]) > 20
        True
    """

    def __init__(
        self,
        lpips: LPIPSNetwork | Literal["none"] = "vgg",
        lpips_weights: Path | None = None,
        lpips_input_range: Literal["unit", "signed"] | None = None,
        correct_colors: bool = False,
    ) -> None:
        """Choose the protocol.

        Args:
            lpips: backbone of LPIPS; "none" leaves it out.
            lpips_weights: folder with the backbone's weights; by default torch's own cache.
            lpips_input_range: see ``LPIPS``.
            correct_colors: also measure "psnr_color_corrected", after ``psnr.color_corrected``.
        """
        super().__init__()
        self._lpips = None if lpips == "none" else LPIPS(lpips, lpips_input_range, lpips_weights)
        self._correct_colors = correct_colors
        self._means = _Means(("psnr", "ssim", "lpips", *((CORRECTED,) if correct_colors else ())))

    def like(self) -> ImageMetrics:
        """New, empty metrics under the same protocol; they share the LPIPS network."""
        other = ImageMetrics(lpips="none", correct_colors=self._correct_colors)
        other._lpips = self._lpips
        return other

    @torch.no_grad()
    def photo(self, target: Float[Tensor, "C H W 3"], lpips: bool = True) -> Photo:
        """Prepare photos that several renders are measured against: their part is computed once.

        Args:
            target: photos in [0, 1].
            lpips: whether to measure LPIPS, if these metrics have it.
        """
        features = self._lpips.features(target) if lpips and self._lpips is not None else None
        return Photo(SSIMReference.of(target.detach()), features)

    @torch.no_grad()
    def update(
        self, prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"] | Photo
    ) -> dict[str, Float[Tensor, " C"]]:
        """Measure C images and remember them for the means. Predictions are clamped to [0, 1].

        Args:
            prediction: renders.
            target: photos; those of ``photo``, of these metrics or ones ``like`` them, save work.

        Returns:
            "psnr" (dB), "ssim" and, unless left out or without weights, "lpips", and "psnr_color_corrected"
            where it was asked for; each [C].
        """
        prediction = prediction.detach().clamp(0.0, 1.0)
        photo = target if isinstance(target, Photo) else self.photo(target)
        values = {"psnr": psnr(prediction, photo.image), "ssim": ssim(prediction, photo.reference)}
        if self._lpips is not None and photo.features is not None:
            values["lpips"] = self._lpips.distance(prediction, photo.features)
        if self._correct_colors:
            values[CORRECTED] = psnr(color_corrected(prediction, photo.image), photo.image)
        self._means.update(values)
        return values

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Means over the images since ``reset``, of all processes; empty if there were none."""
        return self._means.compute()

    def reset(self) -> None:
        """Forget all images."""
        self._means.reset()

    def protocol(self) -> dict[str, str]:
        """What exactly is measured, for reports."""
        lpips = "left out" if self._lpips is None else self._lpips.protocol()
        corrected = "as psnr, after the affine colour map that fits each photo best, by least squares"
        return {
            "psnr": "predictions clamped to [0, 1], not quantised; peak 1; over pixels and channels",
            "ssim": "Gaussian window 11x11, sigma 1.5, C1 0.01^2, C2 0.03^2, zero padding, borders count",
            "lpips": lpips,
            "average": "mean of per-image values",
            **({CORRECTED: corrected} if self._correct_colors else {}),
        }


class _Means(Metric):
    """Means of named per-image values; sums and counts are added up over processes."""

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        # Every process sums the same names, or processes would wait for each other's missing ones.
        super().__init__()
        self.names = names
        for kind in ("sums", "counts"):
            self.add_state(kind, torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: dict[str, Tensor]) -> None:
        for i, name in enumerate(self.names):
            if name in values:
                self.sums[i] += values[name].double().sum()
                self.counts[i] += values[name].numel()

    def compute(self) -> dict[str, Tensor]:
        pairs = zip(self.names, self.sums, self.counts, strict=True)
        return {name: (total / count).float() for name, total, count in pairs if count > 0}
