"""The record so far -> one line, when the run is surely turning bad."""

import math
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.callbacks.record import RecordLogger
from lmtemplate.module import LitLanguageModel, is_log_step
from lmtemplate.study.diagnose.early_warning import WINDOW, turning_bad
from lmtemplate.study.diagnose.verdict import Facts, Finding


class Watch(Callback):
    """Says each thing once; `lmtemplate diagnose` looks closer, and at everything."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def look(self, trainer: Trainer, module: LitLanguageModel) -> Finding | None:
        """What is to be said of the record now."""
        for logger in trainer.loggers:
            if isinstance(logger, RecordLogger) and logger.writer is not None:
                columns = logger.writer.columns
                facts = Facts(
                    max_steps=trainer.max_steps,
                    warmup_steps=getattr(module.schedule, "warmup_steps", None),
                    vocab_size=module.net.vocab_size,
                )
                return turning_bad(
                    np.array(columns.steps[-WINDOW:]),
                    np.array(columns.train_loss[-WINDOW:]),
                    columns.initial_val_loss or math.log(module.net.vocab_size),
                    facts,
                )
        return None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, up to the log point before: this one is not in the record yet."""
        assert isinstance(pl_module, LitLanguageModel)
        if not trainer.is_global_zero or not is_log_step(trainer, batch_idx):
            return
        finding = self.look(trainer, pl_module)
        if finding is None or finding.name in self._said:
            return
        self._said.add(finding.name)
        name = finding.name.replace("_", " ")
        pl_module.print(f"looks bad, {name}: {finding.says} Try: {finding.advice}")
