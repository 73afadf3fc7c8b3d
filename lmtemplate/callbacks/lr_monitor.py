"""Optimizer -> its learning rates in the log: optim/lr, optim/lr/<group>."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate import metric_names
from lmtemplate.module import LitLanguageModel, is_log_step, log_values


class LRMonitor(Callback):
    """Log the learning rate of each logged step. Lightning's own logs it one step earlier.

    The first parameter group is `optim/lr`, the others `optim/lr/<name>`; a group without a name
    has its number, counted from 1, so that the second is `optim/lr/2`.
    """

    def __init__(self) -> None:
        self._rates: list[float] = []  # of the current step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._rates = [float(group["lr"]) for group in trainer.optimizers[0].param_groups]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not is_log_step(trainer):
            return
        assert isinstance(pl_module, LitLanguageModel)
        groups = trainer.optimizers[0].param_groups
        others = (group.get("name", number) for number, group in enumerate(groups[1:], start=2))
        names = [metric_names.LEARNING_RATE, *(f"optim/lr/{name}" for name in others)]
        log_values(pl_module, dict(zip(names, self._rates, strict=True)))
