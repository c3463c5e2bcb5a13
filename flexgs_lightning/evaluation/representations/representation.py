"""Representations: what a scene that moves can be made of, each a config of its first stage."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.training import Settings, merged
from flexgs_lightning.records import shown
from flexgs_lightning.settings import find_config, read_config
from flexgs_lightning.training.densification import MCMC, AdaptiveDensityControl
from flexgs_lightning.training.scene_module import SceneModule

OVERLAYS = "representations"
"""Folder of the representations among the configs."""
STATIC = "static"
FRAMES = "frames"
"""A static model for each frame; the others are one model for all."""


@dataclass(frozen=True)
class Representation:
    """What a scene is made of.

    Attributes:
        name: as it was asked for; also its folder.
        settings: a config of ``flexgs fit``, of the first stage.
        each_frame: whether each frame has a training of its own.
    """

    name: str
    settings: Settings
    each_frame: bool = False

    def settings_for(self, steps: int) -> Settings:
        """Of a first stage of so many iterations."""
        return in_steps(self.settings, steps)


def representation_names(configs: Path) -> list[str]:
    """The overlays that there are, and ``FRAMES``."""
    return [*sorted(path.stem for path in (configs / OVERLAYS).glob("*.yaml")), FRAMES]


def representations(
    config: Sequence[str], names: Sequence[str] | None, configs: Path
) -> list[Representation]:
    """The configs as they are, and each representation laid over them.

    Args:
        config: files or names, later ones over earlier ones; the first gives its name to what they say as
            they are.
        names: overlays of ``OVERLAYS`` by name, or ``FRAMES``; None for all.
        configs: folder of the configs.

    Raises:
        InputError: no config, an unknown or repeated name, or a config that cannot be read.
    """
    if not config:
        raise InputError("--config: expected the config of a training, found none.")
    known = representation_names(configs)
    if len(known) == 1:
        raise InputError(f"{configs / OVERLAYS}: there are no representations.")
    chosen = known if names is None else list(names)
    own = find_config(config[0]).stem
    for name in chosen:
        if name not in known or chosen.count(name) > 1:
            raise InputError(
                f"--representations: expected different ones of {', '.join(known)}; found {' '.join(chosen)}."
            )
    if own in chosen:
        raise InputError(f"{config[0]}: there is a representation '{own}', too; rename the config.")
    base = merged({}, *(read_config(name) for name in config))

    def laid_over(name: str) -> Settings:
        return merged(base, read_config(configs / OVERLAYS / f"{name}.yaml"))

    return [
        Representation(own, base),
        *(
            Representation(name, laid_over(STATIC if name == FRAMES else name), each_frame=name == FRAMES)
            for name in chosen
        ),
    ]


def in_steps(settings: Settings, steps: int) -> Settings:
    """The same first stage in another number of iterations: all that is counted in them keeps its share.

    Raises:
        InputError: settings that are none by name.
    """
    model = _named(settings, "model")
    published = model.get("reconstruction_steps", _defaults(SceneModule)["reconstruction_steps"])
    if not isinstance(published, int) or published < 1:
        raise InputError(f"model.reconstruction_steps: expected 1 or more, found {shown(published)}.")
    share = steps / published
    if share == 1.0:
        return settings
    interval = model.get("sh_degree_interval", _defaults(SceneModule)["sh_degree_interval"])
    scaled: Settings = {
        "sh_degree_interval": _scaled(interval, share),
        "densification": _scaled_densification(model, share),
    }
    if "guided_sampling" in model:
        guided = _named(model, "guided_sampling")
        counted = {name: guided[name] for name in ("every", "stop_step") if name in guided}
        scaled["guided_sampling"] = {name: _scaled(value, share) for name, value in counted.items()}
    return merged(settings, {"model": {"reconstruction_steps": steps, **scaled}})


def _scaled_densification(model: Mapping[str, Any], share: float) -> Settings:
    """Its kind, and what of its options is counted in iterations, defaults too."""
    given = model.get("densification", {})
    given = {"class_path": given} if isinstance(given, str) else _named(model, "densification")
    name = str(given.get("class_path", AdaptiveDensityControl.__name__))
    kind = MCMC if name.rpartition(".")[2] == MCMC.__name__ else AdaptiveDensityControl
    options = {**_defaults(kind), **_named(given, "init_args")}
    counted = ("start_step", "stop_step", "every", "reset_every")
    scaled = {name: _scaled(options[name], share) for name in counted if name in options}
    if isinstance(scaled["stop_step"], int) and isinstance(scaled["start_step"], int):
        scaled["stop_step"] = max(scaled["stop_step"], scaled["start_step"] + 1)
    return {"class_path": name, "init_args": scaled}


def _scaled(value: Any, share: float) -> Any:
    """Iterations; 0 and null mean something else, and what is no number is for the training to refuse."""
    return max(1, round(value * share)) if isinstance(value, int) and value > 0 else value


def _defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _named(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{name}: expected settings by name, found {shown(found)}.")
    return found
