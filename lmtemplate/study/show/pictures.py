"""A run that goes on -> its two pictures, drawn anew once a minute."""

import subprocess
import time
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.callbacks.loggers import RecordLogger
from lmtemplate.module import is_log_step
from lmtemplate.run_dir import command

SECONDS_BETWEEN_PICTURES = 60.0
TIMES_AS_LONG = 20  # as drawing took: the wait before drawing again


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
