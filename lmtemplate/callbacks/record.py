"""Logged values -> the record: a line at once, the arrays soon after, the pictures now and then."""

import math
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmtemplate.module import is_log_step
from lmtemplate.record import TRAIN, VAL, Writer
from lmtemplate.run_dir import command

SECONDS_BETWEEN_ARRAYS = 2.0
SHARE_OF_TIME = 1 / 200  # that rewriting the arrays, which grow with the run, may cost
SECONDS_BETWEEN_PICTURES = 60.0
TIMES_AS_LONG = 20  # as drawing took: the wait before drawing again


class RecordLogger(Logger):
    """Writes the record. Lightning's CSVLogger deletes what an earlier start of the run has logged.

    Values of one step come in several calls, of which the one with a loss is the last.

    Args:
        run_dir: the run directory.
        first_step: steps from here on are new.
    """

    name = "record"
    version = ""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.first_step = first_step
        self.writer: Writer | None = None
        self._pending: dict[int, dict[str, float]] = {}
        self._next_arrays = 0.0

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass  # config.yaml has them

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step or 0
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        losses = [value for name, value in values.items() if name in (TRAIN, VAL)]
        if not all(map(math.isfinite, losses)):
            self._append(step, values)  # bad news wait for nothing
            return
        self._pending.setdefault(step, {}).update(values)
        if losses:
            self._write_pending(step)
        if VAL in values or time.monotonic() >= self._next_arrays:
            self.save()

    def _write_pending(self, last_step: float) -> None:
        """Lines of the steps up to this one: what callbacks log themselves comes a step late."""
        for step in sorted(step for step in self._pending if step <= last_step):
            self._append(step, self._pending.pop(step))

    @rank_zero_only
    def log_samples(self, texts: Mapping[str, str], step: int) -> None:
        """Keep what the model wrote: prompt -> continuation."""
        self._append(step, {"samples": dict(texts)})

    def _append(self, step: int, values: Mapping[str, Any]) -> None:
        if self.writer is None:
            self.writer = Writer(self.run_dir, self.first_step)
        self.writer.append(step, values)

    @rank_zero_only
    def save(self) -> None:
        """Bring the arrays up to date."""
        if self.writer is None or not self.writer.changed:
            return
        start = time.monotonic()
        self.writer.write_arrays()
        cost = time.monotonic() - start
        self._next_arrays = start + max(SECONDS_BETWEEN_ARRAYS, cost / SHARE_OF_TIME)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write_pending(math.inf)
        self.save()


class Pictures(Callback):
    """Lets another process, of low priority, draw the record once a minute."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._wait = SECONDS_BETWEEN_PICTURES

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        recorded = any(isinstance(logger, RecordLogger) for logger in trainer.loggers)
        if not (recorded and trainer.is_global_zero and is_log_step(trainer, batch_idx)):
            return
        since = time.monotonic() - self._drawn_at
        if self._child is not None and self._child.poll() is None:
            self._wait = max(self._wait, TIMES_AS_LONG * since)  # a long record takes long to draw
        elif since >= self._wait:
            self._drawn_at = time.monotonic()
            with suppress(OSError):  # no more processes, or the working directory is gone
                self._child = subprocess.Popen(command("plot", trainer.default_root_dir, "--quiet"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._child is not None:
            self._child.terminate()  # the finished run is drawn by itself
            self._child.wait()
