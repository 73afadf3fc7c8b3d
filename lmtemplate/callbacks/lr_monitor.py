"""Optimizer -> its learning rates in the log: optim/lr, optim/lr/<group>."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks

from lmtemplate.module import is_log_step


class LRMonitor(callbacks.LearningRateMonitor):
    """Log the rate that each logged step was made with.

    The first parameter group is `optim/lr`, the others `optim/lr/<name of the group>`.
    """

    def __init__(self) -> None:
        super().__init__(logging_interval="step")
        self._rates: list[float] = []  # of the step that is being made

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        pass  # Lightning's would insist on a logger, and find names that are not used here

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._rates = [float(group["lr"]) for group in trainer.optimizers[0].param_groups]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning logs under the number of steps already made, one less than all other values
        if not is_log_step(trainer, batch_idx):
            return
        groups = trainer.optimizers[0].param_groups
        others = (group.get("name", number) for number, group in enumerate(groups[1:], start=2))
        names = ["optim/lr", *(f"optim/lr/{name}" for name in others)]
        rates = dict(zip(names, self._rates, strict=True))
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)
