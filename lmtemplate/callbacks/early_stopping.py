"""Validation losses and the clock -> the end of the run."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks

from lmtemplate.errors import ConfigError
from lmtemplate.module import is_step_end


class EarlyStopping(callbacks.EarlyStopping):
    """Stop when validation no longer improves.

    Args:
        monitor: a value that each validation logs.
        patience: validations without improvement after which the run stops.
        min_delta: smallest change that counts as improvement.
        mode: "min" if lower is better, else "max".
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "min",
    ) -> None:
        if patience < 0:
            raise ConfigError(f"early_stopping.patience={patience} has to be 0 or more")
        if mode not in ("min", "max"):
            raise ConfigError(f"early_stopping.mode={mode} has to be min or max")
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=mode)
        self._ended_at: int | None = None  # max_steps of the run that this has ended

    @property
    def state_key(self) -> str:
        """Differs from that of Lightning's own EarlyStopping on the same monitor."""
        return "early_stopping"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was killed between its last save and its end."""
        if self._ended_at == trainer.max_steps:
            trainer.should_stop = True
        else:
            self.stopping_reason_message = None  # of the last start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._ended_at = trainer.max_steps if self.stopping_reason_message else None

    def state_dict(self) -> dict[str, Any]:
        own = {"ended_at": self._ended_at, "min_delta": self.min_delta}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning restores the old patience, so that a new setting would do nothing
        super().load_state_dict({**state_dict, "patience": self.patience})
        strict = self.wait_count >= self.patience and state_dict["min_delta"] == self.min_delta
        self._ended_at = state_dict["ended_at"] if strict else None


class RunEnd(callbacks.Callback):
    """End the run after its last step, or when its time is over, with a last validation.

    Args:
        max_seconds: of training and validation, over all restarts; None for no limit.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds
        self.seconds_before = 0.0
        self.out_of_time = False

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.max_seconds is not None and self.seconds_before >= self.max_seconds:
            self.out_of_time = trainer.should_stop = True  # a kill came before its end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_step_end(trainer, batch_idx):
            return
        if self.max_seconds is not None:
            out_of_time = self.seconds >= self.max_seconds
            self.out_of_time = trainer.strategy.reduce_boolean_decision(out_of_time, all=False)
        if self.out_of_time or trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it obeys

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before = float(state_dict["seconds"])
