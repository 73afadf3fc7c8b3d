"""The record so far -> one line, when the run is surely turning bad."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.module import LitLanguageModel, is_log_step
from lmtemplate.record import is_recorded, read_record
from lmtemplate.study.diagnose.early_warning import WINDOW, turning_bad
from lmtemplate.study.diagnose.verdict import Facts, Finding


class Watch(Callback):
    """Says each thing once; `lmtemplate diagnose` looks closer, and at everything."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._losses: dict[int, float] = {}  # step -> training loss
        self._logged_at = 0  # step

    def look(self, trainer: Trainer, module: LitLanguageModel) -> Finding | None:
        """What is to be said of the losses so far."""
        facts = Facts(
            max_steps=trainer.max_steps,
            warmup_steps=getattr(module.schedule, "warmup_steps", None),
            vocab_size=module.net.vocab_size,
        )
        recent = sorted(self._losses)[-WINDOW:]
        return turning_bad(
            np.array(recent),
            np.array([self._losses[step] for step in recent]),
            self._initial or math.log(module.net.vocab_size),
            facts,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what earlier starts of the run have logged."""
        assert isinstance(pl_module, LitLanguageModel)
        self._initial, run = pl_module.latest.get("val/loss"), Path(trainer.default_root_dir)
        if is_recorded(run):
            record = read_record(run)
            known = record.steps <= trainer.global_step
            rows = (record.steps[known].tolist(), record.train_loss[known].tolist())
            self._losses = dict(zip(*rows, strict=True))
            self._initial = record.initial_val_loss

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, up to the log point before: this one is not logged yet."""
        assert isinstance(pl_module, LitLanguageModel)
        if not trainer.is_global_zero or not is_log_step(trainer, batch_idx):
            return
        if self._logged_at and "train/loss" in pl_module.latest:
            self._losses[self._logged_at] = pl_module.latest["train/loss"]
        self._logged_at = trainer.global_step
        finding = self.look(trainer, pl_module)
        if finding is None or finding.name in self._said:
            return
        self._said.add(finding.name)
        name = finding.name.replace("_", " ")
        pl_module.print(f"looks bad, {name}: {finding.says} Try: {finding.advice}")
