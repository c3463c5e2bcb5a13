"""LPIPS (Zhang et al. 2018) by the ``lpips`` package, with weights that are found or fetched safely."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.records import plain_size

log = logging.getLogger(__name__)

LPIPSNetwork = Literal["vgg", "alex", "squeeze"]
CHECKPOINTS: dict[str, str] = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's ImageNet checkpoints, which hold the backbones."""
BASE_URL = "https://download.pytorch.org/models/"
RANGES = {"unit": "[0, 1]", "signed": "[-1, 1]"}
CONNECT_SECONDS = 20.0
Features = tuple[Tensor, ...]
"""Activations [C, K, h, w] of each layer that counts, of unit length along K."""

_warned: set[str] = set()


class LPIPS:
    """Learned perceptual distance of image pairs, in the field's protocols.

    Not a module on purpose: the backbone must neither be trained, nor saved with checkpoints. It is
    loaded at the first call, and follows the images from device to device.
    """

    def __init__(
        self,
        network: LPIPSNetwork = "vgg",
        input_range: Literal["unit", "signed"] | None = None,
        weights: Path | None = None,
    ) -> None:
        """Choose the protocol; nothing is loaded yet.

        Args:
            network: backbone.
            input_range: what the network is fed: images in [0, 1] as they are ("unit"), or scaled to
                [-1, 1] ("signed") as the network expects. Papers of the 3DGS family report VGG on [0, 1]
                and AlexNet or SqueezeNet on [-1, 1]; None follows them.
            weights: folder that holds torchvision's checkpoint (``CHECKPOINTS``), or the state dict of
                its convolutional part as ``vgg16_features.pth``, ``alexnet_features.pth`` or
                ``squeezenet1_1_features.pth``. None: torch hub's cache, else download into it.
        """
        if network not in CHECKPOINTS:
            raise InputError(f"LPIPS network: expected vgg, alex or squeeze, found '{network}'.")
        if input_range not in (*RANGES, None):
            raise InputError(f"LPIPS input range: expected unit or signed, found '{input_range}'.")
        self.network = network
        self.input_range = input_range or ("unit" if network == "vgg" else "signed")
        self.weights = weights
        self._model: nn.Module | None = None
        self._unavailable = False

    def __call__(
        self, prediction: Float[Tensor, "C H W 3"], target: Float[Tensor, "C H W 3"]
    ) -> Float[Tensor, " C"] | None:
        """[C] distance of images in [0, 1]; None if the weights cannot be had (one warning says why).

        Raises:
            InputError: a weights file is damaged, or not of this network.
        """
        features = self.features(target)
        return None if features is None else self.distance(prediction, features)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "C H W 3"]) -> Features | None:
        """What the network makes of images in [0, 1], for ``distance``; None and errors as for a call."""
        if self._model is None and not self._unavailable:
            self._model = self._load()
            self._unavailable = self._model is None
        if self._model is None:
            return None
        model: Any = self._model.to(images.device)
        inputs = images.permute(0, 3, 1, 2).float()
        if self.input_range == "signed":
            inputs = 2 * inputs - 1
        return tuple(map(_unit_length, model.net(model.scaling_layer(inputs))))

    @torch.no_grad()
    def distance(self, prediction: Float[Tensor, "C H W 3"], target: Features) -> Float[Tensor, " C"]:
        """[C] distance of images in [0, 1] from those whose features are given (Zhang et al., Eq. 1)."""
        features, model = self.features(prediction), self._model
        assert features is not None
        assert model is not None
        layers: Any = model.lins
        differences = ((mine - theirs).square() for mine, theirs in zip(features, target, strict=True))
        parts = [layer(d).mean(dim=(1, 2, 3)) for layer, d in zip(layers, differences, strict=True)]
        return torch.stack(parts).sum(dim=0)

    def protocol(self) -> str:
        """Network and input range, for reports."""
        if self._unavailable:
            return f"left out: no weights of {self.network}"
        return f"{self.network} (lpips 0.1 linear layers), inputs in {RANGES[self.input_range]}"

    def _load(self) -> nn.Module | None:
        try:
            features = self._features()
        except OSError as error:
            self._warn(error)
            return None
        return _assemble(self.network, features)

    def _features(self) -> dict[str, Tensor]:
        """State dict of the backbone's convolutional part.

        Raises:
            OSError: it is not here and cannot be fetched.
        """
        name = CHECKPOINTS[self.network]
        if self.weights is not None:
            folder = Path(self.weights)
            candidates = (folder / name, folder / f"{_architecture(self.network)}_features.pth")
            path = next((path for path in candidates if path.is_file()), None)
            if path is None:
                raise FileNotFoundError(f"neither {candidates[0].name} nor {candidates[1].name} in {folder}")
            return _convolutional_part(_read(path))
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        if not (cache / name).is_file():
            cache.mkdir(parents=True, exist_ok=True)
            with _connection_timeout(CONNECT_SECONDS):
                torch.hub.download_url_to_file(
                    BASE_URL + name, str(cache / name), hash_prefix=name.split("-")[-1].removesuffix(".pth")
                )
        return _convolutional_part(_read(cache / name))

    def _warn(self, error: OSError) -> None:
        """Say once per process and network, on the first rank only, how to get the weights."""
        ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.network in _warned or (ranks and torch.distributed.get_rank() > 0):
            return
        _warned.add(self.network)
        name = CHECKPOINTS[self.network]
        log.warning(
            "LPIPS is left out: the weights of '%s' cannot be had (%s). Download %s%s and put the file "
            "into %s, or name the folder that holds it with --model.lpips_weights; or choose "
            "--model.lpips none.",
            self.network,
            error,
            BASE_URL,
            name,
            self.weights or Path(torch.hub.get_dir()) / "checkpoints",
        )


def _unit_length(activations: Float[Tensor, "C K h w"]) -> Float[Tensor, "C K h w"]:
    return activations / (activations.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _architecture(network: str) -> str:
    """torchvision's name for a network: the part of the checkpoint's name before its hash."""
    return {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}[network]


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict; data only, never code.

    Raises:
        InputError: the file is damaged, or holds more than tensors.
    """
    plain_size(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises five kinds, depending on where the damage is
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable file of weights ({reason}).") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a state dict of tensors.")
    if not all(isinstance(name, str) and value.isfinite().all() for name, value in state.items()):
        raise InputError(f"{path}: expected weights by name, and all of them finite.")
    return state


def _convolutional_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the classifier and the prefix of a full checkpoint."""
    prefix = "features."
    if not any(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _assemble(network: str, features: dict[str, Tensor]) -> nn.Module:
    """The lpips package's model with these features and the package's own linear layers.

    The package would unpickle and download by itself; it is only asked for empty layers, to be filled here.
    """
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision with arguments of long ago
        model = lpips.LPIPS(net=network, pretrained=False, pnet_rand=True, verbose=False)
    with as_file(files("lpips") / "weights" / "v0.1" / f"{network}.pth") as path:
        linear = _read(path)
    try:
        # Slices of the backbone keep its own numbering: net.slice2.3.weight is features.3.weight.
        backbone = {key: features[key.split(".", 1)[1]] for key in model.net.state_dict()}
        model.net.load_state_dict(backbone)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"LPIPS weights: not the features of '{network}' ({error}).") from error
    for index, layer in enumerate(model.lins):
        layer.model[1].weight.data.copy_(linear[f"lin{index}.model.1.weight"])
    return model.eval().requires_grad_(False)


@contextmanager
def _connection_timeout(seconds: float) -> Iterator[None]:
    """torch hub waits without end where packets are dropped."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
