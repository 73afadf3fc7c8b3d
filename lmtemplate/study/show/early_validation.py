"""The first steps of a run -> val/early_loss, so that its curve follows the descent."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate import metric_names
from lmtemplate.callbacks.run_end import told
from lmtemplate.data.datamodule import LanguageData, to_tensors
from lmtemplate.errors import ConfigError
from lmtemplate.loss import cross_entropy
from lmtemplate.module import LitLanguageModel, is_step_end, log_values


def early_steps(points: int, logged_every: int, first_validation: int) -> set[int]:
    """About `points` logged steps before the first validation, evenly spaced on a log axis."""
    spaced = np.geomspace(logged_every, max(first_validation, logged_every), points + 1)[:-1]
    logged = np.ceil(spaced / logged_every) * logged_every
    return {step for step in logged.astype(int).tolist() if step < first_validation}


class EarlyValidation(Callback):
    """Measure the validation loss on a few sequences while it falls fastest.

    It is an estimate with a name of its own: `val/loss` is always that of all sequences. Early
    stopping and the best checkpoint do not see it.

    Args:
        points: number of log-spaced steps before the first validation.
        blocks: sequences of the validation split, evenly spaced over it.
    """

    def __init__(self, points: int = 12, blocks: int = 128) -> None:
        for name, value in (("points", points), ("blocks", blocks)):
            if not 1 <= value <= 10_000:
                raise ConfigError(f"early_validation.{name}={value} has to be from 1 to 10,000")
        self.points, self.blocks = points, blocks
        self._due = set[int]()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.datamodule, LanguageData):  # type: ignore[attr-defined]
            interval = int(trainer.val_check_interval or 1) // trainer.accumulate_grad_batches
            self._due = early_steps(self.points, trainer.log_every_n_steps, interval)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step not in self._due or not is_step_end(trainer):
            return
        assert isinstance(pl_module, LitLanguageModel)
        paused = told(trainer, "paused") or nullcontext  # of Throughput
        with paused(trainer):
            loss = self.measure(trainer, pl_module)
        log_values(pl_module, {metric_names.EARLY_VAL_LOSS: loss})

    @torch.no_grad()
    def measure(self, trainer: Trainer, module: LitLanguageModel) -> torch.Tensor:
        """Mean cross-entropy in nats per token, the same in every process."""
        data: LanguageData = trainer.datamodule  # type: ignore[attr-defined]
        blocks = data.blocks("val")
        chosen = np.unique(np.linspace(0, len(blocks) - 1, self.blocks).astype(np.int64))
        sums = torch.zeros(2, device=module.device, dtype=torch.float64)
        module.on_validation_start()
        module.net.eval()
        for start in range(0, len(chosen), data.batch_size):
            batch = to_tensors(blocks[chosen[start : start + data.batch_size]])
            inputs, targets = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.val_step_context():
                loss = cross_entropy(module(inputs), targets)
            sums += torch.stack((loss.nats, loss.tokens)).double()
        module.net.train()
        module.on_validation_end()
        return sums[0] / sums[1]
