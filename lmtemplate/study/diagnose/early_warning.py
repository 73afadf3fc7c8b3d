"""The last rows of a run that still goes on -> one line, once it is surely bad already."""

import math
from collections import deque
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lmtemplate import metric_names
from lmtemplate.data.datamodule import LanguageData
from lmtemplate.module import LitLanguageModel, is_log_step, is_logged, log_values
from lmtemplate.record import Floats, Ints, last_lines, read_lines
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose import vitals
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.ngrams import frequencies

WINDOW = 60  # rows that are looked at
EARLY_STEPS = 1000  # until then each row has the figures of vitals.py, and later each tenth
COUNTED_TOKENS = 65_536  # training tokens from which frequencies are counted


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
    step, now = int(steps[-1]), f"the training loss is {loss[-1]:.2f} nats at step {steps[-1]:,}"
    learned = bool(loss.min() < start - limit.HUMP)
    rows = limit.ROWS_ABOVE_AFTER if learned else limit.ROWS_ABOVE
    if len(loss) >= rows and loss[-rows:].min() > start + limit.HUMP:
        says = f"{now}, above its start of {start:.2f} since step {steps[-rows]:,} at least."
        name = "spike_not_recovered" if learned else "learning_rate_too_high"
        return conclude(name, says, steps[-rows], step)
    before, after = loss[: -limit.ROWS_LOST], loss[-limit.ROWS_LOST :]
    if len(before) >= limit.ROWS_LOST // 2 and after.min() > before.min() + limit.JUMP:
        level = float(np.median(before))
        if after.min() > level + max(limit.JUMP, limit.JUMP_NOISE * float(before.std())):
            says = f"{now}, {limit.ROWS_LOST} rows after it has jumped from {level:.2f}."
            return conclude("spike_not_recovered", says, steps[-limit.ROWS_LOST], step)
    warmup = math.inf if facts.warmup_steps is None else facts.warmup_steps
    wait = max(limit.STEPS_FLAT, 2 * warmup)
    stuck = loss[-limit.ROWS_STUCK :].min() > start * (1 - limit.UNMOVED_YET)
    if stuck and len(loss) >= limit.ROWS_STUCK and step >= wait:
        says = f"{now}, and was {start:.2f} at the start: the model is not learning."
        return conclude("learning_rate_too_low", says, steps[-limit.ROWS_STUCK], step)
    return None


def is_due(trainer: Trainer, step: int) -> bool:
    """Whether the figures are logged at this step: they cost some milliseconds."""
    often = step <= EARLY_STEPS or step % (10 * trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]
    return often and is_logged(trainer, step)


def surprises(data: LanguageData) -> Floats | None:
    """(V,) nats of each token id, by its frequency in a sample of the training text.

    None for data that makes its batches in a way of its own.
    """
    if type(data).open_split is LanguageData.open_split:
        return None
    count = max(1, COUNTED_TOKENS // data.block_size)
    blocks = data.blocks("train")
    _, targets = blocks[np.unique(np.linspace(0, len(blocks) - 1, count).astype(np.int64))]
    nats: Floats = -np.log(frequencies(targets.ravel(), data.vocab_size))
    return nats


class Watch(Callback):
    """Prints each early fault once, and logs what `lmtemplate diagnose` needs to look closer."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._rows: deque[tuple[int, float]] = deque(maxlen=WINDOW)  # step, training loss
        self._start: float | None = None  # the loss before step 1
        self._logged_at = 0  # step of the log point before
        self._nats: Floats | None = None  # of each token id, by its frequency
        self._is_left = False
        self._before: list[Floats] = []  # sampled weights of each group

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what earlier starts of the run have logged."""
        assert isinstance(pl_module, LitLanguageModel)
        run, data = Path(trainer.default_root_dir), trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, LanguageData):
            self._nats = surprises(data)
        self._start = pl_module.latest.get(metric_names.VAL_LOSS)
        if trainer.global_step:
            rows = last_lines(run, metric_names.TRAIN_LOSS, WINDOW, before=trainer.global_step)
            self._rows.extend((row["step"], row[metric_names.TRAIN_LOSS]) for row in rows)
            first = takewhile(lambda line: line["step"] == 0, read_lines(run))
            losses = (
                line[metric_names.VAL_LOSS] for line in first if metric_names.VAL_LOSS in line
            )
            self._start = next(losses, None)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """See whether gradients of the step before are still there."""
        step_is_one_batch = trainer.accumulate_grad_batches == 1
        if step_is_one_batch and is_due(trainer, trainer.global_step + 1):
            groups = trainer.optimizers[0].param_groups
            left = (p.grad for group in groups for p in group["params"] if p.grad is not None)
            self._is_left = any(bool(gradient.any()) for gradient in left)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep some weights of each group before a step that is logged."""
        if trainer.is_global_zero and is_due(trainer, trainer.global_step + 1):
            groups = optimizer.param_groups
            self._before = [vitals.sample_weights(group["params"]) for group in groups]

    def _log_vitals(self, trainer: Trainer, module: LitLanguageModel, batch: Any) -> None:
        values = vitals.batch_figures(batch, self._nats)
        groups = trainer.optimizers[0].param_groups
        for number, (group, before) in enumerate(zip(groups, self._before, strict=False)):
            name = f"{vitals.UPDATE}/{group.get('name', number)}" if number else vitals.UPDATE
            values[name] = vitals.update_size(before, vitals.sample_weights(group["params"]))
        self._before = []
        log_values(module, values | ({vitals.LEFT: 1.0} if self._is_left else {}))

    def look(self, module: LitLanguageModel) -> Finding | None:
        """The early fault that the training losses show now."""
        steps, losses = zip(*self._rows, strict=True) if self._rows else ((), ())
        start = self._start or math.log(module.net.vocab_size)
        facts = Facts(warmup_steps=getattr(module.schedule, "warmup_steps", None))
        return early_fault(np.array(steps), np.array(losses), start, facts)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses up to the log point before: this one is not logged yet."""
        assert isinstance(pl_module, LitLanguageModel)
        if not trainer.is_global_zero or not is_log_step(trainer):
            return
        if is_due(trainer, trainer.global_step):
            self._log_vitals(trainer, pl_module, batch)
        if self._logged_at and metric_names.TRAIN_LOSS in pl_module.latest:
            self._rows.append((self._logged_at, pl_module.latest[metric_names.TRAIN_LOSS]))
        self._logged_at = trainer.global_step
        finding = self.look(pl_module)
        if finding is not None and finding.name not in self._said:
            self._said.add(finding.name)
            name = finding.name.replace("_", " ")
            pl_module.print(f"looks bad, {name}: {finding.says} Try: stop, and {finding.advice}")
