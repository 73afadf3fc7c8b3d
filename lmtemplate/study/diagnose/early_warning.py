"""The last rows of a run that still goes on -> one line, once it is surely bad already."""

import math
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.callbacks.record import RecordLogger
from lmtemplate.module import LitLanguageModel, is_log_step
from lmtemplate.record import Floats, Ints
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude

WINDOW = 60  # rows that are looked at


def _above_start(steps: Ints, loss: Floats, start: float) -> Finding | None:
    learned = bool(loss.min() < start - limit.HUMP)
    rows = limit.ROWS_ABOVE_AFTER if learned else limit.ROWS_ABOVE
    if len(loss) < rows or loss[-rows:].min() <= start + limit.HUMP:
        return None
    says = (
        f"the training loss is {loss[-1]:.2f} nats at step {steps[-1]:,}, above its start of "
        f"{start:.2f}, and has been so since step {steps[-rows]:,} at least."
    )
    name = "spike_not_recovered" if learned else "learning_rate_too_high"
    return conclude(name, says, steps[-rows], steps[-1])


def _not_recovered(steps: Ints, loss: Floats) -> Finding | None:
    before, after = loss[: -limit.ROWS_LOST], loss[-limit.ROWS_LOST :]
    if len(before) < limit.ROWS_LOST // 2 or after.min() <= before.min() + limit.JUMP:
        return None
    level = float(np.median(before))
    if after.min() <= level + max(limit.JUMP, limit.JUMP_NOISE * float(before.std())):
        return None
    says = (
        f"the training loss has jumped from {level:.2f} nats and is {loss[-1]:.2f} at step "
        f"{steps[-1]:,}, {limit.ROWS_LOST} rows later."
    )
    return conclude("spike_not_recovered", says, steps[-limit.ROWS_LOST], steps[-1])


def _stuck(steps: Ints, loss: Floats, start: float, facts: Facts) -> Finding | None:
    step, warmup = int(steps[-1]), facts.warmup_steps
    if warmup is None or len(loss) < limit.ROWS_STUCK or step < max(limit.STEPS_FLAT, 2 * warmup):
        return None
    if loss[-limit.ROWS_STUCK :].min() <= start * (1 - limit.UNMOVED_YET):
        return None
    says = (
        f"the training loss is {loss[-1]:.2f} nats at step {step:,}, and was {start:.2f} at the "
        "start: the model is not learning."
    )
    return conclude("learning_rate_too_low", says, steps[-limit.ROWS_STUCK], step)


def early_fault(steps: Ints, train_loss: Floats, start: float, facts: Facts) -> Finding | None:
    """A fault where a run is surely bad already: above its start, lost after a jump, or stuck.

    Costs some 10 microseconds, however long the run.

    Args:
        steps: (N,) of the rows so far, or of the last 60.
        train_loss: (N,) nats per token.
        start: the loss before step 1, or ln V.
        facts: what is known; only the warmup is used.
    """
    steps, loss = steps[-WINDOW:], train_loss[-WINDOW:]
    if not len(loss):
        return None
    return (
        _above_start(steps, loss, start)
        or _not_recovered(steps, loss)
        or _stuck(steps, loss, start, facts)
    )


class Watch(Callback):
    """Prints each early fault once; `lmtemplate diagnose` looks closer, and at everything."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def look(self, trainer: Trainer, module: LitLanguageModel) -> Finding | None:
        """The early fault that the record shows now."""
        for logger in trainer.loggers:
            if isinstance(logger, RecordLogger) and logger.writer is not None:
                columns = logger.writer.columns
                return early_fault(
                    np.array(columns.steps[-WINDOW:]),
                    np.array(columns.train_loss[-WINDOW:]),
                    columns.initial_val_loss or math.log(module.net.vocab_size),
                    Facts(warmup_steps=module.schedule.warmup_steps),
                )
        return None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the record up to the log point before: this one is not in it yet."""
        assert isinstance(pl_module, LitLanguageModel)
        if not trainer.is_global_zero or not is_log_step(trainer, batch_idx):
            return
        finding = self.look(trainer, pl_module)
        if finding is not None and finding.name not in self._said:
            self._said.add(finding.name)
            name = finding.name.replace("_", " ")
            pl_module.print(f"looks bad, {name}: {finding.says} Try: stop, and {finding.advice}")
