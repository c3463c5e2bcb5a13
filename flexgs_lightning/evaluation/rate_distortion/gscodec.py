"""Static GSCodec (GSCodec Studio, arXiv:2506.01822): trained for few bits, pruned, then images or ANS."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from flexgs_lightning.codec.recipes.columns import Columns, to_columns
from flexgs_lightning.codec.recipes.grid import Sorting
from flexgs_lightning.codec.recipes.images import PLANES, Recipe, read_images, write_images
from flexgs_lightning.codec.recipes.package import bytes_by_attribute
from flexgs_lightning.codec.recipes.pruning import worth_storing
from flexgs_lightning.errors import InputError, require_fields
from flexgs_lightning.evaluation.cell_folders import keep_facts
from flexgs_lightning.evaluation.rate_distortion.systems import Coded, Maker, System, code
from flexgs_lightning.evaluation.rate_distortion.tuning import Tuning, start_of
from flexgs_lightning.evaluation.scratch import scratch_settings
from flexgs_lightning.evaluation.study import Study, file_digest
from flexgs_lightning.evaluation.training import merged, train
from flexgs_lightning.model.checkpoint import load
from flexgs_lightning.model.compression.entropy import EntropyModel, EntropyName
from flexgs_lightning.model.compression.mask import kept_by_gradient
from flexgs_lightning.model.compression.quantization import UniformQuantization, entropy_model
from flexgs_lightning.model.compression.rounding import Rounding
from flexgs_lightning.model.compression.sh_mask import ShMask
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.model.normalization import SceneFrame
from flexgs_lightning.model.part import FULL
from flexgs_lightning.splats import Splats

log = logging.getLogger(__name__)

STEPS = 20_000
"""Published iterations with rounding: from 10,000 to 30,000."""
COUNTED = {"scales": 0.0, "quats": 0.0, "sh0": 0.5}
"""Attributes whose bits are counted, and from which share of these iterations on."""
LAMBDAS = (0.002, 0.006, 0.01)
"""Weights of the bits."""
FILTERS = {"scales": (3, 3), "quats": (3, 3, 3), "sh0": (3, 3)}
"""Hidden layers of each attribute's factorised density."""
ENTROPY_RATE, GRID_RATE, MASK_RATE = 1e-4, 5e-3, 0.01
"""Adam's learning rates of densities, of a hash grid with its network, and of the mask."""
TARGET, SPARSITY, DIVERGENCE = 0.2, 0.01, 0.1
"""Share of Gaussians that should keep their view-dependent colour, and weights of the losses on it."""
FIRST_OPACITY = 0.5
BASE = "gscodec-base"
"""Folder of the training with MCMC, beside those of the systems."""
STATE = "tuned.pt"
CHECKPOINTS = 10


@dataclass(frozen=True)
class Modules:
    """What Static GSCodec is put together from; the defaults are the paper's choice.

    Attributes:
        rounding: what stands in for rounding in training.
        entropy: what counts bits; "none" for nothing.
        mask: who keeps view-dependent colour: learned, the share ``TARGET`` of largest gradients, or all.
        pruning: whether faint, huge and stray Gaussians are dropped at the end.
        bits: of scales, quats, opacities and sh0.
        entries: of the palette of view-dependent colour.
        sorting: of the images.
        coder: of these attributes.
    """

    rounding: Rounding = "noise"
    entropy: EntropyName | Literal["none"] = "factorized"
    mask: Literal["learned", "gradient", "none"] = "learned"
    pruning: bool = True
    bits: int = 8
    entries: int = 1 << 14
    sorting: Sorting = "grid"
    coder: Literal["png", "ans"] = "ans"

    def __post_init__(self) -> None:
        choices = {
            "rounding": ("noise", "straight_through"),
            "entropy": ("factorized", "hash_grid", "none"),
            "mask": ("learned", "gradient", "none"),
            "pruning": (True, False),
            "sorting": ("grid", "morton"),
            "coder": ("png", "ans"),
        }
        items = choices.items()
        checks = {name: (getattr(self, name) in known, ", ".join(map(str, known))) for name, known in items}
        require_fields("gscodec: ", self, checks)
        _ = self.recipe  # which checks the numbers

    @property
    def recipe(self) -> Recipe:
        """How it is written."""
        return Recipe(self.bits, "trained", self.entries, self.sorting, self.coder)


@dataclass(frozen=True)
class Gscodec(System):
    """MCMC from the SfM points, then training with rounding and a rate term at each weight of the bits.

    Attributes:
        start: checkpoint that other systems start from: as many Gaussians are trained, for as many
            iterations; None for the one that is compared.
        scale: length of the training with rounding as a share of the published one.
        modules: what it is put together from.
    """

    start: Path | None
    scale: float
    modules: Modules

    @property
    def description(self) -> str:
        """One sentence for reports."""
        default = Modules()
        changed = {
            name: value for name, value in vars(self.modules).items() if value != getattr(default, name)
        }
        changes = "".join(f", {name} {value}" for name, value in changed.items())
        return (
            "Static GSCodec (GSCodec Studio): MCMC, then noise, factorised densities and a learned mask for "
            f"{self.scale:g} of the published length; pruned, SH as a palette, ANS"
            + (f"; with {changes[2:]}" if changes else "")
        )

    def facts(self, study: Study) -> dict[str, Any]:
        """Its start, length and modules."""
        start = self.start and file_digest(self.start)
        return {"scale": self.scale, "start": start, "modules": vars(self.modules)}

    def prepare(self, study: Study, folder: Path) -> Maker:
        """Train with MCMC, once for all systems of this kind."""
        model = study.model if self.start is None else load(self.start)
        budget, steps = len(start_of(study, self.start)), model.iteration
        own = scratch_settings(len(study.capture.points), budget, steps)
        opaque = {"model": {"initialization": {"opacity": FIRST_OPACITY}}}
        base = folder.parent / BASE
        keep_facts(base, {**study.facts, "budget": budget, "steps": steps})
        training = train(base, None, merged(study.settings, own, opaque), steps)
        splats = load(training.checkpoint).splats().to(study.device)
        return partial(self._make, study, splats, training.steps, training.seconds)

    def _make(
        self, study: Study, base: Splats, steps: int, seconds: float, setting: str, cell: Path
    ) -> Iterator[Coded]:
        own = max(1, round(self.scale * STEPS))
        tuning = Tuning(base, study)
        compression = Compression(tuning, self.modules, float(setting), own)
        spent = compression.train(cell / STATE)
        splats, colored = compression.result()
        yield code(
            setting,
            cell / "scene.images",
            lambda path: write_images(splats, path, self.modules.recipe, colored),
            read_images,
            bytes_by_attribute,
            {
                "training": {"steps": steps + own, "seconds": seconds + spent},
                "colored": int(colored.sum()),
                "bits": compression.counted_bits(),
            },
        )


class Compression:
    """Rounding, entropy models and mask, trained together with a scene."""

    def __init__(self, tuning: Tuning, modules: Modules, weight: float, steps: int) -> None:
        """Take over how a tuning rounds.

        Args:
            tuning: of the scene, not begun.
            modules: what to put together.
            weight: of the bits, lambda.
            steps: iterations of the whole training.
        """
        self.tuning, self.modules, self.weight, self.steps = tuning, modules, weight, steps
        torch.manual_seed(tuning.study.seed)
        device = tuning.gaussians.device
        frame = SceneFrame.from_cameras(
            torch.cat([view.camera.positions for view in tuning.study.capture.train_views])
        )
        entropy: dict[str, EntropyModel] = {}
        if modules.entropy != "none":
            for name in COUNTED:
                sizes = {"filters": FILTERS[name]} if modules.entropy == "factorized" else {}
                entropy[name] = entropy_model(modules.entropy, PLANES[name], frame, **sizes)
        self.quantization = UniformQuantization(
            dict.fromkeys(PLANES, modules.bits), modules.rounding, entropy=entropy
        ).to(device)
        self.mask = ShMask(len(tuning), learned=modules.mask == "learned").to(device)
        self.quantization.fit(self.quantization.coded(self._raw()))
        if modules.mask == "gradient":
            self.mask.keep_only(self._asked_for())
        tuning.rounding = self.rounding
        self._learn(entropy)

    def train(self, state: Path) -> float:
        """All steps, from the saved one on; returns the seconds that they took."""
        seconds, tuning = 0.0, self.tuning
        if state.is_file():
            facts = tuning.load(state)
            seconds = facts["seconds"]
            self.quantization.load_state_dict(facts["quantization"])
            self.mask.load_state_dict(facts["mask"])
        while tuning.step < self.steps:
            started = time.perf_counter()
            tuning.train(min(self.steps - tuning.step, -(-self.steps // CHECKPOINTS)), penalty=self.penalty)
            seconds += time.perf_counter() - started
            facts = {
                "seconds": seconds,
                "quantization": self.quantization.state_dict(),
                "mask": self.mask.state_dict(),
            }
            tuning.save(state, facts)
            log.info(f"step {tuning.step:,} of {self.steps:,}: {self.mask.share():.1%} keep SH")
        return seconds

    def rounding(self, raw: dict[str, Tensor]) -> Columns:
        """See ``tuning.Rounding``; all Gaussians are drawn."""
        every = len(raw["means"])
        self.mask.anneal(self.tuning.step / self.steps)
        return to_columns(self.mask(self.quantization(dict(raw), every, FULL), every, FULL))

    def penalty(self, gaussians: Gaussians) -> Tensor:
        """The bits of a number of each counted attribute, and the mask's losses."""
        progress = self.tuning.step / self.steps
        total = gaussians.params["means"].new_zeros(())
        if self.modules.mask == "learned":
            total = total + self.mask.loss(TARGET, SPARSITY, DIVERGENCE)
        coded = self.quantization.coded(dict(gaussians.params.items()))
        counted = {name: coded[name] for name, begin in COUNTED.items() if progress >= begin}
        for name, bits in self.quantization.bits(counted).items():
            total = total + self.weight * bits.mean() / PLANES[name]
        return total

    @torch.no_grad()
    def counted_bits(self) -> dict[str, float]:
        """Mean bits of a Gaussian's attributes as the entropy models have it, rounded for good."""
        self.quantization.eval()
        bits = self.quantization.bits(self.quantization.coded(self._raw()))
        return {name: float(values.mean()) for name, values in bits.items()}

    @torch.no_grad()
    def result(self) -> tuple[Splats, Bool[np.ndarray, " M"]]:
        """What is to be written, pruned, and which of it keeps its view-dependent colour."""
        splats = Gaussians(self._raw()).splats().detach()
        kept = torch.ones(len(splats), dtype=torch.bool, device=splats.device)
        if self.modules.pruning:
            kept = worth_storing(splats, self.tuning.study.capture.extent)
        return splats[kept], (self.mask.logits >= 0)[kept].cpu().numpy()

    def _raw(self) -> dict[str, Tensor]:
        return {name: values.detach() for name, values in self.tuning.gaussians.params.items()}

    def _asked_for(self) -> Bool[Tensor, " N"]:
        """The share of Gaussians whose view-dependent colour has the largest gradients."""
        gradients = self.tuning.gradients()["sh"][:, 1:]
        norms = gradients.flatten(1).norm(dim=1)
        threshold = float(norms.quantile(1 - TARGET) / norms.mean().clamp_min(1e-30))
        return kept_by_gradient(gradients, threshold)

    def _learn(self, entropy: Mapping[str, EntropyModel]) -> None:
        rate = GRID_RATE if self.modules.entropy == "hash_grid" else ENTROPY_RATE
        if entropy:
            self.tuning.add_optimizer(torch.optim.Adam(self.quantization.entropy.parameters(), lr=rate))
        if self.modules.mask == "learned":
            self.tuning.add_optimizer(torch.optim.Adam([self.mask.logits], lr=MASK_RATE))


def modules_of(settings: Mapping[str, Any], source: str) -> Modules:
    """Modules from an overlay's settings.

    Raises:
        InputError: unknown names or values.
    """
    known = {field.name for field in fields(Modules)}
    unknown = set(settings) - known
    if unknown:
        raise InputError(
            f"{source}: expected any of {', '.join(sorted(known))}, found {', '.join(sorted(unknown))}."
        )
    return replace(Modules(), **settings)
