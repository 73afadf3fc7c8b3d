"""Gradients -> an update, or none where one is NaN or inf; too many of those end the attempt."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lmtemplate import metric_names
from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.module import LitLanguageModel, is_log_step
from lmtemplate.optimizers import skip_step_if

SCALER_SKIPS = 24  # in a row; torch's first scale is 2**16, and so many halvings are far below 1


class NonFiniteGuard(Callback):
    """Keep NaN and inf out of weights, moments and checkpoints.

    An update whose gradient is not finite is skipped. After more than `skips` in a row, or a
    validation loss that is not finite, the run goes back to its last checkpoint and skips the data
    that it read since then, at most `rewinds` times; then it ends. Skipping does not wait for a
    GPU: the norms are read when values are logged.

    Args:
        skips: number of updates in a row that may be skipped.
        rewinds: number of times that the run may go back to its last checkpoint.
    """

    def __init__(self, skips: int = 3, rewinds: int = 2) -> None:
        for name, value in (("skips", skips), ("rewinds", rewinds)):
            if value < 0:
                raise ConfigError(f"guard.{name}={value} has to be 0 or more; guard: null is off")
        self.skips = skips
        self.rewinds = rewinds
        self.went_back = False  # this start goes back because of what the last one met
        self.norms: list[torch.Tensor] = []  # of the steps since values were last logged
        self.in_a_row = 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradient, and skip this update if it is not finite."""
        assert isinstance(pl_module, LitLanguageModel)
        norm = pl_module.measure_gradient(optimizer)
        if trainer.precision != "16-mixed":  # there the gradient scaler skips
            skip_step_if(~norm.isfinite(), optimizer)
        self.norms.append(norm)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not is_log_step(trainer):
            return
        norms, self.norms = [float(norm) for norm in self.norms], []
        for step, norm in enumerate(norms, start=trainer.global_step - len(norms) + 1):
            self.in_a_row = 0 if math.isfinite(norm) else self.in_a_row + 1
            is_scaling = trainer.precision == "16-mixed" and self.in_a_row <= SCALER_SKIPS
            if self.in_a_row == 0 or is_scaling:  # the scaler is still lowering its scale
                continue
            for logger in trainer.loggers:
                logger.log_metrics({metric_names.TRAIN_LOSS: math.nan}, step=step)
            if self.in_a_row > self.skips:
                times = f"{self.in_a_row} times, up to step {step:,}"
                raise NumbersError(f"the gradient was {norm} {times}")
            count = f"{self.in_a_row}/{self.skips}"
            pl_module.print(f"step {step:,}: the gradient is {norm}, update skipped ({count})")

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "norms": [float(norm) for norm in self.norms]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.went_back:
            return
        self.in_a_row = int(state_dict["in_a_row"])
        self.norms = [torch.tensor(float(norm)) for norm in state_dict["norms"]]
