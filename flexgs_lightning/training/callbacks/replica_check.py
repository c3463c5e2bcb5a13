"""With several processes: are their scenes still the same?"""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn

from flexgs_lightning.errors import InputError
from flexgs_lightning.training.parallel import check_replicas, replicated
from flexgs_lightning.training.scene_module import SceneModule


class ReplicaCheck(Callback):
    """Compares all learned parameters of the processes by checksum, and stops training if they differ.

    Gaussians that each process has to itself are not compared.

    Args:
        every_n_steps: iterations from one comparison to the next. The default is also densification's, so
            that processes which densified differently stop before their gradients meet.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise InputError(f"replica_check.every_n_steps: expected at least 1, found {every_n_steps}.")
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare if it is time, or if this was the last iteration."""
        assert isinstance(pl_module, SceneModule)
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            shared = replicated(pl_module.scene, pl_module.shards)
            check_replicas({name: t for name, t in shared.items() if isinstance(t, nn.Parameter)}, step)
