"""Logged values -> the record: a line at once, the arrays soon after."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmtemplate.record import TRAIN, VAL, Writer

SECONDS_BETWEEN_ARRAYS = 2.0
SHARE_OF_TIME = 1 / 200  # that rewriting the arrays, which grow with the run, may cost


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
