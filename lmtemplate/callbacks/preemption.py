"""Signals that end a program -> a checkpoint at the end of the step, and an exit code."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.callbacks.run_end import any_rank, told
from lmtemplate.errors import SIGNALS, SignalError

SAME_SECONDS = 0.3  # `timeout`, `make` and schedulers send one signal to process and group


class Preemption(Callback):
    """End a run at the next optimizer step, without losing one; a second signal ends it at once.

    The run that continues from the checkpoint equals the uninterrupted one: nothing is validated or
    logged that would not have been. Lightning's own handling of SIGTERM loses the steps since the
    last checkpoint and exits with 0.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # name of the first signal
        self._received_at = 0.0
        self._ignores_term = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number).name, now
        elif now - self._received_at > SAME_SECONDS:
            os._exit(SIGNALS[self.received])  # safe: every file is written whole or not at all

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals around the whole of `Trainer.fit`: Lightning restores what it finds."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        self.received = None
        numbers = (signal.Signals[name] for name in SIGNALS)
        # nohup and a shell's & tell a program to ignore some
        heard = {n: old for n in numbers if (old := signal.getsignal(n)) != signal.SIG_IGN}
        self._ignores_term = signal.SIGTERM not in heard
        for number in heard:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in heard.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo Lightning's SIGTERM handler, and its wait for the device at each micro-batch."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self._ignores_term else self._note)
        loop = trainer.fit_loop.epoch_loop
        # private: raises AttributeError if Lightning renames it
        loop._broadcast_sigterm_tensor  # noqa: B018
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    on_sanity_check_start = on_train_start

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches:
            return
        if not any_rank(trainer, self.received is not None):
            return
        trainer.should_stop = True  # a save that fails now is an error
        if save := told(trainer, "save_if_new"):
            save(trainer)
        raise SignalError(self.received or "SIGTERM")
