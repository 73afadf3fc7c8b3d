"""Optimizer -> its learning rates in the log: optim/lr, optim/lr/<group>."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks

from lmtemplate.module import is_logged


class LRMonitor(callbacks.LearningRateMonitor):
    """Log the rate that each logged step was made with.

    The first parameter group is `optim/lr`, the others `optim/lr/<name of the group>`.
    """

    def __init__(self) -> None:
        super().__init__(logging_interval="step")

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        pass  # Lightning's would insist on a logger, and find names that are not used here

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning logs under the number of steps already made, one less than all other values
        step = trainer.global_step + 1
        if batch_idx % trainer.accumulate_grad_batches or not is_logged(trainer, step):
            return
        groups = trainer.optimizers[0].param_groups
        names = ["optim/lr", *(f"optim/lr/{group['name']}" for group in groups[1:])]
        rates = {name: float(group["lr"]) for name, group in zip(names, groups, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=step)
