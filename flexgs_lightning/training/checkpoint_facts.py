"""This package's own entry in a checkpoint: what Lightning does not know of a training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from flexgs_lightning.model.checkpoint import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    SCENE,
    require_fitting,
    scene_state,
)
from flexgs_lightning.model.scene import Scene
from flexgs_lightning.training.camera_colors import STATE
from flexgs_lightning.training.resuming import training_options
from flexgs_lightning.training.scene_module import Loaded, SceneModule


def facts_of(module: SceneModule) -> dict[str, Any]:
    """The entry of a training as it stands; ``model.checkpoint_record.Facts`` says what a reader expects."""
    return {
        "version": CHECKPOINT_VERSION,
        "sh_degree": module.active_sh_degree,
        "started_trained": module.started_trained,
        "antialiased": module.antialiased,
        "background": module.evaluation_background.tolist(),
        "data": module.trainer.datamodule.options(),  # type: ignore[attr-defined]
        "seconds": module.capture.seconds,
        "seed": module.seed,
        "options": training_options(module),
        "densification": module.densification.state_dict() if module.densifies else None,
        "scene": module.scene.as_plain(),
        "rows": [SCENE + name for name in module.scene.row_names()],
    }


def take_over(module: SceneModule, checkpoint: dict[str, Any]) -> None:
    """Give a module the scene and the facts of a checkpoint, whose ``state_dict`` Lightning loads afterwards.

    Raises:
        InputError: the parameters do not make the scene that the facts describe.
    """
    facts = checkpoint[CHECKPOINT_KEY]
    module.seed = facts["seed"]
    module.started_trained = facts["started_trained"]
    if module.camera_colors is None:  # the scene is as the mean camera sees it
        for name in [name for name in checkpoint["state_dict"] if name.startswith(STATE)]:
            del checkpoint["state_dict"][name]
    state = scene_state(checkpoint["state_dict"])
    if not module.shards.several:
        require_fitting(module.trainer.ckpt_path or "checkpoint", state, facts["scene"])
    module.scene = Scene.from_state(state, facts["scene"], module.shards, facts.get("total"))
    goes_on = module.trainer.state.fn == TrainerFn.FITTING
    module.loaded = Loaded(
        checkpoint["global_step"],
        facts["densification"],
        checkpoint["optimizer_states"] if goes_on else None,
    )
