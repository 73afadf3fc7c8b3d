"""Signals that end a program -> a checkpoint at the end of the step, and a telling exit code."""

import faulthandler
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate import errors
from lmtemplate.callbacks.checkpointing import Checkpoint
from lmtemplate.module import is_logged

# SIGHUP: its terminal was closed; 85: send me to the queue again
EXIT_CODES = errors.SIGNALS

SAME_SECONDS = 0.3  # `timeout`, `make` and schedulers send one signal to process and group


def _heard() -> list[str]:
    """Those that this system knows, and that nobody (nohup, a shell's &) has told us to ignore."""
    known = [name for name in EXIT_CODES if hasattr(signal, name)]  # Windows has not all of them
    return [n for n in known if signal.getsignal(signal.Signals[n]) is not signal.SIG_IGN]


class SignalError(Exception):
    """A signal has ended the run after a step, and after its checkpoint."""

    def __init__(self, name: str) -> None:
        super().__init__(f"stopped by {name}")
        self.name = name
        self.exit_code = EXIT_CODES[name]


class _Watchdog(threading.Thread):
    """Hears each signal when the process gets it, also while the main thread hangs.

    Python runs handlers between two instructions of the main thread, which a data loader or a
    collective may keep from coming; the wake-up socket is written by the system's own handler.
    """

    ALIVE, PATIENT = b"\xff", b"\xfe"  # no numbers of signals

    def __init__(self, grace_seconds: float) -> None:
        super().__init__(daemon=True)
        self.grace_seconds = grace_seconds
        self._ears, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)

    def tell(self, word: bytes) -> None:
        """ALIVE: the grace begins anew. PATIENT: what is done now may take as long as it takes."""
        with suppress(BlockingIOError):
            self._mouth.send(word)

    def run(self) -> None:
        names = (name for name in EXIT_CODES if hasattr(signal, name))
        codes = {int(signal.Signals[name]): EXIT_CODES[name] for name in names}
        code: int | None = None
        heard = 0.0
        while True:
            try:
                word = self._ears.recv(1)
            except TimeoutError:
                print(
                    f"nothing has moved in {self.grace_seconds:g} s: stopping at once", flush=True
                )
                faulthandler.dump_traceback()
                os._exit(code or 1)
            if not word:
                return  # closed: the run is over
            if word[0] in codes:
                if code is not None and time.monotonic() - heard > SAME_SECONDS:
                    os._exit(code)  # the second one; every file is written whole or not at all
                code, heard = code or codes[word[0]], time.monotonic()
            self._ears.settimeout(
                None if word == self.PATIENT or code is None else self.grace_seconds
            )

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._mouth.close()
        self.join()
        self._ears.close()


def _forget_in_child() -> None:
    """A data loader's worker must not wake its parent's watchdog with the signals of its own."""
    if threading.current_thread() is threading.main_thread() and Signals.listens:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class Signals(Callback):
    """Ends a run at the next optimizer step, without losing one; a second signal ends it at once.

    The run that goes on from the checkpoint is the uninterrupted one: nothing is validated or
    logged that would not have been. Lightning's own handling of SIGTERM loses the steps since the
    last checkpoint and exits with 0.

    Args:
        grace_seconds: after which a run in which nothing moves, no batch and no validation, is
            ended where it is.
    """

    listens = False  # in this process

    def __init__(self, grace_seconds: float = 60.0) -> None:
        self.grace_seconds = grace_seconds
        self.received: str | None = None
        self._watchdog: _Watchdog | None = None
        self._heeds_term = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals, around the whole of `Trainer.fit`: Lightning restores what it finds."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may
            return
        self.received = None
        before = {name: signal.signal(signal.Signals[name], self._note) for name in _heard()}
        self._heeds_term = "SIGTERM" in before
        self._watchdog = _Watchdog(self.grace_seconds)
        self._watchdog.start()
        Signals.listens = True
        try:
            yield
        finally:
            Signals.listens = False
            self._watchdog.close()
            self._watchdog = None
            for name, handler in before.items():
                signal.signal(signal.Signals[name], handler)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._replace_lightnings(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._replace_lightnings(trainer)

    def _replace_lightnings(self, trainer: Trainer) -> None:
        """Its handler, which came after ours, and its wait for the device at each micro-batch."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note if self._heeds_term else signal.SIG_IGN)
        # processes agree at the steps that are logged (see on_train_batch_start)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1 and not is_logged(trainer, trainer.global_step):
            return  # ranks have to agree, which is not worth a wait at every step
        stop = self.received is not None
        if not trainer.strategy.reduce_boolean_decision(stop, all=False):
            return
        self._tell(_Watchdog.PATIENT)
        trainer.should_stop = True  # so that a save that fails now is an error
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint):
                callback.save_if_new(trainer)
        raise SignalError(self.received or "SIGTERM")

    def _tell(self, word: bytes) -> None:
        if self.received is not None and self._watchdog is not None:
            self._watchdog.tell(word)

    def on_train_batch_end(self, *_: Any) -> None:
        self._tell(_Watchdog.ALIVE)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._tell(_Watchdog.ALIVE)
