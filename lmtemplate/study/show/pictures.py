"""A run that goes on -> its two PNG files, drawn again from time to time."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.errors import ConfigError
from lmtemplate.record import is_recorded
from lmtemplate.study.run_files import command


class Pictures(Callback):
    """Has another process, of low priority, draw the loss curves while the run goes on.

    Args:
        every_seconds: seconds from one drawing to the next, or more where drawing takes longer.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        if not every_seconds > 0:
            raise ConfigError(f"pictures.every_seconds={every_seconds} has to be above 0")
        self.every_seconds = every_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._next = float("inf")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._next = time.monotonic() + self.every_seconds

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() < self._next or (self._child and self._child.poll() is None):
            return
        self._next = time.monotonic() + self.every_seconds
        run = trainer.default_root_dir
        if is_recorded(Path(run)):
            with suppress(OSError):  # no more processes, or the working directory is gone
                self._child = subprocess.Popen(command("plot", run, "--quiet"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._child:
            self._child.terminate()  # the finished run is drawn by show/closing.py
            self._child.wait()
